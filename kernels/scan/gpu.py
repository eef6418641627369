"""Triton kernels of the scan: forward, then backward.

Only states pass from chunk to chunk. A program that owns a head of a sequence, or a part of its width, walks over the
chunks with the state in registers; forward does all the rest on the way, so that every tensor crosses the memory once.
Backward has more to keep, and does the rest in a second kernel, every chunk by itself. Inside a chunk the scan is
attention without a softmax: scores c_t . b_j, faded by what the decays between j and t leave.

States lie transposed in registers, width by size, which gives products more rows. `b_sum` holds the sums of log2 of the
decays from a chunk's start, and exponentials are in base 2.
`input_precision="ieee"` keeps float32 exact and means nothing to bfloat16 and float16, which use the tensor cores.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def faded(b_sum, o_t):
    """What is left of token j at token t, (t, j); nothing of later ones."""
    b_gap = b_sum[:, None] - b_sum[None, :]
    return tl.exp2(tl.where(o_t[:, None] >= o_t[None, :], b_gap, float("-inf")))


@triton.jit(do_not_specialize=["length", "chunks"])
def scan_fwd_kernel(
    p_v, p_b, p_c, p_dt, p_decay, p_y, p_states, length, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    i_head = tl.program_id(0)
    i_b, i_h = (i_head // H).to(tl.int64), i_head % H
    o_t, o_s = tl.arange(0, BT), tl.arange(0, BS)
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    m_s = o_s < S
    p_v += (i_b * length * H + i_h) * P
    p_y += (i_b * length * H + i_h) * P
    p_dt += i_b * length * H + i_h
    p_decay += i_b * length * H + i_h
    p_b += (i_b * length * G + i_h // (H // G)) * S
    p_c += (i_b * length * G + i_h // (H // G)) * S
    p_states += i_head.to(tl.int64) * chunks * S * P
    o_value = o_t[:, None] * (H * P) + o_p[None, :]
    o_enter = o_t[:, None] * (G * S) + o_s[None, :]
    o_state = o_s[None, :] * P + o_p[:, None]

    b_state = tl.zeros([BP, BS], tl.float32)
    for i_c in range(chunks):
        m_t = i_c * BT + o_t < length
        o_first = tl.cast(i_c, tl.int64) * BT
        tl.store(p_states + o_first // BT * (S * P) + o_state, b_state, mask=m_s[None, :])
        b_v = tl.load(p_v + o_first * (H * P) + o_value, mask=m_t[:, None], other=0)  # [BT, BP]
        b_b = tl.load(p_b + o_first * (G * S) + o_enter, mask=m_t[:, None] & m_s[None, :], other=0)  # [BT, BS]
        b_c = tl.load(p_c + o_first * (G * S) + o_enter, mask=m_t[:, None] & m_s[None, :], other=0)  # [BT, BS]
        b_dt = tl.load(p_dt + (o_first + o_t) * H, mask=m_t, other=0)
        b_log = tl.load(p_decay + (o_first + o_t) * H, mask=m_t, other=0) * LOG2E
        b_sum = tl.cumsum(b_log, 0)
        total = tl.sum(b_log, 0)

        b_w = tl.dot(b_c, tl.trans(b_b), input_precision="ieee") * faded(b_sum, o_t) * b_dt[None, :]  # [BT, BT]
        b_y = tl.dot(b_c, tl.trans(b_state.to(b_c.dtype)), input_precision="ieee") * tl.exp2(b_sum)[:, None]  # [BT, BP]
        b_y = tl.dot(b_w.to(b_v.dtype), b_v, b_y, input_precision="ieee")
        tl.store(p_y + o_first * (H * P) + o_value, b_y.to(p_y.dtype.element_ty), mask=m_t[:, None])

        b_enter = (b_b * (b_dt * tl.exp2(total - b_sum))[:, None]).to(b_v.dtype)
        b_state = tl.dot(tl.trans(b_v), b_enter, b_state * tl.exp2(total), input_precision="ieee")  # [BP, BS]


@triton.jit(do_not_specialize=["length", "chunks"])
def scan_bwd_kernel_states(
    p_dy, p_c, p_decay, p_dstates, length, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The gradient of the state behind each chunk, from the last one to the first"""
    i_head = tl.program_id(0)
    i_b, i_h = (i_head // H).to(tl.int64), i_head % H
    o_t, o_s = tl.arange(0, BT), tl.arange(0, BS)
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    m_s = o_s < S
    p_dy += (i_b * length * H + i_h) * P
    p_decay += i_b * length * H + i_h
    p_c += (i_b * length * G + i_h // (H // G)) * S
    p_dstates += i_head.to(tl.int64) * chunks * S * P
    o_value = o_t[:, None] * (H * P) + o_p[None, :]
    o_enter = o_t[:, None] * (G * S) + o_s[None, :]
    o_state = o_s[None, :] * P + o_p[:, None]

    b_dstate = tl.zeros([BP, BS], tl.float32)
    for i in range(chunks):
        i_c = chunks - 1 - i
        m_t = i_c * BT + o_t < length
        o_first = tl.cast(i_c, tl.int64) * BT
        tl.store(p_dstates + o_first // BT * (S * P) + o_state, b_dstate, mask=m_s[None, :])
        b_dy = tl.load(p_dy + o_first * (H * P) + o_value, mask=m_t[:, None], other=0)  # [BT, BP]
        b_c = tl.load(p_c + o_first * (G * S) + o_enter, mask=m_t[:, None] & m_s[None, :], other=0)  # [BT, BS]
        b_log = tl.load(p_decay + (o_first + o_t) * H, mask=m_t, other=0) * LOG2E
        b_leave = (b_c * tl.exp2(tl.cumsum(b_log, 0))[:, None]).to(b_dy.dtype)
        b_faded = b_dstate * tl.exp2(tl.sum(b_log, 0))
        b_dstate = tl.dot(tl.trans(b_dy), b_leave, b_faded, input_precision="ieee")  # [BP, BS]


@triton.jit(do_not_specialize=["length", "chunks"])
def scan_bwd_kernel_chunks(
    p_dy, p_v, p_b, p_c, p_dt, p_decay, p_states, p_dstates, p_dv, p_db, p_dc, p_ddt, p_ddecay, length, chunks,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """All other gradients, every chunk by itself, walking over the head's width.

    The gradient of a decay is the sum of all that crosses it: what later tokens of the chunk take from earlier ones, what
    they take from the state before the chunk, what earlier ones give to the state behind it, and what passes through.
    """
    i_c = tl.program_id(0)
    i_head = tl.program_id(1)
    i_b, i_h = (i_head // H).to(tl.int64), i_head % H
    o_t, o_s = tl.arange(0, BT), tl.arange(0, BS)
    m_t, m_s = i_c * BT + o_t < length, o_s < S
    m_enter = m_t[:, None] & m_s[None, :]
    o_first = i_b * length + i_c * BT
    o_line = o_first * H + i_h
    p_dy += o_line * P
    p_v += o_line * P
    p_dv += o_line * P
    p_states += (i_head.to(tl.int64) * chunks + i_c) * (S * P)
    p_dstates += (i_head.to(tl.int64) * chunks + i_c) * (S * P)
    o_enter = (o_first * G + i_h // (H // G)) * S
    o_tile = o_t[:, None] * (G * S) + o_s[None, :]

    b_b = tl.load(p_b + o_enter + o_tile, mask=m_enter, other=0)  # [BT, BS]
    b_c = tl.load(p_c + o_enter + o_tile, mask=m_enter, other=0)  # [BT, BS]
    b_dt = tl.load(p_dt + o_line + o_t * H, mask=m_t, other=0)
    b_log = tl.load(p_decay + o_line + o_t * H, mask=m_t, other=0) * LOG2E
    b_sum = tl.cumsum(b_log, 0)
    total = tl.sum(b_log, 0)
    b_until = tl.exp2(total - b_sum)
    b_scores = tl.dot(b_c, tl.trans(b_b), input_precision="ieee")  # [BT, BT]
    b_weights = (b_scores * faded(b_sum, o_t)).to(p_dy.dtype.element_ty)
    b_until_b = (b_b * b_until[:, None]).to(p_dy.dtype.element_ty)

    b_dscores = tl.zeros([BT, BT], tl.float32)
    b_db = tl.zeros([BT, BS], tl.float32)
    b_dc = tl.zeros([BT, BS], tl.float32)
    b_ddt = tl.zeros([BT], tl.float32)
    b_through = tl.zeros([BS], tl.float32)
    for start_p in range(0, P, BP):
        o_p = start_p + tl.arange(0, BP)
        o_value = o_t[:, None] * (H * P) + o_p[None, :]
        o_state = o_s[None, :] * P + o_p[:, None]
        b_dy = tl.load(p_dy + o_value, mask=m_t[:, None], other=0)  # [BT, BP]
        b_v = tl.load(p_v + o_value, mask=m_t[:, None], other=0)  # [BT, BP]
        b_state = tl.load(p_states + o_state, mask=m_s[None, :], other=0)  # [BP, BS]
        b_dstate = tl.load(p_dstates + o_state, mask=m_s[None, :], other=0)  # [BP, BS]
        b_through += tl.sum(b_state * b_dstate, 0)
        b_behind = b_dstate.to(b_v.dtype)
        # dv without its factor dt: times v, it is also what dt itself gets
        b_dv = tl.dot(tl.trans(b_weights), b_dy, input_precision="ieee")  # [BT, BP]
        b_dv = tl.dot(b_until_b, tl.trans(b_behind), b_dv, input_precision="ieee")
        b_ddt += tl.sum(b_dv * b_v, 1)
        tl.store(p_dv + o_value, (b_dv * b_dt[:, None]).to(p_dv.dtype.element_ty), mask=m_t[:, None])
        b_dscores = tl.dot(b_dy, tl.trans(b_v), b_dscores, input_precision="ieee")
        b_dc = tl.dot(b_dy, b_state.to(b_dy.dtype), b_dc, input_precision="ieee")
        b_db = tl.dot(b_v, b_behind, b_db, input_precision="ieee")
    tl.store(p_ddt + o_line + o_t * H, b_ddt, mask=m_t)

    b_dscores *= faded(b_sum, o_t) * b_dt[None, :]
    b_pairs = b_scores * b_dscores
    b_dc *= tl.exp2(b_sum)[:, None]
    b_db *= (b_dt * b_until)[:, None]
    b_taken = tl.sum(b_pairs, 1) - tl.sum(b_pairs, 0) + tl.sum(b_dc * b_c, 1)
    b_given = tl.sum(b_db * b_b, 1)
    through = tl.exp2(total) * tl.sum(b_through, 0)
    b_ddecay = tl.cumsum(b_taken, 0, reverse=True) + (tl.cumsum(b_given, 0) - b_given) + through
    tl.store(p_ddecay + o_line + o_t * H, b_ddecay, mask=m_t)

    b_half = b_dscores.to(b_b.dtype)
    b_dc = tl.dot(b_half, b_b, b_dc, input_precision="ieee")
    b_db = tl.dot(tl.trans(b_half), b_c, b_db, input_precision="ieee")
    o_share = o_line * S + o_t[:, None] * (H * S) + o_s[None, :]
    tl.store(p_dc + o_share, b_dc.to(p_dc.dtype.element_ty), mask=m_enter)
    tl.store(p_db + o_share, b_db.to(p_db.dtype.element_ty), mask=m_enter)
