"""QK-norm, partial rotary embedding and query gain in plain torch, differentiable; float64 stays float64."""

import torch


def normalise(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotate(x, cos, sin):
    """Rotate the first 2 * cos.shape[-1] dims of (B, T, H, d), first half against second half; the rest passes through."""
    half = cos.shape[-1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin, rest], -1)


def rotary(q, k, gain, cos, sin, *, eps=None):
    """Same contract as the public `rotary`; arithmetic in float32, or in float64 if the inputs are."""
    kind = torch.promote_types(q.dtype, torch.float32)
    eps = torch.finfo(q.dtype).eps if eps is None else eps
    query = rotate(normalise(q.to(kind), eps), cos, sin) * gain[:, None].to(kind)
    key = rotate(normalise(k.to(kind), eps), cos, sin)
    return query.to(q.dtype), key.to(k.dtype)
