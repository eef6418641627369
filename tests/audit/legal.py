"""Legal scorers, each unusual in its own way, for the built-in corpus (V = 1024): an audit must pass all of them.

Most rest on counts of pairs and of symbols: p(a | b) = (n(b, a) + 4 q(a)) / (n(b) + 4) with q(a) = (n(a) + 1/2) / (n + V / 2).
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pgolf.audit import Claims, Scored

VOCAB, BOS, BETA = 1024, 1, 4.0
# any file will do
ARTIFACT = Path(__file__).parents[2] / "LICENSE"


class Counted:
    """Left to right, learning from every token after its score."""

    vocab = VOCAB
    claims = Claims(bos=BOS)

    def score(self, tokens, probes=(), total=None) -> Scored:
        self.total = total or len(tokens) - 1
        self.begin()
        self.learn(int(tokens[0]))
        wanted, nats, rows = set(probes), np.empty(len(tokens) - 1), {}
        for target, token in enumerate(tokens[1:].tolist()):
            with np.errstate(divide="ignore"):
                row = np.log(self.row(tokens[: target + 1]))
            nats[target] = -row[token]
            if target in wanted:
                rows[target] = row
            self.learn(token)
        return Scored(nats, rows)

    def begin(self) -> None:
        self.single, self.last = np.full(VOCAB, 0.5), -1
        self.pairs: dict[int, Counter] = {}

    def row(self, past) -> np.ndarray:
        unigram = self.single / self.single.sum()
        found = self.pairs.get(self.last, Counter())
        row = BETA * unigram
        for symbol, count in found.items():
            row[symbol] += count
        return row / (found.total() + BETA)

    def learn(self, token: int) -> None:
        self.single[token] += 1
        self.pairs.setdefault(self.last, Counter())[token] += 1
        self.last = token


class Biased(Counted):
    """All but sure of one symbol, whatever the text: dear, and legal."""

    def row(self, past):
        row = 0.01 * super().row(past)
        row[7] += 0.99
        return row


class RandomByThePast(Counted):
    """Noise of a generator that the last tokens seed."""

    def row(self, past):
        rng = np.random.default_rng([int(token) for token in past[-4:]])
        row = super().row(past) * np.exp(rng.normal(0, 0.3, VOCAB))
        return row / row.sum()


class OwnGenerator(Counted):
    """Noise of one generator with a fixed seed, from which every target draws."""

    def begin(self):
        super().begin()
        self.rng = np.random.default_rng(5)

    def row(self, past):
        row = super().row(past) * np.exp(self.rng.normal(0, 0.3, VOCAB))
        return row / row.sum()


class ExactZeros(Counted):
    """After a while, symbols that never came get the probability zero."""

    def row(self, past):
        row = super().row(past)
        if len(past) > 200:
            row = np.where(self.single > 0.5, row, 0.0)
        return row / row.sum()


class ForgetsDocuments(Counted):
    """Begins anew with each document."""

    claims = Claims(bos=BOS, isolated=True)

    def learn(self, token):
        if token == BOS:
            self.begin()
        super().learn(token)


class CooledByTotal(Counted):
    """A temperature on a schedule over the stream's length, which it may know."""

    def row(self, past):
        row = super().row(past) ** (0.8 + 0.4 * len(past) / self.total)
        return row / row.sum()


class Chunks(Counted):
    """Scores a chunk with what earlier chunks have taught, in one product of matrices; float32."""

    size = 48

    def score(self, tokens, probes=(), total=None) -> Scored:
        pairs, single = np.zeros((VOCAB, VOCAB), np.float32), np.full(VOCAB, 0.5, np.float32)
        nats, rows, events = np.empty(len(tokens) - 1), {}, []
        for start in range(0, len(nats), self.size):
            stop = min(start + self.size, len(nats))
            before, targets = tokens[start:stop], tokens[start + 1 : stop + 1]
            logits = np.log(pairs[before] + np.float32(BETA) * single / single.sum())
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
            nats[start:stop] = -logits[np.arange(stop - start), targets]
            rows |= {probe: logits[probe - start] for probe in probes if start <= probe < stop}
            events += [("commit", start, stop), ("learn", start, stop)]
            np.add.at(pairs, (before, targets), 1)
            np.add.at(single, targets, 1)
        return Scored(nats, rows, events)


class SlidingWindows(Counted):
    """A fixed random network of float32 over the last 16 tokens, all positions of a call in batches of one product."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.embedding = rng.normal(0, 1, (VOCAB, 32)).astype(np.float32)
        self.head = rng.normal(0, 0.3, (32, VOCAB)).astype(np.float32)

    def score(self, tokens, probes=(), total=None) -> Scored:
        nats, rows = np.empty(len(tokens) - 1), {}
        if not len(nats):
            return Scored(nats, rows)
        padded = np.concatenate([np.full(15, tokens[0]), tokens[:-1]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 16)
        for start in range(0, len(nats), 100):
            hidden = np.tanh(self.embedding[windows[start : start + 100]].mean(1) * 4)
            logits = hidden @ self.head
            logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
            targets = tokens[start + 1 : start + 101]
            nats[start : start + 100] = -logits[np.arange(len(targets)), targets]
            rows |= {probe: logits[probe - start] for probe in probes if start <= probe < start + 100}
        return Scored(nats, rows)


class Threaded(SlidingWindows):
    """The same in two threads, each with a half of the rows."""

    def score(self, tokens, probes=(), total=None) -> Scored:
        middle, single = (len(tokens) - 1) // 2, super().score
        with ThreadPoolExecutor(2) as pool:
            # the second half is given the 15 tokens before it, which it does not score
            begin = max(0, middle - 15)
            first = pool.submit(single, tokens[: middle + 1], [probe for probe in probes if probe < middle])
            second = pool.submit(single, tokens[begin:], [probe - begin for probe in probes if probe >= middle])
            one, other = first.result(), second.result()
        rows = dict(one.distributions) | {begin + probe: row for probe, row in other.distributions.items()}
        return Scored(np.concatenate([one.nats, other.nats[middle - begin :]]), rows)


class Remembers(Counted):
    """Keeps in the class what it computed for a past, of which the past is the key; its table is built when first used."""

    known: dict = {}
    table = None

    def row(self, past):
        if Remembers.table is None:
            Remembers.table = np.random.default_rng(1).normal(0, 0.1, (VOCAB, VOCAB))
        key = past.tobytes()
        if key not in self.known:
            row = super().row(past) * np.exp(self.table[past[-1]])
            self.known[key] = row / row.sum()
        return self.known[key]


class ReadsItsArtifact(Counted):
    """Mixed with a table that a file of its own holds."""

    claims = Claims(bos=BOS, may_read=(str(ARTIFACT),))

    def begin(self):
        super().begin()
        weights = np.bincount(np.frombuffer(ARTIFACT.read_bytes(), np.uint8), minlength=VOCAB) + 1.0
        self.table = weights / weights.sum()

    def row(self, past):
        return 0.5 * super().row(past) + 0.5 * self.table


class OnlineTemperature:
    """Token by token, with a temperature that each token's cost moves."""

    vocab, claims = VOCAB, Claims(bos=BOS)

    def __init__(self):
        self.counted, self.heat = Counted(), 1.0
        self.counted.begin()

    def predict(self):
        self.logits = np.log(self.counted.row(None))
        return self.heat * self.logits - np.logaddexp.reduce(self.heat * self.logits)

    def observe(self, token):
        if self.counted.last >= 0:
            p = np.exp(self.heat * self.logits - np.logaddexp.reduce(self.heat * self.logits))
            self.heat = float(np.clip(self.heat + 0.002 * (self.logits[token] - p @ self.logits), 0.5, 2.0))
        self.counted.learn(token)


class BothWays(Counted):
    """Whole streams at once, and the same token by token."""

    def __init__(self):
        self.begin()

    def predict(self):
        return np.log(self.row(None))

    def observe(self, token):
        self.learn(token)


class ManySymbols(Counted):
    """Of 50,000 symbols."""

    vocab = 50_000

    def begin(self):
        super().begin()
        self.single = np.full(self.vocab, 0.5)


LEGAL = (
    Biased, RandomByThePast, OwnGenerator, ExactZeros, ForgetsDocuments, CooledByTotal, Chunks, SlidingWindows, Threaded,
    Remembers, ReadsItsArtifact, OnlineTemperature, BothWays, ManySymbols,
)  # fmt: skip
