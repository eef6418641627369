"""The mixer on a CPU, against transcriptions of the rules in plain Python: dictionaries, loops and no cleverness."""

import math

import numpy as np
import pytest
import torch

from bench.eager import EagerFive
from pgolf.kernels import threads as pool
from pgolf.kernels.hedge import (
    BoostedCache,
    HedgeMixer,
    NeuralStatistics,
    NgramBackoff,
    OnlineBias,
    cpu,
    learn_table,
    neural_statistics,
    op,
    reference,
)
from tests.kernels.compare import assert_close

EXACT = 1e-11


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


def repeating_tokens(count, vocabulary, seed=0):
    """Tokens with enough repetition for contexts to come back."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (count,), generator=generator)
    for _ in range(count // 12):
        source, target = torch.randint(0, count - 9, (2,), generator=generator).tolist()
        tokens[target : target + 8] = tokens[source : source + 8].clone()
    return tokens


def starts(documents, count):
    found = torch.zeros(count, dtype=torch.bool)
    found[documents[:-1]] = True
    return found


# ---- statistics


def test_peaks_are_those_of_torch():
    inf, nan = math.inf, math.nan
    odd = [[-0.0, 0.0, -1e-45], [-3.0, -2.5, -inf], [inf, 1.0, 2.0], [-inf, -inf, -inf], [1.0, nan, inf], [3e38, -nan, -1.0]]
    rows = torch.cat([torch.tensor(odd), torch.randn(50, 3) * 10 ** (8 * torch.randn(50, 1))])
    found = np.full(len(rows), 7, np.float32)
    cpu.peaks_of(rows.numpy(), found)
    assert np.array_equal(found, rows.amax(1).numpy(), equal_nan=True)
    statistics = neural_statistics(rows[4:6], torch.tensor([0, 0]))
    assert all(bool(x.isnan().all()) for x in statistics[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 7, 257, 1000])
def test_statistics_against_softmax(vocabulary, dtype):
    logits = (torch.randn(3, 11, vocabulary) * 5).to(dtype)
    targets = torch.randint(0, vocabulary, (3, 11))
    candidates = torch.randint(-1, vocabulary, (3, 11, 5), dtype=torch.int32)
    temperature = torch.rand(3, 11, dtype=torch.float64) + 0.5
    for t in (1.0, 0.98, temperature):
        found = neural_statistics(logits, targets, candidates, t)
        probs = torch.softmax(logits.double() / (t[..., None] if torch.is_tensor(t) else t), -1)
        picked = probs.gather(-1, candidates.long().clamp_min(0)).log()
        assert all(x.dtype == torch.float64 for x in found)
        assert_close(found.lse, (logits.double() / (t[..., None] if torch.is_tensor(t) else t)).logsumexp(-1), EXACT, "lse")
        assert torch.allclose(found.entropy, -torch.special.xlogy(probs, probs).sum(-1), atol=1e-11)
        assert torch.allclose(found.target, probs.gather(-1, targets[..., None]).log()[..., 0], atol=1e-11)
        assert torch.allclose(found.candidates, torch.where(candidates >= 0, picked, -math.inf), atol=1e-11)


def test_statistics_of_extreme_rows():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [2e4, -2e4, 0.0], [-1e3, -1e3, -1e3]])
    found = neural_statistics(logits, torch.tensor([1, 0, 2]))
    assert found.entropy.tolist() == pytest.approx([math.log(2), 0, math.log(3)], abs=1e-12)
    assert found.target.tolist() == pytest.approx([-math.inf, 0, -math.log(3)], abs=1e-12)


def test_statistics_gradients():
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    temperature = (torch.rand(4, dtype=torch.float64) + 0.5).requires_grad_()
    targets, candidates = torch.randint(0, 9, (4,)), torch.randint(-1, 9, (4, 3))
    candidates[0] = torch.tensor([2, 2, -1])

    def finite(z, t):
        found = neural_statistics(z, targets, candidates, t)
        return *found[:3], torch.where(candidates >= 0, found.candidates, 0)

    assert torch.autograd.gradcheck(finite, (logits, temperature))
    assert torch.autograd.gradcheck(finite, (logits, torch.tensor([0.7], dtype=torch.float64, requires_grad=True)))


def test_statistics_are_the_same_for_any_number_of_threads(monkeypatch):
    logits, targets = torch.randn(700, 1000), torch.randint(0, 1000, (700,))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found.append(neural_statistics(logits, targets, targets[:, None]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ---- `published`


class PlainFive:
    """The five experts, one position at a time."""

    def __init__(self, vocabulary, buckets, warmup):
        self.vocabulary, self.buckets, self.warmup = vocabulary, buckets, warmup
        self.unigram, self.bigram, self.trigram, self.tokens = {}, {}, {}, 0
        self.log_weights = [2.0, 0.0, 0.0, 0.0, 0.0]

    def experts(self, log_probs, window, position):
        y, p1 = window[position + 1], window[position]
        p2 = window[position - 1] if position else 0
        h = ((36313 * p2) ^ (27191 * p1)) % self.buckets
        row = self.bigram.get(p1, {})
        bucket = self.trigram.get(h, {})
        v = self.vocabulary
        return [
            -log_probs[y],
            -math.log((self.unigram.get(y, 0) + 0.1) / (self.tokens + 0.1 * v)),
            -math.log((row.get(y, 0) + 0.1) / (sum(row.values()) + 0.1 * v)),
            -math.log((bucket.get(y, 0) + 0.01) / (max(sum(bucket.values()), 1) + 0.01 * v)),
            -sum(math.exp(x) * x for x in log_probs),
        ]

    def batch(self, windows, log_probs):
        """NLLs of every position of every window, then one step of the weights."""
        nlls, sums, count = [], [0.0] * 5, 0
        normaliser = math.log(sum(math.exp(w) for w in self.log_weights))
        for window, rows in zip(windows, log_probs, strict=True):
            for position in range(len(window) - 1):
                losses = self.experts(rows[position], window, position)
                if self.tokens < self.warmup:
                    nlls.append(losses[0])
                    continue
                nlls.append(
                    -math.log(sum(math.exp(w - normaliser - e) for w, e in zip(self.log_weights, losses, strict=True)))
                )
                sums = [s + e for s, e in zip(sums, losses, strict=True)]
                count += 1
        if count:
            self.log_weights = [w - 0.1 * s / count for w, s in zip(self.log_weights, sums, strict=True)]
        return nlls

    def count(self, chunk):
        for i, y in enumerate(chunk):
            self.unigram[y] = self.unigram.get(y, 0) + 1
            if i >= 1:
                row = self.bigram.setdefault(chunk[i - 1], {})
                row[y] = row.get(y, 0) + 1
            if i >= 2:
                bucket = self.trigram.setdefault(((36313 * chunk[i - 2]) ^ (27191 * chunk[i - 1])) % self.buckets, {})
                bucket[y] = bucket.get(y, 0) + 1
        self.tokens += len(chunk)


def test_published_against_a_transcription_over_chunks_and_the_tail():
    vocabulary, chunk, length, stride, total = 13, 60, 24, 8, 205
    stream = repeating_tokens(total + 1, vocabulary)
    plain = PlainFive(vocabulary, buckets=32, warmup=100)
    whole, fast = (HedgeMixer(vocabulary, buckets=32, warmup=100) for _ in range(2))
    windows = [w for w in range(0, total, stride) if min(w + length, total) - w >= stride or w == 0]
    scored_positions = 0
    for begin in range(0, total, chunk):
        mine = [w for w in windows if begin <= (w + max(min(length, total - w) - stride, 0) if w else 0) < begin + chunk]
        span = stream[: min(begin + chunk, total) + 1 + length]
        ngrams = fast.ngrams(span)
        for group in (mine[:3], mine[3:]):
            if not group:
                continue
            lengths = [min(length, total - w) for w in group]
            kept = [size if w == 0 else stride for w, size in zip(group, lengths, strict=True)]
            logits = torch.randn(len(group), length, vocabulary, dtype=torch.float64) * 2
            valid = torch.arange(length) < torch.tensor(lengths)[:, None]
            padded = torch.stack([torch.cat([stream, stream.new_zeros(length)])[w : w + length + 1] for w in group])
            inputs, targets = torch.where(valid, padded[:, :-1], 0), torch.where(valid, padded[:, 1:], 0)
            rows = [logits.log_softmax(-1)[i, :size].tolist() for i, size in enumerate(lengths)]
            expected = plain.batch([stream[w : w + size + 1].tolist() for w, size in zip(group, lengths, strict=True)], rows)
            statistics = neural_statistics(logits, targets)
            scores = whole.score(statistics, inputs, targets, valid)
            whole.learn(scores)
            assert scores.nll[valid].tolist() == pytest.approx(expected, abs=1e-10)
            few = fast.score_windows(statistics, ngrams, group, lengths, kept)
            fast.learn(few)
            last = torch.arange(length) >= torch.tensor([size - k for size, k in zip(lengths, kept, strict=True)])[:, None]
            assert torch.allclose(few.nll, scores.nll[valid & last], atol=1e-11)
            if scores.experts is not None:
                assert torch.allclose(few.experts, scores.experts[:, valid & last], atol=1e-10)
                assert torch.allclose(few.sums, scores.sums, atol=1e-8)
                scored_positions += sum(kept)
            for mixer in (whole, fast):
                assert mixer.log_weights.tolist() == pytest.approx(plain.log_weights, abs=1e-10)
        for mixer in (whole, fast):
            mixer.count(stream[begin : min(begin + chunk, total) + 1])
        plain.count(stream[begin : min(begin + chunk, total) + 1].tolist())
        assert whole.tokens == plain.tokens
        for y in range(vocabulary):
            assert whole.unigram[y] == plain.unigram.get(y, 0)
            assert whole.bigram[y].tolist() == [plain.bigram.get(y, {}).get(a, 0) for a in range(vocabulary)]
        for h in range(32):
            assert whole.trigram[h].tolist() == [plain.trigram.get(h, {}).get(a, 0) for a in range(vocabulary)]
        assert torch.equal(whole.bigram_total, whole.bigram.sum(1).int())
        assert torch.equal(whole.trigram_total, whole.trigram.sum(1).int())
    assert scored_positions > 50 and plain.log_weights[0] != 2


def test_published_reference_agrees_and_its_mass_is_the_entropy_experts():
    vocabulary = 17
    mixer = HedgeMixer(vocabulary, buckets=64, warmup=0)
    mixer.count(repeating_tokens(400, vocabulary))
    inputs, targets = torch.randint(0, vocabulary, (2, 2, 300))
    logits = torch.randn(2, 300, vocabulary)
    statistics = neural_statistics(logits, targets)
    valid = torch.rand(2, 300) > 0.2
    found = mixer.score(statistics, inputs, targets, valid)
    nll, experts, sums = reference.five_reference(
        *statistics[2:0:-1], inputs, targets, valid, *mixer.tables, mixer.log_weights, 400
    )
    assert_close(found.nll, nll, EXACT)
    assert_close(found.experts, experts.permute(2, 0, 1), EXACT)
    assert_close(found.sums, sums, EXACT)
    # every symbol in turn as the target of one position whose trigram row is not empty
    place = next(
        t for t in range(1, 300) if mixer.trigram_total[reference.trigram_bucket(inputs[0, t - 1], inputs[0, t], 64)] > 0
    )
    rows = inputs[:1].expand(vocabulary, -1)
    each = torch.arange(vocabulary)[:, None].expand(vocabulary, 300)
    swept = neural_statistics(logits[:1].expand(vocabulary, -1, -1), each)
    mass = mixer.score(swept, rows, each).nll.neg().exp().sum(0)
    assert mass[place].item() == pytest.approx(mixer.mass(statistics.entropy)[0, place].item(), rel=1e-10)
    assert mass[place] > 1.02


def test_the_rates_are_those_of_the_same_arithmetic():
    vocabulary = 23
    tokens = repeating_tokens(400, vocabulary)
    mixer = HedgeMixer(vocabulary, warmup=0)
    mixer.count(tokens)
    eager = EagerFive(mixer)
    inputs, targets = tokens[:240].reshape(3, 80), tokens[1:241].reshape(3, 80)
    logits, valid = torch.randn(3, 80, vocabulary), torch.rand(3, 80) > 0.1
    for _ in range(2):
        scores = mixer.score(neural_statistics(logits, targets), inputs, targets, valid)
        mixer.learn(scores)
        assert torch.allclose(eager.step_from_logits(logits, inputs, targets, valid).double(), scores.nll, atol=1e-5)
        assert torch.allclose(eager.log_weights.double(), mixer.log_weights, atol=1e-5)


def test_published_counts_equal_the_reference():
    found, expected = HedgeMixer(9, buckets=16), HedgeMixer(9, buckets=16)
    tokens = repeating_tokens(500, 9)
    found.count(tokens)
    reference.five_count_reference(tokens, *expected.tables)
    assert all(torch.equal(a, b) for a, b in zip(found.tables, expected.tables, strict=True))


def test_published_windows_say_what_is_wrong():
    mixer = HedgeMixer(5, warmup=0)
    tokens = torch.zeros(20, dtype=torch.long)
    ngrams = mixer.ngrams(tokens)
    statistics = neural_statistics(torch.randn(1, 8, 5), tokens[None, :8])
    with pytest.raises(ValueError, match="does not fit"):
        mixer.score_windows(statistics, ngrams, [13], [8], [2])
    mixer.count(tokens)
    with pytest.raises(ValueError, match="before the last count"):
        mixer.score_windows(statistics, ngrams, [0], [8], [2])
    with pytest.raises(ValueError, match="inputs"):
        mixer.score(statistics, tokens[None, :7], tokens[None, :8])
    with pytest.raises(ValueError, match="0..4"):
        mixer.count(torch.tensor([5]))


# ---- `published_boost`


def plain_boost(stream, windows, numbers, buckets):
    """The nine-order cache over windows (begin, end, scored), one target at a time, with dictionaries for tables."""
    primes = [36313, 27191, 51647, 81929, 131071, 175447, 209591]
    context_tables, full_tables, weights, found = [{} for _ in range(9)], [{} for _ in range(9)], [0.5, 0.5], []

    def keys(g):
        for n in range(2, 11):
            if g - n >= 0:
                h = 0
                for k in range(n - 1):
                    h = ((h ^ (stream[g - n + k] * primes[k % 7])) * 2654435761) % 2**64
                full = ((h ^ (stream[g] * primes[(n - 1) % 7])) * 2654435761) % 2**64
                yield n - 2, h % buckets, full % buckets

    for begin, end, scored in windows:
        sums = [0.0, 0.0]
        for g in range(end - scored, end):
            lp, entropy = numbers[g]
            beta = [0.0]
            for table, h, f in keys(g):
                c, full = context_tables[table].get(h, 0), full_tables[table].get(f, 0)
                if c > 0 and full > 0:
                    beta.append(math.log(1 + full) - math.log(1 + max(c - full, 1)))
            b = max(beta)
            alpha = 0.05 + 0.55 / (1 + math.exp(2 * (entropy - 4))) if b else 0
            boosted = lp + alpha * b
            top = max(lp, boosted)
            mixed = weights[0] * math.exp(lp - top) + weights[1] * math.exp(boosted - top)
            found.append((-math.log(mixed + 1e-30) - top, -lp, -boosted))
            sums = [sums[0] - lp, sums[1] - boosted]
        weights = [w * math.exp(-0.1 * s / scored) for w, s in zip(weights, sums, strict=True)]
        weights = [w / sum(weights) for w in weights]
        for g in range(begin, end):
            for table, h, f in keys(g):
                context_tables[table][h] = context_tables[table].get(h, 0) + 1
                full_tables[table][f] = full_tables[table].get(f, 0) + 1
    return found, weights, context_tables, full_tables


@pytest.mark.parametrize("buckets", [16, 4096])
def test_boost_against_a_transcription(buckets):
    stream = repeating_tokens(220, 6)
    windows = [(1, 65, 64), *((w + 1, w + 65, 8) for w in range(8, 150, 8)), (180, 181, 1)]
    log_probs, entropy = -torch.rand(220, dtype=torch.float64) * 4, torch.rand(220, dtype=torch.float64) * 7
    numbers = list(zip(log_probs.tolist(), entropy.tolist(), strict=True))
    expected, weights, contexts, fulls = plain_boost(stream.tolist(), windows, numbers, buckets)
    cache, found = BoostedCache(buckets=buckets), []
    for begin, end, scored in windows:
        here = slice(end - scored, end)
        found.append(cache.score(stream, begin, end, log_probs[here], entropy[here]))
    assert torch.allclose(torch.cat(found), torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert cache.weights.tolist() == pytest.approx(weights, abs=1e-12)
    assert weights[1] > 0.51
    for order in range(9):
        assert cache.contexts[order].tolist() == [contexts[order].get(h, 0) for h in range(buckets)]
        assert cache.fulls[order].tolist() == [fulls[order].get(h, 0) for h in range(buckets)]


def test_boost_reference_agrees():
    stream = repeating_tokens(90, 4)
    cache = BoostedCache(buckets=64)
    contexts, fulls = (torch.zeros(9, 64, dtype=torch.int64) for _ in range(2))
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for begin, end, scored in ((1, 40, 39), (20, 60, 13), (50, 90, 20)):
        numbers = -torch.rand(scored, dtype=torch.float64), torch.rand(scored, dtype=torch.float64) * 5
        found = cache.score(stream, begin, end, *numbers)
        expected = reference.boost_window_reference(stream, begin, end, scored, *numbers, contexts, fulls, weights)
        assert torch.allclose(found, expected, atol=1e-12)
    assert contexts.tolist() == cache.contexts.tolist() and fulls.tolist() == cache.fulls.tolist()
    assert cache.weights.tolist() == pytest.approx(weights.tolist(), abs=1e-12)


def test_online_bias():
    bias, expected = OnlineBias(5, rate=0.01), torch.zeros(5)
    for _ in range(3):
        raw, targets = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
        logits = bias.apply(raw)
        assert torch.allclose(logits, raw + expected)
        for a in range(5):
            frequency = (targets == a).float().mean()
            expected[a] += 0.01 * (frequency - (raw + expected.clone() if a == 0 else logits).softmax(-1)[..., a].mean())
        bias.learn(logits, targets)
        assert torch.allclose(bias.bias, expected, atol=1e-7)
    assert bias.bias.abs().max() > 1e-4
    bias.reset()
    assert not bias.bias.any()


# ---- `normalised`


class PlainNgramBackoff:
    """The n-gram back-off, one token at a time; a level's counts: {context: [[symbol, count], ...]}, latest symbol first."""

    def __init__(self, local, shared, granularity, table, learn=False, floor=2e-3):
        self.levels = [(order, False) for order in local] + [(order, True) for order in shared]
        self.granularity, self.learn, self.floor = granularity, learn, floor
        self.table = {}
        self.first = table
        self.visits = {}
        self.counts = [{} for _ in self.levels]
        self.document, self.pending, self.lessons = [], [], []

    def _update(self):
        for level, context, token in self.pending:
            entry = self.counts[level].setdefault(context, [])
            for pair in entry:
                if pair[0] == token:
                    pair[1] += 1
                    break
            else:
                entry.insert(0, [token, 1])
        self.pending = []

    def _teach(self):
        for cell, posterior in self.lessons:
            rate = max(self.floor, 1 / (self.visits.get(cell, 0) + 20))
            w = self._weight(cell)
            self.table[cell] = min(max(w + rate * (posterior - w), 1e-4), 0.9995)
            self.visits[cell] = self.visits.get(cell, 0) + 1
        self.lessons = []

    def _weight(self, cell):
        return self.table.get(cell, float(self.first[cell]))

    def before(self):
        """Bring the state up to what may be known about the next token."""
        if len(self.document) % self.granularity == 0:
            self._update()
        if len(self.document) % self.granularity == 0 or len(self.document) == 1:
            self._teach()

    def steps(self, log_probs):
        for level, (order, _) in enumerate(self.levels):
            if len(self.document) < order:
                continue
            entry = self.counts[level].get(tuple(self.document[len(self.document) - order :]))
            if not entry:
                continue
            n, u = sum(c for _, c in entry), len(entry)
            top = max(entry, key=lambda pair: pair[1])[0]
            q = sum(log_probs[top] >= cut for cut in (-9, -6, -4, -2.5, -1.5, -0.8, -0.35, -0.1))
            size = [n <= 1, n <= 2, n <= 4, n <= 8, n <= 16, n <= 64, n <= 256, True].index(True)
            spread = 0 if u == 1 else 1 if u <= n / 4 else 2 if u <= n / 2 else 3
            yield (level, q, 1 + 4 * size + spread), dict(map(tuple, entry)), n

    def predict(self, log_probs):
        self.before()
        mixed = [math.exp(x) for x in log_probs]
        for cell, counts, n in self.steps(log_probs):
            w = self._weight(cell)
            mixed = [(1 - w) * p + w * counts.get(a, 0) / n for a, p in enumerate(mixed)]
        return mixed

    def observe(self, log_probs, token, start):
        if self.learn:
            p = math.exp(log_probs[token])
            for cell, counts, n in self.steps(log_probs):
                w, q = self._weight(cell), counts.get(token, 0) / n
                after = (1 - w) * p + w * q
                self.lessons.append((cell, w * q / after))
                p = after
        if start:
            self._update()
            self.document = []
            self.counts = [counts if shared else {} for counts, (_, shared) in zip(self.counts, self.levels, strict=True)]
        for level, (order, _) in enumerate(self.levels):
            if len(self.document) >= order:
                self.pending.append((level, tuple(self.document[len(self.document) - order :]), token))
        self.document.append(token)


def some_table(levels, seed=3):
    return torch.rand(levels, 9, 33, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9 + 0.05


def scored(ngram_backoff, tokens, documents, logits, learn=False):
    evidence = ngram_backoff.evidence(tokens, documents)
    statistics = neural_statistics(logits, tokens, evidence.top)
    return evidence, statistics, (ngram_backoff.mix_and_learn if learn else ngram_backoff.mix)(statistics, evidence)


LEVELS = [((1, 2, 3, 4), ()), ((0, 2), (1, 3)), ((), (0, 2)), ((1, 2, 3, 4, 5, 6), (3,))]
DOCUMENTS = torch.tensor([0, 1, 40, 41, 150, 260])


@pytest.mark.parametrize("granularity", [1, 7, 64, 100])
@pytest.mark.parametrize("local, shared", LEVELS)
@pytest.mark.parametrize("learn", [False, True])
def test_ngram_backoff_against_a_transcription_and_its_stream(local, shared, granularity, learn):
    vocabulary, count = 6, 260
    tokens = repeating_tokens(count, vocabulary)
    logits = torch.randn(count, vocabulary, dtype=torch.float64) * 2
    table = some_table(len(local) + len(shared))
    ngram_backoff, other = (NgramBackoff(local, shared, granularity=granularity, table=table) for _ in range(2))
    plain = PlainNgramBackoff(local, shared, granularity, table, learn)
    _, statistics, scores = scored(ngram_backoff, tokens, DOCUMENTS, logits, learn)
    log_probs = logits - statistics.lse[:, None]
    stream = other.stream(vocabulary, learn=learn)
    opening = starts(DOCUMENTS, count)
    for t in range(count):
        row = log_probs[t].tolist()
        expected = plain.predict(row)
        found = stream.predict(log_probs[t])
        assert abs(sum(expected) - 1) < 1e-12 and abs(found.sum().item() - 1) < 1e-12
        assert found.tolist() == pytest.approx(expected, abs=1e-13)
        assert scores.nll[t].item() == pytest.approx(-math.log(expected[tokens[t]]), abs=1e-12)
        stream.observe(int(tokens[t]), bool(opening[t]))
        plain.observe(row, int(tokens[t]), bool(opening[t]))
    if learn:
        plain._teach()
        for mine in (ngram_backoff, other):
            mine.settle()
        assert torch.allclose(ngram_backoff.table, other.table, atol=1e-13)
        assert plain.table and all(
            ngram_backoff.table[cell].item() == pytest.approx(w, abs=1e-12) for cell, w in plain.table.items()
        )
        assert (ngram_backoff.table != table).sum() == len(plain.table)
    else:
        assert torch.equal(ngram_backoff.table, table)


@pytest.mark.parametrize("granularity", [1, 5])
@pytest.mark.parametrize("local, shared", LEVELS)
def test_evidence_reference_agrees(local, shared, granularity):
    tokens = repeating_tokens(260, 5)
    found = NgramBackoff(local, shared, granularity=granularity).evidence(tokens, DOCUMENTS)
    parts = [
        reference.evidence_reference(tokens, starts(DOCUMENTS, 260), orders, granularity, kind)
        for orders, kind in ((local, False), (shared, True))
        if orders
    ]
    for name, x, expected in zip(found._fields, found, zip(*parts, strict=True), strict=False):
        assert torch.equal(x, torch.cat(expected, 1)), name
    assert found.cell.max() > 8 and found.hits.max() > 3


def test_mixture_references_agree():
    tokens, logits = repeating_tokens(260, 5), torch.randn(260, 5, dtype=torch.float64)
    ngram_backoff = NgramBackoff((0, 1, 3), granularity=5, table=some_table(3))
    evidence, statistics, scores = scored(ngram_backoff, tokens, DOCUMENTS, logits)
    rows = (statistics.target, statistics.candidates, *evidence[1:4])
    for found, expected in zip(scores, reference.mix_reference(*rows, ngram_backoff.table), strict=True):
        assert_close(found, expected, EXACT)
    table, visits, waiting = ngram_backoff.table.clone(), ngram_backoff.visits.clone(), []
    learnt = ngram_backoff.mix_and_learn(statistics, evidence)
    again = reference.mix_online_reference(*rows, evidence.fresh, table, visits, waiting, ngram_backoff.floor)
    assert_close(learnt.nll, again[0], EXACT)
    assert_close(learnt.share, again[1], EXACT)
    assert_close(ngram_backoff.table, table, EXACT)
    assert torch.equal(ngram_backoff.visits, visits) and int(ngram_backoff.waiting) == len(waiting) > 0


def test_ngram_backoff_whole_distribution_sums_to_one_and_is_what_mix_reads():
    count, vocabulary = 300, 40
    tokens, logits = repeating_tokens(count, vocabulary), torch.randn(count, vocabulary) * 3
    documents = torch.tensor([0, 130, count])
    ngram_backoff = NgramBackoff((1, 2, 3, 4), (2, 5), granularity=3, table=some_table(6))
    _, statistics, scores = scored(ngram_backoff, tokens, documents, logits)
    at = torch.arange(1, count, 7)
    log_probs = logits[at].double() - statistics.lse[at, None]
    dense = ngram_backoff.distribution(log_probs, tokens, documents, at)
    assert dense.dtype == torch.float64 and (dense.sum(1) - 1).abs().max() < 1e-12 and dense.min() >= 0
    assert torch.allclose(-dense[torch.arange(len(at)), tokens[at]].log(), scores.nll[at], atol=1e-12)
    # what a token turns out to be changes nothing in the distribution that was committed before it
    for place in (at[5], at[20], documents[1]):
        changed = tokens.clone()
        changed[place] = (tokens[place] + 1) % vocabulary
        here = place.reshape(1)
        row = logits[here].double() - statistics.lse[here, None]
        assert torch.equal(
            ngram_backoff.distribution(row, changed, documents, here), ngram_backoff.distribution(row, tokens, documents, here)
        )


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("learn", [False, True])
def test_ngram_backoff_future_changes_nothing(granularity, learn):
    count, cut = 200, 117
    tokens, logits = repeating_tokens(count, 8), torch.randn(count, 8)
    other, changed = tokens.clone(), logits.clone()
    other[cut:] = torch.randint(0, 8, (count - cut,))
    changed[cut:] = torch.randn(count - cut, 8)
    documents = torch.tensor([0, 60, count])
    first, second = (
        scored(NgramBackoff((1, 2, 4), (2,), granularity=granularity), *rest, learn)
        for rest in ((tokens, documents, logits), (other, documents, changed))
    )
    assert torch.equal(first[2].nll[:cut], second[2].nll[:cut])
    assert not torch.equal(first[2].nll[cut:], second[2].nll[cut:])
    assert torch.equal(first[0].top[: cut + 1], second[0].top[: cut + 1])


def test_documents_do_not_know_each_other():
    lengths = [1, 90, 33, 2, 150, 71]
    pieces = [repeating_tokens(300, 7, seed)[:n] for seed, n in enumerate(lengths)]
    ngram_backoff = NgramBackoff((0, 1, 2, 3, 4, 5))

    def in_order(order):
        bounds = torch.tensor([0, *torch.tensor([lengths[i] for i in order]).cumsum(0).tolist()])
        evidence = ngram_backoff.evidence(torch.cat([pieces[i] for i in order]), bounds)
        # the first token of a document is read in the one before it
        return {i: [x[bounds[k] + 1 : bounds[k + 1]] for x in evidence] for k, i in enumerate(order)}

    first, second = in_order([0, 1, 2, 3, 4, 5]), in_order([4, 2, 5, 0, 3, 1])
    for i in range(6):
        assert all(torch.equal(a, b) for a, b in zip(first[i], second[i], strict=True)), f"document {i}"


@pytest.mark.parametrize("threads", [2, 5])
def test_evidence_is_the_same_for_any_number_of_threads(threads, monkeypatch):
    tokens = repeating_tokens(400, 7)
    documents = torch.tensor([0, 10, 11, 12, 200, 390, 400])
    ngram_backoff = NgramBackoff((1, 2, 3), (2,), granularity=4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = ngram_backoff.evidence(tokens, documents)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(pool.os, "cpu_count", lambda: threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, ngram_backoff.evidence(tokens, documents), strict=True))
    spans = op.spans_of_documents(documents.tolist(), threads)
    assert spans[0][0] == 0 and spans[-1][1] == 400 and 1 < len(spans) <= threads
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_collisions_are_told_apart():
    from pgolf.kernels.hedge.trie import Trie

    tokens = repeating_tokens(600, 30).int()
    opening = torch.zeros(600, dtype=torch.bool)
    opening[[0, 300]] = True
    found = []
    for kwargs in ({}, {"multiplier": 0}):
        trie = Trie((1, 2, 3), 1, False, **kwargs)
        found.append(trie.new_evidence(600))
        trie.follow(tokens, opening, found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (found[0][3] > 1).sum() > 300


def test_granularity_is_how_stale_the_counts_are():
    tokens = torch.tensor([3, 5] * 20)
    for granularity in (1, 4, 16):
        total = NgramBackoff((1,), granularity=granularity).evidence(tokens).total[:, 0]
        # before token t, the groups that are over hold t // G * G tokens, and tokens[t - 1] came before some of them
        expected = [
            sum(tokens[i - 1] == tokens[t - 1] for i in range(1, t // granularity * granularity)) for t in range(1, 40)
        ]
        assert total[1:].tolist() == [int(x) for x in expected]


def test_ties_go_to_the_symbol_first_seen_last():
    top = NgramBackoff((0,)).evidence(torch.tensor([4, 2, 2, 4, 7, 7])).top[:, 0]
    assert top.tolist() == [-1, 4, 2, 2, 2, 2]
    assert NgramBackoff((0,)).evidence(torch.tensor([4, 2, 4, 2, 0])).top[-1] == 2


def test_stream_in_pieces_equals_the_whole():
    tokens = repeating_tokens(260, 6)
    opening = starts(DOCUMENTS, 260)
    ngram_backoff = NgramBackoff((1, 2, 3), (2, 4), granularity=7)
    whole = ngram_backoff.evidence(tokens, DOCUMENTS)
    for sizes in ([1] * 260, [100, 3, 0, 57, 100]):
        stream, begin, parts = ngram_backoff.stream(6), 0, []
        for size in sizes:
            parts.append(stream.read(tokens[begin : begin + size], opening[begin : begin + size]))
            begin += size
        assert all(torch.equal(torch.cat(x), y) for x, y in zip(zip(*parts, strict=True), whole, strict=True))
    stream = ngram_backoff.stream(6)
    stream.read(tokens[:200], opening[:200])
    assert torch.equal(stream.candidates(), whole.top[200])


def test_learnt_table_pays_on_other_text():
    vocabulary = 20
    train, held_out = (repeating_tokens(4000, vocabulary, seed) for seed in (1, 2))
    logits = torch.zeros(4000, vocabulary)
    ngram_backoff = NgramBackoff((1, 2, 3))
    evidence, statistics, _ = scored(ngram_backoff, train, None, logits)
    table = learn_table(ngram_backoff, [(statistics, evidence)])
    assert table.dtype == torch.float64 and torch.all(ngram_backoff.table == 0.05) and not ngram_backoff.visits.any()
    online = NgramBackoff((1, 2, 3), floor=5e-4)
    online.mix_and_learn(statistics, evidence)
    online.settle()
    assert torch.equal(table, online.table)
    before, after = (
        scored(c, held_out, None, logits)[2].nll.mean() for c in (ngram_backoff, NgramBackoff((1, 2, 3), table=table))
    )
    assert after < before - 0.1 and after < math.log(vocabulary) - 0.2


def test_mixture_gradient_and_the_neural_share():
    tokens = repeating_tokens(120, 6)
    logits = torch.randn(120, 6, dtype=torch.float64, requires_grad=True)
    ngram_backoff = NgramBackoff((1, 2), table=some_table(2))
    evidence = ngram_backoff.evidence(tokens)
    target = neural_statistics(logits, tokens, evidence.top).target.detach().requires_grad_()
    picked = torch.randn(120, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.pgolf.hedge_mix(x, picked, *evidence[1:4], ngram_backoff.table)[0], (target,)
    )
    scores = ngram_backoff.mix(neural_statistics(logits, tokens, evidence.top), evidence)
    scores.nll.sum().backward()
    # past the choice of cell, the n-gram back-off sees the neural model through its target alone
    expected = scores.share[:, None] * (logits.detach().softmax(1) - torch.nn.functional.one_hot(tokens, 6))
    assert_close(logits.grad, expected, EXACT)


def test_a_token_the_neural_model_rules_out():
    tokens = torch.tensor([1, 1, 1, 0, 2])
    ngram_backoff = NgramBackoff((0,), table=torch.full((1, 9, 33), 0.5))
    evidence = ngram_backoff.evidence(tokens)
    target = torch.full((5,), -2000.0, dtype=torch.float64)
    scores = ngram_backoff.mix(NeuralStatistics(target, target, target, torch.zeros(5, 1, dtype=torch.float64)), evidence)
    assert scores.nll.tolist() == pytest.approx([2000, math.log(2), math.log(2), 2000 + math.log(2), 2000 + math.log(2)])


# ---- registration, compilation, launches, errors


def example_arguments():
    tokens = repeating_tokens(50, 11)
    documents = torch.tensor([0, 20, 50])
    logits = torch.randn(11, 50).t().requires_grad_()
    ngram_backoff = NgramBackoff((1, 3), granularity=4)
    evidence = ngram_backoff.evidence(tokens, documents)
    statistics = neural_statistics(logits.detach(), tokens, evidence.top)
    rows = (statistics.target, statistics.candidates, *evidence[1:4])
    mixer = HedgeMixer(11, buckets=16, warmup=0)
    mixer.count(tokens)
    ngrams = mixer.ngrams(tokens)
    grid = tokens.reshape(5, 10)
    two = statistics.target.reshape(5, 10), statistics.entropy.reshape(5, 10)
    one = torch.ones(1, dtype=torch.float64)
    upstream = (*statistics[:3], torch.randn(50, 2, dtype=torch.float64))
    windows = ([0, 8], [10, 9], [10, 3])
    state = (ngram_backoff.table, ngram_backoff.visits, ngram_backoff.places, ngram_backoff.posteriors, ngram_backoff.waiting)
    return {
        "statistics": (logits, tokens, evidence.top, one.clone().requires_grad_()),
        "statistics_backward": (logits.detach(), tokens, evidence.top, one, statistics.lse, statistics.entropy, *upstream),
        "five": (*two, grid, grid, grid > 2, *mixer.tables, mixer.log_weights, 50),
        "five_ngrams": (tokens, *mixer.tables, 50),
        "five_windows": (
            two[0][:2], two[1][:2], tokens, *windows, ngrams.probabilities, ngrams.cumulative,
            *mixer.tables, mixer.log_weights, 50,
        ),
        "five_count": (tokens, *mixer.tables),
        "evidence": (tokens, documents, [1, 3], 4, False),
        "mix": (rows[0].clone().requires_grad_(), *rows[1:], ngram_backoff.table),
        "mix_online": (*rows, evidence.fresh, *state, 2e-3),
    }  # fmt: skip


OPERATORS = "statistics statistics_backward five five_ngrams five_windows five_count evidence mix mix_online"


@pytest.mark.parametrize("name", OPERATORS.split())
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.pgolf, f"hedge_{name}").default, example_arguments()[name])


def test_whole_graph_with_any_length():
    ngram_backoff = NgramBackoff((1, 2), table=some_table(2))

    def mixed(logits, tokens):
        evidence = ngram_backoff.evidence(tokens)
        return ngram_backoff.mix(neural_statistics(logits, tokens, evidence.top), evidence).nll.mean()

    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (40, 57):
        tokens = repeating_tokens(count, 9)
        logits = torch.randn(count, 9, requires_grad=True)
        expected = torch.autograd.grad(mixed(logits, tokens), logits)[0]
        assert_close(torch.autograd.grad(compiled(logits, tokens), logits)[0], expected, 1e-6)


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_launches(capability):
    for vocabulary in (1, 256, 1000, 1024, 8192, 65_536):
        for choose, tile in ((op.launch_statistics, 4096), (op.launch_statistics_backward, 2048)):
            launch = choose(vocabulary, capability)
            assert launch.tiles["BR"] * launch.tiles["BV"] == tile
            assert launch.tiles["BV"] >= min(vocabulary, tile)
    for last in (0, 1, 4, 6, 16):
        tiles = op.launch_evidence(last).tiles
        assert tiles["BO"] > last and tiles["BO"] * tiles["BD"] == 32 and op.launch_evidence(last).num_warps == 1
    assert op.launch_tokens(capability).tiles["BN"] >= 32 * op.launch_tokens(capability).num_warps


def test_traffic():
    assert op.traffic_statistics(65_536, 1024, 0, 2)[0] == 65_536 * (2048 + 20)
    assert op.traffic_statistics_backward(10, 1000, 4, 4)[0] > 2 * 10 * 4000
    assert op.traffic_mix(100, 6)[0] == 100 * (6 * 13 + 12)
    assert op.traffic_evidence(100, 6, 6)[0] > 100 * 7 * 128


def test_bad_arguments_are_explained():
    logits, tokens = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for message, arguments in {
        "floating point": (tokens, tokens),
        "integer targets": (logits, tokens[:3]),
        "integer candidates": (logits, tokens, logits),
        "at most 16": (logits, tokens, torch.zeros(4, 17, dtype=torch.int32)),
        "positive": (logits, tokens, None, 0.0),
        "one number": (logits, tokens, None, torch.ones(3)),
        "targets reach from 0 to 5": (logits, torch.tensor([0, 1, 2, 5])),
        "candidates reach from -2": (logits, tokens, torch.full((4, 1), -2)),
    }.items():
        with pytest.raises(ValueError, match=message):
            neural_statistics(*arguments)
    for message, arguments in {
        "1 to 16 levels": {"local": ()},
        "order 0 to 16": {"local": (1, 17)},
        "must rise": {"local": (2, 1)},
        "granularity is 0": {"granularity": 0},
        "the table is": {"table": torch.zeros(3, 9, 33)},
    }.items():
        with pytest.raises(ValueError, match=message):
            NgramBackoff(**arguments)
    ngram_backoff = NgramBackoff((1,))
    with pytest.raises(ValueError, match="rise from 0 to 4"):
        ngram_backoff.evidence(tokens, torch.tensor([0, 2, 2, 4]))
    with pytest.raises(ValueError, match="they must be integers"):
        ngram_backoff.evidence(logits)
    with pytest.raises(ValueError, match="must lie in 0"):
        ngram_backoff.evidence(tokens - 1)
    with pytest.raises(ValueError, match="pass evidence.top"):
        ngram_backoff.mix(neural_statistics(logits, tokens), ngram_backoff.evidence(tokens))
    with pytest.raises(ValueError, match="must predict each token"):
        ngram_backoff.stream(5, learn=True).observe(1)
    with pytest.raises(ValueError, match="power of two"):
        BoostedCache(buckets=100)
    with pytest.raises(ValueError, match="do not fit"):
        BoostedCache(buckets=4).score(tokens, 1, 4, logits[0], logits[0])
    with pytest.raises(ValueError, match="rows of logits"):
        OnlineBias(5).learn(logits, tokens[:2])
