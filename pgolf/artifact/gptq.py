"""GPTQ (arXiv:2210.17323): columns are rounded one after another, and later columns compensate each one's error.

For a matrix W with inputs x, and H the mean of x x^T over calibration text, the output's squared error is
trace((W - V) H (W - V)^T). Two forms: as #688 published it, and as the paper has it. Both take stacks of matrices,
weights (n, rows, columns) with Hessians (n, columns, columns), and run on the device that these are on.
"""

import math

import torch
from torch import Tensor

from pgolf.artifact.grid import PERCENTILES, Rounded, Steps, best_row_scale, chosen, row_clip, row_sigma

BLOCK = 128


def published(weight: Tensor, hessian: Tensor, steps: Steps, *, damping: float = 0.01) -> Rounded:
    """#688's: each row's best percentile, columns in ascending order of their activations, errors spread by the plain
    inverse of the damped Hessian, which stays as it is while columns are used up. Scales are float32 while rounding."""
    largest, weight = steps.largest, weight.float()
    scale = best_row_scale(weight, steps)
    damped = _damped(hessian, damping)
    order = damped.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, stable=True)
    inverse = _inverse_or_diagonal(_permuted(damped, order))
    codes = _spread(_columns(weight, order), scale, largest, inverse)
    return Rounded(_columns(codes, order.argsort(dim=-1)).to(torch.int8), scale.half())


def standard(weight: Tensor, hessian: Tensor, steps: Steps, *, damping: float = 0.01) -> Rounded:
    """The paper's: columns in descending order of their activations, errors spread by the upper Cholesky factor of the
    inverse. Columns whose input is always zero become zero.

    Rows are clipped at steps.sigmas standard deviations, columns without input included (SDClip, #1394); if that is 0, each
    of the five percentiles gets a pass of its own, and the one with the least output error is taken, matrix by matrix.
    """
    largest, weight = steps.largest, weight.float()
    sigma = row_sigma(weight)
    dead = hessian.diagonal(dim1=-2, dim2=-1) == 0
    weight = weight.masked_fill(dead[..., None, :], 0.0)
    damped = _damped(hessian + torch.diag_embed(dead.to(hessian.dtype)), damping)
    order = damped.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    factor = torch.linalg.cholesky(_inverse(_permuted(damped, order)), upper=True)
    arranged = _columns(weight, order)
    if steps.sigmas:
        clips = [steps.sigmas * sigma]
    else:
        clips = [row_clip(weight, percentile) for percentile in PERCENTILES]
    best: Rounded | None = None
    least = torch.full(weight.shape[:-2], math.inf, device=weight.device)
    for clip in clips:
        scale = steps.of(clip).half()
        codes = _spread(arranged, scale.float(), largest, factor)
        rounded = Rounded(_columns(codes, order.argsort(dim=-1)).to(torch.int8), scale)
        error = output_error(weight, rounded.values(), hessian)
        best = rounded if best is None else chosen(error < least, rounded, best)
        least = torch.minimum(least, error)
    assert best is not None
    return best


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> Tensor:
    """trace((W - V) H (W - V)^T) of each matrix."""
    lost = weight.float() - rounded
    return ((lost @ hessian) * lost).sum((-2, -1))


def _spread(weight: Tensor, scale: Tensor, largest: int, inverse: Tensor) -> Tensor:
    """Codes of columns rounded from first to last; column j's error over inverse[j, j], times inverse[j, k], comes off
    column k. At once inside a block of columns, for all later columns when the block is done.

    Works on the transpose, where a column is contiguous.
    """
    left = weight.mT.contiguous()
    codes = torch.empty_like(left)
    columns = left.shape[-2]
    divisor = inverse.diagonal(dim1=-2, dim2=-1).clamp_min(1e-8)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        part = left[..., start:end, :].clone()
        errors = torch.empty_like(part)
        for j in range(end - start):
            column = part[..., j, :]
            code = (column / scale).round_().clamp_(-largest, largest)
            error = (column - code * scale) / divisor[..., start + j, None]
            codes[..., start + j, :] = code
            errors[..., j, :] = error
            if j + 1 < end - start:
                share = inverse[..., start + j, start + j + 1 : end]
                part[..., j + 1 :, :].sub_(share[..., :, None] * error[..., None, :])
        if end < columns:
            left[..., end:, :] -= inverse[..., start:end, end:].mT @ errors
    return codes.mT


def _damped(hessian: Tensor, damping: float) -> Tensor:
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    return hessian + damping * mean[..., None, None] * torch.eye(hessian.shape[-1], device=hessian.device)


def _columns(matrix: Tensor, order: Tensor) -> Tensor:
    return matrix.gather(-1, order[..., None, :].expand_as(matrix))


def _permuted(square: Tensor, order: Tensor) -> Tensor:
    return _columns(_columns(square, order).mT, order).mT


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def _inverse_or_diagonal(matrix: Tensor) -> Tensor:
    """Where a matrix has no Cholesky factor, only its diagonal is inverted."""
    factor, flaw = torch.linalg.cholesky_ex(matrix)
    diagonal = torch.diag_embed(1.0 / matrix.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30))
    failed = (flaw > 0)[..., None, None]
    whole = torch.cholesky_inverse(torch.where(failed, torch.eye(matrix.shape[-1], device=matrix.device), factor))
    return torch.where(failed, diagonal, whole)
