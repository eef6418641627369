"""Packed matrices: packing, the product with them, its gradient, and their expansion."""

from dataclasses import dataclass

import torch

from pgolf.kernels.launch import Launch, capability_of, cdiv, implement
from pgolf.kernels.packed import reference


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """`rows` x `cols` codes of `bits` bits, in int32 words laid out as reference.py says, and a scale per row.

    The matrix stands for W[n, k] = codes[n, k] * scales[n].
    """

    planes: torch.Tensor
    scales: torch.Tensor
    bits: int
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes + self.scales.nbytes

    def to(self, device) -> "PackedMatrix":
        return PackedMatrix(self.planes.to(device), self.scales.to(device), self.bits, self.rows, self.cols)

    def unpack(self) -> torch.Tensor:
        """The codes again, (rows, cols) int8."""
        return reference.unpack_codes(self.planes, self.bits, self.cols)


def pack(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> PackedMatrix:
    """Pack integer `codes` (rows, cols) within [-2^(bits-1), 2^(bits-1) - 1] and `scales` (rows,) into a PackedMatrix.

    bits is 4 to 8. A row takes bits / 8 bytes per column; only columns beyond the last multiple of 32 can leave part of
    a word empty, once per plane. Scales are kept in float32.
    """
    if bits not in reference.WIDTHS:
        raise ValueError(f"pack: bits is {bits!r}; it must be one of {', '.join(map(str, reference.WIDTHS))}.")
    if codes.dim() != 2 or codes.numel() == 0 or codes.is_floating_point() or codes.is_complex():
        raise ValueError(
            f"pack: codes must be a matrix of integers with at least one element, "
            f"not {codes.dtype} of shape {tuple(codes.shape)}."
        )
    if scales.shape != codes.shape[:1] or not scales.is_floating_point() or scales.device != codes.device:
        raise ValueError(
            f"pack: scales must be one float per row, shape ({codes.shape[0]},) on {codes.device}, "
            f"not {scales.dtype} of shape {tuple(scales.shape)} on {scales.device}."
        )
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    found = codes.min().item(), codes.max().item()
    if found[0] < least or found[1] > most:
        raise ValueError(
            f"pack: codes run from {found[0]} to {found[1]}, but {bits} bits hold {least} to {most}; clamp them first."
        )
    rows, cols = codes.shape
    return PackedMatrix(reference.pack_codes(codes, bits), scales.detach().float().contiguous(), bits, rows, cols)


def packed_matmul(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    """y = x @ W.T with W[n, k] = codes[n, k] * scales[n]; differentiable in x.

    x: (..., cols) float32, float16 or bfloat16 (float64 too on a CPU); y: (..., rows) in x's dtype. Products are exact and
    summed in float32, and the scale is applied to the sum. Backward gives x its gradient, grad @ W, and saves only the
    packed matrix. On a GPU the way is chosen from the shape (`choose`, `choose_backward`).

    Bytes for T tokens of e bytes an element: rows (bits cols / 8 + 4) + T (rows + cols) e; FLOPs: 2 T rows cols.
    """
    if x.dim() == 0 or x.shape[-1] != packed.cols:
        raise ValueError(f"packed_matmul: x must end in a dimension of {packed.cols}, but its shape is {tuple(x.shape)}.")
    _check_dtype("packed_matmul: x", x.dtype, packed.planes.device)
    if x.device != packed.planes.device:
        raise ValueError(f"packed_matmul: x is on {x.device}, the packed matrix on {packed.planes.device}; move one of them.")
    flat = x.reshape(-1, packed.cols)
    y = torch.ops.pgolf.packed_matmul(flat, packed.planes, packed.scales, packed.bits, packed.cols)
    return y.view(*x.shape[:-1], packed.rows)


def expand(packed: PackedMatrix, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """W[n, k] = codes[n, k] * scales[n] as a dense (rows, cols) matrix, each element rounded once.

    Bytes for elements of e bytes: rows (bits cols / 8 + 4) + rows cols e; FLOPs: rows cols.
    """
    _check_dtype("expand: dtype", dtype, packed.planes.device)
    return torch.ops.pgolf.packed_expand(packed.planes, packed.scales, packed.bits, packed.cols, dtype)


def _check_dtype(what: str, dtype: torch.dtype, device: torch.device) -> None:
    allowed = [torch.float32, torch.float16, torch.bfloat16] + [torch.float64] * (device.type == "cpu")
    if dtype not in allowed:
        raise ValueError(f"{what} is {dtype}; on this device it must be one of {', '.join(map(str, allowed))}.")


# launch choice: chosen by reasoning, unmeasured

# up to this many tokens, codes are expanded tile by tile on the way into the product; above, once for all tokens
CROSSOVER = {80: 128, 90: 256, 100: 128}
BACKWARD_CROSSOVER = {80: 64, 90: 64, 100: 64}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}

# by units in a row: the input is read without a detour through shared memory only while BU is below the thread count
GEMV = (
    (31, Launch({"BN": 16, "BU": 16}, num_warps=1, num_stages=1)),
    (63, Launch({"BN": 16, "BU": 32}, num_warps=2, num_stages=1)),
    (127, Launch({"BN": 16, "BU": 64}, num_warps=4, num_stages=1)),
    (None, Launch({"BN": 32, "BU": 128}, num_warps=8, num_stages=1)),
)
EXPAND = (
    (31, Launch({"BN": 32, "BU": 16}, num_warps=4, num_stages=1)),
    (63, Launch({"BN": 16, "BU": 32}, num_warps=4, num_stages=1)),
    (None, Launch({"BN": 16, "BU": 64}, num_warps=4, num_stages=1)),
)
# by tokens
_16 = Launch({"BM": 16, "BN": 64, "BU": 16}, num_warps=4, num_stages=4)
_32 = Launch({"BM": 32, "BN": 64, "BU": 16}, num_warps=4, num_stages=3)
_64 = Launch({"BM": 64, "BN": 64, "BU": 16}, num_warps=4, num_stages=3)
_128 = Launch({"BM": 128, "BN": 128, "BU": 16}, num_warps=8, num_stages=3)
MATMUL = {
    80: ((16, _16), (32, _32), (None, _64)),
    90: ((16, _16), (32, _32), (64, _64), (None, _128)),
    100: ((16, _16), (None, _32)),  # each of eight products in an n-gram back-off takes tensor memory of its own
}
BACKWARD = {
    80: ((16, _16), (None, _32)),
    90: ((16, _16), (32, _32), (None, _64)),
    100: ((16, _16), (None, _32)),
}
REDUCE = Launch({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _up_to(table, size: int) -> Launch:
    return next(launch for most, launch in table if most is None or size <= most)


def _architecture(capability: int) -> int:
    return max(known for known in (80, 90, 100) if known <= max(capability, 80))


def choose(tokens: int, rows: int, cols: int, dtype: torch.dtype, capability: int) -> str:
    """How x @ W.T is computed: "gemv", "split" (matmul with the sum divided among programs), "matmul" or "expand"."""
    if tokens == 1:
        return "gemv"
    if dtype == torch.float32 or tokens > CROSSOVER[_architecture(capability)]:
        return "expand"  # tensor cores have no full float32: there the dense product is as good
    return "split" if matmul_splits(tokens, rows, cols, capability) > 1 else "matmul"


def choose_backward(tokens: int, cols: int, dtype: torch.dtype, capability: int) -> str:
    """How grad @ W is computed: "matmul" (always split where that fills the device) or "expand"."""
    small = tokens <= BACKWARD_CROSSOVER[_architecture(capability)]
    return "matmul" if small and cols % 32 == 0 and dtype != torch.float32 else "expand"


def launch_gemv(cols: int, capability: int) -> Launch:
    return _up_to(GEMV, cols // 32)


def launch_expand(cols: int, capability: int) -> Launch:
    return _up_to(EXPAND, cols // 32)


def launch_matmul(tokens: int, capability: int) -> Launch:
    return _up_to(MATMUL[_architecture(capability)], tokens)


def launch_backward(tokens: int, capability: int) -> Launch:
    return _up_to(BACKWARD[_architecture(capability)], tokens)


def launch_reduce(capability: int) -> Launch:
    return REDUCE


def matmul_splits(tokens: int, rows: int, cols: int, capability: int) -> int:
    """Programs that share one tile's sum over the columns: enough for two programs a multiprocessor, two steps each."""
    tiles = launch_matmul(tokens, capability).tiles
    programs = cdiv(rows, tiles["BN"]) * cdiv(tokens, tiles["BM"])
    return _splits(programs, 4 * cdiv(cols // 32, tiles["BU"]), capability)


def backward_splits(tokens: int, rows: int, cols: int, capability: int) -> int:
    """The same for the sum over the rows."""
    tiles = launch_backward(tokens, capability).tiles
    programs = 4 * cdiv(cols // 32, tiles["BU"]) * cdiv(tokens, tiles["BM"])
    return _splits(programs, cdiv(rows, tiles["BN"]), capability)


def _splits(programs: int, steps: int, capability: int) -> int:
    wanted = 2 * MULTIPROCESSORS[_architecture(capability)] // programs
    return max(1, min(wanted, steps // 2, 16))


def packed_bytes(rows: int, cols: int, bits: int) -> int:
    return 4 * rows * (reference.words_per_row(bits, cols) + 1)


def traffic_gemv(rows: int, cols: int, bits: int, itemsize: int = 2) -> tuple[int, int]:
    """Bytes and FLOPs."""
    return packed_bytes(rows, cols, bits) + (rows + cols) * itemsize, 2 * rows * cols


def traffic_matmul(tokens: int, rows: int, cols: int, bits: int, itemsize: int = 2, splits: int = 1) -> tuple[int, int]:
    """Bytes and FLOPs; a split sum is written in float32 by each part, and the scales wait for the reduction."""
    written = tokens * rows * itemsize if splits == 1 else splits * tokens * rows * 4 - rows * 4
    return packed_bytes(rows, cols, bits) + tokens * cols * itemsize + written, 2 * tokens * rows * cols


def traffic_reduce(tokens: int, width: int, splits: int, itemsize: int = 2, scaled: bool = True) -> tuple[int, int]:
    """Bytes and FLOPs."""
    count = tokens * width
    return count * (4 * splits + itemsize) + 4 * width * scaled, count * (splits + scaled)


def traffic_expand(rows: int, cols: int, bits: int, itemsize: int = 2) -> tuple[int, int]:
    """Bytes and FLOPs."""
    return packed_bytes(rows, cols, bits) + rows * cols * itemsize, rows * cols


def traffic_backward(tokens: int, rows: int, cols: int, bits: int, itemsize: int = 2, splits: int = 1) -> tuple[int, int]:
    """Bytes and FLOPs."""
    written = tokens * cols * (itemsize if splits == 1 else 4 * splits)
    return packed_bytes(rows, cols, bits) + tokens * rows * itemsize + written, 2 * tokens * rows * cols


# launchers


TWO_TO_23 = 0x4B000000  # as a float's bit pattern


def _pointers(planes: torch.Tensor):
    planes = planes.contiguous()
    return planes, planes.view(torch.int16), planes.view(torch.int8)


def gemv_triton(x, planes, scales, bits, cols):
    from pgolf.kernels.packed import gpu

    rows, stride = planes.shape
    y = x.new_empty(1, rows)
    launch = launch_gemv(cols, capability_of(x.device))
    gpu.packed_gemv_kernel[(cdiv(rows, launch.tiles["BN"]),)](
        x.contiguous(), *_pointers(planes), scales, y, rows, cols // 32, cols, stride, TWO_TO_23,
        BITS=bits, REST=cols % 32 > 0, **launch.options,
    )  # fmt: skip
    return y


def matmul_triton(x, planes, scales, bits, cols, splits=1):
    from pgolf.kernels.packed import gpu

    tokens, (rows, stride) = x.shape[0], planes.shape
    capability = capability_of(x.device)
    launch = launch_matmul(tokens, capability)
    y = x.new_empty(tokens, rows)
    out = y if splits == 1 else x.new_empty(splits, tokens, rows, dtype=torch.float32)
    gpu.packed_matmul_kernel[(cdiv(rows, launch.tiles["BN"]), cdiv(tokens, launch.tiles["BM"]), splits)](
        x.contiguous(), *_pointers(planes), scales, out, tokens, rows, cols // 32, cols, stride,
        BITS=bits, REST=cols % 32 > 0, PARTIAL=splits > 1, **launch.options,
    )  # fmt: skip
    return y if splits == 1 else _reduce(out, scales, y)


def backward_triton(grad, planes, scales, bits, cols, splits=1):
    """grad @ W for whole units, cols % 32 == 0."""
    from pgolf.kernels.packed import gpu

    tokens, (rows, stride) = grad.shape[0], planes.shape
    units = cols // 32
    launch = launch_backward(tokens, capability_of(grad.device))
    grad_x = grad.new_empty(tokens, cols)
    out = grad_x if splits == 1 else grad.new_empty(splits, tokens, cols, dtype=torch.float32)
    gpu.packed_bwd_kernel[(4 * cdiv(units, launch.tiles["BU"]), cdiv(tokens, launch.tiles["BM"]), splits)](
        grad.contiguous(), *_pointers(planes), scales, out, tokens, rows, units, stride,
        BITS=bits, **launch.options,
    )  # fmt: skip
    return grad_x if splits == 1 else _reduce(out, None, grad_x)


def _reduce(partial, scales, out):
    from pgolf.kernels.packed import gpu

    splits, tokens, width = partial.shape
    launch = launch_reduce(capability_of(out.device))
    gpu.packed_reduce_kernel[(cdiv(tokens * width, launch.tiles["BLOCK"]),)](
        partial, partial if scales is None else scales, out, tokens, width, splits,
        SCALED=scales is not None, **launch.options,
    )  # fmt: skip
    return out


def expand_triton(planes, scales, bits, cols, dtype):
    from pgolf.kernels.packed import gpu

    rows, stride = planes.shape
    units = cols // 32
    launch = launch_expand(cols, capability_of(planes.device))
    dense = scales.new_empty(rows, cols, dtype=dtype)
    gpu.packed_expand_kernel[(cdiv(rows, launch.tiles["BN"]), max(1, cdiv(units, launch.tiles["BU"])))](
        *_pointers(planes), scales, dense, rows, units, cols, stride, BITS=bits, REST=cols % 32 > 0, **launch.options,
    )  # fmt: skip
    return dense


def _matmul_cuda(x, planes, scales, bits, cols):
    tokens, rows = x.shape[0], planes.shape[0]
    if tokens == 0:
        return x.new_empty(0, rows)
    capability = capability_of(x.device)
    way = choose(tokens, rows, cols, x.dtype, capability)
    if way == "gemv":
        return gemv_triton(x, planes, scales, bits, cols)
    if way == "expand":
        return x @ expand_triton(planes, scales, bits, cols, x.dtype).T
    return matmul_triton(x, planes, scales, bits, cols, matmul_splits(tokens, rows, cols, capability))


def _backward_cuda(grad, planes, scales, bits, cols):
    tokens, rows = grad.shape[0], planes.shape[0]
    if tokens == 0:
        return grad.new_empty(0, cols)
    capability = capability_of(grad.device)
    if choose_backward(tokens, cols, grad.dtype, capability) == "expand":
        return grad @ expand_triton(planes, scales, bits, cols, grad.dtype)
    return backward_triton(grad, planes, scales, bits, cols, backward_splits(tokens, rows, cols, capability))


# registration


torch.library.define("pgolf::packed_matmul", "(Tensor x, Tensor planes, Tensor scales, int bits, int cols) -> Tensor")
torch.library.define(
    "pgolf::packed_matmul_backward", "(Tensor grad, Tensor planes, Tensor scales, int bits, int cols) -> Tensor"
)
torch.library.define("pgolf::packed_expand", "(Tensor planes, Tensor scales, int bits, int cols, ScalarType dtype) -> Tensor")


def _matmul_cpu(x, planes, scales, bits, cols):
    return reference.matmul(x, reference.unpack_codes(planes, bits, cols), scales)


def _backward_cpu(grad, planes, scales, bits, cols):
    return reference.matmul_backward(grad, reference.unpack_codes(planes, bits, cols), scales)


def _expand_cpu(planes, scales, bits, cols, dtype):
    return reference.expand(reference.unpack_codes(planes, bits, cols), scales, dtype)


implement("pgolf::packed_matmul", "CPU", _matmul_cpu)
implement("pgolf::packed_matmul_backward", "CPU", _backward_cpu)
implement("pgolf::packed_expand", "CPU", _expand_cpu)
implement("pgolf::packed_matmul", "CUDA", _matmul_cuda)
implement("pgolf::packed_matmul_backward", "CUDA", _backward_cuda)
implement("pgolf::packed_expand", "CUDA", expand_triton)


@torch.library.register_fake("pgolf::packed_matmul")
def _(x, planes, scales, bits, cols):
    return x.new_empty(x.shape[0], planes.shape[0])


@torch.library.register_fake("pgolf::packed_matmul_backward")
def _(grad, planes, scales, bits, cols):
    return grad.new_empty(grad.shape[0], cols)


@torch.library.register_fake("pgolf::packed_expand")
def _(planes, scales, bits, cols, dtype):
    return scales.new_empty(planes.shape[0], cols, dtype=dtype)


def _save(ctx, inputs, output):
    _, planes, scales, ctx.bits, ctx.cols = inputs
    ctx.save_for_backward(planes, scales)


def _differentiate(ctx, grad):
    return torch.ops.pgolf.packed_matmul_backward(grad, *ctx.saved_tensors, ctx.bits, ctx.cols), None, None, None, None


def _differentiate_backward(ctx, grad):
    # the gradient is linear in what it is given, and its transpose is the product itself
    return torch.ops.pgolf.packed_matmul(grad, *ctx.saved_tensors, ctx.bits, ctx.cols), None, None, None, None


torch.library.register_autograd("pgolf::packed_matmul", _differentiate, setup_context=_save)
torch.library.register_autograd("pgolf::packed_matmul_backward", _differentiate_backward, setup_context=_save)


# compilation ahead of time


def compile_cases(capability: int) -> list:
    """Every kernel in every configuration the tables hold for this capability, on the layers they are meant for."""
    from pgolf.kernels.compile import Case
    from pgolf.kernels.packed import gpu

    planes = {"words": "*i32:16", "halves": "*i16:16", "bytes": "*i8:16", "scales": "*fp32:16"}
    sizes = {"N": "i32:16", "units": "i32:16", "columns": "i32:16", "stride": "i32:16"}
    ragged = {"N": "i32", "units": "i32", "columns": "i32", "stride": "i32"}
    found = []

    def add(kernel, name, types, constants, launch, shape, traffic, **more):
        name = " ".join([name, *(f"{key}={value}" for key, value in constants.items())])
        found.append(Case(kernel, name, types, constants, launch, shape, *traffic, **more))

    for cols, bits in ((512, 6), (1024, 6), (2048, 5), (8192, 5), (8192, 7), (8192, 8), (8191, 5)):
        rest = cols % 32 > 0
        types = {"x": "*bf16:16", "y": "*bf16:16", **planes, **(ragged if rest else sizes), "one": "i32:16"}
        launch, traffic = launch_gemv(cols, capability), traffic_gemv(8192, cols, bits)
        constants = {"BITS": bits, "REST": rest}
        add(gpu.packed_gemv_kernel, "gemv bf16", types, constants, launch, f"8192x{cols}", traffic, max_registers=208)

    products = [("bf16", 5, 512, 512, 16), ("bf16", 6, 512, 512, 32), ("bf16", 6, 512, 512, 64)]
    products += [("bf16", 5, 8192, 512, 64), ("bf16", 6, 8192, 512, 128), ("bf16", 4, 8192, 512, 16)]
    products += [("bf16", 8, 8192, 512, 128), ("fp16", 7, 8192, 512, 32), ("bf16", 7, 512, 513, 16)]
    for kind, bits, rows, cols, tokens in products:
        launch, rest = launch_matmul(tokens, capability), cols % 32 > 0
        splits = matmul_splits(tokens, rows, cols, capability)
        out = "*fp32:16" if splits > 1 else f"*{kind}:16"
        types = {"x": f"*{kind}:16", "out": out, **planes, **(ragged if rest else sizes), "M": "i32"}
        constants = {"BITS": bits, "REST": rest, "PARTIAL": splits > 1}
        traffic = traffic_matmul(tokens, rows, cols, bits, splits=splits)
        add(gpu.packed_matmul_kernel, f"matmul {kind}", types, constants, launch, f"{tokens}x{rows}x{cols}", traffic,
            matmul=True, max_registers=208 if rest else 144)  # fmt: skip

    for bits, tokens in ((5, 16), (6, 32), (7, 64), (8, 64)):
        launch, splits = launch_backward(tokens, capability), backward_splits(tokens, 2048, 512, capability)
        types = {"grad": "*bf16:16", "out": "*fp32:16" if splits > 1 else "*bf16:16", **planes, **sizes, "M": "i32"}
        traffic = traffic_backward(tokens, 2048, 512, bits, splits=splits)
        add(gpu.packed_bwd_kernel, "backward bf16", types, {"BITS": bits}, launch, f"{tokens}x2048x512", traffic,
            matmul=True, max_registers=224)  # fmt: skip

    for cols, bits in ((512, 5), (1024, 8), (2048, 6), (513, 7)):
        rest = cols % 32 > 0
        types = {"out": "*bf16:16", **planes, **(ragged if rest else sizes)}
        launch, traffic = launch_expand(cols, capability), traffic_expand(2048, cols, bits)
        constants = {"BITS": bits, "REST": rest}
        add(gpu.packed_expand_kernel, "expand bf16", types, constants, launch, f"2048x{cols}", traffic, max_registers=96)

    types = {"partial": "*fp32:16", "scales": "*fp32:16", "out": "*bf16:16", "M": "i32", "N": "i32:16", "splits": "i32"}
    for scaled in (True, False):
        traffic = traffic_reduce(16, 512, 2, scaled=scaled)
        add(gpu.packed_reduce_kernel, "reduce bf16", types, {"SCALED": scaled}, launch_reduce(capability), "2x16x512",
            traffic, max_registers=40)  # fmt: skip
    return found
