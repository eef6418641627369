"""Triton kernels of `rotary`. A program takes BT tokens and walks over their query heads, then over their key heads; a row
lies within one warp, so that no sum needs a barrier, and a token's angles stay in registers for all of its heads.

A rotated number needs the one that it turns with, HALF dims away: that one is read again, from the L1 cache.
"""

import triton
import triton.language as tl


@triton.jit
def _angles(p_cos, p_sin, o_n, m_n, length, HALF: tl.constexpr, BD: tl.constexpr):
    """cos and signed sin of every dim of BT rows, [BT, BD]: 1 and 0 past the rotated ones."""
    o_d = tl.arange(0, BD)
    o_angle = (o_n % length)[:, None] * HALF + tl.where(o_d < HALF, o_d, o_d - HALF)[None, :]
    m_angle = m_n[:, None] & (o_d < 2 * HALF)[None, :]
    b_cos = tl.load(p_cos + o_angle, mask=m_angle, other=1)  # [BT, BD]
    b_sin = tl.load(p_sin + o_angle, mask=m_angle, other=0)  # [BT, BD]
    return b_cos, tl.where(o_d < HALF, b_sin, -b_sin)


@triton.jit
def _load_partners(p_rows, o_row, m_row, HALF: tl.constexpr, BD: tl.constexpr):
    """The number that each rotated one turns with, [BT, BD]; 0 past the rotated ones."""
    o_d = tl.arange(0, BD)
    o_partner = tl.where(o_d < HALF, o_d + HALF, o_d - HALF)
    m_partner = m_row & (o_d < 2 * HALF)[None, :]
    return tl.load(p_rows + o_row[:, None] + o_partner[None, :], mask=m_partner, other=0).to(tl.float32)


@triton.jit
def _forward_head(
    p_x, p_y, b_cos, b_sin, factor, eps, o_row, m_n,
    NORM: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, BD)
    m_row = m_n[:, None] & (o_d < D)[None, :]
    o_tile = o_row[:, None] + o_d[None, :]
    b_x = tl.load(p_x + o_tile, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
    b_partner = _load_partners(p_x, o_row, m_row, HALF, BD)  # [BT, BD]
    b_y = b_x * b_cos + b_partner * b_sin
    if NORM:
        b_y *= (factor / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps))[:, None]
    else:
        b_y *= factor
    tl.store(p_y + o_tile, b_y.to(p_y.dtype.element_ty), mask=m_row)


@triton.jit(do_not_specialize=["total", "length"])
def rotary_fwd_kernel(
    p_q, p_k, p_gain, p_cos, p_sin, p_query, p_key, eps, total, length,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BT + tl.arange(0, BT)
    m_n = o_n < total
    b_cos, b_sin = _angles(p_cos, p_sin, o_n, m_n, length, HALF, BD)
    o_token = o_n.to(tl.int64)
    for i_h in tl.static_range(H):
        gain = 1.0
        if GAIN:
            gain = tl.load(p_gain + i_h).to(tl.float32)
        _forward_head(p_q, p_query, b_cos, b_sin, gain, eps, o_token * (H * D) + i_h * D, m_n, NORM, D, HALF, BD)
    for i_h in tl.static_range(HKV):
        _forward_head(p_k, p_key, b_cos, b_sin, 1.0, eps, o_token * (HKV * D) + i_h * D, m_n, NORM, D, HALF, BD)


@triton.jit
def _backward_head(
    p_grad, p_x, p_dx, b_cos, b_sin, factor, eps, o_row, m_n,
    NORM: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dx and returns each token's share of the gain's gradient, [BT]."""
    o_d = tl.arange(0, BD)
    m_row = m_n[:, None] & (o_d < D)[None, :]
    o_tile = o_row[:, None] + o_d[None, :]
    b_x = tl.load(p_x + o_tile, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
    b_grad = tl.load(p_grad + o_tile, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
    # the transpose of a rotation turns the other way.
    b_turned = b_grad * b_cos - _load_partners(p_grad, o_row, m_row, HALF, BD) * b_sin
    b_dot = tl.sum(b_turned * b_x, 1)
    if NORM:
        b_scale = 1 / tl.sqrt(tl.sum(b_x * b_x, 1) / D + eps)  # [BT]
        b_turned -= (b_scale * b_scale * b_dot / D)[:, None] * b_x
        b_turned *= (factor * b_scale)[:, None]
        b_dot *= b_scale
    else:
        b_turned *= factor
    tl.store(p_dx + o_tile, b_turned.to(p_dx.dtype.element_ty), mask=m_row)
    return b_dot


@triton.jit(do_not_specialize=["total", "length"])
def rotary_bwd_kernel(
    p_grad_q, p_grad_k, p_q, p_k, p_gain, p_cos, p_sin, p_dq, p_dk, p_dgain, eps, total, length,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BT + tl.arange(0, BT)
    m_n = o_n < total
    b_cos, b_sin = _angles(p_cos, p_sin, o_n, m_n, length, HALF, BD)
    o_token = o_n.to(tl.int64)
    for i_h in tl.static_range(H):
        gain = tl.load(p_gain + i_h).to(tl.float32)
        o_row = o_token * (H * D) + i_h * D
        b_share = _backward_head(p_grad_q, p_q, p_dq, b_cos, b_sin, gain, eps, o_row, m_n, NORM, D, HALF, BD)
        # one cell per token and head, summed afterwards in a fixed order.
        tl.store(p_dgain + o_token * H + i_h, b_share, mask=m_n)
    for i_h in tl.static_range(HKV):
        o_row = o_token * (HKV * D) + i_h * D
        _backward_head(p_grad_k, p_k, p_dk, b_cos, b_sin, 1.0, eps, o_row, m_n, NORM, D, HALF, BD)
