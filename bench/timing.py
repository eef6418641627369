"""How times are taken: contenders take turns in one process, warm, and what counts is the median of their pairs.

A contender is a function of no arguments. `HostClock` reads the wall clock, so a sleep counts. `DeviceClock` reads CUDA
events around a replay of a CUDA graph (or around the call itself, where it cannot be captured), with the L2 cache
flushed before each.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Work = Callable[[], object]

MIN_ROUNDS, MOST_ROUNDS = 5, 60
# of one sample on the host: far above what the clock can resolve
SAMPLE_SECONDS = 10e-3
SUBSAMPLES = 3
LONG_SAMPLE = 0.1
# calls in one sample on a device, each timed by itself; fewer where they would take longer than this
DEVICE_CALLS, DEVICE_SECONDS = 10, 0.1


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles."""

    median: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Samples:
    """Seconds of each contender, one a round."""

    seconds: dict[str, list[float]]

    def of(self, name: str) -> Spread:
        return Spread.of(self.seconds[name])

    def ratio(self, peer: str, ours: str = "ours") -> Spread:
        """How many times as long the peer takes, round by round."""
        pairs = zip(self.seconds[peer], self.seconds[ours], strict=True)
        return Spread.of([theirs / own for theirs, own in pairs])


class HostClock:
    """Seconds of a call as the wall clock sees them, many calls to a sample where they are short."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now = now

    def ready(self, work: Work, capture: bool) -> Work:
        """Warm it. There is nothing to capture here."""
        work()
        return work

    def calls(self, work: Work) -> int:
        """In one sample."""
        return max(1, round(SAMPLE_SECONDS / SUBSAMPLES / max(self.sample(work, 1), 1e-9)))

    def sample(self, work: Work, calls: int) -> float:
        """The best of three, which a busy machine disturbs less; one is enough where it takes long."""
        times: list[float] = []
        while len(times) < SUBSAMPLES and (not times or times[0] * calls < LONG_SAMPLE):
            begun = self.now()
            for _ in range(calls):
                work()
            times.append((self.now() - begun) / calls)
        return min(times)


class DeviceClock:
    """Seconds of a call on a CUDA device, the cache cold.

    cuda   torch.cuda, or something that stands for it
    flush  overwrites more memory than the cache holds; it also lets the host run ahead, so that what is timed is the
           device's work and not the wait for the next launch
    """

    def __init__(self, cuda, flush: Work, warm_up: int = 3):
        self.cuda, self.flush, self.warm_up = cuda, flush, warm_up
        self.not_captured: list[str] = []

    def ready(self, work: Work, capture: bool) -> Work:
        """Warm it, on a stream of its own as capturing asks for, and capture it if it can be."""
        if not capture:
            for _ in range(self.warm_up):
                work()
            return work
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for _ in range(self.warm_up):
                work()
        self.cuda.current_stream().wait_stream(stream)
        self.cuda.synchronize()
        graph = self.cuda.CUDAGraph()
        try:
            with self.cuda.graph(graph):
                work()
        except RuntimeError as error:
            self.cuda.synchronize()
            self.not_captured.append(str(error).splitlines()[0])
            return work
        return graph.replay

    def calls(self, work: Work) -> int:
        return max(1, min(DEVICE_CALLS, round(DEVICE_SECONDS / max(self.sample(work, 1), 1e-9))))

    def sample(self, work: Work, calls: int) -> float:
        """The median of some calls that are queued together."""
        pairs = []
        for _ in range(calls):
            begin, end = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
            self.flush()
            begin.record()
            work()
            end.record()
            pairs.append((begin, end))
        self.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def device_clock() -> DeviceClock:
    import torch

    # twice the cache and 128 MB at least
    size = max(2 * torch.cuda.get_device_properties(0).L2_cache_size, 1 << 27)
    cache = torch.empty(size, dtype=torch.uint8, device="cuda")
    return DeviceClock(torch.cuda, cache.zero_)


def interleave(
    contenders: Mapping[str, Work],
    clock: HostClock | DeviceClock,
    seconds: float,
    *,
    capture: bool = True,
    min_rounds=MIN_ROUNDS,
) -> Samples:
    """Samples of all contenders in turns, each round beginning with another one, for about so many seconds and at least
    `min_rounds` rounds. capture: on a device, replay graphs where that is possible."""
    ready = {name: clock.ready(work, capture) for name, work in contenders.items()}
    calls = {name: clock.calls(work) for name, work in ready.items()}
    samples: dict[str, list[float]] = {name: [] for name in ready}
    names = list(ready)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begun = time.perf_counter()
        for turn in range(MOST_ROUNDS):
            if turn >= min_rounds and time.perf_counter() - begun > seconds:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(clock.sample(ready[name], calls[name]))
    finally:
        if collecting:
            gc.enable()
    return Samples(samples)


def once(contenders: Mapping[str, Work]) -> None:
    """Every contender runs; nothing is timed."""
    for work in contenders.values():
        work()
