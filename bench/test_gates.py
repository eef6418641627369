"""The gates can fail: an operator that is slowed down on purpose turns them red."""

import time

import pytest

from bench import timing
from bench.benchmarks import BENCHMARKS, FORWARD, Place
from bench.results import line_of, peer_gate, regression_gate


def slept(work):
    """A sleep as long as the work."""
    begun = time.perf_counter()
    result = work()
    time.sleep(time.perf_counter() - begun)
    return result


def twice(work):
    work()
    return work()


@pytest.mark.parametrize("slowed", [slept, twice])
def test_a_slowed_operator_turns_its_gates_red(bench, slowed):
    """On real clocks, so only where this run measures; tests/bench/test_timing.py does the same with a clock of its own."""
    if bench.tiny:
        pytest.skip("takes times: with --benchmark")
    entry = next(entry for entry in BENCHMARKS if entry.name == "n-gram weight learning")
    benchmark = entry.build(Place(bench.device, bench.size), FORWARD, *entry.shapes[bench.size])
    peer, theirs = next(iter(benchmark.peers.items()))
    contenders = {"ours": benchmark.ours, "slowed": lambda: slowed(benchmark.ours), peer: theirs}
    samples = timing.interleave(contenders, timing.HostClock(), 1.0, capture=False).seconds

    good = line_of("as it is", timing.Samples({"ours": samples["ours"], peer: samples[peer]}), on_gpu=False)
    bad = line_of("slowed", timing.Samples({"ours": samples["slowed"], peer: samples[peer]}), on_gpu=False)
    min_speedup = good.peers[peer].ratio.median / 1.5
    assert peer_gate(peer, good.peers[peer].ratio, min_speedup).holds and regression_gate(good.pace, good.pace).holds
    assert not peer_gate(peer, bad.peers[peer].ratio, min_speedup).holds and not regression_gate(bad.pace, good.pace).holds
