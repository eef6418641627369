"""Packed matrices: packing, the product with them, its gradient, and their expansion."""

from dataclasses import dataclass

import torch

from pgolf.kernels.packed import reference


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """`rows` x `cols` codes of `bits` bits in int32 words (rows, words), laid out as reference.py says, and a scale per row.

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
            f"pack: codes must be a matrix of integers with at least one element, not {codes.dtype} of shape {tuple(codes.shape)}."
        )
    if scales.shape != codes.shape[:1] or not scales.is_floating_point() or scales.device != codes.device:
        raise ValueError(
            f"pack: scales must be one float per row, shape ({codes.shape[0]},) on {codes.device}, "
            f"not {scales.dtype} of shape {tuple(scales.shape)} on {scales.device}."
        )
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    found = codes.min().item(), codes.max().item()
    if found[0] < least or found[1] > most:
        raise ValueError(f"pack: codes run from {found[0]} to {found[1]}, but {bits} bits hold {least} to {most}; clamp them first.")
    rows, cols = codes.shape
    return PackedMatrix(reference.pack_codes(codes, bits), scales.detach().float().contiguous(), bits, rows, cols)


def packed_matmul(x: torch.Tensor, packed: PackedMatrix) -> torch.Tensor:
    """y = x @ W.T with W[n, k] = codes[n, k] * scales[n]; differentiable in x.

    x: (..., cols) float32, float16 or bfloat16 (float64 too on a CPU); y: (..., rows) in x's dtype, summed in float32.
    """
    if x.dim() == 0 or x.shape[-1] != packed.cols:
        raise ValueError(f"packed_matmul: the last dimension of x must be {packed.cols}, but x has shape {tuple(x.shape)}.")
    _check_dtype("packed_matmul: x", x.dtype, packed.planes.device)
    if x.device != packed.planes.device:
        raise ValueError(f"packed_matmul: x is on {x.device}, the packed matrix on {packed.planes.device}; move one of them.")
    flat = x.reshape(-1, packed.cols)
    y = torch.ops.pgolf.packed_matmul(flat, packed.planes, packed.scales, packed.bits, packed.cols)
    return y.view(*x.shape[:-1], packed.rows)


def expand(packed: PackedMatrix, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """W[n, k] = codes[n, k] * scales[n] as a dense (rows, cols) matrix, each element rounded once."""
    _check_dtype("expand: dtype", dtype, packed.planes.device)
    return torch.ops.pgolf.packed_expand(packed.planes, packed.scales, packed.bits, packed.cols, dtype)


def _check_dtype(what: str, dtype: torch.dtype, device: torch.device) -> None:
    allowed = [torch.float32, torch.float16, torch.bfloat16] + [torch.float64] * (device.type == "cpu")
    if dtype not in allowed:
        raise ValueError(f"{what} is {dtype}; on this device it must be one of {', '.join(map(str, allowed))}.")





torch.library.define("pgolf::packed_matmul", "(Tensor x, Tensor planes, Tensor scales, int bits, int cols) -> Tensor")
torch.library.define("pgolf::packed_matmul_backward", "(Tensor grad, Tensor planes, Tensor scales, int bits, int cols) -> Tensor")
torch.library.define("pgolf::packed_expand", "(Tensor planes, Tensor scales, int bits, int cols, ScalarType dtype) -> Tensor")


def _matmul_cpu(x, planes, scales, bits, cols):
    return reference.matmul(x, reference.unpack_codes(planes, bits, cols), scales)


def _backward_cpu(grad, planes, scales, bits, cols):
    return reference.matmul_backward(grad, reference.unpack_codes(planes, bits, cols), scales)


def _expand_cpu(planes, scales, bits, cols, dtype):
    return reference.expand(reference.unpack_codes(planes, bits, cols), scales, dtype)


torch.library.impl("pgolf::packed_matmul", "CPU", _matmul_cpu)
torch.library.impl("pgolf::packed_matmul_backward", "CPU", _backward_cpu)
torch.library.impl("pgolf::packed_expand", "CPU", _expand_cpu)


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
