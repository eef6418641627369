"""What each step gave, the same on every rank, without making the device wait."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pgolf.distributed import World

# on CUDA the host launches this many steps before it asks what the first of them gave
STEPS_IN_FLIGHT = 2


@dataclass(frozen=True)
class StepResult:
    """A finished step; every rank has the same numbers, so all decide alike."""

    step: int
    loss: float
    """Averaged over ranks, like the gradient's norm."""
    norm: float
    multiplier: float
    """Of the learning rates."""
    elapsed: float
    """The first rank's clock at its end."""
    stopped: bool
    """Whether any rank was asked to stop."""


class StepResults:
    """A queue of steps whose numbers are on their way: summed over ranks, and on CUDA copied to the host."""

    def __init__(self, world: World):
        self.world = world
        self.cuda = world.device.type == "cuda"
        self.depth = STEPS_IN_FLIGHT if self.cuda else 0
        self.queue: deque[tuple[int, torch.Tensor, float, torch.cuda.Event | None]] = deque()

    def push(
        self, step: int, loss: torch.Tensor, norm: torch.Tensor, multiplier: float, elapsed: float, stopped: bool
    ) -> None:
        told = torch.tensor([elapsed if self.world.is_first else 0.0, float(stopped)], dtype=torch.float64)
        told = told.pin_memory().to(self.world.device, non_blocking=True) if self.cuda else told
        summed = self.world.sum(torch.cat([torch.stack([loss, norm]).double(), told]))
        event = None
        if self.cuda:
            summed = summed.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.queue.append((step, summed, multiplier, event))

    def ready(self) -> Iterator[StepResult]:
        """Those that enough other steps have followed."""
        while len(self.queue) > self.depth:
            yield self._pop()

    def all(self) -> Iterator[StepResult]:
        while self.queue:
            yield self._pop()

    def _pop(self) -> StepResult:
        step, summed, multiplier, event = self.queue.popleft()
        if event:
            event.synchronize()
        loss, norm, elapsed, stopped = summed.tolist()
        size = self.world.size
        return StepResult(step, loss / size, norm / size, multiplier, elapsed, stopped > 0)
