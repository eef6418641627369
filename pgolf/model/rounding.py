"""Weights rounded in the forward pass, as `Network.rounding` takes it: training feels the grid that the artifact will use."""

import math
from typing import Literal

import torch

from pgolf.config import TrainingSettings


class FakeRounding:
    """Rounds rows to the grid the artifact will use, so that training feels it. Goes into `Network.rounding`.

        scale = max(rowclip / clip, 1 / clip),    rowclip the quantile of |row| (1: the maximum)
        y = clamp(w / scale, -clip - 1, clip), r = y - floor(y) - 1/2
        hard          scale round(y); the gradient passes unchanged
        soft          scale s_a(y), s_a(y) = floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2)): differentiable, through the
                      scale too, and harder as a grows: 1 where the schedule crosses the threshold, 16 where it is 0
        soft_to_hard  scale round(y), with the gradient of scale s_a(y): a = 1 / 2000, a straight line, until the schedule is
                      below 0.02, and 5 from there on

    The sharpness a is a tensor, so that it may change at every step without a new compilation. It starts where training
    leaves it.
    """

    def __init__(
        self,
        clip: int,
        *,
        quantile: float,
        form: Literal["hard", "soft", "soft_to_hard"],
        banks: bool,
        device: torch.device | str = "cpu",
    ):
        self.clip = clip
        self.quantile = quantile
        self.form = form
        self.banks = banks
        self.sharpness = torch.full((), 16.0 if form == "soft" else 5.0, device=device)

    @classmethod
    def of(cls, settings: TrainingSettings, device: torch.device | str = "cpu") -> "FakeRounding":
        """As these settings train, or leave it switched on."""
        return cls(
            settings.qat_clip,
            quantile=settings.qat_quantile,
            form="soft" if settings.qat_soft_round else "soft_to_hard" if settings.qat_soft_to_hard else "hard",
            banks=settings.qat_banks,
            device=device,
        )

    @classmethod
    def left_on(cls, settings: TrainingSettings, device: torch.device | str = "cpu") -> "FakeRounding | None":
        """What a network that was trained with these settings still rounds with whenever it is in training mode, as
        adaptation with `training_mode` puts it; None where training never rounded."""
        return cls.of(settings, device) if settings.qat_threshold else None

    def harden(self, multiplier: float, threshold: float) -> None:
        """Follow the schedule, which began to round at the threshold."""
        if self.form == "soft":
            self.sharpness.fill_(1 + 15 * max(0.0, 1 - multiplier / threshold))
        elif self.form == "soft_to_hard":
            self.sharpness.fill_(5.0 if multiplier < 0.02 else 1 / 2000)

    def __call__(self, weight: torch.Tensor, role: str) -> torch.Tensor:
        if role != "projection" and not self.banks:
            return weight
        with torch.set_grad_enabled(self.form == "soft" and torch.is_grad_enabled()):
            row = row_quantile(weight.abs().float(), self.quantile)
            scale = (row / self.clip).clamp_min(1 / self.clip)
        surrogate = weight
        if self.form != "hard":
            surrogate = (soft_round((weight / scale).clamp(-self.clip - 1, self.clip), self.sharpness) * scale).to(weight)
        if self.form == "soft":
            return surrogate
        with torch.no_grad():
            rounded = (weight / scale).round().clamp(-self.clip - 1, self.clip) * scale
            correction = rounded.to(weight.dtype) - surrogate
        return surrogate + correction


def soft_round(y: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    floor = y.detach().floor()
    return floor + 0.5 + 0.5 * torch.tanh(sharpness * (y - floor - 0.5)) / (torch.tanh(sharpness / 2) + 1e-10)


def row_quantile(magnitude: torch.Tensor, quantile: float) -> torch.Tensor:
    """The quantile of each row, between order statistics linearly, kept as a column.

    Only the few largest values are sorted: this runs on every weight at every step.
    """
    columns = magnitude.shape[-1]
    place = quantile * (columns - 1)
    below = math.floor(place)
    if below == columns - 1:
        return magnitude.amax(-1, keepdim=True)
    largest = magnitude.topk(columns - below, dim=-1).values[..., -2:]
    return torch.lerp(largest[..., 1:], largest[..., :1], place - below)
