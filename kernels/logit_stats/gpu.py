"""Triton kernels of the logits' statistics: the sweep and its backward."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))


@triton.jit(do_not_specialize=["count", "temperature_stride"])
def logit_stats_fwd_kernel(
    p_logits,
    p_targets,
    p_candidates,
    p_temperature,
    p_lse,
    p_entropy,
    p_target,
    p_picked,
    count,
    temperature_stride,
    V: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * BR
    o_row = i_row + tl.arange(0, BR)  # [BR]
    m_row = o_row < count
    b_inverse = 1.0 / tl.load(p_temperature + o_row * temperature_stride, mask=m_row, other=1)
    p_row = p_logits + o_row * V

    b_peak = tl.full([BR], -INFINITY, tl.float32)
    b_total = tl.zeros([BR], tl.float32)
    b_weighted = tl.zeros([BR], tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)  # [BV]
        m = m_row[:, None] & (o_v < V)[None, :]
        b_z = tl.load(p_row[:, None] + o_v[None, :], mask=m, other=-INFINITY).to(tl.float32)  # [BR, BV]
        b_z = b_z * b_inverse[:, None]
        b_new = tl.maximum(b_peak, tl.max(b_z, 1))
        # a row of nothing but -inf so far has no peak to be measured from
        b_new = tl.where(b_new == -INFINITY, 0.0, b_new)
        b_fall = tl.where(b_peak == -INFINITY, 0.0, b_peak - b_new)
        b_scale = tl.exp2(b_fall * LOG2_E)
        b_x = tl.maximum(b_z - b_new[:, None], -1e30)
        b_e = tl.exp2(b_x * LOG2_E)
        # sums are kept relative to the peak, so that the entropy is no difference of large numbers
        b_weighted = b_scale * (b_weighted + b_fall * b_total) + tl.sum(b_e * b_x, 1)
        b_total = b_scale * b_total + tl.sum(b_e, 1)
        b_peak = b_new
    b_log = tl.log2(b_total) * LN_2
    b_lse = b_peak + b_log
    tl.store(p_lse + o_row, b_lse, mask=m_row)
    tl.store(p_entropy + o_row, b_log - b_weighted / b_total, mask=m_row)

    b_y = tl.load(p_targets + o_row, mask=m_row, other=0)
    m_y = (b_y >= 0) & (b_y < V)
    b_z_y = tl.load(p_row + b_y, mask=m_row & m_y, other=0).to(tl.float32)
    tl.store(p_target + o_row, tl.where(m_y, b_z_y * b_inverse - b_lse, float("nan")), mask=m_row)
    if K > 0:
        o_k = tl.arange(0, BK)  # [BK]
        m_k = m_row[:, None] & (o_k < K)[None, :]
        o_picked = o_row[:, None] * K + o_k[None, :]
        b_c = tl.load(p_candidates + o_picked, mask=m_k, other=-1)  # [BR, BK]
        m_c = (b_c >= 0) & (b_c < V)
        b_z_c = tl.load(p_row[:, None] + b_c, mask=m_k & m_c, other=0).to(tl.float32)
        b_absent = tl.where(b_c == -1, -INFINITY, float("nan"))
        tl.store(p_picked + o_picked, tl.where(m_c, b_z_c * b_inverse[:, None] - b_lse[:, None], b_absent), mask=m_k)


@triton.jit(do_not_specialize=["count", "temperature_stride"])
def logit_stats_bwd_kernel(
    p_logits,
    p_targets,
    p_candidates,
    p_temperature,
    p_lse,
    p_entropy,
    p_d_lse,
    p_d_entropy,
    p_d_target,
    p_d_picked,
    p_d_logits,
    p_d_rows,
    count,
    temperature_stride,
    V: tl.constexpr,
    K: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * BR
    o_row = i_row + tl.arange(0, BR)  # [BR]
    m_row = o_row < count
    b_inverse = 1.0 / tl.load(p_temperature + o_row * temperature_stride, mask=m_row, other=1)
    b_lse = tl.load(p_lse + o_row, mask=m_row, other=0)
    b_entropy = tl.load(p_entropy + o_row, mask=m_row, other=0)
    b_d_entropy = tl.load(p_d_entropy + o_row, mask=m_row, other=0)
    b_d_target = tl.load(p_d_target + o_row, mask=m_row, other=0)
    b_y = tl.load(p_targets + o_row, mask=m_row, other=-1)
    # every log-probability that was read off takes its gradient out of all p
    b_d_p = tl.load(p_d_lse + o_row, mask=m_row, other=0) - b_d_target
    for k in tl.static_range(K):
        m_k = m_row & (tl.load(p_candidates + o_row * K + k, mask=m_row, other=-1) >= 0)
        b_d_p -= tl.load(p_d_picked + o_row * K + k, mask=m_k, other=0)

    b_d_row = tl.zeros([BR], tl.float32)
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)  # [BV]
        m = m_row[:, None] & (o_v < V)[None, :]
        o = o_row[:, None] * V + o_v[None, :]
        b_raw = tl.load(p_logits + o, mask=m, other=-INFINITY).to(tl.float32)  # [BR, BV]
        b_log_p = tl.maximum(b_raw * b_inverse[:, None] - b_lse[:, None], -1e30)
        b_p = tl.exp2(b_log_p * LOG2_E)
        b_d = b_p * (b_d_p[:, None] - (b_log_p + b_entropy[:, None]) * b_d_entropy[:, None])
        b_d += tl.where(o_v[None, :] == b_y[:, None], b_d_target[:, None], 0.0)
        for k in tl.static_range(K):
            b_c = tl.load(p_candidates + o_row * K + k, mask=m_row, other=-1)
            b_g = tl.load(p_d_picked + o_row * K + k, mask=m_row, other=0)
            b_d += tl.where(o_v[None, :] == b_c[:, None], b_g[:, None], 0.0)
        b_d *= b_inverse[:, None]
        tl.store(p_d_logits + o, b_d.to(p_d_logits.dtype.element_ty), mask=m)
        b_d_row -= tl.sum(tl.where(b_raw > -INFINITY, b_d * b_raw, 0.0), 1) * b_inverse
    tl.store(p_d_rows + o_row, b_d_row, mask=m_row)
