"""Quantisation-aware terms: weights that are rounded in the forward pass, and a penalty on the noise of rounding."""

from collections.abc import Mapping, Sequence

import torch

from pgolf.config import TrainingSettings
from pgolf.model.rounding import FakeRounding
from pgolf.training.errors import TrainingError

# what one row's largest code is taken to be in the penalty, whatever the artifact will use: its authors' over-estimate
CROWN_Q_STEPS = 15


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

    def __init__(self, model, groups: Mapping, settings: TrainingSettings, device: torch.device):
        if settings.crown_q and not settings.qat_threshold:
            raise TrainingError(
                f"training.crown_q is {settings.crown_q}, but acts only below training.qat_threshold, which is 0; set both"
            )
        self.model, self.settings = model, settings
        self.active = False
        self.rounding = FakeRounding.of(settings, device)
        self.crown_q = torch.compile(crown_q, fullgraph=True, dynamic=False) if device.type == "cuda" else crown_q
        self.penalised = [*groups["projection"], *(groups["matrix"] if settings.crown_q_banks else ())]

    def switch(self, on: bool) -> None:
        self.active = on
        self.model.rounding = self.rounding if on else None

    def reached(self, multiplier: float) -> bool:
        """Follow the schedule; true at the step that switches the terms on."""
        first = not self.active and multiplier < self.settings.qat_threshold
        if first:
            self.switch(True)
        if self.active:
            self.rounding.harden(multiplier, self.settings.qat_threshold)
        return first

    def penalty(self) -> torch.Tensor | None:
        if not self.active or not self.settings.crown_q or not self.penalised:
            return None
        return self.settings.crown_q * self.crown_q(self.penalised, self.settings.crown_q_form)
