"""Which windows score which targets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
# targets of one span where nothing else decides
SPAN = 4096


@dataclass(frozen=True)
class Window:
    """Inputs start..stop-1; of the targets at the same positions, those from `score_from` on are scored."""

    start: int
    stop: int
    score_from: int

    @property
    def scored(self) -> int:
        return self.stop - self.score_from


def windows_from(reached: int, targets: int, length: int, stride: int) -> Iterator[Window]:
    """The windows that score targets `reached` and on, each once: of `length` inputs, each of them `stride` targets on.
    The first window of a stream scores all it holds; the last may be shorter."""
    while reached < targets:
        start = max(0, reached + stride - length) if reached else 0
        stop = min(start + length, targets)
        yield Window(start, stop, reached)
        reached = stop


def sliding_windows(targets: int, length: int, stride: int) -> list[Window]:
    """Windows of `length` that advance by `stride` and score every target exactly once: the first scores all it holds,
    every later one what its predecessors did not reach. The last may be shorter. At stride = length they lie side by side."""
    return list(windows_from(0, targets, length, stride))


def targets_per_span(batch: int, stride: int, ranks: int = 1) -> int:
    """How many targets are scored before anything is learnt from them, where there are no chunks."""
    return max(SPAN, batch * ranks * stride)


def begins_span(begun: int, window: Window, chunk_tokens: int, most: int) -> bool:
    """Whether a window begins a new span of the stream, given where the last one began: spans end with the chunks of the
    first target that a window scores or, without chunks, before they exceed `most` targets."""
    if chunk_tokens:
        return window.score_from // chunk_tokens != begun // chunk_tokens
    return window.stop - begun > most


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


def share(items: Sequence[Item], rank: int, world: int) -> Sequence[Item]:
    """The contiguous part that one rank does."""
    return items[len(items) * rank // world : len(items) * (rank + 1) // world]
