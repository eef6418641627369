"""The squared-leaky-rectifier MLP as a registered operator: launch choice, launchers, autograd and the public function."""

from functools import cache

import torch

from pgolf.kernels.launch import Launch, capability_of, cdiv, implement


def mlp(x: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor, slope: float = 0.5) -> torch.Tensor:
    """y = h^2 w_down^T with h = LeakyReLU(x w_up^T, slope): the two products of an MLP and what is between them.

    x       (..., D)
    w_up    (H, D)
    w_down  (D_out, H)
    slope   in [0, 1]; 0 is the plain squared rectifier
    returns (..., D_out), in the one dtype of all inputs

    Gradients flow to x, w_up and w_down. Besides the inputs one tensor of (rows, H) is kept for backward. The kernels
    keep s = sign(pre) h^2 with pre = x w_up^T: |s| is what the second product needs, and the derivative
    d h^2 / d pre is 2 sqrt(s) for s > 0 and -2 slope sqrt(|s|) below. The square root halves the relative error that
    rounding s left. Plain torch, which serves CPUs, float32, float64 and sizes that are no multiple of 8, keeps h.

    T = rows, e = bytes per element. Forward moves e (T (D + 2 H + D_out) + H (D + D_out)) bytes for 2 T H (D + D_out)
    FLOPs; backward e (T (2 D + 5 H + 2 D_out) + 2 H (D + D_out)) bytes for twice those FLOPs.
    """
    _check(x, w_up, w_down, slope)
    y, _ = torch.ops.pgolf.mlp(x.reshape(-1, x.shape[-1]), w_up, w_down, float(slope))
    return y.reshape(*x.shape[:-1], w_down.shape[0])


def _check(x, w_up, w_down, slope):
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


# By compute capability; the first tile is for work that fills the device with it. Chosen by reasoning, unmeasured.
# Without a tensor memory accelerator (sm_80) tiles come in by pointer.
TILES = {
    80: [{"BM": 128, "BN": 256, "BK": 32, "TMA": 0}, {"BM": 128, "BN": 128, "BK": 32, "TMA": 0}],
    90: [{"BM": 128, "BN": 256, "BK": 64, "TMA": 1}, {"BM": 128, "BN": 128, "BK": 64, "TMA": 1}],
    100: [{"BM": 128, "BN": 256, "BK": 64, "TMA": 1}, {"BM": 128, "BN": 128, "BK": 64, "TMA": 1}],
}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


def _launch(rows, columns, capability, stages):
    wide, narrow = TILES[capability]
    fills = cdiv(rows, wide["BM"]) * cdiv(columns, wide["BN"]) >= MULTIPROCESSORS[capability]
    return Launch(wide if fills else narrow, num_warps=8, num_stages=stages)


def launch_up(rows: int, hidden: int, capability: int) -> Launch:
    return _launch(rows, hidden, capability, stages=4)


def launch_down(rows: int, out: int, capability: int) -> Launch:
    return _launch(rows, out, capability, stages=4)


def launch_hidden(rows: int, hidden: int, capability: int) -> Launch:
    """One stage less than forward: the tiles of s on their way in and of dpre on their way out need the space."""
    return _launch(rows, hidden, capability, stages=3)


def launch_w_down(capability: int) -> Launch:
    return Launch(TILES[capability][0], num_warps=8, num_stages=4)


def parts_of_rows(rows: int, hidden: int, out: int, launch: Launch, multiprocessors: int) -> tuple[int, int]:
    """How many parts the sum over rows is cut into, so that the tiles of a small matrix fill the device, and their length."""
    tiles = cdiv(hidden, launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"])
    parts = max(1, min(multiprocessors // tiles, rows // 1024))
    length = cdiv(cdiv(rows, parts), launch.tiles["BK"]) * launch.tiles["BK"]
    return cdiv(rows, length), length


def uses_kernels(d: int, hidden: int, out: int, dtype: torch.dtype, capability: int) -> bool:
    """Half precision in whole 16-byte rows, which tensor descriptors ask for, on the devices that tiles were chosen
    for; plain torch serves all else."""
    half = dtype in (torch.bfloat16, torch.float16)
    return capability in TILES and half and d % 8 == hidden % 8 == out % 8 == 0


def magnitude_product(rows: int, hidden: int, slope: float) -> str:
    """How a product consumes |s|: "plain" where s has no sign to clear, "copy" where s is small enough to stay in L2,
    so that a pass over it costs next to nothing and cuBLAS can do the rest, else "kernel". Chosen by reasoning."""
    if slope == 0:
        return "plain"
    return "copy" if 2 * rows * hidden <= 16 * 2**20 else "kernel"


def traffic_up(rows: int, d: int, hidden: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * (rows * d + d * hidden + rows * hidden), 2 * rows * d * hidden


def traffic_down(rows: int, hidden: int, out: int, element_size: int = 2) -> tuple[int, int]:
    return traffic_up(rows, hidden, out, element_size)


def traffic_hidden(rows: int, hidden: int, out: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * (rows * out + out * hidden + 2 * rows * hidden), 2 * rows * out * hidden


def traffic_w_down(rows: int, hidden: int, out: int, parts: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * rows * (hidden + out) + 4 * parts * hidden * out, 2 * rows * out * hidden


def compile_cases(capability):
    from pgolf.kernels.compile import Case
    from pgolf.kernels.mlp import gpu

    d, hidden, out = 512, 2048, 512
    sizes = {"D": d, "H": hidden, "D_OUT": out, "PRECISION": "tf32"}

    def case(kernel, name, kind, launch, matrices, scalars, rows, traffic):
        tiles = launch.tiles
        signature = dict(scalars)
        for matrix, shape in matrices.items():
            height, width = (tiles["BN"] // 2 if side == "HALF" else tiles[side] for side in shape)
            signature[matrix] = f"tensordesc<{kind}[{height},{width}]>" if tiles["TMA"] else f"*{kind}:16"
        return Case(
            kernel=kernel,
            name=f"{name} {kind}",
            signature=signature,
            constants={key: value for key, value in sizes.items() if key in kernel.arg_names},
            launch=launch,
            shape=f"T={rows} D={d} H={hidden}",
            bytes=traffic[0],
            flops=traffic[1],
            matmul=True,
            max_registers=240,
        )

    found = []
    for kind, rows in (("bf16", 98_304), ("bf16", 512), ("fp16", 98_304)):
        up = {"x": ("BM", "BK"), "w_up": ("BN", "BK"), "s": ("BM", "HALF")}
        down = {"s": ("BM", "BK"), "w_down": ("BN", "BK"), "y": ("BM", "HALF")}
        back = {"dy": ("BM", "BK"), "w_down": ("BK", "BN"), "s": ("BM", "HALF"), "d_pre": ("BM", "HALF")}
        weight = {"s": ("BK", "BM"), "dy": ("BK", "BN")}
        launch = launch_up(rows, hidden, capability)
        scalars = {"rows": "i32", "slope": "fp32"}
        found.append(case(gpu.mlp_fwd_kernel_up, "fwd_up", kind, launch, up, scalars, rows, traffic_up(rows, d, hidden)))
        launch = launch_down(rows, out, capability)
        traffic = traffic_down(rows, hidden, out)
        found.append(case(gpu.mlp_fwd_kernel_down, "fwd_down", kind, launch, down, {"rows": "i32"}, rows, traffic))
        launch = launch_hidden(rows, hidden, capability)
        traffic = traffic_hidden(rows, hidden, out)
        found.append(case(gpu.mlp_bwd_kernel_hidden, "bwd_hidden", kind, launch, back, scalars, rows, traffic))
        if rows > 512:
            launch = launch_w_down(capability)
            parts, _ = parts_of_rows(rows, hidden, out, launch, MULTIPROCESSORS[capability])
            scalars = {"p_parts": "*fp32:16", "rows": "i32", "rows_per_part": "i32"}
            traffic = traffic_w_down(rows, hidden, out, parts)
            found.append(case(gpu.mlp_bwd_kernel_w_down, "bwd_w_down", kind, launch, weight, scalars, rows, traffic))
    return found


def forward_cuda(x, w_up, w_down, slope):
    out, hidden = w_down.shape
    by_kernels = uses_kernels(x.shape[1], hidden, out, x.dtype, capability_of(x.device))
    return (forward_triton if by_kernels else forward_torch)(x, w_up, w_down, slope)


def backward_cuda(dy, x, w_up, w_down, saved, slope, wants_x, wants_up, wants_down):
    out, hidden = w_down.shape
    by_kernels = uses_kernels(x.shape[1], hidden, out, x.dtype, capability_of(x.device))
    backward = backward_triton if by_kernels else backward_torch
    return backward(dy, x, w_up, w_down, saved, slope, wants_x, wants_up, wants_down)


@cache
def multiprocessors(device) -> int:
    if device.type != "cuda":
        return MULTIPROCESSORS[90]
    return torch.cuda.get_device_properties(device).multi_processor_count


def _persistent_grid(rows, columns, launch, device):
    tiles = cdiv(rows, launch.tiles["BM"]) * cdiv(columns, launch.tiles["BN"])
    return (min(tiles, multiprocessors(device)),)


def _matrix(tensor, launch, height, width):
    """A contiguous tensor as its kernel wants it: behind a descriptor of (height, width) tiles, or as it is."""
    if not launch.tiles["TMA"]:
        return tensor
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, [height, width])


def _aligned(*tensors):
    """Contiguous, and where the memory accelerator can start reading: a view into a bank may begin anywhere."""
    return [t.clone() if t.data_ptr() % 16 else t for t in (tensor.contiguous() for tensor in tensors)]


def _precision(dtype):
    return "ieee" if dtype == torch.float32 else "tf32"


def up_triton(x, w_up, slope):
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


def down_triton(s, w_down):
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


def hidden_triton(dy, w_down, s, slope):
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


def w_down_triton(dy, s):
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


def forward_triton(x, w_up, w_down, slope):
    x, w_up, w_down = _aligned(x, w_up, w_down)
    rows, hidden = x.shape[0], w_up.shape[0]
    if rows == 0:
        return x.new_empty(0, w_down.shape[0]), x.new_empty(0, hidden)
    s = up_triton(x, w_up, slope)
    way = magnitude_product(rows, hidden, slope)
    y = down_triton(s, w_down) if way == "kernel" else (s if way == "plain" else s.abs()) @ w_down.T
    return y, s


def backward_triton(dy, x, w_up, w_down, s, slope, wants_x, wants_up, wants_down):
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


def forward_torch(x, w_up, w_down, slope):
    """Keeps h itself: here it is the one tensor that makes both the product and the derivative cheapest."""
    h = torch.nn.functional.leaky_relu_(x @ w_up.T, slope)
    return (h * h) @ w_down.T, h


def backward_torch(dy, x, w_up, w_down, h, slope, wants_x, wants_up, wants_down):
    dx, d_up, d_down = x.new_empty(0), w_up.new_empty(0), w_down.new_empty(0)
    if wants_down:
        d_down = dy.T @ (h * h)
    if wants_x or wants_up:
        # d(h^2) = 2 h dh; the factor 2 rides on the product
        d_hidden = torch.addmm(dy.new_empty(()), dy, w_down, beta=0, alpha=2).mul_(h)
        d_pre = torch.ops.aten.leaky_relu_backward(d_hidden, h, slope, True)
        if wants_x:
            dx = d_pre @ w_up
        if wants_up:
            d_up = d_pre.T @ x
    return dx, d_up, d_down


def _fake_forward(x, w_up, w_down, slope):
    return x.new_empty(x.shape[0], w_down.shape[0]), x.new_empty(x.shape[0], w_up.shape[0])


def _fake_backward(dy, x, w_up, w_down, saved, slope, wants_x, wants_up, wants_down):
    given = ((x, wants_x), (w_up, wants_up), (w_down, wants_down))
    return tuple(tensor.new_empty(tensor.shape if wanted else (0,)) for tensor, wanted in given)


def _setup_context(ctx, inputs, output):
    x, w_up, w_down, ctx.slope = inputs
    _, saved = output
    ctx.mark_non_differentiable(saved)
    ctx.save_for_backward(x, w_up, w_down, saved)


def _backward(ctx, dy, _saved):
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
