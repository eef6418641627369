"""How the bench takes times, with clocks and a device that the tests make up."""

from contextlib import contextmanager

import pytest

from bench.results import line_of, peer_gate, regression_gate
from bench.timing import DEVICE_CALLS, DeviceClock, HostClock, Samples, Spread, interleave


class FakeTime:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def taking(self, seconds):
        def work():
            self.seconds += seconds

        return work


def test_the_ratio_is_the_median_of_pairs_not_of_medians():
    """The machine slows down five-fold half way; pairs do not care."""
    samples = Samples({"ours": [1.0, 1.0, 5.0, 5.0, 5.0], "peer": [2.0, 2.0, 10.0, 10.0, 10.0]})
    assert samples.ratio("peer") == Spread(2.0, 2.0, 2.0)
    assert samples.of("ours").median == 5.0


def test_contenders_take_turns_and_none_always_goes_first():
    order = []
    names = ("ours", "one", "two")
    time = FakeTime()
    works = {name: lambda name=name: (order.append(name), time.taking(1.0)()) for name in names}
    found = interleave(works, HostClock(time), 0)
    assert all(len(found.seconds[name]) == len(found.seconds["ours"]) >= 5 for name in names)
    rounds = order[-3 * 5 :]
    firsts = rounds[::3]
    assert set(firsts) == set(names)


@pytest.mark.parametrize("extra, ratio", [(0.0, 3.0), (1.0, 1.5), (2.0, 1.0)])
def test_what_an_operator_takes_longer_lowers_its_ratio(extra, ratio):
    time = FakeTime()
    found = interleave({"ours": time.taking(1.0 + extra), "peer": time.taking(3.0)}, HostClock(time), 0)
    assert found.ratio("peer").median == pytest.approx(ratio)


@pytest.mark.parametrize("slow", [lambda time, work: (work(), time.taking(1.0)()), lambda time, work: (work(), work())])
def test_a_sleep_or_a_second_pass_turns_both_gates_red(slow):
    time = FakeTime()
    operator = time.taking(1.0)
    race = lambda ours: line_of("x", interleave({"ours": ours, "peer": time.taking(3.0)}, HostClock(time), 0), on_gpu=False)
    good, bad = race(operator), race(lambda: slow(time, operator))
    assert peer_gate("peer", good.peers["peer"].ratio, 2.0).holds and regression_gate(good.pace, good.pace).holds
    assert not peer_gate("peer", bad.peers["peer"].ratio, 2.0).holds and not regression_gate(bad.pace, good.pace).holds


def test_short_calls_are_timed_many_at_once():
    time = FakeTime()
    clock = HostClock(time)
    assert clock.calls(time.taking(1e-6)) > 1000
    assert clock.calls(time.taking(1.0)) == 1
    assert clock.sample(time.taking(2e-6), 100) == pytest.approx(2e-6)


class FakeCuda:
    """A device that does its work when it is waited for, in the order it was asked to."""

    def __init__(self, can_capture=True):
        self.queue, self.now, self.log, self.can_capture, self.capturing = [], 0.0, [], can_capture, None

    def launch(self, name, milliseconds):
        if self.capturing is not None:
            self.capturing.append((name, milliseconds))
            return
        self.queue.append((name, milliseconds, None))

    def synchronize(self):
        for name, milliseconds, event in self.queue:
            self.now += milliseconds
            self.log.append(name)
            if event is not None:
                event.at = self.now
        self.queue.clear()

    def Event(self, enable_timing):
        cuda = self

        class Event:
            def record(self):
                cuda.queue.append(("event", 0.0, self))

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()

    class Stream:
        def wait_stream(self, other):
            pass

    def current_stream(self):
        return FakeCuda.Stream()

    @contextmanager
    def stream(self, stream):
        yield

    def CUDAGraph(self):
        cuda = self

        class Graph:
            work: list = []

            def replay(self):
                for name, milliseconds in self.work:
                    cuda.launch(f"replayed {name}", milliseconds)

        return Graph()

    @contextmanager
    def graph(self, graph):
        if not self.can_capture:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        self.capturing = graph.work = []
        try:
            yield
        finally:
            self.capturing = None


def test_a_device_is_timed_by_events_with_the_cache_flushed():
    cuda = FakeCuda()
    clock = DeviceClock(cuda, lambda: cuda.launch("flush", 7.0))
    found = interleave({"ours": lambda: cuda.launch("kernel", 2.0), "peer": lambda: cuda.launch("other", 3.0)}, clock, 0)
    assert found.of("ours").median == pytest.approx(2e-3)
    assert found.ratio("peer").median == pytest.approx(1.5)
    timed = [name for name in cuda.log if name != "event"][-4 * DEVICE_CALLS :]
    assert timed.count("flush") == 2 * DEVICE_CALLS
    assert set(timed) == {"flush", "replayed kernel", "replayed other"}
    assert not clock.not_captured


def test_what_cannot_be_captured_is_timed_as_it_is_and_said():
    cuda = FakeCuda(can_capture=False)
    clock = DeviceClock(cuda, lambda: cuda.launch("flush", 7.0))
    found = interleave({"ours": lambda: cuda.launch("kernel", 2.0)}, clock, 0)
    assert found.of("ours").median == pytest.approx(2e-3)
    assert clock.not_captured == ["operation not permitted when stream is capturing"]


def test_steps_are_not_captured_when_that_is_not_wanted():
    cuda = FakeCuda()
    clock = DeviceClock(cuda, lambda: None)
    interleave({"ours": lambda: cuda.launch("step", 2.0)}, clock, 0, capture=False)
    assert "step" in cuda.log and "replayed step" not in cuda.log
