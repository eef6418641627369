"""The plan of a run: its phases, one after the other on one clock, and what a step of each of them does.

    teacher   distillation_share of the whole trains the teacher that the network is distilled from
    network   the learning-rate schedule of the network that is kept
    burst     the last steps of that schedule again, burst_epochs times, at a tenth of its learning rates: #687's "TTT burst"

The whole is a number of steps where the settings fix one, and seconds on the clock otherwise: all phases together take no
more. The schedule ends early by what the burst needs at the pace measured so far.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from pgolf.config import TrainingSettings
from pgolf.training import schedule

TEACHER, NETWORK, BURST = "teacher", "network", "burst"

# a burst replays the steps taken below this multiplier of the learning rates, at most so many of them
BURST_BELOW = 0.2
BURST_STEPS = 100
BURST_RATE = 0.1


@dataclass(frozen=True)
class Phase:
    name: str
    step: int
    """Its first step."""
    elapsed: float
    """The clock at its beginning."""
    replayed: int = 0
    """How many steps before it a burst replays."""


class StepPlan(NamedTuple):
    """What one step does."""

    batch: int
    """The step whose batch it reads."""
    age: int
    """How many steps the network being trained has taken before."""
    schedule: float
    """Where the schedule stands, from 1 to 0."""
    rate: float
    """What every learning rate is multiplied with."""
    gone: float
    """The share of the phase that lies behind, from 0 to 1."""


class TrainingPlan:
    """`pace`, wherever it is an argument, is what a step of the current phase takes: seconds; 0 before its first step."""

    def __init__(self, options: TrainingSettings, seconds: float):
        self.options = options
        self.fixed = options.steps > 0
        self.whole = options.steps or seconds
        names = [(TEACHER, options.distillation_share > 0), (NETWORK, True), (BURST, options.burst_epochs > 0)]
        self.names = [name for name, wanted in names if wanted]
        self.begun = [Phase(self.names[0], 0, 0.0)]

    @property
    def phase(self) -> Phase:
        return self.begun[-1]

    @property
    def is_last(self) -> bool:
        return self.phase.name == self.names[-1]

    def over(self, step: int, elapsed: float, pace: float, slowest: float = 0.0) -> bool:
        """Whether the current phase has had its last step. One that would not fit is not begun, even if it takes as long as
        the slowest of the newest ones."""
        if self.phase.name == BURST and step - self.phase.step >= self.options.burst_epochs * self.phase.replayed:
            return True
        end = self._end(pace)
        return step >= end if self.fixed else elapsed >= end or elapsed + max(pace, slowest) > end

    def begin_next(self, step: int, elapsed: float, pace: float) -> Phase:
        name = self.names[self.names.index(self.phase.name) + 1]
        replayed = min(self._replayed(pace), step - self.phase.step) if name == BURST else 0
        self.begun.append(Phase(name, step, elapsed, replayed))
        return self.phase

    def step(self, step: int, elapsed: float, pace: float) -> StepPlan:
        phase = self.phase
        if phase.name == BURST:
            batch = phase.step - phase.replayed + (step - phase.step) % phase.replayed
            return StepPlan(batch, self.age(step), 0.0, BURST_RATE, 1.0)
        length = self._end(pace) - self._begun
        options = replace(self.options, steps=int(length) if self.fixed else 0)
        age = self.age(step)
        multiplier = schedule.multiplier(options, step=age, elapsed=elapsed - phase.elapsed, limit=length)
        return StepPlan(
            step, age, multiplier, multiplier, (age if self.fixed else elapsed - phase.elapsed) / max(length, 1e-9)
        )

    def age(self, step: int) -> int:
        """How many steps the network being trained has taken before this one."""
        return step - (self.begun[-2] if self.phase.name == BURST else self.phase).step

    @property
    def _begun(self) -> float:
        return self.phase.step if self.fixed else self.phase.elapsed

    def _end(self, pace: float) -> float:
        """Where the current phase ends, in the unit of the whole."""
        if self.phase.name == TEACHER:
            end = self.options.distillation_share * self.whole
            return round(end) if self.fixed else end
        if self.phase.name == NETWORK and not self.is_last:
            return self.whole - self.options.burst_epochs * self._replayed(pace) * (1 if self.fixed else pace)
        return self.whole

    def _replayed(self, pace: float) -> int:
        """How many steps of the network's schedule a burst replays."""
        unit, left = (1.0 if self.fixed else pace), self.whole - self._begun
        if not unit:
            return 0
        fall = self.options.warmdown_share * left or min(self.options.warmdown_steps * unit, left)
        return int(min(BURST_STEPS, BURST_BELOW * fall / unit))

    def state(self) -> list[dict]:
        """What a checkpoint keeps."""
        return [asdict(phase) for phase in self.begun]

    def restore(self, state: list[dict]) -> None:
        """From a checkpoint, whose values are checked."""
        begun = [Phase(str(one["name"]), int(one["step"]), float(one["elapsed"]), int(one["replayed"])) for one in state]
        if not begun or [phase.name for phase in begun] != self.names[: len(begun)]:
            raise ValueError("its phases are not those of this run")
        self.begun = begun
