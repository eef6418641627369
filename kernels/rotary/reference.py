"""QK-norm, partial rotary embedding and query gain in plain torch, differentiable; float64 stays float64."""

import torch
from torch import Tensor


def normalise(x: Tensor, eps: float) -> Tensor:
    """RMSNorm (arXiv:1910.07467) over the last dim, without a learnable gain."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (arXiv:2104.09864) of the first 2 * cos.shape[-1] dims of (B, T, H, d), first half against second half; the rest
    passes through."""
    half = cos.shape[-1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin, rest], -1)


def rotary(
    q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, *, eps: float | None = None, norm: bool = True
) -> tuple[Tensor, Tensor]:
    """Same contract as the public `rotary`; arithmetic in float32, or in float64 if the inputs are."""
    kind = torch.promote_types(q.dtype, torch.float32)
    eps = torch.finfo(q.dtype).eps if eps is None else eps
    query, key = (rotate(normalise(x.to(kind), eps) if norm else x.to(kind), cos, sin) for x in (q, k))
    if gain is not None:
        query = query * gain[:, None].to(kind)
    return query.to(q.dtype), key.to(k.dtype)
