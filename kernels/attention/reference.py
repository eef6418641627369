"""Attention and XSA in plain torch: every T x T matrix is written out, every step is differentiable, float64 stays float64."""

import math

import torch
from torch import Tensor

EPS = 1e-12  # the least |v| that XSA divides by


def visible(
    length: int, cu_seqlens: Tensor | None = None, window: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Boolean (T, T): may the row's token see the column's? Not the future, not another document, not past the window."""
    position = torch.arange(length, device=device)
    row, column = position[:, None], position[None, :]
    mask = column <= row
    if window is not None:
        mask = mask & (row - column < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens.to(position), position, right=True)
        mask = mask & (document[:, None] == document[None, :]) & (document < cu_seqlens.numel())[:, None]
    return mask


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    xsa: bool = False,
    gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Same contract as the public `attention`; arithmetic in float32, or in float64 if the inputs are."""
    heads, dim, kind = q.shape[2], q.shape[3], torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(dim) if scale is None else scale
    group = heads // k.shape[2]
    keys, values = (x.to(kind).repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.to(kind), keys) * scale
    mask = visible(q.shape[1], cu_seqlens, window, q.device)
    # a token that sees nothing (beyond the last document) looks at itself, so that softmax stays finite, and is then wiped.
    sees = mask | torch.eye(q.shape[1], dtype=torch.bool, device=q.device)
    weights = scores.masked_fill(~sees, -math.inf).softmax(-1) * mask.any(-1)[:, None]
    y = torch.einsum("bhij,bjhd->bihd", weights, values)
    z = exclude(y, v.to(kind)) if xsa else y
    return (z if gate is None else z * gate[..., None].to(kind)).to(q.dtype)


def exclude(y: Tensor, v: Tensor, gate: Tensor | None = None, eps: float = EPS) -> Tensor:
    """XSA (arXiv:2603.09078): z = y - a v with a = (y . v) / max(|v|^2, eps^2), the token's own v shared by the heads of its
    group."""
    kind = torch.promote_types(y.dtype, torch.float32)
    own = v.to(kind).repeat_interleave(y.shape[2] // v.shape[2], 2)
    a = (y * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp_min(eps * eps)
    z = y - a * own
    return (z if gate is None else z * gate[..., None].to(kind)).to(y.dtype)
