"""Triton kernels of softcapped cross-entropy: the forward, which writes the gradient too, then the backward's rescaling.

Logits after the softcap are in bits, z log2(e), so that they are arguments of exp2 as they stand.
"""

import os

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Triton's interpreter has no inline assembly; rounding to float16 has the instruction's largest relative error, 2^-11
if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def tanh_approx(x):
        return (1 - 2 / (1 + tl.exp2(x * (2 * LOG2_E)))).to(tl.float16).to(tl.float32)

else:

    @triton.jit
    def tanh_approx(x):
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def capped(raw, softcap, CAPPED: tl.constexpr, APPROXIMATE: tl.constexpr):
    """softcap * tanh(raw / softcap) in bits, and the tanh, whose 1 - tanh^2 is the derivative; without a softcap raw in bits,
    and nothing to multiply by."""
    if CAPPED:
        if APPROXIMATE:
            tanh = tanh_approx(raw * (1 / softcap))
        else:
            # tanh(x) = 1 - 2 / (1 + e^2x): one exponential, and both infinities end in the right place
            tanh = 1 - 2 / (1 + tl.exp2(raw * (2 * LOG2_E / softcap)))
        return tanh * (softcap * LOG2_E), tanh
    else:
        return raw * LOG2_E, raw


@triton.jit
def row_loss(z_target, lse, is_token, kept, z_loss):
    """What is left once log-sum-exp is known; NaN where the target is no token."""
    loss = (lse - z_target) * LN_2 + z_loss * (lse * LN_2) * (lse * LN_2)
    return tl.where(kept, tl.where(is_token, loss, float("nan")), 0.0)


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_fwd_kernel(
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
    APPROXIMATE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BV: tl.constexpr,
):
    """One whole row, kept in registers between the sum and the gradient."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_row * V
    o_column = tl.arange(0, BV)  # [BV]
    m_column = o_column < V
    wide = tl.load(p_targets + i_row)
    scale = tl.load(p_scale + i_row)
    is_token, kept = (wide >= 0) & (wide < V), wide != ignore_index
    # an ignored row may hold anything: it is not read
    b_raw = tl.load(p_row + o_column, mask=m_column & kept, other=0).to(tl.float32)
    target = tl.where(is_token, wide, 0).to(tl.int32)
    z_target, tanh_target = capped(tl.load(p_row + target).to(tl.float32), softcap, CAPPED, APPROXIMATE)

    b_z, b_tanh = capped(b_raw, softcap, CAPPED, APPROXIMATE)
    b_z = tl.where(m_column, b_z, -float("inf"))
    peak = tl.max(b_z, 0)
    b_exp = tl.exp2(b_z - peak)
    total = tl.sum(b_exp, 0)
    lse = peak + tl.log2(total)
    loss = row_loss(z_target, lse, is_token, kept, z_loss)
    tl.store(p_unscaled + i_row, loss)
    tl.store(p_losses + i_row, tl.where(kept, loss * scale, 0.0))
    if GRADIENT:
        weight = tl.where(kept, tl.where(is_token, scale, float("nan")), 0.0)
        factor = weight * (1 + 2 * z_loss * (lse * LN_2)) / total
        b_gradient = b_exp * factor
        at_target = tl.exp2(z_target - peak) * factor - weight
        if CAPPED:
            b_gradient *= 1 - b_tanh * b_tanh
            at_target *= 1 - tanh_target * tanh_target
        p_here = p_gradient + i_row * V
        # the gradient may lie over the logits: all warps must have read theirs, and the target's
        tl.debug_barrier()
        tl.store(p_here + o_column, b_gradient.to(p_gradient.dtype.element_ty), mask=m_column)
        # the target's own entry once more, instead of a comparison in every column
        tl.debug_barrier()
        tl.store(p_here + target, at_target.to(p_gradient.dtype.element_ty), mask=kept)


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
    APPROXIMATE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BV: tl.constexpr,
):
    """One row that registers cannot hold: a sweep for the sum, and one for the gradient while the row is still in L2."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_row * V
    wide = tl.load(p_targets + i_row)
    scale = tl.load(p_scale + i_row)
    is_token, kept = (wide >= 0) & (wide < V), wide != ignore_index
    target = tl.where(is_token, wide, 0).to(tl.int32)
    z_target, tanh_target = capped(tl.load(p_row + target).to(tl.float32), softcap, CAPPED, APPROXIMATE)

    # the peak is one number and moves with every block; the sum stays one per lane until the end
    peak = -float("inf")
    b_totals = tl.zeros([BV], tl.float32)
    for o_start in range(0, V, BV):
        o_column = o_start + tl.arange(0, BV)
        m_column = o_column < V
        # an ignored row may hold anything: it is not read
        b_raw = tl.load(p_row + o_column, mask=m_column & kept, other=0).to(tl.float32)
        b_z, _ = capped(b_raw, softcap, CAPPED, APPROXIMATE)
        b_z = tl.where(m_column, b_z, -float("inf"))
        higher = tl.maximum(peak, tl.max(b_z, 0))
        # a row may begin with a whole block of minus infinity
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        b_totals = b_totals * tl.exp2(peak - safe) + tl.exp2(b_z - safe)
        peak = higher
    lse = peak + tl.log2(tl.sum(b_totals, 0))

    loss = row_loss(z_target, lse, is_token, kept, z_loss)
    tl.store(p_unscaled + i_row, loss)
    tl.store(p_losses + i_row, tl.where(kept, loss * scale, 0.0))
    if GRADIENT:
        weight = tl.where(kept, tl.where(is_token, scale, float("nan")), 0.0)
        factor = weight * (1 + 2 * z_loss * (lse * LN_2))
        at_target = tl.exp2(z_target - lse) * factor - weight
        if CAPPED:
            at_target *= 1 - tanh_target * tanh_target
        p_here = p_gradient + i_row * V
        # the gradient may lie over the logits: each block is read by all warps before one of them writes
        for o_start in range(0, V, BV):
            o_column = o_start + tl.arange(0, BV)
            m_column = o_column < V
            b_raw = tl.load(p_row + o_column, mask=m_column & kept, other=0, eviction_policy="evict_first").to(tl.float32)
            b_z, b_tanh = capped(b_raw, softcap, CAPPED, APPROXIMATE)
            b_gradient = tl.exp2(b_z - lse) * factor
            if CAPPED:
                b_gradient *= 1 - b_tanh * b_tanh
            tl.debug_barrier()
            tl.store(p_here + o_column, b_gradient.to(p_gradient.dtype.element_ty), mask=m_column)
        tl.debug_barrier()
        tl.store(p_here + target, at_target.to(p_gradient.dtype.element_ty), mask=kept)


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
