"""Which windows score which targets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs start..stop-1; of the targets at the same positions, those from `score_from` on are scored."""

    start: int
    stop: int
    score_from: int

    @property
    def scored(self) -> int:
        return self.stop - self.score_from


def sliding_windows(targets: int, length: int, stride: int) -> list[Window]:
    """Windows of `length` that advance by `stride` and score every target exactly once: the first scores all it holds,
    every later one what its predecessors did not reach. The last may be shorter. At stride = length they lie side by side."""
    plan: list[Window] = []
    reached = 0
    for start in range(0, targets, stride):
        if reached >= targets:
            break
        stop = min(start + length, targets)
        plan.append(Window(start, stop, reached))
        reached = stop
    return plan


def published_tail(targets: int, length: int, stride: int) -> tuple[int, list[Window]]:
    """What the submissions' rule does at the stream's end: starts go on to the last target, and each window cut off there
    scores the last `stride` targets again. Returns the target up to which both rules agree, and the windows after it."""
    if targets <= length:
        agree, first = targets, 1
    else:
        full = (targets - length) // stride
        agree, first = full * stride + length, full + 1
    starts = range(first * stride, targets, stride)
    return agree, [Window(start, targets, max(start, targets - stride)) for start in starts]
