"""Matrices to small integers and a scale for each row: percentile search, k-sigma clipping, pruning, low-rank correction.

Every function takes matrices (..., rows, columns): one, or a stack whose members are treated each by itself.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
EMBEDDING_QUANTILE = 0.9999984
# the steps that float16 can hold
LEAST_SCALE, GREATEST_SCALE = 2.0**-24, 65504.0
FACTOR_BITS = 8


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


def by_percentile(weight: Tensor, steps: Steps) -> Rounded:
    """Of five row percentiles, the one with the least squared error over the matrix."""
    largest, weight = steps.largest, weight.float()
    best: Rounded | None = None
    least = torch.full(weight.shape[:-2], math.inf, device=weight.device)
    for percentile in PERCENTILES:
        scale = steps.of(row_clip(weight, percentile)).half()
        found = Rounded(round_to(weight, scale.float(), largest).to(torch.int8), scale)
        error = (weight - found.values()).square().mean((-2, -1))
        best = found if best is None else chosen(error < least, found, best)
        least = torch.minimum(least, error)
    assert best is not None
    return best


def chosen(better: Tensor, found: Rounded, best: Rounded) -> Rounded:
    """`found` for the matrices of a stack where it is better."""
    codes = torch.where(better[..., None, None], found.codes, best.codes)
    return Rounded(codes, torch.where(better[..., None], found.scales, best.scales))


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


def by_sigma(weight: Tensor, steps: Steps, sigmas: float) -> Rounded:
    """SDClip: rows are clipped at so many of their standard deviations, without a search."""
    largest, weight = steps.largest, weight.float()
    scale = steps.of(sigmas * row_sigma(weight)).half()
    return Rounded(round_to(weight, scale.float(), largest).to(torch.int8), scale)


def by_quantile(weight: Tensor, steps: Steps) -> Rounded:
    """An embedding table: rows clipped at one high quantile."""
    largest, weight = steps.largest, weight.float()
    clip = row_clip(weight, EMBEDDING_QUANTILE)
    scale = steps.of(clip)
    clipped = weight.clamp(-clip[..., None], clip[..., None])
    return Rounded(round_to(clipped, scale, largest).to(torch.int8), scale.half())


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
    right: Rounded

    def values(self) -> Tensor:
        return self.left.values().mT @ self.right.values()


def low_rank(error: Tensor, rank: int) -> Correction:
    """The nearest matrix of a rank to the rounding error, as two factors of eight-bit codes."""
    u, s, v = torch.linalg.svd(error.float(), full_matrices=False)
    root = s[:rank].sqrt()[:, None]
    return Correction(_factor(root * u[:, :rank].mT), _factor(root * v[:rank]))


def _factor(rows: Tensor) -> Rounded:
    steps = Steps(FACTOR_BITS)
    scale = steps.of(rows.abs().amax(-1)).half()
    return Rounded(round_to(rows, scale.float(), steps.largest).to(torch.int8), scale)
