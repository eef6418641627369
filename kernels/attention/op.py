"""`attention` and `xsa`: the public functions, their Triton launches, registration and autograd."""

import math
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.attention import core as cores
from pgolf.kernels.attention import reference
from pgolf.kernels.attention.launch import (
    launch_attention_bwd_kv,
    launch_attention_bwd_prepare,
    launch_attention_bwd_q,
    launch_attention_fwd,
    launch_document_bounds,
    launch_xsa,
)
from pgolf.kernels.launch import capability_of, cdiv, implement, outside_graphs
from pgolf.kernels.tensors import require_tensors

LOG2E = math.log2(math.e)


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
    core: str | None = None,
) -> Tensor:
    """Causal attention with grouped queries (GQA, arXiv:2305.13245), exclusive self-attention (XSA, arXiv:2603.09078) and
    a per-head gate as options.

        p_ij = softmax over visible j <= i of scale (q_i . k_j),   y_i = sum_j p_ij v_j
        z = y - a v,  a = (y . v) / max(|v|^2, 1e-24)              with xsa: v of the same token and group
        out = gate z                                               with gate

    Args:
        q: (B, T, H, d)
        k, v: (B, T, Hkv, d) in q's dtype, H a multiple of Hkv: query head h uses key-value head h // (H // Hkv)
        xsa: remove from each head's output its part along the token's own value
        gate: (B, T, H), multiplied to each head's output
        cu_seqlens: (n + 1,) int32 with B = 1, document boundaries from 0 on: a token sees its own document alone.
            Documents may be empty; tokens beyond the last boundary give zeros and zero gradients
        window: a token sees that many tokens at most, itself included
        scale: of the scores; 1 / sqrt(d) by default
        core: who computes p and y. All agree to rounding; None takes the first usable one of `core.PREFERENCE`
            "triton"     this package's operator, everything fused; d a power of two up to 128, float32 and 16-bit
                         floats. On a CPU the same operator in plain torch
            "fa3"        FlashAttention-3 (flash_attn_interface, or through Hugging Face's kernels), then `xsa`
            "fa2"        FlashAttention-2 (flash_attn), then `xsa`
            "cudnn"      torch's own with cuDNN's kernels first, then `xsa`; neither documents nor windows
            "sdpa"       torch's own, then `xsa`; with documents or a window it builds a (T, T) mask
            "dense"      two batched products around a softmax, (T, T) scores in q's dtype, then `xsa`
            "reference"  plain torch, (T, T) matrices

    Returns:
        (B, T, H, d) in q's dtype; arithmetic beyond the products is in float32 (float64 for float64 inputs).
        Differentiable in q, k, v and gate.

    Example:
        >>> q, k, v = torch.randn(2, 16, 8, 64), torch.randn(2, 16, 4, 64), torch.randn(2, 16, 4, 64)
        >>> attention(q, k, v, xsa=True).shape
        torch.Size([2, 16, 8, 64])

    The Triton core follows FlashAttention-2 (arXiv:2307.08691). It saves q, k, v, the output before the gate, lse (B, H, T)
    float32 and, with xsa, a (B, H, T) float32; y is recovered as z + a v. With e bytes per element, N = B T and S the
    number of visible (query, key) pairs, it moves at least (2 H + 2 Hkv) N d e bytes forward (H N d e more with a gate)
    and, backward, (4 H + 4 Hkv) N d e; with xsa or a gate 4 H N d e more, for dy and its reading back. FLOPs: 4 S H d
    forward; 14 S H d backward, because the scores and dP are computed twice rather than added up atomically.
    """
    require_tensors("attention", {"q": q, "k": k, "v": v}, {"gate": gate, "cu_seqlens": cu_seqlens})
    _check_attention(q, k, v, gate, cu_seqlens, window, scale)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    core = core or cores.best_core(q, masked=cu_seqlens is not None or window is not None)
    if core == "reference":
        return reference.attention(q, k, v, xsa=xsa, gate=gate, cu_seqlens=cu_seqlens, window=window, scale=scale)
    if core == "triton":
        _check_fused(q)
        start, end = (None, None) if cu_seqlens is None else torch.ops.pgolf.document_bounds(cu_seqlens, q.shape[1])
        return torch.ops.pgolf.attention(q, k, v, gate, start, end, window or 0, scale, xsa)[0]
    with outside_graphs(f"pgolf.attention by {core}"):
        if core == "sdpa":
            y = cores.sdpa(q, k, v, cu_seqlens, window, scale)
        elif core == "cudnn":
            if cu_seqlens is not None or window is not None:
                raise ValueError("attention: the cudnn core has neither documents nor windows; choose core='triton'")
            y = cores.cudnn(q, k, v, scale)
        elif core == "dense":
            y = cores.dense(q, k, v, cu_seqlens, window, scale)
        elif core in cores.FLASH:
            y = cores.flash(core, q, k, v, cu_seqlens, window, scale)
        else:
            raise ValueError(f"attention: no core {core!r}; there are triton, fa3, fa2, cudnn, sdpa, dense and reference")
    if cu_seqlens is not None:
        inside = torch.arange(q.shape[1], device=q.device) < cu_seqlens[-1]
        y = torch.where(inside[:, None, None], y, 0)
    if xsa:
        return torch.ops.pgolf.xsa(y, v, gate, reference.EPS)
    return y if gate is None else (y * gate[..., None]).to(q.dtype)


def xsa(y: Tensor, v: Tensor, gate: Tensor | None = None, *, eps: float = reference.EPS) -> Tensor:
    """Exclusive self-attention (XSA, arXiv:2603.09078) after any attention: remove from each head's output its part along
    the token's own value.

        z = y - a v,  a = (y . v) / max(|v|^2, eps^2),  times gate if there is one

    Args:
        y: (B, T, H, d), what attention returned
        v: (B, T, Hkv, d) in y's dtype, H a multiple of Hkv
        gate: (B, T, H)
        eps: the least |v| that is divided by

    Returns:
        (B, T, H, d) in y's dtype; arithmetic is in float32 (float64 for float64 inputs). Differentiable in y, v and gate.

    Example:
        >>> y, v = torch.randn(2, 16, 8, 64), torch.randn(2, 16, 4, 64)
        >>> z = xsa(y, v)
        >>> bool((z[:, :, 0] * v[:, :, 0]).sum(-1).abs().max() < 1e-4)
        True

    Saved for backward: the inputs. With e bytes per element and N = B T: (2 H + Hkv) N d e bytes forward, (3 H + 2 Hkv)
    N d e backward; about 4 H N d and 10 H N d FLOPs, far below what the memory allows.
    """
    require_tensors("xsa", {"y": y, "v": v}, {"gate": gate})
    if y.ndim != 4 or v.ndim != 4 or y.shape[:2] != v.shape[:2] or y.shape[3] != v.shape[3] or y.shape[2] % (v.shape[2] or 1):
        raise ValueError(
            "xsa: y (B, T, H, d) and v (B, T, Hkv, d) with H a multiple of Hkv expected, "
            f"got {tuple(y.shape)} and {tuple(v.shape)}{_transposed(y, v)}"
        )
    if y.dtype != v.dtype or not y.dtype.is_floating_point:
        raise ValueError(f"xsa: y and v must have one floating-point dtype, got {y.dtype} and {v.dtype}")
    if gate is not None and gate.shape != y.shape[:3]:
        raise ValueError(f"xsa: gate must be (B, T, H) = {tuple(y.shape[:3])}, got {tuple(gate.shape)}")
    return torch.ops.pgolf.xsa(y, v, gate, eps)


def _check_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, cu_seqlens: Tensor | None, window: int | None, scale: float | None
) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "attention: q (B, T, H, d) and k, v (B, T, Hkv, d) expected, "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}{_transposed(q, k)}"
        )
    if q.shape[2] % (k.shape[2] or 1):
        raise ValueError(f"attention: {q.shape[2]} query heads cannot share {k.shape[2]} key-value heads evenly")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"attention: q, k and v must have one floating-point dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if gate is not None and gate.shape != q.shape[:3]:
        raise ValueError(f"attention: gate must be (B, T, H) = {tuple(q.shape[:3])}, got {tuple(gate.shape)}")
    if cu_seqlens is not None and (cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or q.shape[0] != 1):
        raise ValueError(
            "attention: cu_seqlens must be int32 of one dimension, and the documents packed into a batch of one; "
            f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} and a batch of {q.shape[0]}"
        )
    if window is not None and window < 1:
        raise ValueError(f"attention: a window of {window} tokens sees nothing; it must be 1 (the token itself) or more")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale must be positive, not {scale}")


def _check_fused(q: Tensor) -> None:
    if q.device.type == "cuda" and not cores.usable("triton", q.dtype, q.shape[3]):
        raise ValueError(
            "attention: the triton core takes float32, float16 and bfloat16 and head dims of 16, 32, 64 and 128, "
            f"not {q.dtype} and {q.shape[3]}; choose core='sdpa'"
        )


def _transposed(query: Tensor, key: Tensor) -> str:
    """A hint where the shapes read well as (B, H, T, d), torch's order for its own attention."""
    if query.ndim != 4 or key.ndim != 4 or query.shape[2] != key.shape[2] or query.shape[1] % (key.shape[1] or 1):
        return ""
    return "; if they are (B, H, T, d), pass x.transpose(1, 2) of each"


def _bounds_triton(cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.attention import gpu

    launch = launch_document_bounds()
    cu_seqlens = cu_seqlens.contiguous()
    start, end = (torch.empty(length, dtype=torch.int32, device=cu_seqlens.device) for _ in range(2))
    if length:
        grid = (cdiv(length, launch.tiles["BT"]),)
        gpu.document_bounds_kernel[grid](cu_seqlens, start, end, cu_seqlens.numel() - 1, length, **launch.options)
    return start, end


def _forward_triton(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from pgolf.kernels.attention import gpu

    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    out = torch.empty_like(q)
    z = torch.empty_like(q) if gate is not None else None
    a = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device) if xsa else None
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    launch = launch_attention_fwd(dim, 8 * q.element_size(), capability_of(q.device))
    tiles = cdiv(length, launch.tiles["BM"])
    if batch * tiles:
        gpu.attention_fwd_kernel[(tiles * batch * heads,)](
            q, k, v, gate, start, out, z, a, lse, scale * LOG2E, reference.EPS**2, length, window, tiles,
            H=heads, HKV=kv_heads, D=dim, XSA=xsa, GATE=gate is not None,
            DOCUMENTS=start is not None, WINDOW=window > 0, **launch.options,
        )  # fmt: skip
    return out, q.new_empty(0) if z is None else z, lse.new_empty(0) if a is None else a, lse


def _backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    z: Tensor, a: Tensor, lse: Tensor, window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from pgolf.kernels.attention import gpu

    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    bits, capability = 8 * q.element_size(), capability_of(q.device)
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_gate = None if gate is None else torch.empty_like(gate)
    own_dy = torch.empty_like(q) if xsa or gate is not None else None
    dy = grad if own_dy is None else own_dy
    dv_own = torch.empty_like(v) if xsa else None
    delta = torch.empty_like(lse)
    heads_and_dim = {"H": heads, "HKV": kv_heads, "D": dim}
    edges = {"DOCUMENTS": start is not None, "WINDOW": window > 0}
    if batch * length:
        launch = launch_attention_bwd_prepare(dim)
        gpu.attention_bwd_prepare_kernel[(cdiv(batch * length, launch.tiles["BT"]) * kv_heads,)](
            grad, z, v if xsa else None, gate, a if xsa else None, own_dy, dv_own, d_gate, delta,
            reference.EPS**2, batch * length, length, XSA=xsa, GATE=gate is not None, **heads_and_dim, **launch.options,
        )  # fmt: skip
        launch = launch_attention_bwd_kv(dim, bits, capability)
        tiles = cdiv(length, launch.tiles["BN"])
        gpu.attention_bwd_kv_kernel[(tiles * batch * kv_heads,)](
            q, k, v, end, dy, lse, delta, dv_own, d_k, d_v, scale * LOG2E, scale, length, window, tiles,
            XSA=xsa, **heads_and_dim, **edges, **launch.options,
        )  # fmt: skip
        launch = launch_attention_bwd_q(dim, bits, capability)
        tiles = cdiv(length, launch.tiles["BM"])
        gpu.attention_bwd_q_kernel[(tiles * batch * heads,)](
            q, k, v, start, dy, lse, delta, d_q, scale * LOG2E, scale, length, window, tiles,
            **heads_and_dim, **edges, **launch.options,
        )  # fmt: skip
    return d_q, d_k, d_v, lse.new_empty(0) if d_gate is None else d_gate


def _xsa_triton(y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    from pgolf.kernels.attention import gpu

    y, v = y.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = y.shape, v.shape[2]
    z, launch = torch.empty_like(y), launch_xsa(dim)
    programs = cdiv(batch * length, launch.tiles["BT"]) * kv_heads
    if programs:
        gpu.xsa_fwd_kernel[(programs,)](
            y, v, gate, z, eps * eps, batch * length, H=heads, HKV=kv_heads, D=dim, GATE=gate is not None, **launch.options
        )
    return z


def _xsa_backward_triton(grad: Tensor, y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from pgolf.kernels.attention import gpu

    grad, y, v = grad.contiguous(), y.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = y.shape, v.shape[2]
    d_y, d_v = torch.empty_like(y), torch.empty_like(v)
    d_gate = None if gate is None else torch.empty_like(gate)
    launch = launch_xsa(dim)
    programs = cdiv(batch * length, launch.tiles["BT"]) * kv_heads
    if programs:
        gpu.xsa_bwd_kernel[(programs,)](
            grad, y, v, gate, d_y, d_v, d_gate, eps * eps, batch * length,
            H=heads, HKV=kv_heads, D=dim, GATE=gate is not None, **launch.options,
        )  # fmt: skip
    return d_y, d_v, torch.empty(0, dtype=torch.float32, device=y.device) if d_gate is None else d_gate


INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor? start, Tensor? end"
OPTIONS = "SymInt window, float scale, bool xsa"

torch.library.define("pgolf::document_bounds", "(Tensor cu_seqlens, SymInt length) -> (Tensor, Tensor)")
torch.library.define("pgolf::attention", f"({INPUTS}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "pgolf::attention_backward",
    f"(Tensor grad, {INPUTS}, Tensor z, Tensor a, Tensor lse, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define("pgolf::xsa", "(Tensor y, Tensor v, Tensor? gate, float eps) -> Tensor")
torch.library.define(
    "pgolf::xsa_backward", "(Tensor grad, Tensor y, Tensor v, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)"
)


def _on_cpu(name: str) -> Any:
    """The CPU form of that name. numba is imported with the first call, not with this module."""

    def form(*arguments: Any) -> Any:
        from pgolf.kernels.attention import cpu

        return getattr(cpu, name)(*arguments)

    return form


for name, on_gpu in (
    ("document_bounds", _bounds_triton),
    ("attention", _forward_triton),
    ("attention_backward", _backward_triton),
    ("xsa", _xsa_triton),
    ("xsa_backward", _xsa_backward_triton),
):
    implement(f"pgolf::{name}", "CPU", _on_cpu(name))
    implement(f"pgolf::{name}", "CUDA", on_gpu)


@torch.library.register_fake("pgolf::document_bounds")
def _bounds_fake(cu_seqlens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return cu_seqlens.new_empty(length), cu_seqlens.new_empty(length)


@torch.library.register_fake("pgolf::attention")
def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, _ = q.shape
    kind = torch.promote_types(q.dtype, torch.float32)
    per_token = (batch, heads, length)
    return (
        q.new_empty(q.shape),
        q.new_empty(q.shape if gate is not None else 0),
        q.new_empty(per_token if xsa else 0, dtype=kind),
        q.new_empty(per_token, dtype=kind),
    )


@torch.library.register_fake("pgolf::attention_backward")
def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, start: Tensor | None, end: Tensor | None,
    z: Tensor, a: Tensor, lse: Tensor, window: int, scale: float, xsa: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    d_gate = lse.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_gate


@torch.library.register_fake("pgolf::xsa")
def _xsa_fake(y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    return y.new_empty(y.shape)


@torch.library.register_fake("pgolf::xsa_backward")
def _xsa_backward_fake(grad: Tensor, y: Tensor, v: Tensor, gate: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    d_gate = y.new_empty(0, dtype=torch.promote_types(y.dtype, torch.float32)) if gate is None else gate.new_empty(gate.shape)
    return y.new_empty(y.shape), v.new_empty(v.shape), d_gate


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    q, k, v, gate, start, end, ctx.window, ctx.scale, ctx.xsa = inputs
    out, z, a, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, gate, start, end, out if gate is None else z, a, lse)


def _backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    d_q, d_k, d_v, d_gate = torch.ops.pgolf.attention_backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.xsa)
    return d_q, d_k, d_v, d_gate if ctx.saved_tensors[3] is not None else None, None, None, None, None, None


def _save_xsa(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward_xsa(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    d_y, d_v, d_gate = torch.ops.pgolf.xsa_backward(grad, *ctx.saved_tensors, ctx.eps)
    return d_y, d_v, d_gate if ctx.saved_tensors[2] is not None else None, None


torch.library.register_autograd("pgolf::attention", _backward, setup_context=_save)
torch.library.register_autograd("pgolf::xsa", _backward_xsa, setup_context=_save_xsa)
