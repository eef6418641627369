"""`rotary` and its tables: the public functions, their Triton launches, registration and autograd."""

from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, cdiv, implement
from pgolf.kernels.rotary.launch import launch_rotary
from pgolf.kernels.tensors import require_tensors


def rotary(
    q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, *, eps: float | None = None, norm: bool = True
) -> tuple[Tensor, Tensor]:
    """Normalise q and k (QK-norm, arXiv:2010.04245), rotate their first dims by position (RoPE, arXiv:2104.09864), and scale
    each query head; one pass over each tensor.

        n(x) = x / sqrt(mean(x^2) + eps)                         over the head dim; x itself without norm
        R(x) = (x1 cos + x2 sin, -x1 sin + x2 cos, rest)         x1, x2: the two halves of the first r dims
        q' = gain[h] R(n(q)),  k' = R(n(k))

    Args:
        q: (B, T, H, d)
        k: (B, T, Hkv, d) in q's dtype
        gain: (H,), or None for none
        cos, sin: (T, r/2) float32 or float64, 0 <= r <= d, as `rotary_table` makes them
        eps: of the norm; the machine epsilon of q's dtype by default
        norm: False for RoPE alone

    Returns:
        q' and k' in the shapes and the dtype of q and k; arithmetic is in float32 (float64 for float64 inputs).
        Differentiable in q, k and gain; the sum for gain is in a fixed order.

    Example:
        >>> q, k = torch.randn(2, 16, 8, 64), torch.randn(2, 16, 4, 64)
        >>> cos, sin = rotary_table(16, 64, 10_000.0)
        >>> query, key = rotary(q, k, None, cos, sin, norm=False)      # plain RoPE
        >>> query, key = rotary(q, k, torch.ones(8), cos, sin)         # with QK-norm and a gain per query head

    Saved for backward: the inputs alone (the norms are recomputed).
    Bytes, with e bytes per element and N = B T: forward 2 N (H + Hkv) d e, backward 3 N (H + Hkv) d e (as forward without
    norm and gain). FLOPs: about 4 N (H + Hkv) d forward, 8 N (H + Hkv) d backward; far below what the memory allows.
    """
    require_tensors("rotary", {"q": q, "k": k, "cos": cos, "sin": sin}, {"gain": gain})
    _check(q, k, gain, cos, sin)
    eps = torch.finfo(q.dtype).eps if eps is None else eps
    return torch.ops.pgolf.rotary(q, k, gain, cos, sin, eps, norm)


def rotary_table(
    length: int,
    dims: int,
    base: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2j / dims), the angles of RoPE (arXiv:2104.09864).

    Args:
        length: T, the number of positions
        dims: r, how many dims of a head are rotated; even
        base: of the wavelengths; 10,000 in the paper
        device: where the tables go
        dtype: of the tables; they are computed in float64, because float32 loses the phase of the fast dims far into a
            sequence

    Returns:
        (cos, sin), each (T, r / 2)

    Example:
        >>> cos, sin = rotary_table(2048, 16, 10_000.0)
        >>> cos.shape
        torch.Size([2048, 8])
    """
    if dims % 2 or dims < 0:
        raise ValueError(f"rotary_table: dims must be an even number, not {dims}")
    exponent = torch.arange(0, dims, 2, device=device, dtype=torch.float64) / max(dims, 1)
    phase = torch.arange(length, device=device, dtype=torch.float64)[:, None] * base**-exponent
    return phase.cos().to(dtype), phase.sin().to(dtype)


def _check(q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"rotary: q (B, T, H, d) and k (B, T, Hkv, d) expected, got {tuple(q.shape)} and {tuple(k.shape)}"
            f"{_transposed(q, cos)}"
        )
    if q.dtype != k.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"rotary: q and k must have one floating-point dtype, got {q.dtype} and {k.dtype}")
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] != q.shape[1] or 2 * cos.shape[1] > q.shape[3]:
        raise ValueError(
            f"rotary: cos and sin must both be (T, r/2) with T = {q.shape[1]} and r <= {q.shape[3]}, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}{_transposed(q, cos)}"
        )
    if gain is not None and gain.shape != q.shape[2:3]:
        raise ValueError(f"rotary: gain must have one entry per query head, ({q.shape[2]},), got {tuple(gain.shape)}")
    if cos.dtype not in (torch.float32, torch.float64) or sin.dtype != cos.dtype:
        raise ValueError(f"rotary: cos and sin must both be float32 or float64, got {cos.dtype} and {sin.dtype}")


def _transposed(q: Tensor, cos: Tensor) -> str:
    """A hint where q reads well as (B, H, T, d), torch's order for its own attention."""
    if q.ndim != 4 or cos.ndim != 2 or q.shape[1] == cos.shape[0] or q.shape[2] != cos.shape[0]:
        return ""
    return "; if q and k are (B, H, T, d), pass x.transpose(1, 2) of each"


def _shape_of(q: Tensor, k: Tensor, cos: Tensor) -> tuple[int, int, dict[str, int]]:
    (batch, length, heads, dim), half = q.shape, cos.shape[1]
    return batch * length, length, {"H": heads, "HKV": k.shape[2], "D": dim, "HALF": half}


def _forward_triton(
    q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.rotary import gpu

    q, k, cos, sin = (x.contiguous() for x in (q, k, cos.float(), sin.float()))
    gain = None if gain is None else gain.contiguous()
    query, key = torch.empty_like(q), torch.empty_like(k)
    total, length, constants = _shape_of(q, k, cos)
    launch = launch_rotary(q.shape[3], capability_of(q.device))
    if total:
        gpu.rotary_fwd_kernel[(cdiv(total, launch.tiles["BT"]),)](
            q, k, gain, cos, sin, query, key, eps, total, length,
            NORM=norm, GAIN=gain is not None, **constants, **launch.options,
        )  # fmt: skip
    return query, key


def _backward_triton(
    grad_q: Tensor, grad_k: Tensor, q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    from pgolf.kernels.rotary import gpu

    if gain is None and not norm:
        # the transpose of a rotation turns the other way.
        return *_forward_triton(grad_q, grad_k, None, cos, -sin, eps, False), q.new_empty(0)
    factor = torch.ones(q.shape[2], device=q.device) if gain is None else gain
    grad_q, grad_k, q, k, factor = (x.contiguous() for x in (grad_q, grad_k, q, k, factor))
    cos, sin = (x.float().contiguous() for x in (cos, sin))
    d_q, d_k = torch.empty_like(q), torch.empty_like(k)
    total, length, constants = _shape_of(q, k, cos)
    launch = launch_rotary(q.shape[3], capability_of(q.device))
    d_gain = torch.empty(total, q.shape[2], dtype=torch.float32, device=q.device)
    if total:
        gpu.rotary_bwd_kernel[(cdiv(total, launch.tiles["BT"]),)](
            grad_q, grad_k, q, k, factor, cos, sin, d_q, d_k, d_gain, eps, total, length,
            NORM=norm, **constants, **launch.options,
        )  # fmt: skip
    return d_q, d_k, q.new_empty(0) if gain is None else d_gain.sum(0).to(gain.dtype)


def _forward_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.rotary import cpu  # numba is imported with the first call, not with this module

    return cpu.rotary(*arguments)


def _backward_cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from pgolf.kernels.rotary import cpu

    return cpu.rotary_backward(*arguments)


INPUTS = "Tensor q, Tensor k, Tensor? gain, Tensor cos, Tensor sin, float eps, bool norm"
torch.library.define("pgolf::rotary", f"({INPUTS}) -> (Tensor, Tensor)")
torch.library.define("pgolf::rotary_backward", f"(Tensor grad_q, Tensor grad_k, {INPUTS}) -> (Tensor, Tensor, Tensor)")
implement("pgolf::rotary", "CPU", _forward_cpu)
implement("pgolf::rotary_backward", "CPU", _backward_cpu)
implement("pgolf::rotary", "CUDA", _forward_triton)
implement("pgolf::rotary_backward", "CUDA", _backward_triton)


@torch.library.register_fake("pgolf::rotary")
def _forward_fake(
    q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.register_fake("pgolf::rotary_backward")
def _backward_fake(
    grad_q: Tensor, grad_k: Tensor, q: Tensor, k: Tensor, gain: Tensor | None, cos: Tensor, sin: Tensor, eps: float, norm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), q.new_empty(0) if gain is None else gain.new_empty(gain.shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps, ctx.norm = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    d_q, d_k, d_gain = torch.ops.pgolf.rotary_backward(grad_q, grad_k, *ctx.saved_tensors, ctx.eps, ctx.norm)
    return d_q, d_k, None if ctx.saved_tensors[2] is None else d_gain, None, None, None, None


torch.library.register_autograd("pgolf::rotary", _backward, setup_context=_save)
