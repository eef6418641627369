"""QK-norm, partial rotation and gain on a CPU, in numba: one sweep over the heads of a span of tokens.

Heads are (tokens, H, d) in float32, overwritten; token t of a span takes row (first + t) mod T of the tables.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.jit import reordered, reordered_inlined
from pgolf.kernels.rotary import reference
from pgolf.kernels.threads import SPAN, in_parallel, tokens_in_float32


def rotary(
    q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor]:
    """In numba, which computes in float32; float64 stays with torch."""
    if torch.float64 in (q.dtype, cos.dtype):
        return reference.rotary(q, k, gain, cos, sin, eps=eps, norm=norm)
    heads, tables = [tokens_in_float32(x, copy=True) for x in (q, k)], [x.float().contiguous().numpy() for x in (cos, sin)]
    gains = _gains(q, k, gain)

    def work(first: int) -> None:
        for x, own in zip(heads, gains, strict=True):
            _forward_span(x.numpy()[first : first + SPAN], own, *tables, first, eps, norm)

    in_parallel(work, range(0, len(heads[0]), SPAN))
    query, key = (x.to(kind.dtype).view(kind.shape) for x, kind in zip(heads, (q, k), strict=True))
    return query, key


def rotary_backward(
    grad_q: Tensor, grad_k: Tensor, q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dgain); dgain is empty where there is no gain."""
    if torch.float64 in (q.dtype, cos.dtype):
        return _backward_torch(grad_q, grad_k, q, k, gain, cos, sin, eps, norm)
    grads, heads = [tokens_in_float32(x, copy=True) for x in (grad_q, grad_k)], [tokens_in_float32(x) for x in (q, k)]
    tables = [x.float().contiguous().numpy() for x in (cos, sin)]
    gains = _gains(q, k, gain)
    starts = range(0, len(heads[0]), SPAN)
    sums = [torch.zeros(len(starts), x.shape[2]) for x in (q, k)]

    def work(first: int) -> None:
        for grad, x, own, total in zip(grads, heads, gains, sums, strict=True):
            span = slice(first, first + SPAN)
            _backward_span(grad.numpy()[span], x.numpy()[span], own, *tables, first, eps, norm, total.numpy()[first // SPAN])

    in_parallel(work, starts)
    d_q, d_k = (x.to(kind.dtype).view(kind.shape) for x, kind in zip(grads, (q, k), strict=True))
    return d_q, d_k, q.new_empty(0) if gain is None else sums[0].sum(0).to(gain.dtype)


def _gains(q: Tensor, k: Tensor, gain: Tensor | None) -> list[np.ndarray]:
    """The factor of each query and each key head."""
    factors = (torch.ones(q.shape[2]) if gain is None else gain.detach().float().contiguous(), torch.ones(k.shape[2]))
    return [factor.numpy() for factor in factors]


def _backward_torch(
    grad_q: Tensor, grad_k: Tensor, q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(q.dtype, torch.float32)

    def through(grad: Tensor, x: Tensor, factor: Tensor | int) -> tuple[Tensor, Tensor]:
        # the transpose of a rotation turns the other way.
        turned = reference.rotate(grad.to(kind), cos, -sin)
        if not norm:
            return turned * factor, (turned * x.to(kind)).sum((0, 1, 3))
        scale = torch.rsqrt(x.to(kind).square().mean(-1, keepdim=True) + eps)
        unit = x.to(kind) * scale
        wanted = turned * factor
        return scale * (wanted - unit * (unit * wanted).mean(-1, keepdim=True)), (turned * unit).sum((0, 1, 3))

    d_q, d_gain = through(grad_q, q, 1 if gain is None else gain[:, None].to(kind))
    d_k, _ = through(grad_k, k, 1)
    d_gain = q.new_empty(0) if gain is None else d_gain.to(gain.dtype)
    return d_q.to(q.dtype).contiguous(), d_k.to(k.dtype).contiguous(), d_gain


@reordered_inlined
def inverse_norm(x, eps):
    square = np.float32(0)
    for j in range(x.shape[0]):
        square += x[j] * x[j]
    return np.float32(1 / math.sqrt(square / x.shape[0] + eps))


@reordered_inlined
def turn(x, cos, sin, direction):
    """Turn the first dims of one head, first half against second half."""
    half = cos.shape[0]
    for j in range(half):
        left, right, s = x[j], x[half + j], direction * sin[j]
        x[j] = left * cos[j] + right * s
        x[half + j] = right * cos[j] - left * s


@reordered
def _forward_span(heads, gain, cos, sin, first, eps, norm):
    """heads <- gain * rotated(heads / rms), without the division where norm is false."""
    length, ahead = cos.shape[0], np.float32(1)
    for t in range(heads.shape[0]):
        position = (first + t) % length
        for h in range(heads.shape[1]):
            x = heads[t, h]
            factor = gain[h] * inverse_norm(x, eps) if norm else gain[h]
            for j in range(x.shape[0]):
                x[j] *= factor
            turn(x, cos[position], sin[position], ahead)


@reordered
def _backward_span(grad, heads, gain, cos, sin, first, eps, norm, d_gain):
    """grad <- the gradient of the heads; d_gain (H,) gets the sums of this span added."""
    length, back = cos.shape[0], np.float32(-1)
    for t in range(heads.shape[0]):
        position = (first + t) % length
        for h in range(heads.shape[1]):
            g, x = grad[t, h], heads[t, h]
            turn(g, cos[position], sin[position], back)
            scale, along = inverse_norm(x, eps) if norm else np.float32(1), np.float32(0)
            for j in range(x.shape[0]):
                along += g[j] * x[j]
            along *= scale
            d_gain[h] += along
            inward = scale * scale * along / x.shape[0] if norm else np.float32(0)
            factor = gain[h]
            for j in range(x.shape[0]):
                g[j] = factor * (scale * g[j] - inward * x[j])
