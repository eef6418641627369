"""The scorer's clock: what can still be afforded, decided span by span from rates measured on the way, and written down.

A span can be scored at a coarser stride and learnt from in fewer epochs. Should the machine turn three times slower, what
is left must still be affordable at its cheapest; and where even that fails, the scores of the first, plain pass stand.
A plan that was recorded can be replayed: then no clock is asked, and the scores come out the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pgolf.budget import Budget, Clock
from pgolf.errors import PgolfError

# room for a machine that suddenly becomes this many times slower
SLOWDOWN = 3.0
# kept free of the projected total
MARGIN = 1.05
# a coarser stride costs little while it stays below this share of the window; then fewer epochs come first
MILD_STRIDE = 1 / 8


class PlanError(PgolfError):
    """A recorded plan that does not fit this stream."""


@dataclass(frozen=True)
class Decision:
    """How a span is scored and learnt from. Stride 0: not at all, the first pass's scores stand for all that is left."""

    stride: int
    epochs: int


class Rate:
    """Seconds per unit: what to expect is the lower of the last two measurements, so that one hiccup is not taken for a
    slow machine; what to be prepared for is the higher."""

    def __init__(self, first: float):
        self.before = self.last = first

    def __call__(self, *, worst: bool = False) -> float:
        return max(self.before, self.last) if worst else min(self.before, self.last)

    def update(self, seconds: float, units: float) -> None:
        if units > 0:
            self.before, self.last = self.last, seconds / units


class OutOfTime(Exception):
    """A pass that may be left out cannot be finished any more."""


class Steady:
    """No plan: one stride for the whole pass, which stops where it cannot be finished `within` a budget."""

    def __init__(self, clock: Clock, targets: int, stride: int, *, first: float = 0.0, within=None, agree=lambda said: said):
        self.clock, self.targets, self.wanted = clock, targets, Decision(stride, 0)
        self.forward = Rate(first)
        self.within, self.agree = within, agree

    def next(self, start: int, stop: int) -> Decision:
        if self.within is not None:
            needed = (self.targets - start) / self.wanted.stride * self.forward()
            (late,) = self.agree((needed > self.within.left(),))
            if late:
                raise OutOfTime
        return self.wanted

    def scored(self, windows: int, targets: int, forward: float, result: float) -> None:
        self.forward.update(forward, windows)

    def epochs_now(self, targets: int) -> int:
        return 0

    def learnt(self, targets: int, epochs: int, seconds: float) -> None:
        raise ValueError("a steady pass learns nothing")


class Planner:
    """
    seconds_per_window   what the first pass took for one window
    epochs               passes over each chunk that the settings want; 0 without adaptation
    replay               a record made by `record`, to be followed instead of the clock
    agree                gives every rank the first rank's decision
    """

    def __init__(
        self,
        budget: Budget,
        *,
        targets: int,
        window: int,
        stride: int,
        epochs: int = 0,
        seconds_per_window: float = 0.0,
        replay: dict | None = None,
        agree: Callable[[tuple], tuple] = lambda decision: decision,
    ):
        self.budget, self.clock, self.targets, self.window = budget, budget.clock, targets, window
        self.wanted = Decision(stride, epochs)
        self.agree = agree
        self.forward = Rate(seconds_per_window)
        self.result = Rate(0.0)
        self.learning = Rate(3 * seconds_per_window / window)
        self.ladder = ladder(self.wanted, window)
        self.spans: list[list[int]] = []
        self.choices: dict[str, bool] = {}
        self.plain_documents: list[int] = []
        self._plain, self._adapted = Rate(seconds_per_window / window), Rate(0.0)
        self._replay = replay
        if replay is not None:
            self._check(replay)

    # ---- spans of one stream

    def next(self, start: int, stop: int) -> Decision:
        """For the span that begins at `start` and reaches to about `stop`."""
        if self._replay is not None:
            at = len(self.spans)
            recorded = self._replay["spans"]
            if at >= len(recorded) or recorded[at][0] != start:
                raise PlanError(f"the plan has no decision for the span that begins at target {start}")
            decision = Decision(*recorded[at][1:])
        else:
            decision = Decision(*self.agree(self._choose(start, stop)))
        self.spans.append([start, decision.stride, decision.epochs])
        return decision

    def _choose(self, start: int, stop: int) -> tuple[int, int]:
        left, rest, span = self.budget.left(), self.targets - start, stop - start
        cheapest = self.ladder[-1]
        for option in self.ladder:
            safe = SLOWDOWN * (self.cost(option, span, worst=True) + self.cost(cheapest, rest - span)) <= left
            if safe and MARGIN * self.cost(option, rest) <= left:
                return option.stride, option.epochs
        # what cannot be finished like this either can still be handed to the first pass later
        if SLOWDOWN * self.cost(cheapest, span) <= left:
            return cheapest.stride, cheapest.epochs
        return 0, 0

    def cost(self, decision: Decision, targets: int, *, worst: bool = False) -> float:
        """Seconds for so many targets."""
        forward, result, learning = (rate(worst=worst) for rate in (self.forward, self.result, self.learning))
        return targets / decision.stride * forward + targets * (result + decision.epochs * learning)

    def epochs_now(self, targets: int) -> int:
        """How many of the epochs decided on still fit, now that the span is scored: another look at the clock."""
        epochs = self.spans[-1][2]
        if self._replay is None:
            each = SLOWDOWN * targets * self.learning(worst=True)
            (epochs,) = self.agree((min(epochs, int(max(self.budget.left(), 0.0) / each)) if each else epochs,))
            self.spans[-1][2] = epochs
        return epochs

    def scored(self, windows: int, targets: int, forward: float, result: float) -> None:
        self.forward.update(forward, windows)
        self.result.update(result, targets)

    def learnt(self, targets: int, epochs: int, seconds: float) -> None:
        self.learning.update(seconds, targets * epochs)

    # ---- what may be left out altogether

    def affords(self, name: str, stride: int) -> bool:
        """Whether a further pass over the stream, with the plain model, may begin."""
        if self._replay is not None:
            self.choices[name] = bool(self._replay["choices"].get(name, False))
        else:
            needed = self.targets / stride * self.forward()
            (self.choices[name],) = self.agree((SLOWDOWN / 2 * needed <= self.budget.left(),))
        return self.choices[name]

    def abandon(self, name: str) -> None:
        self.choices[name] = False

    @property
    def replaying(self) -> bool:
        return self._replay is not None

    # ---- documents side by side

    def adapts(self, documents: list[int], tokens: int, tokens_after: int) -> bool:
        """Whether documents (by their first targets) get adapters: `tokens` of them, with `tokens_after` still to come on
        this rank. All that is left must be affordable without adapters."""
        if self._replay is not None:
            plain = set(self._replay["plain_documents"])
            adapts = not any(document in plain for document in documents)
        else:
            needed = self._adapted() * tokens + self._plain() * tokens_after
            adapts = SLOWDOWN * needed <= self.budget.left()
        if not adapts:
            self.plain_documents += documents
        return adapts

    def documents_done(self, tokens: int, seconds: float, adapted: bool) -> None:
        (self._adapted if adapted else self._plain).update(seconds, tokens)

    # ---- the record

    def record(self) -> dict:
        return {
            "targets": self.targets,
            "window": self.window,
            "wanted": [self.wanted.stride, self.wanted.epochs],
            "spans": self.spans,
            "choices": self.choices,
            "plain_documents": sorted(self.plain_documents),
        }

    def gave_up(self) -> dict:
        """Shares of the stream that got less than the settings ask for; empty where nothing was given up."""
        ends = [*(start for start, *_ in self.spans[1:]), self.targets][: len(self.spans)]
        coarser = fewer = plain = 0.0
        for (start, stride, epochs), end in zip(self.spans, ends, strict=True):
            plain += (end - start) * (stride == 0)
            coarser += (end - start) * (stride > self.wanted.stride)
            fewer += (end - start) * (self.wanted.epochs - epochs) / max(self.wanted.epochs, 1)
        shares = {
            "coarser_stride": coarser / max(self.targets, 1),
            "adaptation": fewer / max(self.targets, 1),
            "first_pass_stands": plain / max(self.targets, 1),
            "documents_without_adapters": len(self.plain_documents),
        }
        skipped = [name for name, done in self.choices.items() if not done]
        return {name: share for name, share in shares.items() if share} | ({"results": skipped} if skipped else {})

    def _check(self, replay: dict) -> None:
        parts = {"targets", "window", "wanted", "spans", "choices", "plain_documents"}
        if not isinstance(replay, dict) or not parts <= replay.keys():
            raise PlanError("the plan is no record of a scoring run")
        for name, own in (("targets", self.targets), ("window", self.window)):
            if replay[name] != own:
                raise PlanError(f"the plan was made for {replay[name]} {name}, but here are {own}")
        wanted = [self.wanted.stride, self.wanted.epochs]
        if replay["wanted"] != wanted:
            raise PlanError(f"the plan was made for stride and epochs {replay['wanted']}, but the settings say {wanted}")


def ladder(wanted: Decision, window: int) -> list[Decision]:
    """From what is wanted to the cheapest: mild strides, then fewer epochs, then no context at all."""
    strides = [wanted.stride]
    while strides[-1] < window:
        strides.append(min(2 * strides[-1], window))
    mild = [stride for stride in strides if stride <= max(window * MILD_STRIDE, wanted.stride)]
    steps = [Decision(stride, wanted.epochs) for stride in mild]
    steps += [Decision(mild[-1], epochs) for epochs in range(wanted.epochs - 1, -1, -1)]
    return steps + [Decision(stride, 0) for stride in strides[len(mild) :]]
