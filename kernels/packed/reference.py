"""How codes are laid out in words, and what the products mean, in plain torch.

A code of b bits is stored without its sign, as u = code + 2^(b-1), cut into bit planes: the low four bits, then two
bits, then one, as b asks (8 bits stay whole). Every plane is made of 32-bit words.

    bits   4    5      6      7         8
    planes 4    4, 1   4, 2   4, 2, 1   8        widths, from the lowest bits up

The columns of a row are dealt out so that a tile of neighbouring words gives tiles of neighbouring columns. With
units = cols // 32, column s * units + i is slot s (0..31) of unit i, and in a plane of width w

    slot s of unit i  ->  word (s % w) * units + i,  bits from s - s % w up to s - s % w + w - 1.

So word i of every plane, and with it the whole unit, is found by adding i; a 4-bit word holds slots c, c + 4, ..., and
in each plane the field of slot s lies at bit s, rounded down to the plane's width. The last cols % 32 columns follow in
natural order in words of their own, so that at most the last word of a plane holds padding. One row of the result is

    [ body of plane 0 | body of plane 1 | ... | rest of plane 0 | rest of plane 1 | ... ]

which for b bits and whole units is exactly b * units words: nothing is wasted.
"""

from collections.abc import Iterator

import torch

WIDTHS = {4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


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
        fields = _field(body, low, width).view(rows, 32 // width, width * units)
        parts.append(_join(fields, width))
    for width, low in _planes(bits):
        per_word = 32 // width
        fields = torch.nn.functional.pad(_field(rest, low, width), (0, -rest.shape[1] % per_word))
        parts.append(_join(fields.view(rows, -1, per_word).transpose(1, 2), width))
    return torch.cat(parts, dim=1)


def unpack_codes(words: torch.Tensor, bits: int, cols: int) -> torch.Tensor:
    """The inverse: (rows, words) int32 -> (rows, cols) int8."""
    rows = words.shape[0]
    units, left = divmod(cols, 32)
    body = words.new_zeros(rows, 32 * units)
    rest = words.new_zeros(rows, left)
    start = 0
    for width, low in _planes(bits):
        plane = words[:, start : start + width * units]
        body |= _split(plane, width).reshape(rows, 32 * units) << low
        start += width * units
    for width, low in _planes(bits):
        count = -(-left * width // 32)
        plane = words[:, start : start + count]
        rest |= _split(plane, width).transpose(1, 2).reshape(rows, -1)[:, :left] << low
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
    """(rows, fields in a word, words) -> (rows, words): the first field in the lowest bits."""
    shifts = torch.arange(fields.shape[1], device=fields.device) * width
    words = (fields << shifts[:, None]).sum(1)
    return ((words ^ 2**31) - 2**31).to(torch.int32)  # the top bit becomes the sign


def _split(plane: torch.Tensor, width: int) -> torch.Tensor:
    """(rows, words) -> (rows, fields in a word, words)."""
    shifts = torch.arange(32 // width, device=plane.device, dtype=torch.int32) * width
    return (plane[:, None, :] >> shifts[:, None]) & (2**width - 1)
