"""What of the mixer only a CPU computes, beside the submissions' own arithmetic in torch and their loops in Python. What both
devices compute is in bench/benchmarks/."""

import pytest
import torch

from bench.benchmarks import Benchmark
from bench.eager import markov_stream
from pgolf.kernels.hedge import BoostedCache, reference
from pgolf.kernels.threads import torch_threads


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


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
