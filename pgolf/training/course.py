"""The course of a run: its parts, one after the other on one clock, and what a step of each of them is.

    teacher   distillation_share of the whole trains the network that the kept one learns from
    network   the schedule of the network that is kept
    burst     the last steps of that schedule over again, burst_epochs times, at a tenth of its learning rates

The whole is a number of steps where the settings fix one, and otherwise seconds on the clock: all parts together take no
more. What the burst will need at the pace measured so far, the schedule ends early by.
"""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from pgolf.config import TrainingSettings
from pgolf.training import schedule

TEACHER, NETWORK, BURST = "teacher", "network", "burst"

# a burst repeats what was seen below this multiplier of the learning rates, but no more steps than that
BURST_BELOW = 0.2
BURST_STEPS = 100
BURST_RATE = 0.1


@dataclass(frozen=True)
class Part:
    name: str
    step: int
    """Its first step."""
    elapsed: float
    """The clock at its beginning."""
    replayed: int = 0
    """How many steps before it a burst repeats."""


class Turn(NamedTuple):
    """What one step is."""

    batch: int
    """The step whose text it reads."""
    age: int
    """How many steps its network has taken before."""
    schedule: float
    """Where the schedule stands, from 1 to 0."""
    rate: float
    """What every learning rate is multiplied with."""


class Course:
    """`pace`, wherever it is asked for, is what a step of the part under way takes: seconds; 0 while nobody knows."""

    def __init__(self, options: TrainingSettings, seconds: float):
        self.options = options
        self.fixed = options.steps > 0
        self.whole = options.steps or seconds
        names = [(TEACHER, options.distillation_share > 0), (NETWORK, True), (BURST, options.burst_epochs > 0)]
        self.names = [name for name, wanted in names if wanted]
        self.begun = [Part(self.names[0], 0, 0.0)]

    @property
    def part(self) -> Part:
        return self.begun[-1]

    @property
    def is_last(self) -> bool:
        return self.part.name == self.names[-1]

    def over(self, step: int, elapsed: float, pace: float) -> bool:
        """Whether the part under way has had its last step. One that would not fit is not begun."""
        if self.part.name == BURST and step - self.part.step >= self.options.burst_epochs * self.part.replayed:
            return True
        end = self._end(pace)
        return step >= end if self.fixed else elapsed >= end or elapsed + pace > end

    def go_on(self, step: int, elapsed: float, pace: float) -> Part:
        """Enter the next part."""
        name = self.names[self.names.index(self.part.name) + 1]
        replayed = min(self._replayed(pace), step - self.part.step) if name == BURST else 0
        self.begun.append(Part(name, step, elapsed, replayed))
        return self.part

    def turn(self, step: int, elapsed: float, pace: float) -> Turn:
        part = self.part
        if part.name == BURST:
            batch = part.step - part.replayed + (step - part.step) % part.replayed
            return Turn(batch, self.age(step), 0.0, BURST_RATE)
        length = self._end(pace) - self._begun
        options = replace(self.options, steps=int(length) if self.fixed else 0)
        age = self.age(step)
        multiplier = schedule.multiplier(options, step=age, elapsed=elapsed - part.elapsed, limit=length)
        return Turn(step, age, multiplier, multiplier)

    def age(self, step: int) -> int:
        """How many steps the network that is learning has taken before this one."""
        return step - (self.begun[-2] if self.part.name == BURST else self.part).step

    @property
    def _begun(self) -> float:
        return self.part.step if self.fixed else self.part.elapsed

    def _end(self, pace: float) -> float:
        """Where the part under way ends, in the unit of the whole."""
        if self.part.name == TEACHER:
            end = self.options.distillation_share * self.whole
            return round(end) if self.fixed else end
        if self.part.name == NETWORK and not self.is_last:
            return self.whole - self.options.burst_epochs * self._replayed(pace) * (1 if self.fixed else pace)
        return self.whole

    def _replayed(self, pace: float) -> int:
        """How many steps of the network's schedule a burst repeats."""
        unit, left = (1.0 if self.fixed else pace), self.whole - self._begun
        if not unit:
            return 0
        fall = self.options.warmdown_share * left or min(self.options.warmdown_steps * unit, left)
        return int(min(BURST_STEPS, BURST_BELOW * fall / unit))

    def state(self) -> list[dict]:
        """What a checkpoint keeps."""
        return [asdict(part) for part in self.begun]

    def restore(self, state: list[dict]) -> None:
        self.begun = [Part(**part) for part in state]
