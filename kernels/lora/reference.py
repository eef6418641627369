"""Per-document LoRA and its optimiser in plain torch: what the kernels must compute, and what runs on a CPU.

Every document is multiplied on its own, so its result has the same bits whatever else is in the batch.
"""

import math

import torch
from torch import Tensor


def lora_reference(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (as x, but `out` wide) and t = scale · x Aᵀ (as x, but `rank` wide). Differentiable."""
    if cu_seqlens is None:
        a, b = a.to(x.dtype), b.to(x.dtype)
        t = scale * torch.bmm(x, a.mT)
        return _plus_base(torch.bmm(t, b.mT), x, weight), t
    bounds = _bounds(cu_seqlens, len(x))
    parts = [
        lora_reference(x[None, start:end], weight, a[i : i + 1], b[i : i + 1], scale, None)
        for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    tail = x[None, bounds[-1] :]
    idle = _plus_base(x.new_zeros(1, tail.shape[1], b.shape[1]), tail, weight)
    parts.append((idle, x.new_zeros(1, tail.shape[1], a.shape[1])))
    return torch.cat([y[0] for y, _ in parts]), torch.cat([t[0] for _, t in parts])


def lora_backward_reference(
    dy: Tensor,
    x: Tensor,
    t: Tensor,
    weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    cu_seqlens: Tensor | None,
    input_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, da, db) from the gradient of y and the saved t; dx is empty if it is not wanted."""
    if cu_seqlens is None:
        dt = scale * torch.bmm(dy, b.to(dy.dtype))
        dx = x.new_empty(0)
        if input_gradient:
            dx = _plus_base(torch.bmm(dt, a.to(dy.dtype)), dy, None if weight is None else weight.mT)
        return dx, torch.bmm(dt.mT, x).to(a.dtype), torch.bmm(dy.mT, t).to(b.dtype)
    bounds = _bounds(cu_seqlens, len(x))
    parts = []
    for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        dy_d, x_d, t_d = (rows[None, start:end] for rows in (dy, x, t))
        one = slice(i, i + 1)
        parts.append(lora_backward_reference(dy_d, x_d, t_d, weight, a[one], b[one], scale, None, input_gradient))
    dx = x.new_empty(0)
    if input_gradient:
        tail = dy[None, bounds[-1] :]
        idle = _plus_base(x.new_zeros(1, *x[bounds[-1] :].shape), tail, None if weight is None else weight.mT)
        dx = torch.cat([*(dx_d[0] for dx_d, _, _ in parts), idle[0]])
    return dx, torch.cat([da for _, da, _ in parts]), torch.cat([db for _, _, db in parts])


def _plus_base(y: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    return y if weight is None else torch.baddbmm(y, x, weight.mT.expand(len(x), -1, -1))


def _bounds(cu_seqlens: Tensor, tokens: int) -> list[int]:
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] > tokens or any(end < start for start, end in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"cu_seqlens must rise from 0 to at most the {tokens} rows of x; got {bounds}")
    return bounds


def adam_reference(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor | None,
    second: Tensor,
    steps: Tensor,
    lr: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One AdamW step (arXiv:1711.05101) of a tensor that holds one document a row: the new parameter and moments, in the
    precision of `lr`.

    `lr` and `steps` hold one value a document; `steps` is 1 at a document's first update. `first` is not read if
    betas[0] is 0, and is then returned as it came.
    """
    per_document = (-1, *[1] * (parameter.dim() - 1))
    lr, step = lr.view(per_document), steps.to(lr.dtype).view(per_document)
    g = gradient.to(lr.dtype)
    second = betas[1] * second.to(lr.dtype) + (1 - betas[1]) * g.square()
    root = (second / _corrections(betas[1], step)).sqrt_().add_(eps)
    direction = g
    if betas[0]:
        assert first is not None, "a first moment is needed unless betas[0] is 0"
        first = betas[0] * first.to(lr.dtype) + (1 - betas[0]) * g
        direction = first / _corrections(betas[0], step)
    return parameter.to(lr.dtype) * (1 - lr * weight_decay) - lr * direction / root, first, second


def bias_correction(beta: float, step: float) -> float:
    """1 - betaᵗ without the cancellation that costs single precision four digits at the first step."""
    return -math.expm1(step * math.log(beta)) if beta else 1.0


def _corrections(beta: float, step: Tensor) -> Tensor:
    """Document by document, because vectorised exponentials round differently at the end of a row than in its middle."""
    return step.new_tensor([bias_correction(beta, t) for t in step.flatten().tolist()]).view_as(step)
