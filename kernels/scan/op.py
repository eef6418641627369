"""`scan` and `scan_step`: the public functions, their Triton launches, registration and autograd."""

from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, cdiv, implement
from pgolf.kernels.scan.launch import CHUNK, launch_chunks, launch_forward, launch_states, uses_kernels
from pgolf.kernels.scan.reference import scan_chunked
from pgolf.kernels.tensors import require_tensors


def scan(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> Tensor:
    """The scan of a state-space model with a scalar decay per head (Mamba-2, arXiv:2405.21060). Each head has a state, which
    fades, takes a value in and is read at every token:

        h_t = exp(log_decay_t) h_(t-1) + dt_t b_t v_t^T,    y_t = c_t h_t,    h before the first token zero

    which is y_t = sum over j <= t of exp(log_decay_(j+1) + ... + log_decay_t) dt_j (c_t . b_j) v_j. With dt = softplus(...)
    and log_decay = A dt for a learnt A < 0 this is Mamba-2's layer; where neither depends on the token, the decay is one of
    time alone.

    Args:
        v: (B, T, H, P)
        b, c: (B, T, G, S) in v's dtype, H a multiple of G: head h uses group h // (H // G)
        dt: (B, T, H), or (H,) where it is the same at every token
        log_decay: (B, T, H) or (H,), not positive

    Returns:
        (B, T, H, P) in v's dtype; arithmetic on dt, log_decay and the state is in float32 (float64 for float64 inputs).
        Differentiable in all five.

    Example:
        >>> v, b, c = torch.randn(2, 16, 8, 64), torch.randn(2, 16, 8, 4), torch.randn(2, 16, 8, 4)
        >>> scan(v, b, c, torch.ones(8), -torch.rand(8)).shape
        torch.Size([2, 16, 8, 64])

    Saved for backward: the inputs, and the state before each chunk of 64 tokens, (B, H, chunks, S, P).

    On CUDA chunks are products of matrices, for 16-bit floats, P of 64 or 128 and S up to 32 (16 on Ampere); `scan_chunked`
    in plain torch serves other sizes and dtypes. Forward walks along a sequence with a program for each 64 of a head's
    width and keeps the state in registers; backward walks once for the gradients of states, then takes every chunk by
    itself. On a CPU numba goes token by token.

    N = B T H, e bytes per element, Q = 64, S at least 16. Forward: N (2 P e + 2 S e + 4 S P / Q + 8) bytes, if every head
    has a group of its own, and N (2 Q (S + P) + 4 S P) FLOPs; backward, in two launches:
    N (4 P e + 5 S e + 12 S P / Q + 20) bytes and N (2 Q (3 S + 2 P) + 8 S P) FLOPs.
    """
    require_tensors("scan", {"v": v, "b": b, "c": c, "dt": dt, "log_decay": log_decay})
    _check("scan", v, b, c, dt, log_decay)
    exact = torch.promote_types(v.dtype, torch.float32)
    dt, log_decay = (x.to(exact).expand(v.shape[:3]) for x in (dt, log_decay))
    if v.is_cuda and not uses_kernels(v.shape[3], b.shape[3], v.dtype, capability_of(v.device)):
        return scan_chunked(v, b, c, dt, log_decay, CHUNK)
    return torch.ops.pgolf.scan(v, b, c, dt, log_decay)[0]


@torch.no_grad()
def scan_step(state: Tensor, v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> Tensor:
    """One token of `scan`, in place on its state: after n steps from zeros, the n-th result is what `scan` gives there.

    Args:
        state: (B, H, S, P), in float32 or float64; zeros before the first token
        v: (B, H, P)
        b, c: (B, G, S)
        dt, log_decay: (B, H), or (H,)

    Returns:
        (B, H, P) in v's dtype. Not differentiable.

    Example:
        >>> state = torch.zeros(2, 8, 4, 64)
        >>> v, b, c = torch.randn(2, 8, 64), torch.randn(2, 8, 4), torch.randn(2, 8, 4)
        >>> scan_step(state, v, b, c, torch.ones(8), -torch.rand(8)).shape
        torch.Size([2, 8, 64])

    Its cost does not depend on how many tokens went before: about 5 S P FLOPs a head, and the state read and written.
    """
    require_tensors("scan_step", {"state": state, "v": v, "b": b, "c": c, "dt": dt, "log_decay": log_decay})
    sequence = (x[:, None] for x in (v, b, c))
    _check("scan_step", *sequence, *(x if x.dim() == 1 else x[:, None] for x in (dt, log_decay)))
    heads = v.shape[1]
    if state.shape != (v.shape[0], heads, b.shape[2], v.shape[2]):
        raise ValueError(
            f"scan_step: state is {tuple(state.shape)}; (B, H, S, P) = {(v.shape[0], heads, b.shape[2], v.shape[2])} expected"
        )
    b, c = (x.to(state).repeat_interleave(heads // x.shape[1], 1)[..., None] for x in (b, c))
    dt, log_decay = (x.to(state).expand(v.shape[:2])[..., None, None] for x in (dt, log_decay))
    state.mul_(log_decay.exp()).add_(dt * b * v.to(state)[:, :, None])
    return (c * state).sum(2).to(v.dtype)


def _check(function: str, v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> None:
    if v.dim() != 4 or b.dim() != 4 or b.shape != c.shape or v.shape[:2] != b.shape[:2] or v.shape[2] % max(b.shape[2], 1):
        raise ValueError(
            f"{function}: v (B, T, H, P) and b, c (B, T, G, S) with H a multiple of G expected, "
            f"got {tuple(v.shape)}, {tuple(b.shape)} and {tuple(c.shape)}"
        )
    if not v.dtype == b.dtype == c.dtype or not v.dtype.is_floating_point:
        raise ValueError(f"{function}: v, b and c must have one floating-point dtype, got {v.dtype}, {b.dtype} and {c.dtype}")
    for name, x in (("dt", dt), ("log_decay", log_decay)):
        if x.shape not in (v.shape[:3], v.shape[2:3]):
            raise ValueError(f"{function}: {name} must be (B, T, H) or (H,) of v {tuple(v.shape)}, not {tuple(x.shape)}")


def forward_triton(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.scan import gpu

    v, b, c, dt, log_decay = (x.contiguous() for x in (v, b, c, dt, log_decay))
    batch, length, heads, width = v.shape
    groups, size = b.shape[2:]
    y, states = torch.empty_like(v), empty_states(v, size)
    launch = launch_forward(size, capability_of(v.device))
    if v.numel():
        gpu.scan_fwd_kernel[(batch * heads, cdiv(width, launch.tiles["BP"]))](
            v, b, c, dt, log_decay, y, states, length, states.shape[2], H=heads, G=groups, P=width, S=size, **launch.options
        )
    return y, states


def backward_triton(
    dy: Tensor, v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from pgolf.kernels.scan import gpu

    dy, v, b, c, dt, log_decay = (x.contiguous() for x in (dy, v, b, c, dt, log_decay))
    batch, length, heads, width = v.shape
    groups, size = b.shape[2:]
    dv, d_dt, d_log_decay = (torch.empty_like(x) for x in (v, dt, log_decay))
    # heads that share a group add up afterwards, in a fixed order
    exact = b.dtype if groups == heads else torch.float32
    db, dc = (torch.empty(batch, length, heads, size, dtype=exact, device=v.device) for _ in range(2))
    if v.numel():
        d_states, chunks, capability = torch.empty_like(states), states.shape[2], capability_of(v.device)
        sizes = {"H": heads, "G": groups, "P": width, "S": size}
        launch = launch_states(size, capability)
        gpu.scan_bwd_kernel_states[(batch * heads, cdiv(width, launch.tiles["BP"]))](
            dy, c, log_decay, d_states, length, chunks, **sizes, **launch.options
        )
        launch = launch_chunks(size, capability)
        gpu.scan_bwd_kernel_chunks[(chunks, batch * heads)](
            dy, v, b, c, dt, log_decay, states, d_states, dv, db, dc, d_dt, d_log_decay, length, chunks,
            **sizes, **launch.options,
        )  # fmt: skip
    if groups < heads:
        db, dc = (x.unflatten(2, (groups, -1)).sum(3).to(b.dtype) for x in (db, dc))
    return dv, db, dc, d_dt, d_log_decay


def empty_states(v: Tensor, size: int) -> Tensor:
    """Room for the state before each chunk."""
    batch, length, heads, width = v.shape
    exact = torch.promote_types(v.dtype, torch.float32)
    return v.new_empty(batch, heads, cdiv(length, CHUNK), size, width, dtype=exact)


def _fake_forward(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), empty_states(v, b.shape[3])


def _fake_backward(
    dy: Tensor, v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor, states: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (v, b, c, dt, log_decay))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, states = output
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(*inputs, states)


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.pgolf.scan_backward(dy, *ctx.saved_tensors)
    return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=True))


def _forward_cpu(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.scan import cpu  # numba is imported with the first call, not with this module

    return cpu.scan(*arguments)


def _backward_cpu(*arguments: Tensor) -> tuple[Tensor, ...]:
    from pgolf.kernels.scan import cpu

    return cpu.scan_backward(*arguments)


INPUTS = "Tensor v, Tensor b, Tensor c, Tensor dt, Tensor log_decay"
torch.library.define("pgolf::scan", f"({INPUTS}) -> (Tensor y, Tensor states)")
torch.library.define(
    "pgolf::scan_backward", f"(Tensor dy, {INPUTS}, Tensor states) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
implement("pgolf::scan", "CPU", _forward_cpu)
implement("pgolf::scan_backward", "CPU", _backward_cpu)
implement("pgolf::scan", "CUDA", forward_triton)
implement("pgolf::scan_backward", "CUDA", backward_triton)
torch.library.register_fake("pgolf::scan", _fake_forward)
torch.library.register_fake("pgolf::scan_backward", _fake_backward)
torch.library.register_autograd("pgolf::scan", _backward, setup_context=_save)
