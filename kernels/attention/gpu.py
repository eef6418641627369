"""Triton kernels of `attention` and `xsa`: forward, then backward.

A tile of queries (or, for dK and dV, of keys) meets its partners in two loops: first the blocks that all its rows see
whole, with neither masks nor bounds to look at, then the rest: the diagonal and the blocks that the edge of a document,
of the window or of the sequence runs through. A row's first visible key never decreases along the sequence, nor does a
key's last visible row; two numbers per tile therefore say where to begin and end, and blocks outside are never touched.
Exactly two loops, with nothing around them: what one loop keeps in registers is then dead in the other.

Scores live in base 2: `scale2` is the softmax scale times log2(e), and `lse` is log2 of the sum of exponentials.
`input_precision="ieee"` keeps float32 exact and means nothing to bfloat16 and float16, which use the tensor cores.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["documents", "length"])
def document_bounds_kernel(p_cu, p_start, p_end, documents, length, BT: tl.constexpr):
    """First token of each token's document, and one past its last; (length, end of all) beyond the last document."""
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    # binary search for the last boundary at or before the token.
    b_low = tl.zeros([BT], tl.int32)
    b_high = tl.zeros([BT], tl.int32) + documents
    step = documents
    while step > 0:
        b_middle = (b_low + b_high + 1) // 2
        m_right = tl.load(p_cu + b_middle) <= o_t
        b_low = tl.where(m_right, b_middle, b_low)
        b_high = tl.where(m_right, b_high, b_middle - 1)
        step = step // 2
    m_inside = b_low < documents
    b_start = tl.where(m_inside, tl.load(p_cu + b_low), length)
    b_end = tl.load(p_cu + tl.minimum(b_low + 1, documents))
    tl.store(p_start + o_t, b_start, mask=o_t < length)
    tl.store(p_end + o_t, b_end, mask=o_t < length)


@triton.jit
def _first_visible(p_start, i_t, length, window, DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr):
    """First key that a row sees, for one row or a block of rows."""
    first = i_t * 0
    if DOCUMENTS:
        first = tl.load(p_start + tl.minimum(i_t, length - 1))
    if WINDOW:
        first = tl.maximum(first, i_t - window + 1)
    return first


@triton.jit
def _last_visible(p_end, i_t, length, window, DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr):
    """One past the last row that sees a key, for one key or a block of keys."""
    last = i_t * 0 + length
    if DOCUMENTS:
        last = tl.load(p_end + tl.minimum(i_t, length - 1))
    if WINDOW:
        last = tl.minimum(last, i_t + window)
    return last


@triton.jit
def _key_blocks(
    p_start, start_m, length, window,
    DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Key blocks of a query tile: [low, whole) and [start_m, ...) need masks, [whole, start_m) does not.
    Returns whole, low, and how many blocks of each of the two masked parts there are."""
    end_m = tl.minimum(start_m + BM, length)
    low = _first_visible(p_start, start_m, length, window, DOCUMENTS, WINDOW) // BN * BN
    edge = _first_visible(p_start, end_m - 1, length, window, DOCUMENTS, WINDOW)
    whole = tl.minimum(tl.cdiv(edge, BN) * BN, start_m)
    return whole, low, tl.maximum(whole - low, 0) // BN, tl.cdiv(end_m - start_m, BN)


@triton.jit
def _forward_loop(
    b_acc, b_max, b_sum, b_q, p_k, p_v, o_m, b_first, low, blocks, jump_at, jump, length, scale2,
    HKV: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, D)
    o_n = tl.arange(0, BN)
    o_tile = o_n[:, None] * (HKV * D) + o_d[None, :]
    for i_n in range(blocks):
        start_n = low + i_n * BN
        if MASKED:
            start_n += tl.where(i_n < jump_at, 0, jump)
        o_block = tl.cast(start_n, tl.int64) * (HKV * D)
        if MASKED:
            m_n = (start_n + o_n < length)[:, None]
            b_k = tl.load(p_k + o_block + o_tile, mask=m_n, other=0)  # [BN, D]
            b_v = tl.load(p_v + o_block + o_tile, mask=m_n, other=0)  # [BN, D]
        else:
            b_k = tl.load(p_k + o_block + o_tile)
            b_v = tl.load(p_v + o_block + o_tile)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BM, BN]
        if MASKED:
            o_key = start_n + o_n[None, :]
            b_s = tl.where((o_key <= o_m[:, None]) & (o_key >= b_first[:, None]), b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale2)
        b_p = tl.exp2(b_s * scale2 - b_new[:, None])
        b_fade = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_fade + tl.sum(b_p, 1)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_fade[:, None], input_precision="ieee")  # [BM, D]
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit(do_not_specialize=["length", "window", "tiles"])
def attention_fwd_kernel(
    p_q, p_k, p_v, p_gate, p_start, p_out, p_z, p_a, p_lse, scale2, floor, length, window, tiles,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, XSA: tl.constexpr, GATE: tl.constexpr,
    DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    # the longest rows first: late tiles see the most keys.
    start_m = (tiles - 1 - i_p % tiles) * BM
    i_b = (i_p // tiles // H).to(tl.int64)
    i_h = i_p // tiles % H
    i_kv = i_h // (H // HKV)
    o_m = start_m + tl.arange(0, BM)
    o_d = tl.arange(0, D)
    m_m = o_m < length
    o_token = i_b * length + start_m
    o_query = (o_token * H + i_h) * D
    o_rows = tl.arange(0, BM)[:, None] * (H * D) + o_d[None, :]
    p_keys = p_k + (i_b * length * HKV + i_kv) * D
    p_values = p_v + (i_b * length * HKV + i_kv) * D

    b_q = tl.load(p_q + o_query + o_rows, mask=m_m[:, None], other=0)  # [BM, D]
    b_acc = tl.zeros([BM, D], tl.float32)
    # a finite start: a row that has seen nothing yet must not subtract infinity from infinity.
    b_max = tl.full([BM], -1e30, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    whole, low, edge_blocks, diagonal_blocks = _key_blocks(p_start, start_m, length, window, DOCUMENTS, WINDOW, BM, BN)
    b_acc, b_max, b_sum = _forward_loop(
        b_acc, b_max, b_sum, b_q, p_keys, p_values, o_m, o_m,
        whole, (start_m - whole) // BN, 0, 0, length, scale2, HKV, D, BN, False,
    )  # fmt: skip
    # loaded only now, for the loop that looks at it.
    b_first = _first_visible(p_start, o_m, length, window, DOCUMENTS, WINDOW)
    b_acc, b_max, b_sum = _forward_loop(
        b_acc, b_max, b_sum, b_q, p_keys, p_values, o_m, b_first,
        low, edge_blocks + diagonal_blocks, edge_blocks, start_m - low - edge_blocks * BN, length, scale2, HKV, D, BN, True,
    )  # fmt: skip

    # a row that sees nothing has summed nothing: it stays zero.
    m_seen = b_sum > 0
    b_sum = tl.where(m_seen, b_sum, 1)
    b_acc *= (1 / b_sum)[:, None]
    o_line = (i_b * H + i_h) * length + start_m
    tl.store(p_lse + o_line + tl.arange(0, BM), tl.where(m_seen, b_max + tl.log2(b_sum), 0), mask=m_m)
    if XSA:
        p_own = p_values + tl.cast(start_m, tl.int64) * (HKV * D)
        o_own = tl.arange(0, BM)[:, None] * (HKV * D) + o_d[None, :]
        # read twice, volatile so that the compiler believes it: the second read comes from the L1 cache, and the norm's
        # sum does not keep a second tile in registers beside the accumulator.
        b_own = tl.load(p_own + o_own, mask=m_m[:, None], other=0, volatile=True).to(tl.float32)  # [BM, D]
        b_norm = tl.maximum(tl.sum(b_own * b_own, 1), floor)
        b_own = tl.load(p_own + o_own, mask=m_m[:, None], other=0).to(tl.float32)  # [BM, D]
        b_a = tl.sum(b_acc * b_own, 1) / b_norm
        b_acc -= b_a[:, None] * b_own
        tl.store(p_a + o_line + tl.arange(0, BM), b_a, mask=m_m)
    if GATE:
        tl.store(p_z + o_query + o_rows, b_acc.to(p_z.dtype.element_ty), mask=m_m[:, None])
        b_gate = tl.load(p_gate + o_token * H + i_h + tl.arange(0, BM) * H, mask=m_m, other=0)
        b_acc *= b_gate.to(tl.float32)[:, None]
    tl.store(p_out + o_query + o_rows, b_acc.to(p_out.dtype.element_ty), mask=m_m[:, None])


@triton.jit(do_not_specialize=["total", "length"])
def attention_bwd_prepare_kernel(
    p_grad, p_z, p_v, p_gate, p_a, p_dy, p_dv, p_dgate, p_delta, floor, total, length,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, XSA: tl.constexpr, GATE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """What the two matmul kernels need: dy (through gate and XSA), delta = sum(y dy), and the part of dv that skips y."""
    i_p = tl.program_id(0)
    i_kv = i_p % HKV
    i_tile = i_p // HKV
    o_t = i_tile.to(tl.int64) * BT + tl.arange(0, BT)
    o_d = tl.arange(0, D)
    m_t = o_t < total
    o_line = o_t // length * (H * length) + o_t % length
    o_own = (i_tile.to(tl.int64) * BT * HKV + i_kv) * D + tl.arange(0, BT)[:, None] * (HKV * D) + o_d[None, :]
    if XSA:
        b_own = tl.load(p_v + o_own, mask=m_t[:, None], other=0).to(tl.float32)  # [BT, D]
        b_square = tl.sum(b_own * b_own, 1)
        b_norm = tl.maximum(b_square, floor)
        b_dv = tl.zeros([BT, D], tl.float32)
    for i_g in tl.static_range(H // HKV):
        i_h = i_kv * (H // HKV) + i_g
        o_row = (i_tile.to(tl.int64) * BT * H + i_h) * D + tl.arange(0, BT)[:, None] * (H * D) + o_d[None, :]
        b_z = tl.load(p_z + o_row, mask=m_t[:, None], other=0).to(tl.float32)  # [BT, D]
        b_dz = tl.load(p_grad + o_row, mask=m_t[:, None], other=0).to(tl.float32)  # [BT, D]
        if GATE:
            b_gate = tl.load(p_gate + o_t * H + i_h, mask=m_t, other=0).to(tl.float32)
            tl.store(p_dgate + o_t * H + i_h, tl.sum(b_dz * b_z, 1).to(p_dgate.dtype.element_ty), mask=m_t)
            b_dz *= b_gate[:, None]
        if XSA:
            b_a = tl.load(p_a + o_line + i_h * length, mask=m_t, other=0)
            b_b = tl.sum(b_dz * b_own, 1) / b_norm
            # z + a v is y. where |v|^2 is clamped, the denominator has no slope, and the sign of the a v term turns.
            b_back = tl.where(b_square >= floor, b_a, -b_a)
            b_dv -= b_a[:, None] * b_dz + b_b[:, None] * (b_z - b_back[:, None] * b_own)
            b_dz -= b_b[:, None] * b_own
            b_z += b_a[:, None] * b_own
        if XSA or GATE:
            tl.store(p_dy + o_row, b_dz.to(p_dy.dtype.element_ty), mask=m_t[:, None])
        tl.store(p_delta + o_line + i_h * length, tl.sum(b_z * b_dz, 1), mask=m_t)
    if XSA:
        tl.store(p_dv + o_own, b_dv.to(p_dv.dtype.element_ty), mask=m_t[:, None])


@triton.jit
def _backward_kv_loop(
    b_dk, b_dv, b_k, b_v, p_q, p_dy, p_lse, p_delta, o_n, b_last, low, blocks, jump_at, jump, length, scale2,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, D)
    o_m = tl.arange(0, BM)
    o_tile = o_m[:, None] * (H * D) + o_d[None, :]
    # the query heads of one group share k and v: their gradients add up here, in a fixed order.
    for i in range(GROUP * blocks):
        i_g = i // blocks
        i_m = i % blocks
        start_m = low + i_m * BM
        if MASKED:
            start_m += tl.where(i_m < jump_at, 0, jump)
        o_block = tl.cast(start_m, tl.int64) * (H * D) + i_g * D
        o_line = tl.cast(i_g, tl.int64) * length + start_m
        if MASKED:
            # rows past the end are zero in q, dy, lse and delta, and so add nothing.
            m_m = start_m + o_m < length
            b_q = tl.load(p_q + o_block + o_tile, mask=m_m[:, None], other=0)  # [BM, D]
            b_dy = tl.load(p_dy + o_block + o_tile, mask=m_m[:, None], other=0)  # [BM, D]
            b_lse = tl.load(p_lse + o_line + o_m, mask=m_m, other=0)
            b_delta = tl.load(p_delta + o_line + o_m, mask=m_m, other=0)
        else:
            b_q = tl.load(p_q + o_block + o_tile)
            b_dy = tl.load(p_dy + o_block + o_tile)
            b_lse = tl.load(p_lse + o_line + o_m)
            b_delta = tl.load(p_delta + o_line + o_m)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")  # [BN, BM]
        b_p = tl.exp2(b_s * scale2 - b_lse[None, :])
        if MASKED:
            o_row = start_m + o_m[None, :]
            b_p = tl.where((o_row >= o_n[:, None]) & (o_row < b_last[:, None]), b_p, 0)
        b_dv = tl.dot(b_p.to(b_dy.dtype), b_dy, b_dv, input_precision="ieee")  # [BN, D]
        b_dp = tl.dot(b_v, tl.trans(b_dy), input_precision="ieee")  # [BN, BM]
        b_ds = b_p * (b_dp - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")  # [BN, D]
    return b_dk, b_dv


@triton.jit(do_not_specialize=["length", "window", "tiles"])
def attention_bwd_kv_kernel(
    p_q, p_k, p_v, p_end, p_dy, p_lse, p_delta, p_dv_own, p_dk, p_dv, scale2, scale, length, window, tiles,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, XSA: tl.constexpr,
    DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = H // HKV
    i_p = tl.program_id(0)
    start_n = i_p % tiles * BN
    i_b = (i_p // tiles // HKV).to(tl.int64)
    i_kv = i_p // tiles % HKV
    o_n = start_n + tl.arange(0, BN)
    m_n = (o_n < length)[:, None]
    o_key = ((i_b * length + start_n) * HKV + i_kv) * D
    o_rows = tl.arange(0, BN)[:, None] * (HKV * D) + tl.arange(0, D)[None, :]
    p_queries = p_q + (i_b * length * H + i_kv * GROUP) * D
    p_slopes = p_dy + (i_b * length * H + i_kv * GROUP) * D
    p_lses = p_lse + (i_b * H + i_kv * GROUP) * length
    p_deltas = p_delta + (i_b * H + i_kv * GROUP) * length

    b_k = tl.load(p_k + o_key + o_rows, mask=m_n, other=0)  # [BN, D]
    b_v = tl.load(p_v + o_key + o_rows, mask=m_n, other=0)  # [BN, D]
    b_dk = tl.zeros([BN, D], tl.float32)
    b_dv = tl.zeros([BN, D], tl.float32)
    # query blocks: [start_n, below) and [whole, high) need masks, [below, whole) does not.
    below = start_n + BN
    edge = _last_visible(p_end, start_n, length, window, DOCUMENTS, WINDOW)
    high = _last_visible(p_end, tl.minimum(below, length) - 1, length, window, DOCUMENTS, WINDOW)
    whole_blocks = tl.maximum(edge - below, 0) // BM
    whole = below + whole_blocks * BM
    diagonal_blocks = tl.cdiv(tl.maximum(tl.minimum(below, high) - start_n, 0), BM)
    edge_blocks = tl.cdiv(tl.maximum(high - whole, 0), BM)
    b_dk, b_dv = _backward_kv_loop(
        b_dk, b_dv, b_k, b_v, p_queries, p_slopes, p_lses, p_deltas, o_n, o_n,
        below, whole_blocks, 0, 0, length, scale2, H, GROUP, D, BM, False,
    )  # fmt: skip
    # loaded only now, for the loop that looks at it.
    b_last = _last_visible(p_end, o_n, length, window, DOCUMENTS, WINDOW)
    b_dk, b_dv = _backward_kv_loop(
        b_dk, b_dv, b_k, b_v, p_queries, p_slopes, p_lses, p_deltas, o_n, b_last,
        start_n, diagonal_blocks + edge_blocks, diagonal_blocks, whole - below, length, scale2, H, GROUP, D, BM, True,
    )  # fmt: skip
    if XSA:
        b_dv += tl.load(p_dv_own + o_key + o_rows, mask=m_n, other=0).to(tl.float32)
    tl.store(p_dk + o_key + o_rows, (b_dk * scale).to(p_dk.dtype.element_ty), mask=m_n)
    tl.store(p_dv + o_key + o_rows, b_dv.to(p_dv.dtype.element_ty), mask=m_n)


@triton.jit
def _backward_q_loop(
    b_dq, b_q, b_dy, b_lse, b_delta, p_k, p_v, o_m, b_first, low, blocks, jump_at, jump, length, scale2,
    HKV: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    o_d = tl.arange(0, D)
    o_n = tl.arange(0, BN)
    o_tile = o_n[:, None] * (HKV * D) + o_d[None, :]
    for i_n in range(blocks):
        start_n = low + i_n * BN
        if MASKED:
            start_n += tl.where(i_n < jump_at, 0, jump)
        o_block = tl.cast(start_n, tl.int64) * (HKV * D)
        if MASKED:
            m_n = (start_n + o_n < length)[:, None]
            b_k = tl.load(p_k + o_block + o_tile, mask=m_n, other=0)  # [BN, D]
            b_v = tl.load(p_v + o_block + o_tile, mask=m_n, other=0)  # [BN, D]
        else:
            b_k = tl.load(p_k + o_block + o_tile)
            b_v = tl.load(p_v + o_block + o_tile)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BM, BN]
        b_p = tl.exp2(b_s * scale2 - b_lse[:, None])
        if MASKED:
            o_key = start_n + o_n[None, :]
            b_p = tl.where((o_key <= o_m[:, None]) & (o_key >= b_first[:, None]), b_p, 0)
        b_dp = tl.dot(b_dy, tl.trans(b_v), input_precision="ieee")  # [BM, BN]
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")  # [BM, D]
    return b_dq


@triton.jit(do_not_specialize=["length", "window", "tiles"])
def attention_bwd_q_kernel(
    p_q, p_k, p_v, p_start, p_dy, p_lse, p_delta, p_dq, scale2, scale, length, window, tiles,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr,
    DOCUMENTS: tl.constexpr, WINDOW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    start_m = (tiles - 1 - i_p % tiles) * BM
    i_b = (i_p // tiles // H).to(tl.int64)
    i_h = i_p // tiles % H
    i_kv = i_h // (H // HKV)
    o_m = start_m + tl.arange(0, BM)
    m_m = o_m < length
    o_query = ((i_b * length + start_m) * H + i_h) * D
    o_rows = tl.arange(0, BM)[:, None] * (H * D) + tl.arange(0, D)[None, :]
    o_line = (i_b * H + i_h) * length + start_m
    p_keys = p_k + (i_b * length * HKV + i_kv) * D
    p_values = p_v + (i_b * length * HKV + i_kv) * D

    b_q = tl.load(p_q + o_query + o_rows, mask=m_m[:, None], other=0)  # [BM, D]
    b_dy = tl.load(p_dy + o_query + o_rows, mask=m_m[:, None], other=0)  # [BM, D]
    b_lse = tl.load(p_lse + o_line + tl.arange(0, BM), mask=m_m, other=0)
    b_delta = tl.load(p_delta + o_line + tl.arange(0, BM), mask=m_m, other=0)
    b_dq = tl.zeros([BM, D], tl.float32)
    whole, low, edge_blocks, diagonal_blocks = _key_blocks(p_start, start_m, length, window, DOCUMENTS, WINDOW, BM, BN)
    b_dq = _backward_q_loop(
        b_dq, b_q, b_dy, b_lse, b_delta, p_keys, p_values, o_m, o_m,
        whole, (start_m - whole) // BN, 0, 0, length, scale2, HKV, D, BN, False,
    )  # fmt: skip
    # loaded only now, for the loop that looks at it.
    b_first = _first_visible(p_start, o_m, length, window, DOCUMENTS, WINDOW)
    b_dq = _backward_q_loop(
        b_dq, b_q, b_dy, b_lse, b_delta, p_keys, p_values, o_m, b_first,
        low, edge_blocks + diagonal_blocks, edge_blocks, start_m - low - edge_blocks * BN, length, scale2, HKV, D, BN, True,
    )  # fmt: skip
    tl.store(p_dq + o_query + o_rows, (b_dq * scale).to(p_dq.dtype.element_ty), mask=m_m[:, None])


@triton.jit(do_not_specialize=["total"])
def xsa_fwd_kernel(
    p_y, p_v, p_gate, p_z, floor, total,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, GATE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    # groups run fastest, so that neighbouring programs read neighbouring rows.
    i_kv = i_p % HKV
    i_tile = (i_p // HKV).to(tl.int64)
    o_t = i_tile * BT + tl.arange(0, BT)
    o_d = tl.arange(0, BD)
    m_t = o_t < total
    m_row = m_t[:, None] & (o_d < D)[None, :]
    o_own = (i_tile * BT * HKV + i_kv) * D + tl.arange(0, BT)[:, None] * (HKV * D) + o_d[None, :]
    b_own = tl.load(p_v + o_own, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
    b_norm = tl.maximum(tl.sum(b_own * b_own, 1), floor)
    for i_g in tl.static_range(H // HKV):
        i_h = i_kv * (H // HKV) + i_g
        o_row = (i_tile * BT * H + i_h) * D + tl.arange(0, BT)[:, None] * (H * D) + o_d[None, :]
        b_y = tl.load(p_y + o_row, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
        b_z = b_y - (tl.sum(b_y * b_own, 1) / b_norm)[:, None] * b_own
        if GATE:
            b_z *= tl.load(p_gate + o_t * H + i_h, mask=m_t, other=0).to(tl.float32)[:, None]
        tl.store(p_z + o_row, b_z.to(p_z.dtype.element_ty), mask=m_row)


@triton.jit(do_not_specialize=["total"])
def xsa_bwd_kernel(
    p_grad, p_y, p_v, p_gate, p_dy, p_dv, p_dgate, floor, total,
    H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, GATE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    i_p = tl.program_id(0)
    i_kv = i_p % HKV
    i_tile = (i_p // HKV).to(tl.int64)
    o_t = i_tile * BT + tl.arange(0, BT)
    o_d = tl.arange(0, BD)
    m_t = o_t < total
    m_row = m_t[:, None] & (o_d < D)[None, :]
    o_own = (i_tile * BT * HKV + i_kv) * D + tl.arange(0, BT)[:, None] * (HKV * D) + o_d[None, :]
    b_own = tl.load(p_v + o_own, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
    b_square = tl.sum(b_own * b_own, 1)
    b_norm = tl.maximum(b_square, floor)
    b_dv = tl.zeros([BT, BD], tl.float32)
    for i_g in tl.static_range(H // HKV):
        i_h = i_kv * (H // HKV) + i_g
        o_row = (i_tile * BT * H + i_h) * D + tl.arange(0, BT)[:, None] * (H * D) + o_d[None, :]
        b_y = tl.load(p_y + o_row, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
        b_dz = tl.load(p_grad + o_row, mask=m_row, other=0).to(tl.float32)  # [BT, BD]
        b_inner = tl.sum(b_dz * b_own, 1)
        b_a = tl.sum(b_y * b_own, 1) / b_norm
        if GATE:
            b_gate = tl.load(p_gate + o_t * H + i_h, mask=m_t, other=0).to(tl.float32)
            b_dgate = tl.sum(b_dz * (b_y - b_a[:, None] * b_own), 1)
            tl.store(p_dgate + o_t * H + i_h, b_dgate.to(p_dgate.dtype.element_ty), mask=m_t)
            b_dz *= b_gate[:, None]
            b_inner *= b_gate
        b_b = b_inner / b_norm
        # the denominator has a slope only where it is not clamped.
        b_slope = tl.where(b_square >= floor, 2 * b_a, 0)
        b_dv -= b_a[:, None] * b_dz + b_b[:, None] * (b_y - b_slope[:, None] * b_own)
        tl.store(p_dy + o_row, (b_dz - b_b[:, None] * b_own).to(p_dy.dtype.element_ty), mask=m_row)
    tl.store(p_dv + o_own, b_dv.to(p_dv.dtype.element_ty), mask=m_row)
