"""`mlp`: the public function, its Triton launches, registration and autograd."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.launch import Launch, capability_of, cdiv, implement, nearest
from pgolf.kernels.mlp.launch import (
    MULTIPROCESSORS,
    launch_down,
    launch_hidden,
    launch_up,
    launch_w_down,
    magnitude_product,
    parts_of_rows,
    uses_kernels,
)
from pgolf.kernels.tensors import require_tensors


def mlp(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float = 0.5) -> Tensor:
    """A squared leaky rectifier between two products; with slope 0 it is Primer's squared ReLU (arXiv:2109.08668), with
    0.5 the one of PR #549 of openai/parameter-golf.

        y = h^2 w_down^T,  h = LeakyReLU(x w_up^T, slope)

    Args:
        x: (..., D)
        w_up: (H, D)
        w_down: (D_out, H)
        slope: in [0, 1]

    Returns:
        (..., D_out) in x's dtype. Differentiable in x, w_up and w_down.

    All have one floating-point dtype, or x is float16 or bfloat16 and the weights are float32, which are then cast, as
    autocast would. Under autocast all are cast to its dtype.

    Example:
        >>> x, w_up, w_down = torch.randn(2, 16, 512), torch.randn(2048, 512), torch.randn(512, 2048)
        >>> mlp(x, w_up, w_down).shape
        torch.Size([2, 16, 512])

    Besides the inputs one tensor of (rows, H) is kept for backward. The kernels keep s = sign(pre) h^2 with
    pre = x w_up^T: |s| is what the second product needs, and the derivative d h^2 / d pre is 2 sqrt(s) for s > 0 and
    -2 slope sqrt(|s|) below. The square root halves the relative error that rounding s left. Plain torch, which serves
    CPUs, float32, float64 and sizes that are no multiple of 8, keeps h.

    T = rows, e = bytes per element. Forward moves e (T (D + 2 H + D_out) + H (D + D_out)) bytes for 2 T H (D + D_out)
    FLOPs; backward e (T (2 D + 5 H + 2 D_out) + 2 H (D + D_out)) bytes for twice those FLOPs.
    """
    require_tensors("mlp", {"x": x, "w_up": w_up, "w_down": w_down})
    x, w_up, w_down = _in_one_dtype(x, w_up, w_down)
    _check(x, w_up, w_down, slope)
    y, _ = torch.ops.pgolf.mlp(x.reshape(-1, x.shape[-1]), w_up, w_down, float(slope))
    return y.reshape(*x.shape[:-1], w_down.shape[0])


def _in_one_dtype(x: Tensor, w_up: Tensor, w_down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As autocast takes the arguments of a product: in its dtype where it is on; else float32 weights follow a 16-bit x."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
    elif x.dtype in (torch.bfloat16, torch.float16) and w_up.dtype == w_down.dtype == torch.float32:
        dtype = x.dtype
    else:
        return x, w_up, w_down
    return x.to(dtype), w_up.to(dtype), w_down.to(dtype)


def _check(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float) -> None:
    if not (x.dtype == w_up.dtype == w_down.dtype and x.is_floating_point()):
        raise ValueError(
            f"mlp: x is {x.dtype}, w_up {w_up.dtype}, w_down {w_down.dtype}; cast them to one floating-point dtype"
        )
    matrices = x.dim() >= 1 and w_up.dim() == w_down.dim() == 2
    if not matrices or x.shape[-1] != w_up.shape[1] or w_up.shape[0] != w_down.shape[1]:
        raise ValueError(
            f"mlp: x {tuple(x.shape)}, w_up {tuple(w_up.shape)} and w_down {tuple(w_down.shape)} do not fit together; "
            "they must be (..., D), (hidden, D) and (D_out, hidden)"
        )
    if not 0 <= slope <= 1:
        raise ValueError(f"mlp: slope is {slope}; it must lie in [0, 1]")


def forward_cuda(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    out, hidden = w_down.shape
    by_kernels = uses_kernels(x.shape[1], hidden, out, x.dtype, capability_of(x.device))
    return (forward_triton if by_kernels else forward_torch)(x, w_up, w_down, slope)


def backward_cuda(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, saved: Tensor, slope: float,
    wants_x: bool, wants_up: bool, wants_down: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, hidden = w_down.shape
    by_kernels = uses_kernels(x.shape[1], hidden, out, x.dtype, capability_of(x.device))
    backward = backward_triton if by_kernels else backward_torch
    return backward(dy, x, w_up, w_down, saved, slope, wants_x, wants_up, wants_down)


@cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return nearest(MULTIPROCESSORS, 90)
    return torch.cuda.get_device_properties(device).multi_processor_count


def _persistent_grid(rows: int, columns: int, launch: Launch, device: torch.device) -> tuple[int]:
    tiles = cdiv(rows, launch.tiles["BM"]) * cdiv(columns, launch.tiles["BN"])
    return (min(tiles, multiprocessors(device)),)


def _matrix(tensor: Tensor, launch: Launch, height: int, width: int) -> Any:
    """A contiguous tensor as its kernel wants it: behind a descriptor of (height, width) tiles, or as it is."""
    if not launch.tiles["TMA"]:
        return tensor
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, [height, width])


def _aligned(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, and where the memory accelerator can start reading: a view into a bank may begin anywhere."""
    return [t.clone() if t.data_ptr() % 16 else t for t in (tensor.contiguous() for tensor in tensors)]


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"


def up_triton(x: Tensor, w_up: Tensor, slope: float) -> Tensor:
    """s, by the kernel."""
    from pgolf.kernels.mlp import gpu

    rows, d = x.shape
    hidden = w_up.shape[0]
    s = x.new_empty(rows, hidden)
    launch = launch_up(rows, hidden, capability_of(x.device))
    bm, bn, bk = (launch.tiles[side] for side in ("BM", "BN", "BK"))
    gpu.mlp_fwd_kernel_up[_persistent_grid(rows, hidden, launch, x.device)](
        _matrix(x, launch, bm, bk),
        _matrix(w_up, launch, bn, bk),
        _matrix(s, launch, bm, bn // 2),
        rows,
        slope,
        D=d,
        H=hidden,
        PRECISION=_precision(x.dtype),
        **launch.options,
    )
    return s


def down_triton(s: Tensor, w_down: Tensor) -> Tensor:
    """|s| w_down^T, by the kernel."""
    from pgolf.kernels.mlp import gpu

    rows, hidden = s.shape
    out = w_down.shape[0]
    y = s.new_empty(rows, out)
    launch = launch_down(rows, out, capability_of(s.device))
    bm, bn, bk = (launch.tiles[side] for side in ("BM", "BN", "BK"))
    gpu.mlp_fwd_kernel_down[_persistent_grid(rows, out, launch, s.device)](
        _matrix(s, launch, bm, bk),
        _matrix(w_down, launch, bn, bk),
        _matrix(y, launch, bm, bn // 2),
        rows,
        H=hidden,
        D_OUT=out,
        PRECISION=_precision(s.dtype),
        **launch.options,
    )
    return y


def hidden_triton(dy: Tensor, w_down: Tensor, s: Tensor, slope: float) -> Tensor:
    """The gradient of x w_up^T, by the kernel."""
    from pgolf.kernels.mlp import gpu

    rows, hidden = s.shape
    out = w_down.shape[0]
    d_pre = s.new_empty(rows, hidden)
    launch = launch_hidden(rows, hidden, capability_of(s.device))
    bm, bn, bk = (launch.tiles[side] for side in ("BM", "BN", "BK"))
    gpu.mlp_bwd_kernel_hidden[_persistent_grid(rows, hidden, launch, s.device)](
        _matrix(dy, launch, bm, bk),
        _matrix(w_down, launch, bk, bn),
        _matrix(s, launch, bm, bn // 2),
        _matrix(d_pre, launch, bm, bn // 2),
        rows,
        slope,
        H=hidden,
        D_OUT=out,
        PRECISION=_precision(s.dtype),
        **launch.options,
    )
    return d_pre


def w_down_triton(dy: Tensor, s: Tensor) -> Tensor:
    """The gradient of w_down, dy^T |s|, by the kernel."""
    from pgolf.kernels.mlp import gpu

    rows, hidden = s.shape
    out = dy.shape[1]
    launch = launch_w_down(capability_of(s.device))
    bm, bn, bk = (launch.tiles[side] for side in ("BM", "BN", "BK"))
    parts, length = parts_of_rows(rows, hidden, out, launch, multiprocessors(s.device))
    sums = torch.empty(parts, hidden, out, dtype=torch.float32, device=s.device)
    gpu.mlp_bwd_kernel_w_down[(cdiv(hidden, bm), cdiv(out, bn), parts)](
        _matrix(s, launch, bk, bm),
        _matrix(dy, launch, bk, bn),
        sums,
        rows,
        length,
        H=hidden,
        D_OUT=out,
        PRECISION=_precision(s.dtype),
        **launch.options,
    )
    return sums.sum(0).T.to(dy.dtype).contiguous()


def forward_triton(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    x, w_up, w_down = _aligned(x, w_up, w_down)
    rows, hidden = x.shape[0], w_up.shape[0]
    if rows == 0:
        return x.new_empty(0, w_down.shape[0]), x.new_empty(0, hidden)
    s = up_triton(x, w_up, slope)
    way = magnitude_product(rows, hidden, slope)
    y = down_triton(s, w_down) if way == "kernel" else (s if way == "plain" else s.abs()) @ w_down.T
    return y, s


def backward_triton(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, s: Tensor, slope: float,
    wants_x: bool, wants_up: bool, wants_down: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dy, x, w_up, w_down = _aligned(dy, x, w_up, w_down)
    rows, hidden = s.shape
    if rows == 0:
        return backward_torch(dy, x, w_up, w_down, s, slope, wants_x, wants_up, wants_down)
    dx, d_up, d_down = x.new_empty(0), w_up.new_empty(0), w_down.new_empty(0)
    if wants_down:
        way = magnitude_product(rows, hidden, slope)
        d_down = w_down_triton(dy, s) if way == "kernel" else dy.T @ (s if way == "plain" else s.abs())
    if wants_x or wants_up:
        d_pre = hidden_triton(dy, w_down, s, slope)
        if wants_x:
            dx = d_pre @ w_up
        if wants_up:
            d_up = d_pre.T @ x
    return dx, d_up, d_down


def forward_torch(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Keeps h itself: here it is the one tensor that makes both the product and the derivative cheapest."""
    h = torch.nn.functional.leaky_relu_(x @ w_up.T, slope)
    return (h * h) @ w_down.T, h


def backward_torch(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, h: Tensor, slope: float,
    wants_x: bool, wants_up: bool, wants_down: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx, d_up, d_down = x.new_empty(0), w_up.new_empty(0), w_down.new_empty(0)
    if wants_down:
        d_down = dy.T @ (h * h)
    if wants_x or wants_up:
        # d(h^2) = 2 h dh; the factor 2 is part of the product
        d_hidden = torch.addmm(dy.new_empty(()), dy, w_down, beta=0, alpha=2).mul_(h)
        d_pre = torch.ops.aten.leaky_relu_backward(d_hidden, h, slope, True)
        if wants_x:
            dx = d_pre @ w_up
        if wants_up:
            d_up = d_pre.T @ x
    return dx, d_up, d_down


def _fake_forward(x: Tensor, w_up: Tensor, w_down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w_down.shape[0]), x.new_empty(x.shape[0], w_up.shape[0])


def _fake_backward(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, saved: Tensor, slope: float,
    wants_x: bool, wants_up: bool, wants_down: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    given = ((x, wants_x), (w_up, wants_up), (w_down, wants_down))
    return tuple(tensor.new_empty(tensor.shape if wanted else (0,)) for tensor, wanted in given)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, w_up, w_down, ctx.slope = inputs
    _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(x, w_up, w_down, saved)


def _backward(ctx: Any, dy: Tensor, _saved: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    gradients = torch.ops.pgolf.mlp_backward(dy, *ctx.saved_tensors, ctx.slope, *wanted)
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), None


torch.library.define("pgolf::mlp", "(Tensor x, Tensor w_up, Tensor w_down, float slope) -> (Tensor y, Tensor saved)")
torch.library.define(
    "pgolf::mlp_backward",
    "(Tensor dy, Tensor x, Tensor w_up, Tensor w_down, Tensor saved, float slope, bool wants_x, bool wants_up,"
    " bool wants_down) -> (Tensor dx, Tensor d_up, Tensor d_down)",
)
implement("pgolf::mlp", "CPU", forward_torch)
implement("pgolf::mlp_backward", "CPU", backward_torch)
implement("pgolf::mlp", "CUDA", forward_cuda)
implement("pgolf::mlp_backward", "CUDA", backward_cuda)
torch.library.register_fake("pgolf::mlp", _fake_forward)
torch.library.register_fake("pgolf::mlp_backward", _fake_backward)
torch.library.register_autograd("pgolf::mlp", _backward, setup_context=_setup_context)
