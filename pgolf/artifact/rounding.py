"""The forms of rounding, from matrices to a grid; pruning before and after it; and a low-rank correction of its error.

To add a form: its function, a line in FORMS, and its name in `artifact.rounding` of pgolf/config/artifact.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.artifact import gptq
from pgolf.artifact.grid import GREATEST_SCALE, LEAST_SCALE, PERCENTILES, Rounded, Steps, chosen, round_to, row_clip, row_sigma

EMBEDDING_QUANTILE = 0.9999984
# LQER's factors: the least code of each, and how many entries of the right one share a scale
LEFT_LEAST, RIGHT_LEAST, FACTOR_GROUP = -2, -8, 64


def by_percentile(weight: Tensor, steps: Steps) -> Rounded:
    """Of five row percentiles, the one with the least squared error over the matrix."""
    largest, weight = steps.largest, weight.float()
    best: Rounded | None = None
    least = torch.full(weight.shape[:-2], math.inf, device=weight.device)
    for percentile in PERCENTILES:
        scale = steps.of(row_clip(weight, percentile)).half()
        rounded = Rounded(round_to(weight, scale.float(), largest).to(torch.int8), scale)
        error = (weight - rounded.values()).square().mean((-2, -1))
        best = rounded if best is None else chosen(error < least, rounded, best)
        least = torch.minimum(least, error)
    assert best is not None
    return best


def by_sigma(weight: Tensor, steps: Steps) -> Rounded:
    """SDClip: rows are clipped at steps.sigmas of their standard deviations, without a search."""
    largest, weight = steps.largest, weight.float()
    scale = steps.of(steps.sigmas * row_sigma(weight)).half()
    return Rounded(round_to(weight, scale.float(), largest).to(torch.int8), scale)


def by_quantile(weight: Tensor, steps: Steps) -> Rounded:
    """An embedding table: rows clipped at one high quantile."""
    largest, weight = steps.largest, weight.float()
    clip = row_clip(weight, EMBEDDING_QUANTILE)
    scale = steps.of(clip)
    clipped = weight.clamp(-clip[..., None], clip[..., None])
    return Rounded(round_to(clipped, scale, largest).to(torch.int8), scale.half())


@dataclass(frozen=True)
class RoundingForm:
    """One value of `artifact.rounding`."""

    matrix: Callable[[Tensor, Steps], Rounded]
    """For a stack of matrices, when nothing is known of their inputs."""
    calibrated: Callable[..., Rounded] | None = None
    """(matrices, Hessians, steps, damping=...), for those whose inputs' second moments are known."""
    embedding: Callable[[Tensor, Steps], Rounded] = by_quantile
    """For embedding tables, whose rows are looked up and not multiplied."""
    by_sigma: bool = False
    """Rows are clipped in standard deviations: steps carry sigmas, and artifact.scale_floor does not apply."""

    @property
    def needs_hessians(self) -> bool:
        return self.calibrated is not None


FORMS = {
    "percentile": RoundingForm(by_percentile),
    "quantile": RoundingForm(by_quantile),
    "sdclip": RoundingForm(by_sigma, embedding=by_sigma, by_sigma=True),
    "gptq-published": RoundingForm(by_percentile, gptq.published),
    "gptq": RoundingForm(by_percentile, gptq.standard),
    "gptq-sdclip": RoundingForm(by_sigma, gptq.standard, embedding=by_sigma, by_sigma=True),
}


# ---- pruning


def without_smallest(weight: Tensor, share: float) -> Tensor:
    """A matrix, or each of a stack, with the weights below its `share` quantile of magnitude set to zero."""
    if not share:
        return weight
    magnitude = weight.abs().flatten(-2)
    place = share * (magnitude.shape[-1] - 1)
    below = math.floor(place)
    lower = magnitude.kthvalue(below + 1).values
    upper = magnitude.kthvalue(min(below + 2, magnitude.shape[-1])).values
    threshold = torch.lerp(lower, upper, place - below)
    return torch.where(weight.abs() < threshold[..., None, None], 0.0, weight)


def without_ones(matrices: list[Rounded], share: float) -> list[Rounded]:
    """The cheapest `share` of all codes that are +1 or -1 set to zero; a code costs its row's squared scale.

    Where several cost the same, those of earlier matrices, rows and columns go first.
    """
    ones = [matrix.codes.abs() == 1 for matrix in matrices]
    squares = [matrix.scales.float().square()[..., None] for matrix in matrices]
    costs = [square.expand(one.shape)[one] for square, one in zip(squares, ones, strict=True)]
    order = torch.cat([cost.flatten() for cost in costs]).argsort(stable=True)
    doomed = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    doomed[order[: round(share * len(order))]] = True
    pruned = []
    for matrix, one, mine in zip(matrices, ones, doomed.split([len(cost) for cost in costs]), strict=True):
        codes = matrix.codes.clone()
        codes[one] = torch.where(mine, 0, codes[one])
        pruned.append(Rounded(codes, matrix.scales))
    return pruned


# ---- low-rank correction


class Correction(NamedTuple):
    """left^T right, (rank, rows) and (rank, columns), is added to a matrix's rounded values."""

    left: Rounded
    """(rank, rows); every row has the same scale."""
    right: Rounded
    """(groups, factor_group(rank, columns)): the right factor row after row, cut into groups that share a scale."""

    def values(self) -> Tensor:
        return self.left.values().mT @ self.right.values().reshape(len(self.left.codes), -1)


def factor_group(rank: int, columns: int) -> int:
    """How many entries of the right factor share a scale: FACTOR_GROUP, or less where that does not divide them."""
    return math.gcd(FACTOR_GROUP, rank * columns)


def low_rank(error: Tensor, rank: int) -> Correction:
    """The nearest matrix of a rank to the rounding error, by its singular values: LQER, arXiv:2402.02446, with a plain error
    instead of one scaled by activations, and rounded as #1797 has it. The left factor carries the singular values and has
    two bits, -2 to 1; the right one four, -8 to 7. A left scale is amax / 1.5, a right one amax / 7.5."""
    u, s, v = torch.linalg.svd(error.float(), full_matrices=False)
    left = (u[:, :rank] * s[:rank]).mT.contiguous()
    right = v[:rank].reshape(-1, factor_group(rank, error.shape[-1]))
    return Correction(
        _factor(left, left.abs().amax().expand(rank), LEFT_LEAST), _factor(right, right.abs().amax(-1), RIGHT_LEAST)
    )


def _factor(rows: Tensor, most: Tensor, least: int) -> Rounded:
    """Codes from `least` to -least - 1, with the rows' largest magnitudes half a step beyond these."""
    scale = (most / (-least - 0.5)).clamp(LEAST_SCALE, GREATEST_SCALE).half()
    codes = (rows / scale.float()[:, None]).round().clamp(least, -least - 1)
    return Rounded(codes.to(torch.int8), scale)
