"""Batched per-document LoRA: the public function, its registration, and how its kernels are launched."""

import torch
from torch import Tensor

from pgolf.kernels.lora.reference import lora_backward_reference, lora_reference

RANKS = range(1, 129)


def lora(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0, cu_seqlens: Tensor | None = None
) -> Tensor:
    """y_d = x_d Wᵀ + s (x_d A_dᵀ) B_dᵀ for every document d.

    x           (docs, n, in), or (tokens, in) with cu_seqlens; float32, bfloat16 or float16
    weight      (out, in) as x, shared by all documents; None leaves only the adapters' product
    a, b        (docs, rank, in) and (docs, out, rank), rank 1 to 128, both as x or both float32
    cu_seqlens  int32 (docs + 1,), rising from 0: document d is rows cu_seqlens[d] to cu_seqlens[d + 1] of x. It may be
                empty. Rows behind the last document get the base product only.
    result      (docs, n, out) or (tokens, out), as x

    Gradients for x, a, b, and for weight if it asks for one; the adapters' are summed per document in a fixed order.
    Saved for backward: x and t = s x Aᵀ (rank numbers a row). With T rows in all and every tensor crossing memory once,
    forward moves T (in + out + rank) e + in·out·e + docs·rank (in + out) e_a bytes (e and e_a the sizes of an element of
    x and of a) for 2 T (in·out + rank (in + out)) FLOPs; backward moves and computes twice that, or, where x wants no
    gradient, 4 T rank (in + out) - 2 T rank in FLOPs.
    """
    _check(x, weight, a, b, cu_seqlens)
    return torch.ops.pgolf.lora(x, weight, a, b, scale, cu_seqlens)[0]


def _check(x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, cu_seqlens: Tensor | None) -> None:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"lora: a must be (docs, rank, in) and b (docs, out, rank); got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    docs, rank, width = a.shape
    out = b.shape[1]
    if rank not in RANKS:
        raise ValueError(f"lora: ranks 1 to 128 are supported, not {rank}")
    if cu_seqlens is None:
        if x.dim() != 3 or x.shape[0] != docs or x.shape[2] != width:
            raise ValueError(f"lora: x must be ({docs}, n, {width}) to fit a; got {tuple(x.shape)}")
    else:
        if x.dim() != 2 or x.shape[1] != width:
            raise ValueError(f"lora: with cu_seqlens x must be (tokens, {width}) to fit a; got {tuple(x.shape)}")
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] != docs + 1:
            raise ValueError(
                f"lora: cu_seqlens must be int32 with {docs + 1} entries for {docs} documents; "
                f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
    if weight is not None and (weight.dim() != 2 or weight.shape[0] != out or weight.shape[1] != width):
        raise ValueError(f"lora: weight must be ({out}, {width}) to fit a and b; got {tuple(weight.shape)}")
    if weight is not None and weight.dtype != x.dtype:
        raise ValueError(f"lora: weight is {weight.dtype} but x is {x.dtype}; cast one of them")
    if a.dtype != b.dtype or a.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"lora: a and b must both be {x.dtype}, as x, or both float32; got {a.dtype} and {b.dtype}")


def _forward_fake(x, weight, a, b, scale, cu_seqlens):
    return x.new_empty(*x.shape[:-1], b.shape[1]), x.new_empty(*x.shape[:-1], a.shape[1])


def _backward_fake(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient):
    return x.new_empty(x.shape if input_gradient else (0,)), a.new_empty(a.shape), b.new_empty(b.shape)


def _backward_cpu(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient):
    dx, da, db = lora_backward_reference(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient)
    return dx if input_gradient else x.new_empty(0), da, db


def _save(ctx, inputs, output):
    x, weight, a, b, scale, cu_seqlens = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, a, b, cu_seqlens)
    ctx.scale = scale


def _differentiate(ctx, dy, _dt):
    x, t, weight, a, b, cu_seqlens = ctx.saved_tensors
    wants_x, wants_weight, *_ = ctx.needs_input_grad
    dx, da, db = torch.ops.pgolf.lora_backward(dy, x, t, weight, a, b, ctx.scale, cu_seqlens, wants_x)
    dw = dy.flatten(0, -2).mT @ x.flatten(0, -2) if wants_weight else None
    return dx if wants_x else None, dw, da, db, None, None


torch.library.define(
    "pgolf::lora", "(Tensor x, Tensor? weight, Tensor a, Tensor b, float scale, Tensor? cu_seqlens) -> (Tensor, Tensor)"
)
torch.library.define(
    "pgolf::lora_backward",
    "(Tensor dy, Tensor x, Tensor t, Tensor? weight, Tensor a, Tensor b, float scale, Tensor? cu_seqlens, "
    "bool input_gradient) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("pgolf::lora", "CPU", lora_reference)
torch.library.impl("pgolf::lora_backward", "CPU", _backward_cpu)
torch.library.register_fake("pgolf::lora", _forward_fake)
torch.library.register_fake("pgolf::lora_backward", _backward_fake)
torch.library.register_autograd("pgolf::lora", _differentiate, setup_context=_save)
