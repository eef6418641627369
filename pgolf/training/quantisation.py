"""Quantisation-aware terms: weights that are rounded in the forward pass, and a penalty on the noise of rounding."""

import math
from collections.abc import Sequence

import torch

from pgolf.config import TrainingSettings
from pgolf.training.errors import TrainingError

# what one row's largest code is taken to be in the penalty, whatever the artifact will use: its authors' over-estimate
CROWN_Q_STEPS = 15


class FakeRounding:
    """Rounds rows to the grid the artifact will use, so that training feels it. Goes into `Network.rounding`.

        scale = max(rowclip / clip, 1 / clip),    rowclip the quantile of |row| (1: the maximum)
        hard:  scale clamp(round(w / scale), -clip - 1, clip); the gradient passes unchanged
        soft:  y = clamp(w / scale, -clip - 1, clip), r = y - floor(y) - 1/2,
               scale (floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2))); differentiable, harder as a grows

    The sharpness a lives in a tensor: it may change at every step without a new compilation.
    """

    def __init__(self, clip: int, *, quantile: float, soft: bool, banks: bool, device: torch.device | str = "cpu"):
        self.clip = clip
        self.quantile = quantile
        self.soft = soft
        self.banks = banks
        self.sharpness = torch.ones((), device=device)

    def harden(self, multiplier: float, threshold: float) -> None:
        """a = 1 where the schedule crosses the threshold, 16 where it reaches 0."""
        self.sharpness.fill_(1 + 15 * max(0.0, 1 - multiplier / threshold))

    def __call__(self, weight: torch.Tensor, role: str) -> torch.Tensor:
        if role != "projection" and not self.banks:
            return weight
        with torch.no_grad():
            row = row_quantile(weight.detach().abs().float(), self.quantile)
            scale = (row / self.clip).clamp_min(1 / self.clip)
        if self.soft:
            return (soft_round((weight / scale).clamp(-self.clip - 1, self.clip), self.sharpness) * scale).to(weight)
        with torch.no_grad():
            rounded = (weight / scale).round().clamp(-self.clip - 1, self.clip) * scale
            correction = rounded.to(weight.dtype) - weight
        return weight + correction


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


def crown_q(matrices: Sequence[torch.Tensor], form: str) -> torch.Tensor:
    """The CROWN-Q penalty: the noise of rounding, step^2 / 12, weighted by w^2, over 2-D matrices or banks of them.

        step_r = max_j |w_rj| / 15
        sum    sum over matrices and rows of mean_j(w_rj^2) step_r^2 / 12; both factors have a gradient
        mean   sum over matrices of mean_rj(w_rj^2 step_r^2) / 12; the steps are constants
    """
    total = torch.zeros((), device=matrices[0].device)
    for matrix in matrices:
        matrix = matrix.float()
        step = matrix.abs().amax(-1).clamp_min(1e-10) / CROWN_Q_STEPS
        squares = matrix.square().mean(-1)
        if form == "sum":
            total = total + (squares * step.square()).sum()
        else:
            total = total + (squares * step.detach().square()).mean(-1).sum()
    return total / 12


class QuantisationTerms:
    """When and where the terms act, as the settings say: from the first step whose multiplier is below the threshold."""

    def __init__(self, model, groups: dict, settings: TrainingSettings, device: torch.device):
        if settings.crown_q and not settings.qat_threshold:
            raise TrainingError(
                f"training.crown_q is {settings.crown_q}, but acts only below training.qat_threshold, which is 0; set both"
            )
        self.model, self.settings = model, settings
        self.active = False
        self.rounding = FakeRounding(
            settings.qat_clip,
            quantile=settings.qat_quantile,
            soft=settings.qat_soft_round,
            banks=settings.qat_banks,
            device=device,
        )
        self.crown_q = torch.compile(crown_q, fullgraph=True, dynamic=False) if device.type == "cuda" else crown_q
        self.penalised = [*groups["projection"], *(groups["matrix"] if settings.crown_q_banks else ())]

    def switch(self, on: bool) -> None:
        self.active = on
        self.model.rounding = self.rounding if on else None

    def reached(self, multiplier: float) -> bool:
        """Follow the schedule; true at the step that switches the terms on."""
        if not self.settings.qat_threshold:
            return False
        first = not self.active and multiplier < self.settings.qat_threshold
        if first:
            self.switch(True)
        if self.active and self.settings.qat_soft_round:
            self.rounding.harden(multiplier, self.settings.qat_threshold)
        return first

    def penalty(self) -> torch.Tensor | None:
        if not self.active or not self.settings.crown_q or not self.penalised:
            return None
        return self.settings.crown_q * self.crown_q(self.penalised, self.settings.crown_q_form)
