"""Softcapped cross-entropy and its gradient on a CPU: in numba, three sweeps over a row that stays in the cache; float64 in
torch."""

import math

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.jit import contracted_inlined, exact, reordered_inlined
from pgolf.kernels.launch import cdiv
from pgolf.kernels.threads import in_parallel

# Elements of one group of rows on a CPU: small enough to stay in the cache.
CACHED_ELEMENTS = 524_288


def forward(
    logits: Tensor,
    targets: Tensor,
    scale: Tensor,
    softcap: float,
    z_loss: float,
    ignore_index: int,
    want_gradient: bool,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """In numba, which computes in float32; float64 stays with torch."""
    if logits.dtype == torch.float64:
        return forward_torch(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient)
    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    kept = _kept(targets, vocabulary, ignore_index)
    group = max(1, CACHED_ELEMENTS // max(1, vocabulary))
    for start in range(0, count, group):
        here = slice(start, start + group)
        own = logits.detach()[here].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tensors = (own, own.amax(1), targets[here], kept[here], scale[here], losses[here], unscaled[here])
        arrays = [x.detach().numpy() for x in tensors]
        share = cdiv(len(own), torch.get_num_threads())

        def work(first: int, arrays: list = arrays, share: int = share) -> None:
            *given, loss, plain = (array[first : first + share] for array in arrays)
            rows(*given, np.float32(softcap), np.float32(z_loss), loss, plain, want_gradient)

        in_parallel(work, range(0, len(own), share))
        if want_gradient:
            gradient[here] = own
    return losses, unscaled, gradient


def _kept(targets: Tensor, vocabulary: int, ignore_index: int) -> Tensor:
    """True where a target counts (N,); a target that is no token raises."""
    kept = targets != ignore_index
    if bool((kept & ((targets < 0) | (targets >= vocabulary))).any()):
        raise ValueError(f"cross_entropy: a target is neither in 0..{vocabulary - 1} nor the ignore index {ignore_index}")
    return kept


def forward_torch(
    logits: Tensor,
    targets: Tensor,
    scale: Tensor,
    softcap: float,
    z_loss: float,
    ignore_index: int,
    want_gradient: bool,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in groups that stay in the cache, so that memory sees each logit once, as on a GPU."""
    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    group = max(1, CACHED_ELEMENTS // max(1, vocabulary))
    kept = _kept(targets, vocabulary, ignore_index)
    columns = torch.where(kept, targets, 0)
    for start in range(0, count, group):
        here = slice(start, start + group)
        column, keep = columns[here, None], kept[here]
        raw = logits[here].to(scale.dtype)
        if softcap:
            tanh = torch.mul(raw, 1 / softcap).tanh_()
            z = tanh * softcap
        else:
            z = raw.clone() if raw.data_ptr() == logits[here].data_ptr() else raw
        z_target = z.gather(1, column)
        peak = z.amax(1, keepdim=True)
        exponential = z.sub_(peak).exp_()
        total = exponential.sum(1, keepdim=True)
        lse = total.log().add_(peak)
        loss = (lse - z_target + z_loss * lse.square()).squeeze(1)
        unscaled[here] = torch.where(keep, loss, 0)
        losses[here] = unscaled[here] * scale[here]
        if want_gradient:
            row_scale = scale[here, None]
            dz = exponential.mul_(row_scale * (1 + 2 * z_loss * lse) / total)
            dz.scatter_add_(1, column, -row_scale)
            if softcap:
                dz.addcmul_(dz, tanh.square_(), value=-1)
            gradient[here] = dz.masked_fill_(~keep[:, None], 0)
    return losses, unscaled, gradient


def rescale(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply the rows of gradient (N, V) by upstream (N,), in place."""
    if not bool((upstream == 1).all()):
        gradient.mul_(upstream.unsqueeze(1))


# ---- in numba

SHIFT = np.float32(12_582_912.0)  # 1.5 * 2^23: adding it rounds to a whole number and leaves that in the lowest bits
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87.0), np.float32(20.0)
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
E3, E4, E5, E6 = (np.float32(1 / math.factorial(n)) for n in (3, 4, 5, 6))
T3, T5, T7, T9 = np.float32(-1 / 3), np.float32(2 / 15), np.float32(-17 / 315), np.float32(62 / 2835)
SMALL = np.float32(0.09)  # the square from which the quotient is the more exact one


@contracted_inlined
def exponential(x):
    """e^x for x < 88 in float32, relative error under 3e-7; what is smaller than e^-87 becomes that."""
    x = max(x, LEAST)
    shifted = x * LOG2E + SHIFT
    k = shifted - SHIFT
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = ((((E6 * r + E5) * r + E4) * r + E3) * r + HALF) * r + ONE
    p = p * r + ONE
    # the low bits of the shifted number hold k: into the exponent with it
    bits = np.float32(p).view(np.int32) + (np.float32(shifted).view(np.int32) << 23)
    return np.int32(bits).view(np.float32)


@contracted_inlined
def hyperbolic_tangent(x):
    e = exponential(TWO * min(x, MOST))
    far = (e - ONE) / (e + ONE)
    square = x * x
    near = x + x * square * (T3 + square * (T5 + square * (T7 + square * T9)))
    return near if square < SMALL else far


@reordered_inlined
def exponentials(row, peak, softcap, slopes):
    """row <- e^(z - peak), slopes <- dz / d logit; gives the sum of the exponentials."""
    total = np.float32(0)
    if softcap > 0:
        inverse = ONE / softcap
        for j in range(row.shape[0]):
            t = hyperbolic_tangent(row[j] * inverse)
            slopes[j] = ONE - t * t
            e = exponential(softcap * t - peak)
            row[j] = e
            total += e
    else:
        for j in range(row.shape[0]):
            e = exponential(row[j] - peak)
            row[j] = e
            total += e
    return total


@exact
def rows(logits, peaks, targets, kept, scale, softcap, z_loss, losses, unscaled, want_gradient):
    """Losses of rows of float32 logits, which are overwritten with their gradient (or, where none is wanted, with what
    was left of it)."""
    slopes = np.ones(logits.shape[1], np.float32)
    for i in range(logits.shape[0]):
        row, target = logits[i], targets[i]
        if not kept[i]:
            losses[i] = unscaled[i] = 0
            row[:] = 0
            continue
        peak, of_target = peaks[i], row[target]
        if softcap > 0:
            peak = softcap * hyperbolic_tangent(peak / softcap)
            of_target = softcap * hyperbolic_tangent(of_target / softcap)
        total = exponentials(row, peak, softcap, slopes)
        lse = math.log(total) + peak
        unscaled[i] = lse - of_target + z_loss * lse * lse
        losses[i] = unscaled[i] * scale[i]
        if want_gradient:
            factor = np.float32(scale[i] * (1 + 2 * z_loss * lse) / total)
            at_target = row[target] * factor - scale[i]
            for j in range(row.shape[0]):
                row[j] = row[j] * factor * slopes[j]
            row[target] = at_target * slopes[target]
