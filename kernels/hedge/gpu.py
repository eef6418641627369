"""Triton kernels of the five-expert Hedge mixer: scoring a chunk in windows, counting it."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


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


@triton.jit(do_not_specialize=["count", "width", "batch", "batches", "tokens"])
def hedge_chunk_kernel(
    p_neural,
    p_entropy,
    p_tokens,
    p_windows,
    p_ranks,
    p_unigram,
    p_bigram,
    p_bigram_total,
    p_trigram,
    p_trigram_total,
    p_losses,
    p_log_weights,
    p_nll,
    count,
    width,
    batch,
    batches,
    tokens,
    eta,
    smoothing,
    trigram_smoothing,
    V: tl.constexpr,
    BUCKETS: tl.constexpr,
    BN: tl.constexpr,
):
    """A program scores the windows of one rank, batch after batch: each batch reads the weights that the one before it left.

    p_windows (W, 4): begin, length, scored positions, place of the first score; p_ranks (R, 4): first window, last window,
    first token, last token, the lasts exclusive; p_log_weights (R, batches + 1, 5) float64, row 0 given.
    """
    i_rank = tl.program_id(0)
    p_rank = p_ranks + i_rank * 4
    first, last = tl.load(p_rank), tl.load(p_rank + 1)
    p_weights = p_log_weights + i_rank * (batches + 1) * 5
    # the n-gram experts' NLLs of each token, once for all windows over it
    p_loss = p_losses + i_rank.to(tl.int64) * 3 * count
    for o_start in range(tl.load(p_rank + 2), tl.load(p_rank + 3), BN):
        o = o_start + tl.arange(0, BN)  # [BN]
        m = o < tl.load(p_rank + 3)
        b_y = tl.load(p_tokens + o, mask=m, other=0)
        b_previous = tl.load(p_tokens + o - 1, mask=m, other=0).to(tl.int64)
        b_before = tl.load(p_tokens + o - 2, mask=m & (o > 1), other=0).to(tl.int64)
        b_bucket = ((b_before * 36313) ^ (b_previous * 27191)) % BUCKETS
        b_unigram = tl.load(p_unigram + b_y, mask=m, other=0).to(tl.float32)
        b_bigram = tl.load(p_bigram + b_previous * V + b_y, mask=m, other=0).to(tl.float32)
        b_bigram_total = tl.load(p_bigram_total + b_previous, mask=m, other=0).to(tl.float32)
        b_trigram = tl.load(p_trigram + b_bucket * V + b_y, mask=m, other=0).to(tl.float32)
        b_trigram_total = tl.maximum(tl.load(p_trigram_total + b_bucket, mask=m, other=0), 1).to(tl.float32)
        b_1 = (b_unigram + smoothing) / (tokens.to(tl.float32) + smoothing * V)
        b_2 = (b_bigram + smoothing) / (b_bigram_total + smoothing * V)
        b_3 = (b_trigram + trigram_smoothing) / (b_trigram_total + trigram_smoothing * V)
        tl.store(p_loss + o, -tl.log2(b_1) * LN_2, mask=m)
        tl.store(p_loss + count + o, -tl.log2(b_2) * LN_2, mask=m)
        tl.store(p_loss + 2 * count + o, -tl.log2(b_3) * LN_2, mask=m)
    tl.debug_barrier()

    w_0, w_1, w_2 = tl.load(p_weights), tl.load(p_weights + 1), tl.load(p_weights + 2)
    w_3, w_4 = tl.load(p_weights + 3), tl.load(p_weights + 4)
    i_batch = 0
    for begin_batch in range(first, last, batch):
        # log-softmax of the weights, from differences to the largest, which float32 can hold
        largest = tl.maximum(tl.maximum(tl.maximum(w_0, w_1), tl.maximum(w_2, w_3)), w_4)
        d_0, d_1, d_2 = (w_0 - largest).to(tl.float32), (w_1 - largest).to(tl.float32), (w_2 - largest).to(tl.float32)
        d_3, d_4 = (w_3 - largest).to(tl.float32), (w_4 - largest).to(tl.float32)
        all_d = tl.exp2(d_0 * LOG2_E) + tl.exp2(d_1 * LOG2_E) + tl.exp2(d_2 * LOG2_E)
        all_d += tl.exp2(d_3 * LOG2_E) + tl.exp2(d_4 * LOG2_E)
        lse_d = tl.log2(all_d) * LN_2
        b_sum_0 = tl.zeros([BN], tl.float32)
        b_sum_1, b_sum_2, b_sum_3, b_sum_4 = b_sum_0, b_sum_0, b_sum_0, b_sum_0
        valid = first * 0
        for i_window in range(begin_batch, tl.minimum(begin_batch + batch, last)):
            p_window = p_windows + i_window * 4
            begin, length = tl.load(p_window), tl.load(p_window + 1)
            unscored, place = length - tl.load(p_window + 2), tl.load(p_window + 3)
            # the window's first target has no token before its predecessor, whatever the stream has
            bucket = (tl.load(p_tokens + begin).to(tl.int64) * 27191) % BUCKETS
            hits = tl.load(p_trigram + bucket * V + tl.load(p_tokens + begin + 1)).to(tl.float32)
            total = tl.maximum(tl.load(p_trigram_total + bucket), 1).to(tl.float32)
            loss_first = -tl.log2((hits + trigram_smoothing) / (total + trigram_smoothing * V)) * LN_2
            p_row = i_window * width.to(tl.int64)
            for o_start in range(0, length, BN):
                o = o_start + tl.arange(0, BN)  # [BN]
                m = o < length
                b_e0 = -tl.load(p_neural + p_row + o, mask=m, other=0)
                b_e4 = tl.load(p_entropy + p_row + o, mask=m, other=0)
                p_here = p_loss + begin + 1 + o
                b_e1 = tl.load(p_here, mask=m, other=0)
                b_e2 = tl.load(p_here + count, mask=m, other=0)
                b_e3 = tl.load(p_here + 2 * count, mask=m & (o > 0), other=0)
                b_e3 = tl.where(o == 0, loss_first, b_e3)
                b_sum_0 += b_e0
                b_sum_1 += b_e1
                b_sum_2 += b_e2
                b_sum_3 += b_e3
                b_sum_4 += b_e4
                if o_start + BN > unscored:
                    b_x0, b_x1, b_x2, b_x3, b_x4 = d_0 - b_e0, d_1 - b_e1, d_2 - b_e2, d_3 - b_e3, d_4 - b_e4
                    b_peak = tl.maximum(tl.maximum(tl.maximum(b_x0, b_x1), tl.maximum(b_x2, b_x3)), b_x4)
                    b_p = tl.exp2((b_x0 - b_peak) * LOG2_E) + tl.exp2((b_x1 - b_peak) * LOG2_E)
                    b_p += tl.exp2((b_x2 - b_peak) * LOG2_E) + tl.exp2((b_x3 - b_peak) * LOG2_E)
                    b_p += tl.exp2((b_x4 - b_peak) * LOG2_E)
                    b_nll = lse_d - (b_peak + tl.log2(b_p) * LN_2)
                    tl.store(p_nll + place + o - unscored, b_nll, mask=m & (o >= unscored))
            valid += length
        # a step of Hedge by the batch's mean losses, in the order of the batches
        step = eta / valid.to(tl.float64)
        w_0 -= step * tl.sum(b_sum_0, 0).to(tl.float64)
        w_1 -= step * tl.sum(b_sum_1, 0).to(tl.float64)
        w_2 -= step * tl.sum(b_sum_2, 0).to(tl.float64)
        w_3 -= step * tl.sum(b_sum_3, 0).to(tl.float64)
        w_4 -= step * tl.sum(b_sum_4, 0).to(tl.float64)
        i_batch += 1
        p_after = p_weights + i_batch * 5
        tl.store(p_after, w_0)
        tl.store(p_after + 1, w_1)
        tl.store(p_after + 2, w_2)
        tl.store(p_after + 3, w_3)
        tl.store(p_after + 4, w_4)
