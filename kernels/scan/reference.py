"""The scan in plain torch, twice: token by token, which is its definition, and in chunks, as products of matrices.

Both are differentiable and exact in float64.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def scan_reference(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> Tensor:
    """The definition, one token after the other; the contract of `scan`."""
    v, b, c, dt, log_decay, kind = _alike(v, b, c, dt, log_decay)
    batch, length, heads, width = v.shape
    state = v.new_zeros(batch, heads, b.shape[3], width)
    rows = [torch.empty_like(v[:, :0])]
    for t in range(length):
        added = dt[:, t, :, None, None] * b[:, t, :, :, None] * v[:, t, :, None, :]
        state = log_decay[:, t, :, None, None].exp() * state + added
        rows.append((c[:, t, :, :, None] * state).sum(2)[:, None])
    return torch.cat(rows, 1).to(kind)


def scan_chunked(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor, chunk: int = 64) -> Tensor:
    """The same without a loop over time, the chunked form of Mamba-2 (arXiv:2405.21060, section 6). With l the sums of
    log_decay from a chunk's start, a chunk i gives

    (C B^T * exp(l_t - l_j) for j <= t) (dt V)  +  (C exp(l_t)) H_i
    H_i = sum over chunks j < i of exp(decay from the end of j to the start of i) (B exp(l_end - l))^T (dt V)
    """
    v, b, c, dt, log_decay, kind = _alike(v, b, c, dt, log_decay)
    length = v.shape[1]
    filler = -length % chunk

    def chunks(x: Tensor) -> Tensor:
        """(B, T, H, ...) to (B, H, chunks, chunk, ...), filled up with zeros."""
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, filler))
        return x.unflatten(1, (-1, chunk)).movedim(3, 1)

    v, b, c, sums = chunks(dt[..., None] * v), chunks(b), chunks(c), chunks(log_decay).cumsum(-1)
    inside = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).tril()
    fading = _exp_where(inside, sums[..., :, None] - sums[..., None, :])
    y = (c @ b.mT * fading) @ v
    total = sums[..., -1]
    added = (b * (total[..., None] - sums).exp()[..., None]).mT @ v
    ends = total.cumsum(-1)
    earlier = torch.ones(ends.shape[-1], ends.shape[-1], dtype=torch.bool, device=v.device).tril(-1)
    between = _exp_where(earlier, (ends - total)[..., :, None] - ends[..., None, :])
    states = (between @ added.flatten(-2)).unflatten(-1, added.shape[-2:])
    y = y + (c * sums.exp()[..., None]) @ states
    return y.movedim(1, 3).flatten(1, 2)[:, :length].to(kind)


def _exp_where(mask: Tensor, x: Tensor) -> Tensor:
    """e^x inside the mask, zero elsewhere, where x may be too large for it."""
    return x.masked_fill(~mask, -math.inf).exp()


def _alike(
    v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, torch.dtype]:
    """Everything in one precision of at least float32, a value for every token and head; and the dtype of v."""
    heads, kind = v.shape[2], torch.promote_types(v.dtype, torch.float32)
    b, c = (x.to(kind).repeat_interleave(heads // x.shape[2], 2) for x in (b, c))
    dt, log_decay = (x.to(kind).expand(v.shape[:3]) for x in (dt, log_decay))
    return v.to(kind), b, c, dt, log_decay, v.dtype
