"""How long steps take, by the first rank's clock as it comes with each step's result: every rank computes the same."""

import dataclasses
import math
from collections import deque
from itertools import pairwise

from pgolf.training.plan import Phase
from pgolf.training.step_results import StepResult

# the next step must be expected to take as long as the slowest of so many
SLOWEST_OF = 5
# speed, as people see it, is that of so many steps
PACE_STEPS = 20


class Pace:
    def __init__(self) -> None:
        self.known = StepResult(0, math.nan, math.nan, 0.0, 0.0, False)
        """The newest step whose result is known."""
        self.recent: deque[StepResult] = deque(maxlen=PACE_STEPS)
        self.first_steps: dict[int, float] = {}
        """Seconds of a step at the beginning of each phase, by its first step."""

    def start(self, step: int, loss: float, elapsed: float) -> None:
        """Training begins, or goes on, after this step."""
        self.known = dataclasses.replace(self.known, step=step, loss=loss, elapsed=elapsed)
        self.recent.append(self.known)

    def add(self, result: StepResult) -> float:
        """Take note of a finished step; gives the steps a second of the newest ones."""
        first, self.known = self.recent[0], result
        self.recent.append(result)
        return (result.step - first.step) / max(result.elapsed - first.elapsed, 1e-9)

    def reset_clock(self, elapsed: float) -> None:
        """What came after the newest step took time as well."""
        self.known = dataclasses.replace(self.known, elapsed=elapsed)

    def seconds(self, phase: Phase) -> float:
        """What a step of this phase has taken so far; 0 before its first one."""
        steps = self.known.step - phase.step
        return (self.known.elapsed - phase.elapsed) / steps if steps > 0 else 0.0

    def elapsed(self, step: int, phase: Phase) -> float:
        """The clock at this step, extrapolated over the steps in flight."""
        return self.known.elapsed + (step - self.known.step) * self.seconds(phase)

    @property
    def slowest(self) -> float:
        """Seconds of the slowest of the newest steps: what the next one must be expected to take."""
        seen = list(self.recent)[-SLOWEST_OF - 1 :]
        return max((later.elapsed - one.elapsed for one, later in pairwise(seen) if later.step == one.step + 1), default=0.0)

    def slowdown(self, phase: Phase) -> float | None:
        """How many times longer the newest steps took than the first ones of this phase; None until that is known."""
        if phase.step not in self.first_steps and self.known.step >= phase.step + SLOWEST_OF:
            self.first_steps[phase.step] = self.seconds(phase)
        first, newest = self.first_steps.get(phase.step, 0.0), list(self.recent)[-SLOWEST_OF - 1 :]
        if not first or newest[0].step < phase.step or newest[-1].step - newest[0].step < SLOWEST_OF:
            return None
        return (newest[-1].elapsed - newest[0].elapsed) / (newest[-1].step - newest[0].step) / first
