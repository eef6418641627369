"""Triton kernels of the five-expert Hedge mixer: scoring a batch of windows, counting a chunk."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["count", "length", "tokens"])
def hedge_fwd_kernel(
    p_neural,
    p_entropy,
    p_inputs,
    p_targets,
    p_valid,
    p_unigram,
    p_bigram,
    p_bigram_total,
    p_trigram,
    p_trigram_total,
    p_log_weights,
    p_nll,
    p_experts,
    p_sums,
    count,
    length,
    tokens,
    smoothing,
    trigram_smoothing,
    V: tl.constexpr,
    BUCKETS: tl.constexpr,
    BN: tl.constexpr,
):
    i_block = tl.program_id(0).to(tl.int64)
    o = i_block * BN + tl.arange(0, BN)  # [BN]
    m = o < count
    b_previous = tl.load(p_inputs + o, mask=m, other=0)
    b_y = tl.load(p_targets + o, mask=m, other=0)
    b_before = tl.load(p_inputs + o - 1, mask=m & (o % length != 0), other=0)
    b_bucket = ((b_before.to(tl.int64) * 36313) ^ (b_previous.to(tl.int64) * 27191)) % BUCKETS

    # five gathers in flight before the first is used
    b_unigram = tl.load(p_unigram + b_y, mask=m, other=0)
    b_bigram = tl.load(p_bigram + b_previous.to(tl.int64) * V + b_y, mask=m, other=0)
    b_bigram_total = tl.load(p_bigram_total + b_previous, mask=m, other=0)
    b_trigram = tl.load(p_trigram + b_bucket * V + b_y, mask=m, other=0)
    b_trigram_total = tl.load(p_trigram_total + b_bucket, mask=m, other=0)
    b_e0 = -tl.load(p_neural + o, mask=m, other=0)
    b_e4 = tl.load(p_entropy + o, mask=m, other=0)
    b_p1 = (b_unigram.to(tl.float32) + smoothing) / (tokens.to(tl.float32) + smoothing * V)
    b_p2 = (b_bigram.to(tl.float32) + smoothing) / (b_bigram_total.to(tl.float32) + smoothing * V)
    b_row = tl.maximum(b_trigram_total, 1).to(tl.float32)
    b_p3 = (b_trigram.to(tl.float32) + trigram_smoothing) / (b_row + trigram_smoothing * V)
    b_e1 = -tl.log2(b_p1) * LN_2
    b_e2 = -tl.log2(b_p2) * LN_2
    b_e3 = -tl.log2(b_p3) * LN_2

    b_x0 = tl.load(p_log_weights + 0) - b_e0
    b_x1 = tl.load(p_log_weights + 1) - b_e1
    b_x2 = tl.load(p_log_weights + 2) - b_e2
    b_x3 = tl.load(p_log_weights + 3) - b_e3
    b_x4 = tl.load(p_log_weights + 4) - b_e4
    b_peak = tl.maximum(tl.maximum(tl.maximum(b_x0, b_x1), tl.maximum(b_x2, b_x3)), b_x4)
    b_sum = tl.exp2((b_x0 - b_peak) * LOG2_E) + tl.exp2((b_x1 - b_peak) * LOG2_E) + tl.exp2((b_x2 - b_peak) * LOG2_E)
    b_sum += tl.exp2((b_x3 - b_peak) * LOG2_E) + tl.exp2((b_x4 - b_peak) * LOG2_E)
    tl.store(p_nll + o, -(b_peak + tl.log2(b_sum) * LN_2), mask=m)

    # sums by block, added up in a fixed order afterwards
    m_valid = m & (tl.load(p_valid + o, mask=m, other=0) != 0)
    p_block = p_sums + i_block * 5
    tl.store(p_experts + o, b_e0, mask=m)
    tl.store(p_block + 0, tl.sum(tl.where(m_valid, b_e0, 0.0), 0))
    tl.store(p_experts + count.to(tl.int64) + o, b_e1, mask=m)
    tl.store(p_block + 1, tl.sum(tl.where(m_valid, b_e1, 0.0), 0))
    tl.store(p_experts + 2 * count.to(tl.int64) + o, b_e2, mask=m)
    tl.store(p_block + 2, tl.sum(tl.where(m_valid, b_e2, 0.0), 0))
    tl.store(p_experts + 3 * count.to(tl.int64) + o, b_e3, mask=m)
    tl.store(p_block + 3, tl.sum(tl.where(m_valid, b_e3, 0.0), 0))
    tl.store(p_experts + 4 * count.to(tl.int64) + o, b_e4, mask=m)
    tl.store(p_block + 4, tl.sum(tl.where(m_valid, b_e4, 0.0), 0))


@triton.jit(do_not_specialize=["count"])
def hedge_count_kernel(
    p_tokens,
    p_unigram,
    p_bigram,
    p_bigram_total,
    p_trigram,
    p_trigram_total,
    count,
    V: tl.constexpr,
    BUCKETS: tl.constexpr,
    BN: tl.constexpr,
):
    # integers: whatever the order of the additions, the counts are the same
    o = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    m = o < count
    m_2 = m & (o >= 1)
    m_3 = m & (o >= 2)
    b_y = tl.load(p_tokens + o, mask=m, other=0)
    b_previous = tl.load(p_tokens + o - 1, mask=m_2, other=0).to(tl.int64)
    b_before = tl.load(p_tokens + o - 2, mask=m_3, other=0).to(tl.int64)
    b_bucket = ((b_before * 36313) ^ (b_previous * 27191)) % BUCKETS
    tl.atomic_add(p_unigram + b_y, 1, mask=m, sem="relaxed")
    tl.atomic_add(p_bigram + b_previous * V + b_y, 1, mask=m_2, sem="relaxed")
    tl.atomic_add(p_bigram_total + b_previous, 1, mask=m_2, sem="relaxed")
    tl.atomic_add(p_trigram + b_bucket * V + b_y, 1, mask=m_3, sem="relaxed")
    tl.atomic_add(p_trigram_total + b_bucket, 1, mask=m_3, sem="relaxed")
