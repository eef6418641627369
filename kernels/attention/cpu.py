"""Attention and XSA on a CPU: attention in plain torch with (T, T) scores, XSA in numba.

The numba functions sweep over the heads of a span of tokens in float32. Heads are (tokens, groups, heads of a group, d),
values (tokens, groups, d); gates (tokens, groups, heads of a group), or of no token at all where there is no gate.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.attention import reference
from pgolf.kernels.jit import reordered, reordered_inlined
from pgolf.kernels.threads import SPAN, in_parallel, tokens_in_float32

LOG2E = math.log2(math.e)


def document_bounds(cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first token of each token's document, and one past its last: two int32 tensors (T,)."""
    position = torch.arange(length, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, position, right=True)
    beyond = document == cu_seqlens.numel()
    start = cu_seqlens[(document - 1).clamp_min(0)].where(~beyond, length)
    return start, cu_seqlens[document.clamp_max(cu_seqlens.numel() - 1)].contiguous()


def _scores(q: Tensor, k: Tensor, start: Tensor | None, window: int, scale: float, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scores in base 2, masked, with what a softmax needs of them: (scores, lse)."""
    position = torch.arange(q.shape[1], device=q.device)
    mask = position[None, :] <= position[:, None]
    if start is not None:
        mask = mask & (position[None, :] >= start[:, None])
    if window:
        mask = mask & (position[:, None] - position[None, :] < window)
    keys = k.to(kind).repeat_interleave(q.shape[2] // k.shape[2], 2)
    scores = torch.einsum("bihd,bjhd->bhij", q.to(kind), keys) * (scale * LOG2E)
    scores = scores.masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores / LOG2E, -1) * LOG2E
    return scores, lse.masked_fill(~mask.any(-1), 0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(out, z, a, lse) as the operator `pgolf::attention` saves them."""
    kind = torch.promote_types(q.dtype, torch.float32)
    scores, lse = _scores(q, k, start, window, scale, kind)
    own = v.to(kind).repeat_interleave(q.shape[2] // k.shape[2], 2)
    z = torch.einsum("bhij,bjhd->bihd", torch.exp2(scores - lse[..., None]), own)
    a = z.new_empty(0)
    if xsa:
        a = (z * own).sum(-1) / own.square().sum(-1).clamp_min(reference.EPS**2)
        z, a = z - a[..., None] * own, a.transpose(1, 2).contiguous()
    z = z.to(q.dtype).contiguous()
    if gate is None:
        return z, z.new_empty(0), a, lse
    return (z.to(kind) * gate[..., None].to(kind)).to(q.dtype).contiguous(), z, a, lse


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    z: Tensor, a: Tensor, lse: Tensor, window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv, dgate); dgate is empty where there is no gate."""
    kind = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[2] // k.shape[2]
    own, keys = (x.to(kind).repeat_interleave(group, 2) for x in (v, k))
    y, dy = z.to(kind), grad.to(kind)
    d_gate: Tensor = y.new_empty(0)
    d_v: Any = 0
    if gate is not None:
        d_gate = (dy * y).sum(-1).to(gate.dtype).contiguous()
        dy = dy * gate[..., None].to(kind)
    if xsa:
        y = y + a.transpose(1, 2)[..., None] * own
        dy, d_v = _project_back(dy, y, v.to(kind), reference.EPS)
    scores, _ = _scores(q, k, start, window, scale, kind)
    p = torch.exp2(scores - lse[..., None])
    delta = (y * dy).sum(-1).transpose(1, 2)
    ds = p * (torch.einsum("bihd,bjhd->bhij", dy, own) - delta[..., None]) * scale
    d_q = torch.einsum("bhij,bjhd->bihd", ds, keys)
    d_k = torch.einsum("bhij,bihd->bjhd", ds, q.to(kind)).unflatten(2, (-1, group)).sum(3)
    d_v = d_v + torch.einsum("bhij,bihd->bjhd", p, dy).unflatten(2, (-1, group)).sum(3)
    d_q, d_k, d_v = (x.to(q.dtype).contiguous() for x in (d_q, d_k, d_v))
    return d_q, d_k, d_v, d_gate


def _project_back(dz: Tensor, y: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Through z = y - a v, heads taken by group: (dy, the part of dv that does not pass through y)."""
    groups = (v.shape[2], y.shape[2] // v.shape[2])
    dz, y, own = dz.unflatten(2, groups), y.unflatten(2, groups), v[:, :, :, None]
    square = own.square().sum(-1, keepdim=True)
    norm = square.clamp_min(eps * eps)
    a, b = (y @ own.mT) / norm, (dz @ own.mT) / norm
    # where |v|^2 is clamped, the quotient's denominator has no slope.
    slope = torch.where(square >= eps * eps, 2 * a, 0)
    d_v = (slope.mT @ b) * own - a.mT @ dz - b.mT @ y
    return (dz - b * own).flatten(2, 3), d_v.squeeze(3)


def xsa(y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """In numba, which computes in float32; float64 stays with torch."""
    if y.dtype == torch.float64:
        return reference.exclude(y, v, gate, eps).contiguous()
    values, gates = tokens_in_float32(v).numpy(), _gates(gate, y, v)
    heads = _by_group(tokens_in_float32(y, copy=True).numpy(), values)

    def work(first: int) -> None:
        span = slice(first, first + SPAN)
        _exclude_span(heads[span], values[span], gates[span], np.float32(eps * eps))

    in_parallel(work, range(0, len(heads), SPAN))
    return torch.from_numpy(heads).to(y.dtype).view(y.shape)


def _by_group(heads: np.ndarray, values: np.ndarray) -> np.ndarray:
    tokens, groups, dim = values.shape
    return heads.reshape(tokens, groups, heads.shape[1] // groups, dim)


def _gates(gate: Tensor | None, y: Tensor, v: Tensor) -> np.ndarray:
    groups = (v.shape[2], y.shape[2] // v.shape[2])
    return np.empty((0, *groups), np.float32) if gate is None else tokens_in_float32(gate).numpy().reshape(-1, *groups)


def xsa_backward(grad: Tensor, y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if y.dtype == torch.float64:
        return _xsa_backward_torch(grad, y, v, gate, eps)
    values, gates = tokens_in_float32(v).numpy(), _gates(gate, y, v)
    heads, slopes = (_by_group(x.numpy(), values) for x in (tokens_in_float32(y), tokens_in_float32(grad, copy=True)))
    d_values, d_gates = np.empty_like(values), np.empty_like(gates)

    def work(first: int) -> None:
        span = slice(first, first + SPAN)
        arrays = (x[span] for x in (slopes, heads, values, gates))
        _exclude_span_backward(*arrays, np.float32(eps * eps), d_values[span], d_gates[span])

    in_parallel(work, range(0, len(heads), SPAN))
    d_y, d_v = (torch.from_numpy(x).to(kind.dtype).view(kind.shape) for x, kind in ((slopes, y), (d_values, v)))
    d_gate = y.new_empty(0) if gate is None else torch.from_numpy(d_gates).to(gate.dtype).view(gate.shape)
    return d_y, d_v, d_gate


def _xsa_backward_torch(grad: Tensor, y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    d_gate = grad.new_empty(0)
    if gate is not None:
        d_gate = (grad * reference.exclude(y, v, eps=eps)).sum(-1).to(gate.dtype).contiguous()
        grad = grad * gate[..., None].to(grad.dtype)
    d_y, d_v = _project_back(grad, y, v, eps)
    return d_y.contiguous(), d_v.contiguous(), d_gate


@reordered_inlined
def dot(x, y):
    total = np.float32(0)
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@reordered
def _exclude_span(heads, values, gates, least):
    """heads <- gate * (y - (y . v) / max(|v|^2, least) v)."""
    for t in range(heads.shape[0]):
        for g in range(heads.shape[1]):
            v = values[t, g]
            inverse = np.float32(1) / max(dot(v, v), least)
            for h in range(heads.shape[2]):
                y, gate = heads[t, g, h], gates[t, g, h] if gates.shape[0] else np.float32(1)
                along = dot(y, v) * inverse
                for j in range(y.shape[0]):
                    y[j] = gate * (y[j] - along * v[j])


@reordered
def _exclude_span_backward(grad, heads, values, gates, least, d_values, d_gates):
    """grad <- the gradient of the heads; those of the values and the gates go where the last arguments say."""
    for t in range(heads.shape[0]):
        for g in range(heads.shape[1]):
            v, d_v = values[t, g], d_values[t, g]
            square = dot(v, v)
            inverse = np.float32(1) / max(square, least)
            d_v[:] = 0
            for h in range(heads.shape[2]):
                y, dz = heads[t, g, h], grad[t, g, h]
                along, back = dot(y, v) * inverse, dot(dz, v)
                if gates.shape[0]:
                    d_gates[t, g, h] = dot(dz, y) - along * back
                    back *= gates[t, g, h]
                    for j in range(dz.shape[0]):
                        dz[j] *= gates[t, g, h]
                back *= inverse
                # where |v|^2 is as good as zero, the quotient's denominator has no slope
                own = 2 * along * back if square >= least else np.float32(0)
                for j in range(dz.shape[0]):
                    d_v[j] += own * v[j] - along * dz[j] - back * y[j]
                    dz[j] -= back * v[j]
