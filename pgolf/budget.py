"""The clocks: 600 seconds to train, 600 to score, and where they went."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

# as in kernels/launch.py, which is only imported where ranges are asked for
RANGES = os.environ.get("PGOLF_NVTX", "0") not in ("", "0")


def phase(name: str) -> AbstractContextManager:
    """A range that profilers can see, "phase: name"; nothing at all unless the program was started with PGOLF_NVTX=1."""
    if not RANGES:
        return nullcontext()
    from pgolf.kernels.launch import span

    return span(f"phase: {name}")


class Clock:
    """Seconds since its start, less the stretches it was paused for."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now = now
        self._counted = 0.0
        self._since: float | None = now()

    @property
    def running(self) -> bool:
        return self._since is not None

    def elapsed(self) -> float:
        return self._counted + (self.now() - self._since if self._since is not None else 0.0)

    def pause(self) -> None:
        self._counted, self._since = self.elapsed(), None

    def resume(self) -> None:
        if self._since is None:
            self._since = self.now()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What happens inside does not count. Nests: only the outermost block starts the clock again."""
        was_running = self.running
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.resume()

    def state(self) -> dict:
        return {"elapsed": self.elapsed()}

    def restore(self, state: dict) -> None:
        """Go on from another clock's reading; running or paused as it is."""
        self._counted = float(state["elapsed"])
        if self._since is not None:
            self._since = self.now()


class Budget:
    """One phase's seconds: a limit, a reserve at its end, and named parts that say where the time went.

    left()        what may still be spent without touching the reserve; negative when it is overdrawn
    part(name)    a block whose seconds on the clock are booked under that name
    outside(name) a block that is not on the clock; its seconds are booked apart
    """

    def __init__(self, limit: float, reserve: float = 0.0, now: Callable[[], float] = time.perf_counter):
        self.limit = limit
        self.reserve = reserve
        self.clock = Clock(now)
        self.parts: dict[str, float] = {}
        self.untimed_parts: dict[str, float] = {}

    def elapsed(self) -> float:
        return self.clock.elapsed()

    def left(self) -> float:
        return self.limit - self.reserve - self.elapsed()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self.elapsed()
        try:
            with phase(name):
                yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + self.elapsed() - start

    @contextmanager
    def outside(self, name: str) -> Iterator[None]:
        start = self.clock.now()
        try:
            with self.clock.untimed(), phase(name):
                yield
        finally:
            self.untimed_parts[name] = self.untimed_parts.get(name, 0.0) + self.clock.now() - start

    def report(self) -> dict:
        """Seconds by name: the parts, what no part claimed ("other"), their sum, and what ran off the clock."""
        total = self.elapsed()
        other = max(0.0, total - sum(self.parts.values()))
        return {"total": total, "parts": {**self.parts, "other": other}, "untimed": dict(self.untimed_parts)}

    def state(self) -> dict:
        return {**self.clock.state(), "parts": dict(self.parts), "untimed_parts": dict(self.untimed_parts)}

    def restore(self, state: dict) -> None:
        self.clock.restore(state)
        self.parts, self.untimed_parts = (
            {str(name): float(seconds) for name, seconds in state[kind].items()} for kind in ("parts", "untimed_parts")
        )
