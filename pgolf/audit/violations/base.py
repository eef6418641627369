"""What the cases share: a text with documents, a small legal model of counts, and scorers that go left to right."""

import numpy as np

from pgolf.audit.interface import Claims, Scored

VOCAB, BOS = 24, 1
CHUNK = 32
BETA = 2.0


def text(count: int = 400, seed: int = 0, document: int = 60) -> np.ndarray:
    """Documents of a Markov chain with few successors. The highest symbols never come."""
    rng = np.random.default_rng(seed)
    successors = np.random.default_rng(7).integers(2, VOCAB - 3, (VOCAB, 3))
    tokens = [BOS]
    while len(tokens) <= count:
        if rng.random() < 1 / document:
            tokens.append(BOS)
        else:
            tokens.append(int(successors[tokens[-1], min(rng.geometric(0.6) - 1, 2)]))
    return np.array(tokens)


def network(sharpness: float) -> np.ndarray:
    """(V, V) log-probabilities of a symbol after another, fixed and wrong."""
    logits = np.random.default_rng(2).normal(0, sharpness, (VOCAB, VOCAB))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


class Counts:
    """p(a | b) = (n(b, a) + 2 q(a)) / (n(b) + 2) with q(a) = (n(a) + 1/2) / (n + V/2): both are distributions."""

    def __init__(self):
        self.single, self.pairs = np.full(VOCAB, 0.5), np.zeros((VOCAB, VOCAB))
        self.after = np.zeros(VOCAB)
        self.last = -1

    def unigrams(self) -> np.ndarray:
        return self.single / self.single.sum()

    def probabilities(self) -> np.ndarray:
        if self.last < 0:
            return self.unigrams()
        return (self.pairs[self.last] + BETA * self.unigrams()) / (self.after[self.last] + BETA)

    def learn(self, token: int) -> None:
        self.single[token] += 1
        if self.last >= 0:
            self.pairs[self.last, token] += 1
            self.after[self.last] += 1
        self.last = token


class LeftToRight:
    """Legal as it stands. Cases change `row` (the probabilities of all symbols), `cost`, or the order of things."""

    vocab = VOCAB
    claims = Claims(bos=BOS)
    shows = True
    """Whether it shows whole distributions."""

    def score(self, tokens, probes=(), total=None) -> Scored:
        self.start(tokens)
        wanted, nats = set(probes), np.empty(len(tokens) - 1)
        distributions, events = {}, []
        for target in range(len(tokens) - 1):
            row = self.row(tokens, target)
            nats[target] = self.cost(row, tokens, target)
            if target in wanted and self.shows:
                with np.errstate(divide="ignore"):
                    distributions[target] = np.log(row)
            events.append(("commit", target, target + 1))
            self.learn(tokens, target)
            events.append(("learn", target, target + 1))
        return Scored(nats, distributions, events)

    def start(self, tokens) -> None:
        self.counts = Counts()
        self.counts.learn(int(tokens[0]))

    def row(self, tokens, target: int) -> np.ndarray:
        return self.counts.probabilities()

    def cost(self, row: np.ndarray, tokens, target: int) -> float:
        return -float(np.log(row[tokens[target + 1]]))

    def learn(self, tokens, target: int) -> None:
        self.counts.learn(int(tokens[target + 1]))


class Chunked(LeftToRight):
    """Legal as it stands: all of a chunk is scored with what was learnt from the chunks before it."""

    def score(self, tokens, probes=(), total=None) -> Scored:
        self.start(tokens)
        self.nats = np.empty(len(tokens) - 1)
        self.shown: dict[int, np.ndarray] = {}
        self.events: list[tuple] = []
        for start in range(0, len(tokens) - 1, CHUNK):
            self.chunk(tokens, start, min(start + CHUNK, len(tokens) - 1), set(probes))
        return Scored(self.nats, self.shown, self.events)

    def chunk(self, tokens, start: int, stop: int, probes: set[int]) -> None:
        self.commit(tokens, start, stop, probes)
        self.study(tokens, start, stop)

    def commit(self, tokens, start: int, stop: int, probes: set[int]) -> None:
        for target in range(start, stop):
            # the token before is context, not yet learnt from
            self.counts.last = int(tokens[target])
            row = self.row(tokens, target)
            self.nats[target] = self.cost(row, tokens, target)
            if target in probes and self.shows:
                with np.errstate(divide="ignore"):
                    self.shown[target] = np.log(row)
        self.events.append(("commit", start, stop))

    def study(self, tokens, start: int, stop: int) -> None:
        self.counts.last = int(tokens[start])
        for target in range(start, stop):
            self.counts.learn(int(tokens[target + 1]))
        self.events.append(("learn", start, stop))
