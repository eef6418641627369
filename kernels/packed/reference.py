"""How codes are laid out in words, and what the products mean, in plain torch.

A code of b bits is stored without its sign, as u = code + 2^(b-1), cut into bit planes: the low four bits, then two
bits, then one, as b asks (8 bits stay whole). Every plane is made of 32-bit words.

    bits   4    5      6      7         8
    planes 4    4, 1   4, 2   4, 2, 1   8        widths, from the lowest bits up

The columns of a row are dealt out so that neighbouring elements in memory are neighbouring columns, and so that no
plane needs to know another's width. With units = cols // 32, column (4 j + c) * units + i is field j (0..7) of turn c
(0..3) of unit i. A plane of width w is 4 * units elements of 8 fields, 8 w bits each,

    field j of turn c of unit i  ->  element c * units + i,  bits w j to w j + w - 1,

that is 32-bit elements for the 4-bit plane, 16-bit ones for the 2-bit plane and bytes for the 1-bit plane. For 8 bits
an element is two words apart: fields 0 to 3 in word c * units + i, fields 4 to 7 in word (4 + c) * units + i. The last
cols % 32 columns follow in natural order in 32-bit words of their own, so that only the last word of a plane can hold
padding. One row of the result, in words, is

    [ body of plane 0 | body of plane 1 | ... | rest of plane 0 | rest of plane 1 | ... ]

which for b bits and whole units is exactly b * units words: nothing is wasted. (Little-endian, as GPUs are.)
"""

from collections.abc import Iterator

import torch

WIDTHS = {4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
ELEMENT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


def words_per_row(bits: int, cols: int) -> int:
    units, rest = divmod(cols, 32)
    return sum(width * units + -(-rest * width // 32) for width in WIDTHS[bits])


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(rows, cols) signed codes of `bits` bits -> (rows, words) int32."""
    rows, cols = codes.shape
    units = cols // 32
    stored = codes.long() + 2 ** (bits - 1)
    body, rest = stored[:, : 32 * units], stored[:, 32 * units :]
    parts = []
    for width, low in _planes(bits):
        fields = _field(body, low, width).view(rows, -(-width // 4), min(8, 32 // width), 4 * units)
        elements = _join(fields, width).to(ELEMENT[width]).flatten()
        parts.append(elements.view(torch.int32).view(rows, width * units))
    for width, low in _planes(bits):
        per_word = 32 // width
        fields = torch.nn.functional.pad(_field(rest, low, width), (0, -rest.shape[1] % per_word))
        parts.append(_join(fields.view(rows, -1, per_word, 1), width).to(torch.int32).view(rows, -1))
    return torch.cat(parts, dim=1)


def unpack_codes(words: torch.Tensor, bits: int, cols: int) -> torch.Tensor:
    """The inverse: (rows, words) int32 -> (rows, cols) int8."""
    rows = words.shape[0]
    units, left = divmod(cols, 32)
    body = words.new_zeros(rows, 32 * units)
    rest = words.new_zeros(rows, left)
    start = 0
    for width, low in _planes(bits):
        plane = words[:, start : start + width * units].contiguous().flatten().view(ELEMENT[width])
        fields = _split(plane.view(rows, -(-width // 4), 1, 4 * units), width, min(8, 32 // width))
        body |= fields.reshape(rows, -1) << low
        start += width * units
    for width, low in _planes(bits):
        count = -(-left * width // 32)
        fields = _split(words[:, start : start + count, None], width, 32 // width, dim=2)
        rest |= fields.reshape(rows, -1)[:, :left] << low
        start += count
    return (torch.cat((body, rest), dim=1) - 2 ** (bits - 1)).to(torch.int8)


def matmul(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x @ (codes * scale of each row).T; summed in float32 or better, the scale applied to the sum."""
    working = torch.promote_types(x.dtype, torch.float32)
    return ((x.to(working) @ codes.to(working).T) * scales.to(working)).to(x.dtype)


def matmul_backward(grad: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The gradient of the input: grad @ (codes * scale of each row)."""
    working = torch.promote_types(grad.dtype, torch.float32)
    return ((grad.to(working) * scales.to(working)) @ codes.to(working)).to(grad.dtype)


def expand(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """codes * scale of each row, the product rounded once."""
    working = torch.promote_types(dtype, torch.float32)
    return (codes.to(working) * scales.to(working)[:, None]).to(dtype)


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Width of each plane and the lowest bit of the code that it holds."""
    low = 0
    for width in WIDTHS[bits]:
        yield width, low
        low += width


def _field(stored: torch.Tensor, low: int, width: int) -> torch.Tensor:
    return (stored >> low) & (2**width - 1)


def _join(fields: torch.Tensor, width: int) -> torch.Tensor:
    """(..., fields of an element, elements) -> (..., elements): the first field in the lowest bits."""
    shifts = torch.arange(fields.shape[-2], device=fields.device) * width
    elements = (fields << shifts[:, None]).sum(-2)
    sign = 2 ** (width * fields.shape[-2] - 1)
    return (elements ^ sign) - sign  # the top bit becomes the sign


def _split(elements: torch.Tensor, width: int, count: int, dim: int = -2) -> torch.Tensor:
    """Elements with a dimension of size 1 at `dim` -> their fields along it, in int32."""
    shifts = torch.arange(count, device=elements.device, dtype=torch.int32) * width
    shape = [1] * elements.dim()
    shape[dim] = count
    return (elements.int() >> shifts.view(shape)) & (2**width - 1)
