"""Averages of the weights over training, in float32: exponential (EMA), SWA (arXiv:1803.05407), LAWA (arXiv:2209.14981)."""

from collections import deque

import torch

from pgolf.config import TrainingSettings
from pgolf.training.errors import TrainingError


class Average:
    """Sees the weights after every step and gives the ones to export: here, the last ones."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.names = list(state)

    def update(self, state: dict[str, torch.Tensor], step: int, multiplier: float) -> bool:
        """`state` holds the weights after `step` steps. True if they are the first that went into the average."""
        return False

    def export(self, state: dict[str, torch.Tensor], step: int) -> tuple[str, dict[str, torch.Tensor]]:
        """What the weights are, and the weights, in float32. Too short a run for an average gives its last ones."""
        return "raw", {name: value.float().clone() for name, value in state.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return {}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        pass


class ExponentialAverage(Average):
    """average <- decay average + (1 - decay) weights after every step, from the initial weights, without correction."""

    def __init__(self, state: dict[str, torch.Tensor], settings: TrainingSettings):
        super().__init__(state)
        self.settings = settings
        self.average = _copies(state)

    @torch.no_grad()
    def update(self, state, step, multiplier):
        torch._foreach_lerp_(self.average, _float(state), 1 - self.settings.ema_decay)
        return step == 1

    def export(self, state, step):
        if step < self.settings.ema_minimum_steps:
            return super().export(state, step)
        return "ema", dict(zip(self.names, [value.clone() for value in self.average], strict=True))

    def state(self):
        return {f"ema.{name}": value for name, value in zip(self.names, self.average, strict=True)}

    def restore(self, tensors):
        torch._foreach_copy_(self.average, [tensors[f"ema.{name}"] for name in self.names])


class StochasticAverage(Average):
    """SWA: the plain mean of snapshots, one every swa_every steps once the schedule is below swa_threshold."""

    def __init__(self, state: dict[str, torch.Tensor], settings: TrainingSettings):
        super().__init__(state)
        self.settings = settings
        self.total = [torch.zeros_like(value, dtype=torch.float32) for value in state.values()]
        self.count = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, state, step, multiplier):
        if multiplier < self.settings.swa_threshold and step % self.settings.swa_every == 0:
            torch._foreach_add_(self.total, _float(state))
            self.count += 1
            return int(self.count) == 1
        return False

    def export(self, state, step):
        if not self.count:
            return super().export(state, step)
        return "swa", dict(zip(self.names, torch._foreach_div(self.total, float(self.count)), strict=True))

    def state(self):
        return {f"swa.{name}": value for name, value in zip(self.names, self.total, strict=True)} | {"swa": self.count}

    def restore(self, tensors):
        torch._foreach_copy_(self.total, [tensors[f"swa.{name}"] for name in self.names])
        self.count = tensors["swa"].clone()


class LatestAverage(Average):
    """LAWA: the plain mean of the last lawa_length snapshots, one every lawa_every steps."""

    def __init__(self, state: dict[str, torch.Tensor], settings: TrainingSettings):
        super().__init__(state)
        self.settings = settings
        self.queue: deque[list[torch.Tensor]] = deque(maxlen=settings.lawa_length)
        self.device = next(iter(state.values())).device

    def update(self, state, step, multiplier):
        if step % self.settings.lawa_every == 0:
            self.queue.append(_copies(state))
        return step == self.settings.lawa_every

    @torch.no_grad()
    def export(self, state, step):
        if not self.queue:
            return super().export(state, step)
        total = [value.clone() for value in self.queue[0]]
        for snapshot in list(self.queue)[1:]:
            torch._foreach_add_(total, snapshot)
        torch._foreach_div_(total, float(len(self.queue)))
        return "lawa", dict(zip(self.names, total, strict=True))

    def state(self):
        return {
            f"lawa.{place}.{name}": value
            for place, snapshot in enumerate(self.queue)
            for name, value in zip(self.names, snapshot, strict=True)
        }

    def restore(self, tensors):
        self.queue.clear()
        while f"lawa.{len(self.queue)}.{self.names[0]}" in tensors:
            self.queue.append([tensors[f"lawa.{len(self.queue)}.{name}"].to(self.device) for name in self.names])


def averaging(state: dict[str, torch.Tensor], settings: TrainingSettings) -> Average:
    """The average that will be exported; the others are not worth their memory."""
    if settings.export == "raw":
        return Average(state)
    kind, switched_on, name = {
        "ema": (ExponentialAverage, settings.ema_decay, "ema_decay"),
        "swa": (StochasticAverage, settings.swa_every, "swa_every"),
        "lawa": (LatestAverage, settings.lawa_every, "lawa_every"),
    }[settings.export]
    if not switched_on:
        raise TrainingError(f"training.export is {settings.export!r}, but training.{name} is 0; set {name}, or export 'raw'")
    return kind(state, settings)


def _copies(state) -> list[torch.Tensor]:
    return [value.detach().to(torch.float32, copy=True) for value in state.values()]


def _float(state) -> list[torch.Tensor]:
    return [value.detach().float() for value in state.values()]
