"""Packed matrices on a CPU, in numba: rows of codes as floats, and the product of a few rows with them.

With E = 4 (cols // 32) elements a plane, columns j E to (j + 1) E of a row are field j of its elements in their order
(reference.py has the layout), so every loop runs along memory in the planes and in the floats.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from pgolf.kernels.jit import exact, reordered, reordered_inlined


def _with_field(typing: Any, below: Any, word: Any, shift: Any, width: Any, low: Any) -> tuple[Any, Callable]:
    """below | field << low, the field of so many bits that starts at `shift`, in 32 bits; numba's own operators compute in
    64, in half as many lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.IntType(32)
        under, value, *places = arguments
        at, wide, up = (builder.trunc(place, bits) for place in places)
        value = builder.zext(value, bits) if value.type.width < 32 else value
        ones = builder.sub(builder.shl(ir.Constant(bits, 1), wide), ir.Constant(bits, 1))
        return builder.or_(under, builder.shl(builder.and_(builder.lshr(value, at), ones), up))

    return types.int32(types.int32, word, types.int64, types.int64, types.int64), generate


with_field: Any = intrinsic(_with_field)


@reordered_inlined
def code(first, second, two, one, widths, middle, j, e):
    """The code in field j of element e as a float; widths says what it is made of, as `form_of` gives it."""
    eight, has_two, has_one = widths
    return code_of(first, second, two, one, eight, has_two, has_one, middle, j, e)


@reordered_inlined
def code_of(first, second, two, one, eight, has_two, has_one, middle, j, e):
    value = np.int32(0)
    if eight is not None:
        value = with_field(value, first[e], 8 * j, 8, 0) if j < 4 else with_field(value, second[e], 8 * j - 32, 8, 0)
    else:
        value = with_field(value, first[e], 4 * j, 4, 0)
    if has_two is not None:
        value = with_field(value, two[e], 2 * j, 2, 4)
    if has_one is not None:
        value = with_field(value, one[e], j, 1, 4 if has_two is None else 6)
    return np.float32(value) - middle


def form_of(bits: int) -> tuple[tuple[bool | None, ...], np.float32, int]:
    """widths, middle and one_at of the functions below. widths: whether a code is eight bits in one field, and has a plane of
    two bits and one of one bit: True or None, which are types to numba, so that it compiles a form for each width. middle:
    what the code 0 is stored as. one_at: where the plane of one bit begins, in planes of one bit."""
    widths = (bits == 8 or None, bits in (6, 7) or None, bits in (5, 7) or None)
    return widths, np.float32(1 << (bits - 1)), 6 if bits == 7 else 4


@reordered_inlined
def dot(first, second, two, one, widths, middle, x):
    """One row's codes times x, summed as vectors want it."""
    size = first.shape[0]
    x0, x1, x2, x3 = x[:size], x[size : 2 * size], x[2 * size : 3 * size], x[3 * size : 4 * size]
    x4, x5, x6, x7 = x[4 * size : 5 * size], x[5 * size : 6 * size], x[6 * size : 7 * size], x[7 * size : 8 * size]
    total = np.float32(0)
    for e in range(size):
        total += x0[e] * code(first, second, two, one, widths, middle, 0, e)
        total += x1[e] * code(first, second, two, one, widths, middle, 1, e)
        total += x2[e] * code(first, second, two, one, widths, middle, 2, e)
        total += x3[e] * code(first, second, two, one, widths, middle, 3, e)
        total += x4[e] * code(first, second, two, one, widths, middle, 4, e)
        total += x5[e] * code(first, second, two, one, widths, middle, 5, e)
        total += x6[e] * code(first, second, two, one, widths, middle, 6, e)
        total += x7[e] * code(first, second, two, one, widths, middle, 7, e)
    return total


@reordered_inlined
def floats_of_row(first, second, two, one, widths, middle, out):
    """One row's codes, exactly."""
    size = first.shape[0]
    for j in range(8):
        here = out[j * size : (j + 1) * size]
        for e in range(size):
            here[e] = code(first, second, two, one, widths, middle, j, e)


@exact
def rest(words, bits, cols, codes):
    """The columns after the last whole unit: in natural order, in words of their own."""
    done = cols // 32 * 32
    for row in range(words.shape[0]):
        start, low, width = done // 32 * bits, 0, 8 if bits == 8 else 4
        codes[row, :] = -np.float32(1 << (bits - 1))
        while low < bits:
            fields = 32 // width
            for i in range(cols - done):
                element = with_field(np.int32(0), words[row, start + i // fields], width * (i % fields), width, low)
                codes[row, i] += np.float32(element)
            start += -(-(cols - done) * width // 32)
            low += width
            width = 2 if bits - low >= 2 else 1


@reordered
def expand(words, halves, octets, rests, scales, widths, middle, one_at, dense):
    """Rows (n, cols) of codes times scales, in float32."""
    whole = dense.shape[1] // 32 * 32
    size = whole // 8
    for row in range(dense.shape[0]):
        first, second = words[row][:size], words[row][size : 2 * size]
        two, one = halves[row][2 * size : 3 * size], octets[row][one_at * size : (one_at + 1) * size]
        floats_of_row(first, second, two, one, widths, middle, dense[row, :whole])
        dense[row, whole:] = rests[row]
        for column in range(dense.shape[1]):
            dense[row, column] *= scales[row]


@reordered
def matmul(x, words, halves, octets, rests, scales, widths, middle, one_at, y):
    """y (n, T) = rows of codes times x (T, cols), summed in float32. One row of x is multiplied as the codes are read; for
    more of them a row of codes is turned into floats once."""
    whole = x.shape[1] // 32 * 32
    size, floats = whole // 8, np.empty(whole, np.float32)
    for row in range(y.shape[0]):
        first, second = words[row][:size], words[row][size : 2 * size]
        two, one = halves[row][2 * size : 3 * size], octets[row][one_at * size : (one_at + 1) * size]
        if x.shape[0] > 1:
            floats_of_row(first, second, two, one, widths, middle, floats)
        for t in range(x.shape[0]):
            here = x[t]
            if x.shape[0] > 1:
                total = np.float32(0)
                for column in range(whole):
                    total += here[column] * floats[column]
            else:
                total = dot(first, second, two, one, widths, middle, here)
            for i in range(rests.shape[1]):
                total += here[whole + i] * rests[row, i]
            y[row, t] = total * scales[row]
