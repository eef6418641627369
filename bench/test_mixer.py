"""The mixer on a CPU beside the submissions' own arithmetic in torch, and beside the plainest loops in Python."""

import pytest
import torch

from bench.contests import Contest
from bench.eager import EagerFive, chain_in_dictionaries, markov_stream
from pgolf.kernels.hedge import BoostedCache, Chain, FiveExperts, NeuralStatistics, neural_statistics, reference

EAGER = "submissions' eager"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_five_experts_in_sliding_windows(bench):
    """A chunk's windows overlap: ours looks each token's n-grams up once, the submissions once for every window."""
    vocabulary, windows, length, stride, chunk = (64, 4, 32, 8, 256) if bench.tiny else (1024, 16, 2048, 64, 32_768)
    stream = markov_stream(chunk * 3 + length + 1, vocabulary)
    mixer = FiveExperts(vocabulary, warmup=0)
    mixer.count(stream[: 2 * chunk])
    span = stream[2 * chunk : 3 * chunk + length + 1]
    begins = [stride * i for i in range(windows)]
    inputs = torch.stack([span[b : b + length] for b in begins])
    targets = torch.stack([span[b + 1 : b + 1 + length] for b in begins])
    # the mixer's window begins without a predecessor, so the eager one may be held to the positions that score
    statistics = neural_statistics(torch.randn(windows, length, vocabulary) * 2, targets)
    eager, neural, entropy = EagerFive(mixer), -statistics.target.float(), statistics.entropy.float()
    weights, valid = eager.log_weights.clone(), torch.ones(windows, length, dtype=torch.bool)
    ngrams, turn = mixer.ngrams(span), iter(range(1 << 60))

    def ours():
        # n-grams of a chunk serve all its batches: they are counted in where this batch's share of a chunk is due
        nonlocal ngrams
        if next(turn) % max(1, chunk // (windows * stride)) == 0:
            ngrams = mixer.ngrams(span)
        return mixer.score_windows(statistics, ngrams, begins, [length] * windows, [stride] * windows).nll

    def theirs():
        eager.log_weights = weights
        return eager.step(neural, entropy, inputs, targets, valid)[:, -stride:].reshape(-1)

    contest = Contest(ours, {EAGER: theirs}, per_call=(windows * length, "positions/s"), least={EAGER: 8.0}, tolerance=1e-4)
    bench.hold("five experts, overlapping windows", contest)


def test_chain_of_counts(bench):
    """Counts of six orders, documents of 500 tokens: numba beside a dictionary for each order."""
    count, orders = (300, (1, 2, 3)) if bench.tiny else (20_000, (1, 2, 3, 4, 5, 6))
    stream = markov_stream(count, 1024)
    documents = torch.arange(0, count + 1, 100 if bench.tiny else 500)
    starts = torch.zeros(count, dtype=torch.bool)
    starts[documents[:-1]] = True
    chain = Chain(orders)

    def ours():
        found = chain.evidence(stream, documents)
        return torch.stack([found.hits, found.total], -1).flatten(1)

    plain = lambda: torch.tensor(chain_in_dictionaries(stream.tolist(), starts.tolist(), orders))
    peer = "dictionaries in Python"
    contest = Contest(ours, {peer: plain}, per_call=(count, "tokens/s"), least={peer: 4.0}, tolerance=0.0)
    bench.hold("chain: counting", contest)


def test_chain_of_mixtures(bench):
    """Six levels laid over the network's probability: numba beside the same formula in torch."""
    count, orders = (300, (1, 2, 3)) if bench.tiny else (50_000, (1, 2, 3, 4, 5, 6))
    chain = Chain(orders)
    evidence = chain.evidence(markov_stream(count, 1024), torch.arange(0, count + 1, 100))
    target = torch.randn(count, dtype=torch.float64) - 3
    known = NeuralStatistics(target, target, target, torch.randn(count, len(orders), dtype=torch.float64) - 2)
    rows = (known.target, known.candidates, evidence.cell, evidence.hits, evidence.total)
    plain = lambda: reference.mix_reference(*rows, chain.table)[0]
    peer = "the formula in torch"
    ours = lambda: chain.mix(known, evidence).nll
    bench.hold("chain: mixing", Contest(ours, {peer: plain}, per_call=(count, "tokens/s"), least={peer: 1.5}, tolerance=1e-9))


def test_boosted_cache(bench):
    """#1014's hashed counts, window by window: numba beside the published loop in Python."""
    length, stride, buckets = (64, 16, 1 << 12) if bench.tiny else (512, 64, 1 << 16)
    stream = markov_stream(4 * length, 1024)
    target = torch.randn(stride, dtype=torch.float64) - 3
    entropy = torch.rand(stride, dtype=torch.float64) * 6

    def ours():
        cache = BoostedCache(buckets=buckets)
        return cache.score(stream, length + 1, 2 * length + 1, target, entropy)

    def plain():
        levels = len(reference.BOOST_ORDERS)
        tables = [torch.zeros(levels, buckets, dtype=torch.int32) for _ in range(2)]
        weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
        tokens = stream.tolist()
        return reference.boost_window_reference(tokens, length + 1, 2 * length + 1, stride, target, entropy, *tables, weights)

    peer = "the published loop in Python"
    contest = Contest(ours, {peer: plain}, per_call=(stride, "scored tokens/s"), least={peer: 4.0}, tolerance=1e-9)
    bench.hold("boosted cache", contest)
