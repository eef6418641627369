"""`lora`: the public function, its Triton launches, registration and autograd."""

from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, cdiv, implement
from pgolf.kernels.lora.launch import (
    CHUNK,
    MAX_RANK,
    choose_route,
    launch_adapters,
    launch_expand,
    launch_product,
    launch_reduce,
    launch_shrink,
    padded,
    rank_blocks,
    rank_step,
)
from pgolf.kernels.lora.reference import lora_backward_reference, lora_reference
from pgolf.kernels.tensors import require_tensors


def lora(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Low-rank adapters (LoRA, arXiv:2106.09685), one pair for every document d of a batch:

        y_d = x_d Wᵀ + s (x_d A_dᵀ) B_dᵀ

    Args:
        x: (docs, n, in), or (tokens, in) with cu_seqlens; float32, bfloat16 or float16
        weight: (out, in) as x, or in float32, which is cast as autocast would; shared by all documents. None leaves only
            the adapters' product
        a: (docs, rank, in), rank 1 to 128, as x or float32
        b: (docs, out, rank) in a's dtype
        scale: s
        cu_seqlens: int32 (docs + 1,), rising from 0: document d is rows cu_seqlens[d] to cu_seqlens[d + 1] of x. It may be
            empty. Rows behind the last document get the base product only

    Returns:
        (docs, n, out) or (tokens, out), as x. Differentiable in x, a, b, and in weight if it asks for a gradient; the
        adapters' gradients are summed per document in a fixed order.

    Example:
        >>> x, weight = torch.randn(2, 5, 32), torch.randn(16, 32)
        >>> a, b = torch.randn(2, 4, 32), torch.zeros(2, 16, 4)
        >>> torch.allclose(lora(x, weight, a, b), x @ weight.T, atol=1e-5)
        True

    Saved for backward: x and t = s x Aᵀ (rank numbers a row). With T rows in all, e and e_a the sizes of an element of x and
    of a, and every tensor crossing memory once a pass:

        forward     T (in + out + rank) e + in·out·e + docs·rank (in + out) e_a bytes,  2 T (in·out + rank (in + out)) FLOPs
        backward    T (2 in + 2 out + 3 rank) e + in·out·e + 2 docs·rank (in + out) e_a,  2 T (in·out + 2 rank (in + out))
        without dx  T (in + 2 out + 3 rank) e + docs·rank (in + 2 out) e_a,  2 T rank (in + 2 out)

    and 2 T in·out more for the weight's gradient. What crosses memory again, and when, is the choice of
    `launch.choose_route`.
    """
    require_tensors("lora", {"x": x, "a": a, "b": b}, {"weight": weight, "cu_seqlens": cu_seqlens})
    if weight is not None and weight.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16):
        weight = weight.to(x.dtype)
    _check(x, weight, a, b, cu_seqlens)
    return torch.ops.pgolf.lora(x, weight, a, b, scale, cu_seqlens)[0]


def _check(x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, cu_seqlens: Tensor | None) -> None:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"lora: a must be (docs, rank, in) and b (docs, out, rank); got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    docs, rank, width = a.shape
    out = b.shape[1]
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"lora: ranks 1 to {MAX_RANK} are supported, not {rank}")
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


class _Rows:
    """The rows of x as the kernels see them, and how many tiles of a given height cover every document."""

    def __init__(self, x: Tensor, docs: int, bounds: Tensor | None):
        self.rows, self.docs, self.bounds = x.shape[:-1].numel(), docs, bounds
        self.length = x.shape[1] if bounds is None else 0
        self.typical_length = cdiv(self.rows, max(docs, 1))

    def tiles(self, size: int) -> int:
        return self.docs * cdiv(self.length, size) if self.bounds is None else self.rows // size + self.docs + 1

    @property
    def arguments(self) -> tuple:
        return self.bounds, self.docs, self.length, self.rows

    @property
    def ragged(self) -> bool:
        return self.bounds is not None


def _shrink(x: Tensor, a: Tensor, scale: float, rows: _Rows, backward: bool) -> Tensor:
    from pgolf.kernels.lora.gpu import lora_shrink_kernel

    rank = a.shape[2] if backward else a.shape[1]
    t = x.new_empty(*x.shape[:-1], rank)
    launch = launch_shrink(rank, rows.typical_length, x.element_size(), capability_of(x.device))
    lora_shrink_kernel[(rows.tiles(launch.tiles["BM"]),)](
        x, a, t, *rows.arguments, scale,
        WIDTH=x.shape[-1], RANK=rank, **padded(rank), RAGGED=rows.ragged, BACKWARD=backward, **launch.options,
    )  # fmt: skip
    return t


def _multiply(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, rows: _Rows, backward: bool, route: str | None
) -> tuple[Tensor, Tensor]:
    """(y, t) forward; backward, with dy for x and b and a for a and b, (dx, dt)."""
    from pgolf.kernels.lora.gpu import lora_expand_kernel, lora_product_kernel

    width = x.shape[-1]
    rank, out = (b.shape[1], b.shape[2]) if backward else (b.shape[2], b.shape[1])
    route = "around" if weight is None else route or choose_route(width, out, rank, x.element_size())
    capability = capability_of(x.device)
    y = x.new_empty(*x.shape[:-1], out)
    t = x.new_empty(*x.shape[:-1], rank) if route == "whole" else _shrink(x, a, scale, rows, backward)
    if route == "around":
        if weight is not None:
            torch.mm(x.view(-1, width), weight if backward else weight.mT, out=y.view(-1, out))
        launch = launch_expand(rows.typical_length, x.element_size())
        lora_expand_kernel[(rows.tiles(launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"]),)](
            t, b, y, *rows.arguments,
            OUT=out, RANK=rank, RK=rank_step(rank), ADD=weight is not None, RAGGED=rows.ragged, BACKWARD=backward,
            **launch.options,
        )  # fmt: skip
        return y, t
    launch = launch_product(out, rows.typical_length, capability)
    lora_product_kernel[(rows.tiles(launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"]),)](
        x, weight, a, b, t, y, *rows.arguments, scale,
        WIDTH=width, OUT=out, RANK=rank, R=rank_blocks(rank)[0], RK=rank_step(rank), SHRINK=route == "whole",
        RAGGED=rows.ragged, BACKWARD=backward, **launch.options,
    )  # fmt: skip
    return y, t


def forward_triton(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, cu_seqlens: Tensor | None, route: str | None = None
) -> tuple[Tensor, Tensor]:
    """(y, t); `route` overrides the choice of `choose_route`."""
    rows = _Rows(x, a.shape[0], cu_seqlens)
    if rows.rows == 0:
        return _forward_fake(x, weight, a, b, scale, cu_seqlens)
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    weight = None if weight is None else weight.contiguous()
    return _multiply(x, weight, a, b, scale, rows, False, route)


def backward_triton(
    dy: Tensor, x: Tensor, t: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, cu_seqlens: Tensor | None,
    input_gradient: bool, route: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, da, db); dx is empty if it is not wanted."""
    from pgolf.kernels.lora.gpu import lora_bwd_adapters_kernel, lora_bwd_reduce_kernel

    docs, rank, width = a.shape
    out = b.shape[1]
    rows = _Rows(x, docs, cu_seqlens)
    if rows.rows == 0:
        return x.new_empty(x.shape if input_gradient else (0,)), torch.zeros_like(a), torch.zeros_like(b)
    dy, x, t, a, b = dy.contiguous(), x.contiguous(), t.contiguous(), a.contiguous(), b.contiguous()
    weight = None if weight is None else weight.contiguous()
    if input_gradient:
        dx, dt = _multiply(dy, weight, b, a, scale, rows, True, route)
    else:
        dx, dt = x.new_empty(0), _shrink(dy, b, scale, rows, True)
    da, db = a.new_empty(a.shape), b.new_empty(b.shape)
    longest = rows.rows if rows.ragged else rows.length
    slots = rows.tiles(CHUNK)
    partial = x.new_empty(slots if longest > CHUNK else 0, (width + out) * rank, dtype=torch.float32)
    launch = launch_adapters(rank, x.element_size(), capability_of(x.device))
    shape = {"IN": width, "OUT": out, "RANK": rank, "RAGGED": rows.ragged, "CHUNK": CHUNK}
    grid = (slots, cdiv(width, launch.tiles["BC"]) + cdiv(out, launch.tiles["BC"]))
    lora_bwd_adapters_kernel[grid](x, dy, t, dt, da, db, partial, *rows.arguments, **shape, **padded(rank), **launch.options)
    if longest > CHUNK:
        reduce = launch_reduce()
        lora_bwd_reduce_kernel[docs, cdiv((width + out) * rank, reduce.tiles["BLOCK"])](
            partial, da, db, cu_seqlens, docs, rows.length, **shape, **reduce.options
        )
    return dx, da, db


def _forward_fake(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], b.shape[1]), x.new_empty(*x.shape[:-1], a.shape[1])


def _backward_fake(
    dy: Tensor, x: Tensor, t: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, cu_seqlens: Tensor | None,
    input_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape if input_gradient else (0,)), a.new_empty(a.shape), b.new_empty(b.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, a, b, scale, cu_seqlens = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, a, b, cu_seqlens)
    ctx.scale = scale


def _differentiate(ctx: Any, dy: Tensor, _dt: Tensor) -> tuple[Tensor | None, ...]:
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
implement("pgolf::lora", "CPU", lora_reference)
implement("pgolf::lora_backward", "CPU", lora_backward_reference)
implement("pgolf::lora", "CUDA", forward_triton)
implement("pgolf::lora_backward", "CUDA", backward_triton)
torch.library.register_fake("pgolf::lora", _forward_fake)
torch.library.register_fake("pgolf::lora_backward", _backward_fake)
torch.library.register_autograd("pgolf::lora", _differentiate, setup_context=_save)
