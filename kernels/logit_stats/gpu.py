"""The Triton kernel of the logits' statistics: one sweep over raw logits, one warp a row."""

import os

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
INFINITY = tl.constexpr(float("inf"))

# Triton's interpreter has no inline assembly
if os.environ.get("TRITON_INTERPRET") == "1":

    @triton.jit
    def reciprocal(x):
        return 1.0 / x

else:

    @triton.jit
    def reciprocal(x):
        """1 / x to one unit in the last place. A division would guard against the subnormal reciprocal of an x above 2^126."""
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def in_bits(b_raw, inverse, softcap, CAPPED: tl.constexpr):
    """z log2(e), with z = raw * inverse, or softcap * tanh(raw / softcap) * inverse: an argument of exp2."""
    if CAPPED:
        # tanh(x) = 1 - 2 / (1 + e^2x): both infinities end in the right place
        scale = softcap * inverse * LOG2_E
        return scale - 2 * scale * reciprocal(1 + tl.exp2(b_raw * (2 * LOG2_E / softcap)))
    else:
        return b_raw * (inverse * LOG2_E)


@triton.jit(do_not_specialize=["temperature_stride"])
def logit_stats_kernel(
    p_logits,
    p_targets,
    p_candidates,
    p_temperature,
    p_lse,
    p_entropy,
    p_target,
    p_picked,
    softcap,
    temperature_stride,
    V: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    CAPPED: tl.constexpr,
    BV: tl.constexpr,
):
    """A warp, a row: its sums are shuffles, and nothing waits at a barrier."""
    i_row = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_row * V
    inverse = reciprocal(tl.load(p_temperature + i_row * temperature_stride))
    # ids, and the logits that they name, are on their way while the sweep runs
    y = tl.load(p_targets + i_row)
    in_y = (y >= 0) & (y < V)
    raw_y = tl.load(p_row + y, mask=in_y, other=0).to(tl.float32)
    o_k = tl.arange(0, BK)  # [BK]
    b_c = tl.load(p_candidates + i_row * K + o_k, mask=o_k < K, other=-1)
    m_c = (b_c >= 0) & (b_c < V)
    b_raw_c = tl.load(p_row + b_c, mask=m_c, other=0).to(tl.float32)

    # in bits: sums of 2^x and of x 2^x, with x = z log2(e) less the largest so far, so that the entropy is no difference
    # of large numbers
    peak = -INFINITY
    total = 0.0
    weighted = 0.0
    for i_v in range(0, V, BV):
        o_v = i_v + tl.arange(0, BV)  # [BV]
        m_v = o_v < V
        b_raw = tl.load(p_row + o_v, mask=m_v, other=-INFINITY).to(tl.float32)
        b_z = in_bits(b_raw, inverse, softcap, CAPPED)
        if CAPPED:
            # -inf capped is -softcap, and what lies past the row's end must not count
            b_z = tl.where(m_v, b_z, -INFINITY)
        higher = tl.maximum(peak, tl.max(b_z, 0))
        # a row of nothing but -inf so far has no peak to be measured from
        higher = tl.where(higher == -INFINITY, 0.0, higher)
        b_x = tl.maximum(b_z - higher, -1e30)
        b_e = tl.exp2(b_x)
        if V <= BV:
            weighted = tl.sum(b_e * b_x, 0)
            total = tl.sum(b_e, 0)
        else:
            fall = tl.where(peak == -INFINITY, 0.0, peak - higher)
            scale = tl.exp2(fall)
            weighted = scale * (weighted + fall * total) + tl.sum(b_e * b_x, 0)
            total = scale * total + tl.sum(b_e, 0)
        peak = higher
    bits = tl.log2(total)
    lse = peak + bits
    tl.store(p_lse + i_row, lse * LN_2)
    tl.store(p_entropy + i_row, (bits - weighted / total) * LN_2)
    z_y = in_bits(raw_y, inverse, softcap, CAPPED)
    tl.store(p_target + i_row, tl.where(in_y, (z_y - lse) * LN_2, float("nan")))
    b_z_c = in_bits(b_raw_c, inverse, softcap, CAPPED)
    b_picked = tl.where(m_c, (b_z_c - lse) * LN_2, tl.where(b_c == -1, -INFINITY, float("nan")))
    tl.store(p_picked + i_row * K + o_k, b_picked, mask=o_k < K)
