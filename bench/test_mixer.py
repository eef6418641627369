"""What of the mixer only a CPU computes, beside the submissions' own arithmetic in torch and their loops in Python. What both
devices compute is in bench/benchmarks/."""

import pytest
import torch

from bench.benchmarks import Benchmark
from bench.benchmarks.hedge import eager_mixture
from bench.eager import markov_stream
from pgolf.kernels.hedge import BoostedCache, HedgeMixer, reference
from pgolf.kernels.logit_stats import logit_stats
from pgolf.kernels.threads import torch_threads

EAGER = "submissions' eager"


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


def test_five_experts_in_sliding_windows(bench):
    """A chunk's windows overlap: ours looks each token's n-grams up once, the submissions once for every window."""
    vocabulary, windows, length, stride, chunk = (64, 4, 32, 8, 256) if bench.tiny else (1024, 16, 2048, 64, 32_768)
    stream = markov_stream(chunk * 3 + length + 1, vocabulary)
    mixer = HedgeMixer(vocabulary, warmup=0)
    mixer.count(stream[: 2 * chunk])
    span = stream[2 * chunk : 3 * chunk + length + 1]
    begins = [stride * i for i in range(windows)]
    inputs = torch.stack([span[b : b + length] for b in begins])
    targets = torch.stack([span[b + 1 : b + 1 + length] for b in begins])
    # the mixer's window begins without a predecessor, so the eager one may be held to the positions that score
    stats = logit_stats(torch.randn(windows, length, vocabulary) * 2, targets)
    neural, entropy = stats.target.float(), stats.entropy.float()
    valid = torch.ones(windows, length, dtype=torch.bool)
    ngrams, turn = mixer.ngrams(span), iter(range(1 << 60))

    def ours():
        # n-grams of a chunk serve all its batches: they are counted in where this batch's share of a chunk is due
        nonlocal ngrams
        if next(turn) % max(1, chunk // (windows * stride)) == 0:
            ngrams = mixer.ngrams(span)
        return mixer.score_windows(stats, ngrams, begins, [length] * windows, [stride] * windows).nll

    def theirs():
        return eager_mixture(mixer, neural, entropy, inputs, targets, valid)[:, -stride:].reshape(-1)

    benchmark = Benchmark(
        ours, {EAGER: theirs}, per_call=(windows * length, "positions/s"), min_speedup={EAGER: 8.0}, tolerance=1e-4
    )
    bench.hold("Hedge mixer, overlapping windows", benchmark)


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
    benchmark = Benchmark(ours, {peer: plain}, per_call=(stride, "scored tokens/s"), min_speedup={peer: 4.0}, tolerance=1e-9)
    bench.hold("boosted cache", benchmark)
