"""Matrices of 4- to 8-bit codes: packing, the product with them and its gradient, their expansion; Triton launches and
registration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, cdiv, implement
from pgolf.kernels.packed import reference
from pgolf.kernels.packed.launch import (
    backward_splits,
    choose,
    choose_backward,
    launch_backward,
    launch_expand,
    launch_gemv,
    launch_matmul,
    launch_reduce,
    matmul_splits,
)
from pgolf.kernels.tensors import require_tensors
from pgolf.kernels.threads import in_parallel

TWO_TO_23 = 0x4B000000  # as a float's bit pattern


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix W[n, k] = codes[n, k] * scales[n], packed by `pack`.

    Attributes:
        planes: (rows, words) int32, the codes laid out as reference.py says
        scales: (rows,) float32
        bits: of a code, 4 to 8
        rows, cols: the shape of W
    """

    planes: Tensor
    scales: Tensor
    bits: int
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.planes.nbytes + self.scales.nbytes

    def to(self, device: torch.device | str) -> "PackedMatrix":
        """The same matrix on another device."""
        return PackedMatrix(self.planes.to(device), self.scales.to(device), self.bits, self.rows, self.cols)

    def unpack(self) -> Tensor:
        """The codes again, (rows, cols) int8."""
        return reference.unpack_codes(self.planes, self.bits, self.cols)


def pack(codes: Tensor, scales: Tensor, bits: int) -> PackedMatrix:
    """Pack integer codes and a scale per row.

    Args:
        codes: (rows, cols) of any integer dtype, within [-2^(bits-1), 2^(bits-1) - 1], at least one
        scales: (rows,) floating-point; kept in float32
        bits: 4 to 8

    Returns:
        A PackedMatrix. A row takes bits / 8 bytes per column; only columns beyond the last multiple of 32 can leave part
        of a word empty, once per plane.

    Example:
        >>> packed = pack(torch.randint(-16, 16, (64, 128)), torch.ones(64), 5)
        >>> packed.nbytes == 64 * (128 * 5 // 8 + 4)
        True
    """
    require_tensors("pack", {"codes": codes, "scales": scales})
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
    lowest, highest = codes.min().item(), codes.max().item()
    if lowest < least or highest > most:
        raise ValueError(
            f"pack: codes run from {lowest} to {highest}, but {bits} bits hold {least} to {most}; clamp them first."
        )
    rows, cols = codes.shape
    return PackedMatrix(reference.pack_codes(codes, bits), scales.detach().float().contiguous(), bits, rows, cols)


def packed_matmul(x: Tensor, packed: PackedMatrix) -> Tensor:
    """y = x @ W.T with W[n, k] = codes[n, k] * scales[n].

    Args:
        x: (..., cols) float32, float16 or bfloat16 (float64 too on a CPU), on the matrix's device
        packed: what `pack` returned

    Returns:
        (..., rows) in x's dtype. Products are exact and summed in float32; the scale is applied to the sum. Differentiable
        in x: its gradient is grad @ W, and only the packed matrix is saved.

    Example:
        >>> packed = pack(torch.randint(-16, 16, (64, 128)), torch.ones(64), 5)
        >>> packed_matmul(torch.randn(3, 128), packed).shape
        torch.Size([3, 64])

    On a GPU the way is chosen from the shape (`launch.choose`, `launch.choose_backward`), on a CPU from the rows of x.
    Bytes for T tokens of e bytes an element: rows (bits cols / 8 + 4) + T (rows + cols) e; FLOPs: 2 T rows cols.
    """
    require_tensors("packed_matmul", {"x": x})
    _check_packed("packed_matmul", packed)
    if x.dim() == 0 or x.shape[-1] != packed.cols:
        raise ValueError(f"packed_matmul: x must end in a dimension of {packed.cols}, but its shape is {tuple(x.shape)}.")
    _check_dtype("packed_matmul: x", x.dtype, packed.planes.device)
    if x.device != packed.planes.device:
        raise ValueError(f"packed_matmul: x is on {x.device}, the packed matrix on {packed.planes.device}; move one of them.")
    flat = x.reshape(-1, packed.cols)
    y = torch.ops.pgolf.packed_matmul(flat, packed.planes, packed.scales, packed.bits, packed.cols)
    return y.view(*x.shape[:-1], packed.rows)


def expand(packed: PackedMatrix, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """W[n, k] = codes[n, k] * scales[n] as a dense matrix, each element rounded once.

    Args:
        packed: what `pack` returned
        dtype: of the result: float32, float16 or bfloat16 (float64 too on a CPU)

    Returns:
        (rows, cols) in that dtype

    Example:
        >>> packed = pack(torch.randint(-16, 16, (64, 128)), torch.ones(64), 5)
        >>> expand(packed, torch.float32).shape
        torch.Size([64, 128])

    Bytes for elements of e bytes: rows (bits cols / 8 + 4) + rows cols e; FLOPs: rows cols.
    """
    _check_packed("expand", packed)
    _check_dtype("expand: dtype", dtype, packed.planes.device)
    return torch.ops.pgolf.packed_expand(packed.planes, packed.scales, packed.bits, packed.cols, dtype)


def _check_dtype(what: str, dtype: torch.dtype, device: torch.device) -> None:
    allowed = [torch.float32, torch.float16, torch.bfloat16] + [torch.float64] * (device.type == "cpu")
    if dtype not in allowed:
        raise ValueError(f"{what} is {dtype}; on this device it must be one of {', '.join(map(str, allowed))}.")


def _check_packed(function: str, packed: object) -> None:
    if not isinstance(packed, PackedMatrix):
        raise TypeError(f"{function}: packed must be a PackedMatrix, as pack() makes one, not {type(packed).__name__}")


def _pointers(planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same memory in elements of 32, 16 and 8 bits."""
    planes = planes.contiguous()
    return planes, planes.view(torch.int16), planes.view(torch.int8)


def gemv_triton(x: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    from pgolf.kernels.packed import gpu

    rows, stride = planes.shape
    y = x.new_empty(1, rows)
    launch = launch_gemv(cols)
    gpu.packed_gemv_kernel[(cdiv(rows, launch.tiles["BN"]),)](
        x.contiguous(), *_pointers(planes), scales, y, rows, cols // 32, cols, stride, TWO_TO_23,
        BITS=bits, REST=cols % 32 > 0, **launch.options,
    )  # fmt: skip
    return y


def matmul_triton(x: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int, splits: int = 1) -> Tensor:
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


def backward_triton(grad: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int, splits: int = 1) -> Tensor:
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


def _reduce(partial: Tensor, scales: Tensor | None, out: Tensor) -> Tensor:
    from pgolf.kernels.packed import gpu

    splits, tokens, width = partial.shape
    launch = launch_reduce()
    gpu.packed_reduce_kernel[(cdiv(tokens * width, launch.tiles["BLOCK"]),)](
        partial, partial if scales is None else scales, out, tokens, width, splits,
        SCALED=scales is not None, **launch.options,
    )  # fmt: skip
    return out


def expand_triton(planes: Tensor, scales: Tensor, bits: int, cols: int, dtype: torch.dtype) -> Tensor:
    from pgolf.kernels.packed import gpu

    rows, stride = planes.shape
    units = cols // 32
    launch = launch_expand(cols)
    dense = scales.new_empty(rows, cols, dtype=dtype)
    gpu.packed_expand_kernel[(cdiv(rows, launch.tiles["BN"]), max(1, cdiv(units, launch.tiles["BU"])))](
        *_pointers(planes), scales, dense, rows, units, cols, stride, BITS=bits, REST=cols % 32 > 0, **launch.options,
    )  # fmt: skip
    return dense


def _matmul_cuda(x: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
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


def _backward_cuda(grad: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    tokens, rows = grad.shape[0], planes.shape[0]
    if tokens == 0:
        return grad.new_empty(0, cols)
    capability = capability_of(grad.device)
    if choose_backward(tokens, cols, grad.dtype, capability) == "expand":
        return grad @ expand_triton(planes, scales, bits, cols, grad.dtype)
    return backward_triton(grad, planes, scales, bits, cols, backward_splits(tokens, rows, cols, capability))


torch.library.define("pgolf::packed_matmul", "(Tensor x, Tensor planes, Tensor scales, int bits, int cols) -> Tensor")
torch.library.define(
    "pgolf::packed_matmul_backward", "(Tensor grad, Tensor planes, Tensor scales, int bits, int cols) -> Tensor"
)
torch.library.define("pgolf::packed_expand", "(Tensor planes, Tensor scales, int bits, int cols, ScalarType dtype) -> Tensor")


# rows of x up to which a CPU reads the codes as they are; more of them pay for dense floats
FEW_ROWS = 16
# weights from which a CPU shares rows among its threads
WORTH_THREADS = 1 << 19


def _matmul_cpu(x: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    if x.dtype == torch.float64:
        return reference.matmul(x, reference.unpack_codes(planes, bits, cols), scales)
    if x.shape[0] > FEW_ROWS:
        return reference.matmul(x, _rows_cpu(planes, torch.ones_like(scales), bits, cols), scales)
    from pgolf.kernels.packed import cpu

    y = torch.empty(len(planes), x.shape[0])
    numbers, result = x.detach().float().contiguous().numpy(), y.numpy()
    _over_rows(lambda rows, parts: cpu.matmul(numbers, *parts, result[rows]), planes, scales, bits, cols)
    return y.t().to(x.dtype).contiguous()


def _backward_cpu(grad: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    if grad.dtype == torch.float64:
        return reference.matmul_backward(grad, reference.unpack_codes(planes, bits, cols), scales)
    return (grad.float() @ _rows_cpu(planes, scales, bits, cols)).to(grad.dtype)


def _expand_cpu(planes: Tensor, scales: Tensor, bits: int, cols: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return reference.expand(reference.unpack_codes(planes, bits, cols), scales, dtype)
    return _rows_cpu(planes, scales, bits, cols).to(dtype)


def _rows_cpu(planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    """Codes times scales (rows, cols) in float32."""
    from pgolf.kernels.packed import cpu

    dense = torch.empty(len(planes), cols)
    result = dense.numpy()
    _over_rows(lambda rows, parts: cpu.expand(*parts, result[rows]), planes, scales, bits, cols)
    return dense


def _over_rows(work: Callable[[slice, tuple], None], planes: Tensor, scales: Tensor, bits: int, cols: int) -> None:
    """work(rows, what kernels/packed/cpu.py wants to know of them) for all rows, shared among threads."""
    from pgolf.kernels.packed import cpu

    words, factors = planes.contiguous().numpy(), scales.numpy()
    halves, octets, form = words.view(np.uint16), words.view(np.uint8), cpu.form_of(bits)
    words = words.view(np.uint32)
    rests = np.empty((len(words), cols % 32), np.float32)
    if cols % 32:
        cpu.rest(words, bits, cols, rests)

    def share(first: int) -> None:
        rows = slice(first, first + size)
        work(rows, (words[rows], halves[rows], octets[rows], rests[rows], factors[rows], *form))

    size = cdiv(len(words), torch.get_num_threads() if len(words) * cols >= WORTH_THREADS else 1)
    in_parallel(share, range(0, len(words), size))


implement("pgolf::packed_matmul", "CPU", _matmul_cpu)
implement("pgolf::packed_matmul_backward", "CPU", _backward_cpu)
implement("pgolf::packed_expand", "CPU", _expand_cpu)
implement("pgolf::packed_matmul", "CUDA", _matmul_cuda)
implement("pgolf::packed_matmul_backward", "CUDA", _backward_cuda)
implement("pgolf::packed_expand", "CUDA", expand_triton)


@torch.library.register_fake("pgolf::packed_matmul")
def _matmul_fake(x: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    return x.new_empty(x.shape[0], planes.shape[0])


@torch.library.register_fake("pgolf::packed_matmul_backward")
def _backward_fake(grad: Tensor, planes: Tensor, scales: Tensor, bits: int, cols: int) -> Tensor:
    return grad.new_empty(grad.shape[0], cols)


@torch.library.register_fake("pgolf::packed_expand")
def _expand_fake(planes: Tensor, scales: Tensor, bits: int, cols: int, dtype: torch.dtype) -> Tensor:
    return scales.new_empty(planes.shape[0], cols, dtype=dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, planes, scales, ctx.bits, ctx.cols = inputs
    ctx.save_for_backward(planes, scales)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.pgolf.packed_matmul_backward(grad, *ctx.saved_tensors, ctx.bits, ctx.cols), None, None, None, None


def _differentiate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # the gradient is linear in what it is given, and its transpose is the product itself
    return torch.ops.pgolf.packed_matmul(grad, *ctx.saved_tensors, ctx.bits, ctx.cols), None, None, None, None


torch.library.register_autograd("pgolf::packed_matmul", _differentiate, setup_context=_save)
torch.library.register_autograd("pgolf::packed_matmul_backward", _differentiate_backward, setup_context=_save)
