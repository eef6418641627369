"""Triton kernels of the MLP: the two products of the forward, then the two of the backward that touch the stored tensor.

The first three are persistent: a program walks over tiles, and the loads of the next tile start while this one is
finished. A matrix is a tensor descriptor where the tensor memory accelerator exists (TMA), and a pointer to
contiguous rows elsewhere.
"""

import triton
import triton.language as tl

# how many tile rows share their columns of B while those are in L2
GROUP = tl.constexpr(8)


@triton.jit
def tile_origin(i_tile, rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    """Tiles in groups of GROUP tile rows, column by column, so that both operands are met again while in L2."""
    tiles_m = tl.cdiv(rows, BM)
    per_group = GROUP * tl.cdiv(columns, BN)
    first = i_tile // per_group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    i_m = first + i_tile % per_group % height
    i_n = i_tile % per_group // height
    return i_m * BM, i_n * BN


@triton.jit
def load_tile(matrix, o_row, o_column, rows, columns, BR: tl.constexpr, BC: tl.constexpr, TMA: tl.constexpr):
    """A tile of BR x BC, zeros beyond the matrix."""
    if TMA:
        return matrix.load([o_row, o_column])
    else:
        o_r = o_row + tl.arange(0, BR)
        o_c = o_column + tl.arange(0, BC)
        p_tile = matrix + o_r.to(tl.int64)[:, None] * columns + o_c[None, :]
        return tl.load(p_tile, mask=(o_r < rows)[:, None] & (o_c < columns)[None, :], other=0)


@triton.jit
def store_tile(matrix, b_tile, o_row, o_column, rows, columns, BR: tl.constexpr, BC: tl.constexpr, TMA: tl.constexpr):
    if TMA:
        matrix.store([o_row, o_column], b_tile.to(matrix.dtype))
    else:
        o_r = o_row + tl.arange(0, BR)
        o_c = o_column + tl.arange(0, BC)
        p_tile = matrix + o_r.to(tl.int64)[:, None] * columns + o_c[None, :]
        tl.store(p_tile, b_tile.to(matrix.dtype.element_ty), mask=(o_r < rows)[:, None] & (o_c < columns)[None, :])


@triton.jit
def halves(b_acc, BM: tl.constexpr, BN: tl.constexpr):
    """Left and right half of a tile, so that the epilogue needs registers for one half only."""
    return tl.reshape(b_acc, (BM, 2, BN // 2)).permute(0, 2, 1).split()


@triton.jit
def signed_square(b_pre, slope):
    """sign(pre) * LeakyReLU(pre)^2"""
    b_h = tl.where(b_pre > 0, b_pre, b_pre * slope)
    return b_h * tl.abs(b_h)


@triton.jit
def derivative(b_s, slope):
    """d LeakyReLU(pre)^2 / d pre, from s = sign(pre) LeakyReLU(pre)^2: 2 pre above zero, 2 slope^2 pre below."""
    b_root = 2 * tl.sqrt(tl.abs(b_s))
    return tl.where(b_s > 0, b_root, -slope * b_root)


@triton.jit(do_not_specialize=["rows"])
def mlp_fwd_kernel_up(
    x,
    w_up,
    s,
    rows,
    slope,
    D: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
):
    """s = signed square of LeakyReLU(x w_up^T)"""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(H, BN)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        o_m, o_n = tile_origin(i_tile, rows, H, BM, BN)
        b_acc = tl.zeros([BM, BN], tl.float32)
        for o_k in range(0, D, BK):
            b_x = load_tile(x, o_m, o_k, rows, D, BM, BK, TMA)  # [BM, BK]
            b_w = load_tile(w_up, o_n, o_k, H, D, BN, BK, TMA)  # [BN, BK]
            b_acc = tl.dot(b_x, b_w.T, b_acc, input_precision=PRECISION)
        b_left, b_right = halves(b_acc, BM, BN)
        store_tile(s, signed_square(b_left, slope), o_m, o_n, rows, H, BM, BN // 2, TMA)
        store_tile(s, signed_square(b_right, slope), o_m, o_n + BN // 2, rows, H, BM, BN // 2, TMA)


@triton.jit(do_not_specialize=["rows"])
def mlp_fwd_kernel_down(
    s,
    w_down,
    y,
    rows,
    H: tl.constexpr,
    D_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
):
    """y = |s| w_down^T; the sign goes while the operand is in registers"""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(D_OUT, BN)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        o_m, o_n = tile_origin(i_tile, rows, D_OUT, BM, BN)
        b_acc = tl.zeros([BM, BN], tl.float32)
        for o_k in range(0, H, BK):
            b_s = load_tile(s, o_m, o_k, rows, H, BM, BK, TMA)  # [BM, BK]
            b_w = load_tile(w_down, o_n, o_k, D_OUT, H, BN, BK, TMA)  # [BN, BK]
            b_acc = tl.dot(tl.abs(b_s), b_w.T, b_acc, input_precision=PRECISION)
        b_left, b_right = halves(b_acc, BM, BN)
        store_tile(y, b_left, o_m, o_n, rows, D_OUT, BM, BN // 2, TMA)
        store_tile(y, b_right, o_m, o_n + BN // 2, rows, D_OUT, BM, BN // 2, TMA)


@triton.jit(do_not_specialize=["rows"])
def mlp_bwd_kernel_hidden(
    dy,
    w_down,
    s,
    d_pre,
    rows,
    slope,
    H: tl.constexpr,
    D_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
):
    """dpre = (dy w_down) * derivative(s)"""
    tiles = tl.cdiv(rows, BM) * tl.cdiv(H, BN)
    for i_tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        o_m, o_n = tile_origin(i_tile, rows, H, BM, BN)
        b_acc = tl.zeros([BM, BN], tl.float32)
        for o_k in range(0, D_OUT, BK):
            b_dy = load_tile(dy, o_m, o_k, rows, D_OUT, BM, BK, TMA)  # [BM, BK]
            b_w = load_tile(w_down, o_k, o_n, D_OUT, H, BK, BN, TMA)  # [BK, BN]
            b_acc = tl.dot(b_dy, b_w, b_acc, input_precision=PRECISION)
        b_left, b_right = halves(b_acc, BM, BN)
        b_s = load_tile(s, o_m, o_n, rows, H, BM, BN // 2, TMA).to(tl.float32)  # [BM, BN // 2]
        store_tile(d_pre, b_left * derivative(b_s, slope), o_m, o_n, rows, H, BM, BN // 2, TMA)
        b_s = load_tile(s, o_m, o_n + BN // 2, rows, H, BM, BN // 2, TMA).to(tl.float32)
        store_tile(d_pre, b_right * derivative(b_s, slope), o_m, o_n + BN // 2, rows, H, BM, BN // 2, TMA)


@triton.jit(do_not_specialize=["rows", "rows_per_part"])
def mlp_bwd_kernel_w_down(
    s,
    dy,
    p_parts,
    rows,
    rows_per_part,
    H: tl.constexpr,
    D_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    TMA: tl.constexpr,
):
    """One part of the rows' sum for dw_down^T = |s|^T dy; the parts are added up afterwards, in a fixed order"""
    i_m, i_n, i_part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    o_first = i_part * rows_per_part
    o_end = tl.minimum(o_first + rows_per_part, rows)
    b_acc = tl.zeros([BM, BN], tl.float32)
    for o_k in range(o_first, o_end, BK):
        b_s = load_tile(s, o_k, i_m * BM, o_end, H, BK, BM, TMA)  # [BK, BM]
        b_dy = load_tile(dy, o_k, i_n * BN, o_end, D_OUT, BK, BN, TMA)  # [BK, BN]
        b_acc = tl.dot(tl.abs(b_s).T, b_dy, b_acc, input_precision=PRECISION)
    o_h = i_m * BM + tl.arange(0, BM)
    o_d = i_n * BN + tl.arange(0, BN)
    p_part = p_parts + i_part.to(tl.int64) * H * D_OUT + o_h[:, None] * D_OUT + o_d[None, :]
    tl.store(p_part, b_acc, mask=(o_h < H)[:, None] & (o_d < D_OUT)[None, :])
