"""Triton kernels of softcapped cross-entropy: the forward, which writes the gradient too, then the backward's rescaling."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def capped(b_raw, softcap, CAPPED: tl.constexpr):
    """softcap * tanh(raw / softcap) and its derivative by raw."""
    if CAPPED:
        # tanh(x) = 1 - 2 / (1 + e^2x): one exponential, and both infinities end in the right place
        b_tanh = 1 - 2 / (1 + tl.exp2(b_raw * (2 * LOG2_E / softcap)))
        return softcap * b_tanh, 1 - b_tanh * b_tanh
    else:
        return b_raw, tl.full(b_raw.shape, 1.0, tl.float32)


@triton.jit
def row_loss(p_row, b_target, b_scale, m_kept, b_lse, softcap, z_loss, V: tl.constexpr, CAPPED: tl.constexpr):
    """What is left once log-sum-exp is known: the loss, and the scale with NaN where the target is no token."""
    m_token = (b_target >= 0) & (b_target < V)
    b_raw = tl.load(p_row + b_target, mask=m_token, other=0).to(tl.float32)
    b_z_target, _ = capped(b_raw, softcap, CAPPED)
    b_loss = b_lse - b_z_target + z_loss * b_lse * b_lse
    b_loss = tl.where(m_kept, tl.where(m_token, b_loss, float("nan")), 0.0)
    b_scale = tl.where(m_token, b_scale, float("nan"))
    return b_loss, b_scale


@triton.jit(do_not_specialize=["count", "ignore_index"])
def cross_entropy_fwd_kernel(
    p_logits,
    p_targets,
    p_scale,
    p_losses,
    p_unscaled,
    p_gradient,
    count,
    softcap,
    z_loss,
    ignore_index,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    """BR whole rows at once, kept in registers between the sum and the gradient."""
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    o_column = tl.arange(0, BV)  # [BV]
    m_row = o_row < count
    m_column = (o_column < V)[None, :]
    m_here = m_row[:, None] & m_column
    o_here = o_row[:, None] * V + o_column[None, :]  # [BR, BV]

    b_target = tl.load(p_targets + o_row, mask=m_row, other=0)
    b_scale = tl.load(p_scale + o_row, mask=m_row, other=0)
    m_kept = b_target != ignore_index
    b_raw = tl.load(p_logits + o_here, mask=m_here, other=0).to(tl.float32)
    b_z, b_slope = capped(b_raw, softcap, CAPPED)
    b_z = tl.where(m_column, b_z, -float("inf"))
    b_peak = tl.max(b_z, 1)  # [BR]
    b_exp = tl.exp2((b_z - b_peak[:, None]) * LOG2_E)
    b_total = tl.sum(b_exp, 1)
    b_lse = b_peak + tl.log2(b_total) / LOG2_E

    b_loss, b_weight = row_loss(p_logits + o_row * V, b_target, b_scale, m_kept & m_row, b_lse, softcap, z_loss, V, CAPPED)
    tl.store(p_unscaled + o_row, b_loss, mask=m_row)
    tl.store(p_losses + o_row, tl.where(m_kept, b_loss * b_scale, 0.0), mask=m_row)
    if GRADIENT:
        b_factor = b_weight * (1 + 2 * z_loss * b_lse) / b_total
        b_hit = tl.where(o_column[None, :] == b_target[:, None], b_weight[:, None], 0.0)
        b_gradient = (b_exp * b_factor[:, None] - b_hit) * b_slope
        b_gradient = tl.where(m_kept[:, None], b_gradient, 0.0)
        # the gradient may lie over the logits: all warps must have read theirs, and the target's
        tl.debug_barrier()
        tl.store(p_gradient + o_here, b_gradient.to(p_gradient.dtype.element_ty), mask=m_here)


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_fwd_kernel_long(
    p_logits,
    p_targets,
    p_scale,
    p_losses,
    p_unscaled,
    p_gradient,
    softcap,
    z_loss,
    ignore_index,
    V: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BV: tl.constexpr,
):
    """One row that registers cannot hold: a sweep for the sum, and one for the gradient while the row is still in L2."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_row * V
    b_target = tl.load(p_targets + i_row)
    b_scale = tl.load(p_scale + i_row)
    m_kept = b_target != ignore_index

    # the peak is one number and moves with every block; the sum stays one per lane until the end
    b_peak = -float("inf")
    b_totals = tl.zeros([BV], tl.float32)
    for o_start in range(0, V, BV):
        o_column = o_start + tl.arange(0, BV)
        m_column = o_column < V
        b_raw = tl.load(p_row + o_column, mask=m_column, other=0).to(tl.float32)
        b_z, _ = capped(b_raw, softcap, CAPPED)
        b_z = tl.where(m_column, b_z, -float("inf"))
        b_higher = tl.maximum(b_peak, tl.max(b_z, 0))
        # a row may begin with a whole block of minus infinity
        b_safe = tl.where(b_higher == -float("inf"), 0.0, b_higher)
        b_totals = b_totals * tl.exp2((b_peak - b_safe) * LOG2_E) + tl.exp2((b_z - b_safe) * LOG2_E)
        b_peak = b_higher
    b_lse = b_peak + tl.log2(tl.sum(b_totals, 0)) / LOG2_E

    b_loss, b_weight = row_loss(p_row, b_target, b_scale, m_kept, b_lse, softcap, z_loss, V, CAPPED)
    tl.store(p_unscaled + i_row, b_loss)
    tl.store(p_losses + i_row, tl.where(m_kept, b_loss * b_scale, 0.0))
    if GRADIENT:
        b_factor = b_weight * (1 + 2 * z_loss * b_lse)
        # the gradient may lie over the logits: each block is read by all warps before one of them writes
        for o_start in range(0, V, BV):
            o_column = o_start + tl.arange(0, BV)
            m_column = o_column < V
            b_raw = tl.load(p_row + o_column, mask=m_column, other=0, eviction_policy="evict_first").to(tl.float32)
            b_z, b_slope = capped(b_raw, softcap, CAPPED)
            b_hit = tl.where(o_column == b_target, b_weight, 0.0)
            b_gradient = (tl.exp2((b_z - b_lse) * LOG2_E) * b_factor - b_hit) * b_slope
            b_gradient = tl.where(m_kept, b_gradient, 0.0)
            p_here = p_gradient + i_row * V + o_column
            tl.debug_barrier()
            tl.store(p_here, b_gradient.to(p_gradient.dtype.element_ty), mask=m_column)


@triton.jit(do_not_specialize=["count"])
def cross_entropy_bwd_kernel_rescale(
    p_gradient,
    p_upstream,
    upstream_stride,
    count,
    V: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    """Multiply rows by their upstream gradient, in place; a block of rows whose upstream is 1 costs BR loads."""
    o_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    m_row = o_row < count
    b_upstream = tl.load(p_upstream + o_row * upstream_stride, mask=m_row, other=1.0)
    if tl.max((b_upstream != 1.0).to(tl.int32), 0) == 0:
        return
    for o_start in range(0, V, BV):
        o_column = o_start + tl.arange(0, BV)
        p_here = p_gradient + o_row[:, None] * V + o_column[None, :]  # [BR, BV]
        m_here = m_row[:, None] & (o_column < V)[None, :]
        b_gradient = tl.load(p_here, mask=m_here, other=0).to(tl.float32) * b_upstream[:, None]
        tl.store(p_here, b_gradient.to(p_gradient.dtype.element_ty), mask=m_here)
