"""Matrices on a grid: integer codes times a scale for each row, and the rules for a row's scale.

Every function takes matrices (..., rows, columns): one, or a stack whose members are treated each by itself.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
# the steps that float16 can hold
LEAST_SCALE, GREATEST_SCALE = 2.0**-24, 65504.0


class Rounded(NamedTuple):
    codes: Tensor
    """(..., rows, columns), int8"""
    scales: Tensor
    """(..., rows), float16"""

    def values(self) -> Tensor:
        return self.codes.float() * self.scales.float()[..., None]


def largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


class Steps(NamedTuple):
    """What the steps of rows may be."""

    bits: int
    floor: bool = False
    """A row's clip is never below 1.0, as in the submissions, which bounds the levels of quiet rows."""
    stretch: float = 1.0
    """Every step is so much larger than its clip asks for."""
    per_octave: int = 0
    """Only powers of 2^(1/n), which cost fewer bits; 0: any number."""
    sigmas: float = 0.0
    """Rows are clipped at so many of their standard deviations (SDClip); 0: as the form of rounding has it."""

    @property
    def largest(self) -> int:
        return largest_code(self.bits)

    def of(self, clip: Tensor) -> Tensor:
        """The step of rows that are clipped there."""
        step = (clip / self.largest).clamp_min(1.0 / self.largest if self.floor else LEAST_SCALE)
        if self.stretch != 1.0:
            step = self.stretch * step
        if self.per_octave:
            step = torch.exp2((step.log2() * self.per_octave).round() / self.per_octave)
        return step.clamp(LEAST_SCALE, GREATEST_SCALE)


def row_clip(weight: Tensor, quantile: float) -> Tensor:
    """A quantile of each row's magnitudes, between order statistics linearly; only the largest are sorted."""
    magnitude = weight.abs()
    rank = torch.tensor(quantile, dtype=magnitude.dtype, device=magnitude.device) * (magnitude.shape[-1] - 1)
    below = int(rank)
    if below == magnitude.shape[-1] - 1:
        return magnitude.amax(-1)
    largest = magnitude.topk(magnitude.shape[-1] - below, dim=-1).values
    return torch.lerp(largest[..., -1], largest[..., -2], rank - below)


def row_sigma(weight: Tensor) -> Tensor:
    return weight.std(-1) if weight.shape[-1] > 1 else weight.abs()[..., 0]


def round_to(weight: Tensor, scale: Tensor, largest: int) -> Tensor:
    return (weight / scale[..., None]).round().clamp(-largest, largest)


def chosen(better: Tensor, candidate: Rounded, best: Rounded) -> Rounded:
    """`candidate` for the matrices of a stack where it is better."""
    codes = torch.where(better[..., None, None], candidate.codes, best.codes)
    return Rounded(codes, torch.where(better[..., None], candidate.scales, best.scales))


def best_row_scale(weight: Tensor, steps: Steps) -> Tensor:
    """Of five percentiles, each row's best by its own squared error; float32."""
    least = torch.full(weight.shape[:-1], math.inf, device=weight.device)
    best = torch.ones_like(least)
    for percentile in PERCENTILES:
        scale = steps.of(row_clip(weight, percentile))
        error = (weight - round_to(weight, scale, steps.largest) * scale[..., None]).square().mean(-1)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best
