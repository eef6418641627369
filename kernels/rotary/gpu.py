"""Triton kernels of `rotary`. A program takes BT tokens of one head: a query head or, past the last one, a key head.

A row is three pieces that tile it without overlap, so that every byte is read once and in whole vectors: the two rotated
halves, [BT, BH] each, and the rest, [BT, BD] with the rotated columns masked away.
"""

import triton
import triton.language as tl


@triton.jit
def _load_pieces(p_row, o_row, m_n, D: tl.constexpr, HALF: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr):
    o_h = tl.arange(0, BH)
    o_d = tl.arange(0, BD)
    m_h = m_n[:, None] & (o_h < HALF)[None, :]
    m_d = m_n[:, None] & ((o_d >= 2 * HALF) & (o_d < D))[None, :]
    p_half = p_row + o_row[:, None] + o_h[None, :]
    b_first = tl.load(p_half, mask=m_h, other=0).to(tl.float32)  # [BT, BH]
    b_second = tl.load(p_half + HALF, mask=m_h, other=0).to(tl.float32)  # [BT, BH]
    b_rest = tl.load(p_row + o_row[:, None] + o_d[None, :], mask=m_d, other=0).to(tl.float32)  # [BT, BD]
    return b_first, b_second, b_rest


@triton.jit
def _store_pieces(
    p_row, b_first, b_second, b_rest, o_row, m_n, D: tl.constexpr, HALF: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr
):
    o_h = tl.arange(0, BH)
    o_d = tl.arange(0, BD)
    m_h = m_n[:, None] & (o_h < HALF)[None, :]
    m_d = m_n[:, None] & ((o_d >= 2 * HALF) & (o_d < D))[None, :]
    p_half = p_row + o_row[:, None] + o_h[None, :]
    kind = p_row.dtype.element_ty
    tl.store(p_half, b_first.to(kind), mask=m_h)
    tl.store(p_half + HALF, b_second.to(kind), mask=m_h)
    tl.store(p_row + o_row[:, None] + o_d[None, :], b_rest.to(kind), mask=m_d)


@triton.jit
def _load_angles(p_cos, p_sin, o_n, m_n, length, HALF: tl.constexpr, BH: tl.constexpr):
    o_h = tl.arange(0, BH)
    o_angle = (o_n % length)[:, None] * HALF + o_h[None, :]
    m_angle = m_n[:, None] & (o_h < HALF)[None, :]
    b_cos = tl.load(p_cos + o_angle, mask=m_angle, other=0)  # [BT, BH]
    b_sin = tl.load(p_sin + o_angle, mask=m_angle, other=0)  # [BT, BH]
    return b_cos, b_sin


@triton.jit
def _forward_head(
    p_x, p_y, p_cos, p_sin, factor, eps, i_tile, i_head, total, length,
    NORM: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    o_n = i_tile * BT + tl.arange(0, BT)
    m_n = o_n < total
    o_tile = (i_tile.to(tl.int64) * (BT * HEADS) + i_head) * D
    o_row = tl.arange(0, BT) * (HEADS * D)
    b_first, b_second, b_rest = _load_pieces(p_x + o_tile, o_row, m_n, D, HALF, BH, BD)
    if NORM:
        b_square = tl.sum(b_first * b_first, 1) + tl.sum(b_second * b_second, 1) + tl.sum(b_rest * b_rest, 1)
        b_scale = (factor / tl.sqrt(b_square / D + eps))[:, None]  # [BT, 1]
    else:
        b_scale = factor
    b_cos, b_sin = _load_angles(p_cos, p_sin, o_n, m_n, length, HALF, BH)
    b_turned = b_scale * (b_first * b_cos + b_second * b_sin)
    b_second = b_scale * (b_second * b_cos - b_first * b_sin)
    _store_pieces(p_y + o_tile, b_turned, b_second, b_scale * b_rest, o_row, m_n, D, HALF, BH, BD)


@triton.jit(do_not_specialize=["total", "length"])
def rotary_fwd_kernel(
    p_q, p_k, p_gain, p_cos, p_sin, p_query, p_key, eps, total, length,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    # heads run fastest, so that neighbouring programs read neighbouring rows.
    i_tile = i_p // (H + HKV)
    i_head = i_p % (H + HKV)
    if i_head < H:
        gain = 1.0
        if GAIN:
            gain = tl.load(p_gain + i_head).to(tl.float32)
        _forward_head(p_q, p_query, p_cos, p_sin, gain, eps, i_tile, i_head, total, length, NORM, H, D, HALF, BH, BD, BT)
    else:
        _forward_head(p_k, p_key, p_cos, p_sin, 1.0, eps, i_tile, i_head - H, total, length, NORM, HKV, D, HALF, BH, BD, BT)


@triton.jit
def _backward_head(
    p_grad, p_x, p_dx, p_cos, p_sin, factor, eps, i_tile, i_head, total, length,
    NORM: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Writes dx and returns the tile's share of the gain's gradient."""
    o_n = i_tile * BT + tl.arange(0, BT)
    m_n = o_n < total
    o_tile = (i_tile.to(tl.int64) * (BT * HEADS) + i_head) * D
    o_row = tl.arange(0, BT) * (HEADS * D)
    b_first, b_second, b_rest = _load_pieces(p_x + o_tile, o_row, m_n, D, HALF, BH, BD)
    b_grad_first, b_grad_second, b_grad_rest = _load_pieces(p_grad + o_tile, o_row, m_n, D, HALF, BH, BD)
    if NORM:
        b_square = tl.sum(b_first * b_first, 1) + tl.sum(b_second * b_second, 1) + tl.sum(b_rest * b_rest, 1)
        b_scale = 1 / tl.sqrt(b_square / D + eps)  # [BT]
    else:
        b_scale = tl.full([BT], 1.0, tl.float32)
    # the transpose of a rotation turns the other way.
    b_cos, b_sin = _load_angles(p_cos, p_sin, o_n, m_n, length, HALF, BH)
    b_turned = b_grad_first * b_cos - b_grad_second * b_sin
    b_grad_second = b_grad_first * b_sin + b_grad_second * b_cos
    b_dot = tl.sum(b_turned * b_first, 1) + tl.sum(b_grad_second * b_second, 1) + tl.sum(b_grad_rest * b_rest, 1)
    b_slope = (b_scale * b_scale * b_dot / D)[:, None] if NORM else tl.zeros([BT, 1], tl.float32)  # [BT, 1]
    b_outer = (factor * b_scale)[:, None]
    _store_pieces(
        p_dx + o_tile,
        b_outer * (b_turned - b_slope * b_first),
        b_outer * (b_grad_second - b_slope * b_second),
        b_outer * (b_grad_rest - b_slope * b_rest),
        o_row, m_n, D, HALF, BH, BD,
    )  # fmt: skip
    return tl.sum(b_scale * b_dot, 0)


@triton.jit(do_not_specialize=["total", "length", "tiles"])
def rotary_bwd_kernel(
    p_grad_q, p_grad_k, p_q, p_k, p_gain, p_cos, p_sin, p_dq, p_dk, p_partial, eps, total, length, tiles,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    BH: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    i_tile = i_p // (H + HKV)
    i_head = i_p % (H + HKV)
    if i_head < H:
        gain = tl.load(p_gain + i_head).to(tl.float32)
        share = _backward_head(
            p_grad_q, p_q, p_dq, p_cos, p_sin, gain, eps, i_tile, i_head, total, length, NORM, H, D, HALF, BH, BD, BT
        )
        # one cell per program, summed afterwards in a fixed order.
        tl.store(p_partial + i_head * tiles + i_tile, share)
    else:
        _backward_head(
            p_grad_k, p_k, p_dk, p_cos, p_sin, 1.0, eps, i_tile, i_head - H, total, length, NORM, HKV, D, HALF, BH, BD, BT
        )
