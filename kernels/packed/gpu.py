"""The kernels. reference.py describes the layout; here it becomes pairs of words of four bytes, each byte one code.

The planes come as three pointers to the same memory, for elements of 32, 16 and 8 bits; `stride` counts words.
"""

import triton
import triton.language as tl


@triton.jit
def turn_words(words, halves, bytes, o_n, o_u, mask, units, stride, c, BITS: tl.constexpr):
    """The eight codes of turn c in two words, one code a byte: fields 0, 2, 4, 6 and 1, 3, 5, 7 (of 8 bits: 0 to 3 and
    4 to 7). o_n, o_u and mask broadcast to the shape of the tile."""
    o_row = o_n.to(tl.int64) * stride
    o_element = c * units + o_u
    if BITS == 8:
        p_word = words + o_row + o_element
        b_first = tl.load(p_word, mask=mask, other=0).to(tl.uint32, bitcast=True)
        return b_first, tl.load(p_word + 4 * units, mask=mask, other=0).to(tl.uint32, bitcast=True)
    b_low = tl.load(words + o_row + o_element, mask=mask, other=0).to(tl.uint32, bitcast=True)
    b_even = b_low & 0x0F0F0F0F
    b_odd = (b_low >> 4) & 0x0F0F0F0F
    if BITS > 5:
        b_two = tl.load(halves + o_row * 2 + 8 * units + o_element, mask=mask, other=0).to(tl.uint32)
        b_even |= spread_two(b_two) << 4
        b_odd |= spread_two(b_two >> 2) << 4
    if BITS % 2 == 1:
        b_one = tl.load(bytes + o_row * 4 + (BITS - 1) * 4 * units + o_element, mask=mask, other=0).to(tl.uint32)
        b_even |= spread_one(b_one) << (BITS - 1)
        b_odd |= spread_one(b_one >> 1) << (BITS - 1)
    return b_even, b_odd


@triton.jit
def spread_two(b):
    """bits 0-1, 4-5, 8-9, 12-13 -> the low two bits of the four bytes"""
    b &= 0x3333
    b = (b | (b << 8)) & 0x00330033
    return (b | (b << 4)) & 0x03030303


@triton.jit
def spread_one(b):
    """bits 0, 2, 4, 6 -> the lowest bit of the four bytes"""
    # four copies, each 6 bits further: where two copies meet, the carry lands in a bit that is masked out
    return ((b & 0x55) * 0x00041041) & 0x01010101


@triton.jit
def field(b_pair, one, j: tl.constexpr, BITS: tl.constexpr):
    """signed codes of field j, in float32; `one` is the bit pattern of 2^23"""
    if BITS == 8:
        return byte(b_pair[j // 4], one, j % 4, BITS)
    return byte(b_pair[j % 2], one, j // 2, BITS)


@triton.jit
def byte(b_word, one, k: tl.constexpr, BITS: tl.constexpr):
    """signed codes in byte k of uint32 words, in float32"""
    # left in place below the leading bit of 2^23, a byte is already a float: no shift, no conversion, and the product
    # with a power of two and the subtraction are one exact fused operation. What does not fit there is shifted down.
    SHIFT: tl.constexpr = 8 * k if 8 * k + BITS > 23 else 0
    PLACE: tl.constexpr = 8 * k - SHIFT
    b_float = (((b_word >> SHIFT) & (255 << PLACE)) | one).to(tl.float32, bitcast=True)
    return b_float * 0.5**PLACE - (2.0 ** (23 - PLACE) + 2.0 ** (BITS - 1))


@triton.jit
def rest_codes(words, o_n, m_n, units, columns, stride, BITS: tl.constexpr):
    """the columns beyond the last whole unit, stored in natural order: [BN, 32] signed codes in float32"""
    o_k = tl.arange(0, 32)[None, :]
    left = columns - 32 * units
    mask = m_n & (o_k < left)
    p_plane = words + o_n.to(tl.int64) * stride + BITS * units
    if BITS == 8:
        b_code = (tl.load(p_plane + o_k // 4, mask=mask, other=0) >> (o_k % 4 * 8)) & 255
    else:
        b_code = (tl.load(p_plane + o_k // 8, mask=mask, other=0) >> (o_k % 8 * 4)) & 15
        p_plane += (left + 7) // 8
        if BITS > 5:
            b_code |= ((tl.load(p_plane + o_k // 16, mask=mask, other=0) >> (o_k % 16 * 2)) & 3) << 4
            p_plane += (left + 15) // 16
        if BITS % 2 == 1:
            b_code |= ((tl.load(p_plane + o_k * 0, mask=mask, other=0) >> o_k) & 1) << (BITS - 1)
    return (b_code - 2 ** (BITS - 1)).to(tl.float32)


@triton.jit
def packed_gemv_kernel(
    x, words, halves, bytes, scales, y, N, units, columns, stride, one,
    BITS: tl.constexpr, REST: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    # one = 0x4B000000 comes from outside, so that the compiler holds it in a register: a mask and this "or" are then
    # one instruction, which has room for only one constant
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < N
    one = one.to(tl.uint32)
    b_acc = tl.zeros((BN, BU), tl.float32)
    for i_t in range(0, 4 * tl.cdiv(units, BU)):
        c = i_t % 4
        o_u = i_t // 4 * BU + tl.arange(0, BU)
        m_u = o_u < units
        m_unit = m_n[:, None] & m_u[None, :]
        b_pair = turn_words(words, halves, bytes, o_n[:, None], o_u[None, :], m_unit, units, stride, c, BITS)
        for j in tl.static_range(8):
            b_x = tl.load(x + (4 * j + c) * units + o_u, mask=m_u, other=0.0).to(tl.float32)
            b_acc += field(b_pair, one, j, BITS) * b_x[None, :]
    b_sum = tl.sum(b_acc, 1)  # [BN]
    if REST:
        o_k = 32 * units + tl.arange(0, 32)
        b_x = tl.load(x + o_k, mask=o_k < columns, other=0.0).to(tl.float32)
        b_sum += tl.sum(rest_codes(words, o_n[:, None], m_n[:, None], units, columns, stride, BITS) * b_x[None, :], 1)
    b_scale = tl.load(scales + o_n, mask=m_n, other=0.0)
    tl.store(y + o_n, (b_sum * b_scale).to(y.dtype.element_ty), mask=m_n)


@triton.jit(do_not_specialize=["M"])
def packed_matmul_kernel(
    x, words, halves, bytes, scales, out, M, N, units, columns, stride,
    BITS: tl.constexpr, REST: tl.constexpr, PARTIAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    # y.T = W x.T: the codes are the left operand, which tensor cores can take from registers, where they are made
    i_n, i_m, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_n = i_n * BN + tl.arange(0, BN)
    o_m = i_m * BM + tl.arange(0, BM)
    m_n, m_m = o_n < N, o_m < M
    p_x = x + o_m.to(tl.int64)[None, :] * columns  # [1, BM]
    steps = 4 * tl.cdiv(units, BU)
    first = i_s * steps // tl.num_programs(2)
    last = (i_s + 1) * steps // tl.num_programs(2)
    b_acc = tl.zeros((BN, BM), tl.float32)
    for i_t in range(first, last):
        c = i_t % 4
        i_u = i_t // 4 * BU
        o_u = i_u + tl.arange(0, BU)
        m_unit = m_n[:, None] & (o_u < units)[None, :]
        m_x = (o_u < units)[:, None] & m_m[None, :]
        b_pair = turn_words(words, halves, bytes, o_n[:, None], o_u[None, :], m_unit, units, stride, c, BITS)
        for j in tl.static_range(8):
            b_code = field(b_pair, 0x4B000000, j, BITS).to(x.dtype.element_ty)  # [BN, BU]
            b_x = tl.load(p_x + ((4 * j + c) * units + o_u)[:, None], mask=m_x, other=0.0)  # [BU, BM]
            b_acc = product(b_code, b_x, b_acc)
    if REST:
        o_k = 32 * units + tl.arange(0, 32)
        m_x = (o_k < columns)[:, None] & m_m[None, :] & (i_s == 0)
        b_x = tl.load(p_x + o_k[:, None], mask=m_x, other=0.0)
        b_code = rest_codes(words, o_n[:, None], m_n[:, None], units, columns, stride, BITS).to(x.dtype.element_ty)
        b_acc = product(b_code, b_x, b_acc)
    if not PARTIAL:
        b_acc *= tl.load(scales + o_n, mask=m_n, other=0.0)[:, None]
    p_out = out + (i_s * M + o_m).to(tl.int64)[None, :] * N + o_n[:, None]
    tl.store(p_out, b_acc.to(out.dtype.element_ty), mask=m_n[:, None] & m_m[None, :])


@triton.jit
def product(b_a, b_b, b_acc):
    # full float32 where the operands are; sixteen-bit operands are exact either way
    return tl.dot(b_a, b_b, b_acc, input_precision="ieee")


@triton.jit(do_not_specialize=["M"])
def packed_reduce_kernel(
    partial, scales, out, M, N, splits, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # one fixed order of summation, so two runs give the same bits
    count = M.to(tl.int64) * N
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o < count
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for i_s in range(splits):
        b_sum += tl.load(partial + i_s * count + o, mask=mask, other=0.0)
    if SCALED:
        b_sum *= tl.load(scales + o % N, mask=mask, other=0.0)
    tl.store(out + o, b_sum.to(out.dtype.element_ty), mask=mask)


@triton.jit
def packed_expand_kernel(
    words, halves, bytes, scales, out, N, units, columns, stride,
    BITS: tl.constexpr, REST: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    i_n, i_u = tl.program_id(0), tl.program_id(1)
    o_n = i_n * BN + tl.arange(0, BN)
    o_u = i_u * BU + tl.arange(0, BU)
    m_n = o_n < N
    m_unit = m_n[:, None] & (o_u < units)[None, :]
    p_out = out + o_n.to(tl.int64)[:, None] * columns
    b_scale = tl.load(scales + o_n, mask=m_n, other=0.0)[:, None]
    for c in tl.static_range(4):
        b_pair = turn_words(words, halves, bytes, o_n[:, None], o_u[None, :], m_unit, units, stride, c, BITS)
        for j in tl.static_range(8):
            b_dense = (field(b_pair, 0x4B000000, j, BITS) * b_scale).to(out.dtype.element_ty)  # [BN, BU]
            tl.store(p_out + (4 * j + c) * units + o_u[None, :], b_dense, mask=m_unit)
    if REST and i_u == 0:
        o_k = 32 * units + tl.arange(0, 32)
        b_rest = rest_codes(words, o_n[:, None], m_n[:, None], units, columns, stride, BITS) * b_scale
        tl.store(p_out + o_k[None, :], b_rest.to(out.dtype.element_ty), mask=m_n[:, None] & (o_k < columns)[None, :])


@triton.jit(do_not_specialize=["M"])
def packed_bwd_kernel(
    grad, words, halves, bytes, scales, out, M, N, units, stride,
    BITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr,
):  # fmt: skip
    # dx.T = W.T grad.T for one turn of BU units, which is 8 BU columns; whole units only
    i_t, i_m, i_s = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = i_t % 4
    o_u = i_t // 4 * BU + tl.arange(0, BU)
    o_m = i_m * BM + tl.arange(0, BM)
    m_u, m_m = o_u < units, o_m < M
    steps = tl.cdiv(N, BN)
    first = i_s * steps // tl.num_programs(2)
    last = (i_s + 1) * steps // tl.num_programs(2)
    b_even = tl.zeros((4 * BU, BM), tl.float32)
    b_odd = tl.zeros((4 * BU, BM), tl.float32)
    for i_n in range(first, last):
        o_n = i_n * BN + tl.arange(0, BN)
        m_n = o_n < N
        m_unit = m_u[:, None] & m_n[None, :]  # [BU, BN]
        b_pair = turn_words(words, halves, bytes, o_n[None, :], o_u[:, None], m_unit, units, stride, c, BITS)
        p_grad = grad + o_m.to(tl.int64)[None, :] * N + o_n[:, None]
        b_grad = tl.load(p_grad, mask=m_n[:, None] & m_m[None, :], other=0.0)  # [BN, BM]
        b_scale = tl.load(scales + o_n, mask=m_n, other=0.0)
        b_grad = (b_grad * b_scale[:, None]).to(grad.dtype.element_ty)
        b_even = product(four_codes(b_pair[0], BITS, BN, BU).to(b_grad.dtype), b_grad, b_even)
        b_odd = product(four_codes(b_pair[1], BITS, BN, BU).to(b_grad.dtype), b_grad, b_odd)
    o_k = tl.arange(0, 4 * BU)
    o_unit = i_t // 4 * BU + o_k % BU
    # of the two words, byte k holds fields k and k + 4 when a code fills it, 2 k and 2 k + 1 when planes were merged
    STEP: tl.constexpr = 4 if BITS == 8 else 1
    o_column = (o_k // BU * (4 if BITS == 8 else 8) + c) * units + o_unit
    mask = (o_unit < units)[:, None] & m_m[None, :]
    p_out = out + (i_s * M + o_m).to(tl.int64)[None, :] * (32 * units) + o_column[:, None]
    tl.store(p_out, b_even.to(out.dtype.element_ty), mask=mask)
    tl.store(p_out + STEP * 4 * units, b_odd.to(out.dtype.element_ty), mask=mask)


@triton.jit
def four_codes(b_word, BITS: tl.constexpr, BN: tl.constexpr, BU: tl.constexpr):
    """[BU, BN] words -> [4 BU, BN] signed codes in float32: byte 0 of all words, then byte 1, ..."""
    b_byte = (b_word[None, :, :] >> (tl.arange(0, 4) * 8)[:, None, None].to(tl.uint32)) & 255
    return (b_byte.to(tl.int32) - 2 ** (BITS - 1)).to(tl.float32).reshape(4 * BU, BN)
