"""Triton kernels of the n-gram back-off: counts, the mixture, and the mixture while its weights are learnt."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# ---- counts
#
# A trie of contexts, as on the CPU: the edge by which a token leaves a context of order o is the context of order
# o + 1 that ends in it. Lanes are (document, order), one a thread; a token's look-ups of all orders run side by side.
# The record of an edge is numbered by the token that was there when it was born, so nothing is allocated.

TOTAL = tl.constexpr(0)
DISTINCT = tl.constexpr(1)
TOP = tl.constexpr(2)
TOP_EDGE = tl.constexpr(3)
TOP_COUNT = tl.constexpr(4)
COUNT = tl.constexpr(5)
PARENT = tl.constexpr(6)
SYMBOL = tl.constexpr(7)


@triton.jit
def any_of(m):
    return tl.max(m.to(tl.int32), 0) > 0


@triton.jit
def slot_of(b_node, b_symbol, b_capacity, multiplier):
    b_hash = (b_node.to(tl.uint32) * 0x9E3779B1) ^ (b_symbol.to(tl.uint32) * 0x85EBCA77)
    b_hash = (b_hash ^ (b_hash >> 15)) * multiplier.to(tl.uint32)
    b_hash = b_hash ^ (b_hash >> 13)
    return ((b_hash.to(tl.int64) * b_capacity) >> 32).to(tl.int32)


@triton.jit
def find(p_records, p_slots, b_capacity, multiplier, b_node, b_symbol, m):
    """The edge from a context by a symbol, -1 if there is none. A hit in the table counts only if its record agrees."""
    m = m & (b_node >= 0)
    p_node = p_records + b_node.to(tl.int64) * 8
    b_top = tl.load(p_node + TOP, mask=m, other=-1)
    b_distinct = tl.load(p_node + DISTINCT, mask=m, other=0)
    b_top_edge = tl.load(p_node + TOP_EDGE, mask=m, other=-1)
    m_top = m & (b_top == b_symbol)
    b_edge = tl.where(m_top, b_top_edge, -1)
    # a context's only successor stands in its record and not in the table
    m_probe = m & (b_top != b_symbol) & (b_distinct > 1)
    b_slot = slot_of(b_node, b_symbol, b_capacity, multiplier)
    while any_of(m_probe):
        b_found = tl.load(p_slots + b_slot, mask=m_probe, other=-1)
        m_probe = m_probe & (b_found >= 0)
        p_found = p_records + b_found.to(tl.int64) * 8
        b_parent = tl.load(p_found + PARENT, mask=m_probe, other=-1)
        b_own = tl.load(p_found + SYMBOL, mask=m_probe, other=-1)
        m_hit = m_probe & (b_parent == b_node) & (b_own == b_symbol)
        b_edge = tl.where(m_hit, b_found, b_edge)
        m_probe = m_probe & (m_hit == 0)
        b_slot = tl.where(b_slot + 1 < b_capacity, b_slot + 1, 0)
    return b_edge


@triton.jit
def enter(p_slots, b_capacity, multiplier, b_node, b_symbol, b_edge, m):
    b_slot = slot_of(b_node, b_symbol, b_capacity, multiplier)
    while any_of(m):
        b_found = tl.load(p_slots + b_slot, mask=m, other=-1)
        m_free = m & (b_found < 0)
        tl.store(p_slots + b_slot, b_edge, mask=m_free)
        m = m & (m_free == 0)
        b_slot = tl.where(b_slot + 1 < b_capacity, b_slot + 1, 0)


@triton.jit
def add(p_records, p_slots, b_capacity, multiplier, b_node, b_symbol, b_edge, b_born, m):
    """Count one more symbol after a context, by its edge or, where that is -1, a new one numbered b_born."""
    m = m & (b_node >= 0)
    p_node = p_records + b_node.to(tl.int64) * 8
    b_total = tl.load(p_node + TOTAL, mask=m, other=0)
    b_distinct = tl.load(p_node + DISTINCT, mask=m, other=0)
    b_top = tl.load(p_node + TOP, mask=m, other=-1)
    b_top_edge = tl.load(p_node + TOP_EDGE, mask=m, other=-1)
    b_top_count = tl.load(p_node + TOP_COUNT, mask=m, other=0)
    m_new = m & (b_edge < 0)
    b_edge = tl.where(m_new, b_born, b_edge)
    p_edge = p_records + b_edge.to(tl.int64) * 8
    b_count = tl.load(p_edge + COUNT, mask=m & (m_new == 0), other=0) + 1
    tl.store(p_edge + TOTAL, 0, mask=m_new)
    tl.store(p_edge + DISTINCT, 0, mask=m_new)
    tl.store(p_edge + TOP, -1, mask=m_new)
    tl.store(p_edge + TOP_EDGE, -1, mask=m_new)
    tl.store(p_edge + TOP_COUNT, 0, mask=m_new)
    tl.store(p_edge + PARENT, b_node, mask=m_new)
    tl.store(p_edge + SYMBOL, b_symbol, mask=m_new)
    tl.store(p_edge + COUNT, b_count, mask=m)
    # the second successor of a context takes the first into the table with it
    enter(p_slots, b_capacity, multiplier, b_node, b_top, b_top_edge, m_new & (b_distinct == 1))
    enter(p_slots, b_capacity, multiplier, b_node, b_symbol, b_edge, m_new & (b_distinct > 0))
    tl.store(p_node + TOTAL, b_total + 1, mask=m)
    tl.store(p_node + DISTINCT, b_distinct + 1, mask=m_new)
    # of equal counts the symbol that came last for the first time: its edge has the larger number
    m_top = m & ((b_count > b_top_count) | ((b_count == b_top_count) & (b_edge > b_top_edge)))
    tl.store(p_node + TOP, b_symbol, mask=m_top)
    tl.store(p_node + TOP_EDGE, b_edge, mask=m_top)
    tl.store(p_node + TOP_COUNT, b_count, mask=m_top)
    return tl.where(m, b_edge, -1)


@triton.jit
def longer(b_edge, b_root, o_order, o_lane):
    """The contexts of the next token: each order's is the edge that the order below took."""
    b_below = tl.gather(b_edge, tl.maximum(o_lane - 1, 0), 0)
    return tl.where(o_order == 0, b_root, b_below)


@triton.jit
def count_until(
    p_tokens, p_records, p_slots, b_capacity, multiplier, b_writing, b_written, b_until, b_root, o_order, o_lane, m,
    LAST: tl.constexpr,
):  # fmt: skip
    """Count the tokens from b_written to b_until; returns the contexts that they end in, and b_until."""
    m_left = m & (b_written < b_until)
    while any_of(m_left):
        m_now = m_left & (o_order <= LAST)
        b_symbol = tl.load(p_tokens + b_written, mask=m_now, other=0)
        b_edge = find(p_records, p_slots, b_capacity, multiplier, b_writing, b_symbol, m_now)
        b_born = b_written * (LAST + 1) + o_order
        b_edge = add(p_records, p_slots, b_capacity, multiplier, b_writing, b_symbol, b_edge, b_born, m_now)
        # an edge that one lane has written is the next token's context in another
        tl.debug_barrier()
        b_writing = tl.where(m_left, longer(b_edge, b_root, o_order, o_lane), b_writing)
        b_written = tl.where(m_left, b_written + 1, b_written)
        m_left = m & (b_written < b_until)
    return b_writing, b_written


@triton.jit
def cell_of(b_total, b_distinct):
    b_size = (b_total > 1).to(tl.int32) + (b_total > 2).to(tl.int32) + (b_total > 4).to(tl.int32)
    b_size += (b_total > 8).to(tl.int32) + (b_total > 16).to(tl.int32) + (b_total > 64).to(tl.int32)
    b_size += (b_total > 256).to(tl.int32)
    b_spread = tl.where(4 * b_distinct <= b_total, 1, tl.where(2 * b_distinct <= b_total, 2, 3))
    b_spread = tl.where(b_distinct == 1, 0, b_spread)
    return tl.where(b_total == 0, 0, 1 + 4 * b_size + b_spread)


@triton.jit(do_not_specialize=["count", "documents", "granularity", "multiplier"])
def ngram_evidence_kernel(
    p_tokens,
    p_documents,
    p_top,
    p_cell,
    p_count,
    p_total,
    p_records,
    p_table,
    count,
    documents,
    granularity,
    multiplier,
    ORDERS: tl.constexpr,
    LAST: tl.constexpr,
    NUM_ORDERS: tl.constexpr,
    SHARED: tl.constexpr,
    GROUPED: tl.constexpr,
    BD: tl.constexpr,
    BO: tl.constexpr,
):
    # a unit is what shares its counts: a document, or all of them. Bit o of ORDERS says that order o is asked for
    o_lane = tl.arange(0, BD * BO)
    o_order = o_lane % BO
    o_unit = tl.program_id(0) * BD + o_lane // BO
    m_order = o_order <= LAST
    b_column = tl.zeros([BD * BO], tl.int32)
    m_asked = o_order < 0
    for order in tl.static_range(LAST + 1):
        if (ORDERS >> order) & 1:
            b_column += (o_order > order).to(tl.int32)
            m_asked = m_asked | (o_order == order)
    if SHARED:
        m_unit = o_unit == 0
        b_begin = tl.zeros([BD * BO], tl.int32)
        b_size = b_begin + count
        b_next = tl.load(p_documents + 1 + b_begin, mask=m_unit, other=0).to(tl.int32)
    else:
        m_unit = o_unit < documents
        b_begin = tl.load(p_documents + o_unit, mask=m_unit, other=0).to(tl.int32)
        b_next = tl.load(p_documents + o_unit + 1, mask=m_unit, other=0).to(tl.int32)
        b_size = b_next - b_begin
    m_active = m_unit & (b_size > 0)
    b_document = tl.zeros([BD * BO], tl.int32)
    # each order has slots of its own, two for each token, so lanes never meet in the table
    b_capacity = tl.maximum(2 * b_size, 1)
    p_slots = p_table + (o_order.to(tl.int64) * count + b_begin) * 2
    b_root = count * (LAST + 1) + o_unit
    p_root = p_records + b_root.to(tl.int64) * 8
    m_root = m_active & (o_order == 0)
    tl.store(p_root + TOTAL, 0, mask=m_root)
    tl.store(p_root + DISTINCT, 0, mask=m_root)
    tl.store(p_root + TOP, -1, mask=m_root)
    tl.store(p_root + TOP_EDGE, -1, mask=m_root)
    tl.store(p_root + TOP_COUNT, 0, mask=m_root)
    tl.debug_barrier()

    b_t = b_begin
    b_open = b_begin
    b_written = b_begin
    b_first = tl.where(o_order == 0, b_root, -1)
    b_reading = b_first
    b_writing = b_first
    while any_of(m_active):
        b_y = tl.load(p_tokens + b_t, mask=m_active, other=0)
        # read, in the context of the document that was open; its own first token is read by the one before
        m_read = m_active & m_order & (b_t > b_begin)
        b_edge = find(p_records, p_slots, b_capacity, multiplier, b_reading, b_y, m_read)
        m_known = m_read & (b_reading >= 0)
        p_node = p_records + b_reading.to(tl.int64) * 8
        b_total = tl.load(p_node + TOTAL, mask=m_known, other=0)
        b_distinct = tl.load(p_node + DISTINCT, mask=m_known, other=0)
        b_top = tl.load(p_node + TOP, mask=m_known, other=-1)
        b_hits = tl.load(p_records + b_edge.to(tl.int64) * 8 + COUNT, mask=m_known & (b_edge >= 0), other=0)
        o_out = b_t.to(tl.int64) * NUM_ORDERS + b_column
        m_out = m_read & m_asked
        tl.store(p_top + o_out, b_top, mask=m_out)
        tl.store(p_total + o_out, b_total, mask=m_out)
        tl.store(p_cell + o_out, cell_of(b_total, b_distinct).to(tl.uint8), mask=m_out)
        tl.store(p_count + o_out, b_hits, mask=m_out)

        m_opens = m_active & (b_t == b_next)
        if SHARED:
            if GROUPED:
                # the old document's last group, before its context is forgotten
                b_writing, b_written = count_until(
                    p_tokens, p_records, p_slots, b_capacity, multiplier, b_writing, b_written, b_t, b_root, o_order, o_lane,
                    m_opens, LAST,
                )  # fmt: skip
            b_document = tl.where(m_opens, b_document + 1, b_document)
            b_open = tl.where(m_opens, b_t, b_open)
            b_next = tl.where(m_opens, tl.load(p_documents + 1 + b_document, mask=m_opens, other=0).to(tl.int32), b_next)
            b_reading = tl.where(m_opens, b_first, b_reading)
            b_writing = tl.where(m_opens, b_first, b_writing)
        else:
            m_active = m_active & (m_opens == 0)
        m_opening = m_active & m_order & (b_t == b_open)
        b_again = find(p_records, p_slots, b_capacity, multiplier, b_reading, b_y, m_opening)
        b_edge = tl.where(b_t == b_open, b_again, b_edge)

        if GROUPED:
            b_reading = tl.where(m_active, longer(b_edge, b_root, o_order, o_lane), b_reading)
            b_t += 1
            m_group = m_active & ((b_t - b_open) % granularity == 0)
            b_writing, b_written = count_until(
                p_tokens, p_records, p_slots, b_capacity, multiplier, b_writing, b_written, b_t, b_root, o_order, o_lane,
                m_group, LAST,
            )  # fmt: skip
            b_reading = tl.where(m_group, b_writing, b_reading)
        else:
            # the symbol is in the table: count there
            b_born = b_t * (LAST + 1) + o_order
            b_edge = add(p_records, p_slots, b_capacity, multiplier, b_reading, b_y, b_edge, b_born, m_active & m_order)
            b_reading = tl.where(m_active, longer(b_edge, b_root, o_order, o_lane), b_reading)
            b_t += 1
            tl.debug_barrier()
        m_active = m_active & (b_t < count)


# ---- the mixture


@triton.jit
def q_cell_of(b_log_prob, CUTS: tl.constexpr):
    b_cell = tl.zeros(b_log_prob.shape, tl.int32)
    for k in tl.static_range(len(CUTS)):
        b_cell += (b_log_prob >= CUTS[k]).to(tl.int32)
    return b_cell


@triton.jit(do_not_specialize=["count"])
def ngram_mix_fwd_kernel(
    p_target,
    p_candidates,
    p_cell,
    p_count,
    p_total,
    p_table,
    p_nll,
    p_share,
    count,
    CUTS: tl.constexpr,
    N_CELLS: tl.constexpr,
    NUM_ORDERS: tl.constexpr,
    BN: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    m = o < count
    b_neural = tl.load(p_target + o, mask=m, other=0)
    b_left = tl.full([BN], 1.0, tl.float32)
    b_backed = tl.zeros([BN], tl.float32)
    for k in tl.static_range(NUM_ORDERS):
        o_k = o * NUM_ORDERS + k
        b_cell = tl.load(p_cell + o_k, mask=m, other=0).to(tl.int32)
        m_seen = m & (b_cell > 0)
        b_hits = tl.load(p_count + o_k, mask=m, other=0).to(tl.float32)
        b_total = tl.load(p_total + o_k, mask=m_seen, other=1).to(tl.float32)
        b_q = q_cell_of(tl.load(p_candidates + o_k, mask=m, other=0), CUTS)
        b_w = tl.load(p_table + (k * (len(CUTS) + 1) + b_q) * N_CELLS + b_cell, mask=m_seen, other=0)
        b_left *= 1 - b_w
        b_backed = (1 - b_w) * b_backed + b_w * (b_hits / b_total)
    b_kept = b_left * tl.exp2(b_neural * LOG2_E)
    b_p = b_kept + b_backed
    m_safe = b_p > 1e-30
    b_safe = tl.where(m_safe, b_p, 1.0)
    tl.store(p_nll + o, tl.where(m_safe, -tl.log2(b_safe) * LN_2, -(b_neural + tl.log2(b_left) * LN_2)), mask=m)
    tl.store(p_share + o, tl.where(m_safe, b_kept / b_safe, 1.0), mask=m)


@triton.jit(do_not_specialize=["count"])
def ngram_mix_online_kernel(
    p_target,
    p_candidates,
    p_cell,
    p_count,
    p_total,
    p_group_starts,
    p_table,
    p_visits,
    p_places,
    p_posteriors,
    p_pending,
    p_nll,
    p_share,
    count,
    floor,
    least,
    most,
    CUTS: tl.constexpr,
    N_CELLS: tl.constexpr,
    NUM_ORDERS: tl.constexpr,
):
    # one token after another: each reads the weights that those before it have moved
    pending = tl.load(p_pending)
    t = pending * 0
    while t < count:
        if tl.load(p_group_starts + t) != 0:
            i = pending * 0
            while i < pending:
                place = tl.load(p_places + i)
                weight = tl.load(p_table + place)
                visits = tl.load(p_visits + place)
                tl.debug_barrier()
                rate = tl.maximum(floor, 1.0 / (visits + 20).to(tl.float32))
                weight += rate * (tl.load(p_posteriors + i) - weight)
                tl.store(p_table + place, tl.minimum(tl.maximum(weight, least), most))
                tl.store(p_visits + place, visits + 1)
                tl.debug_barrier()
                i += 1
            pending = pending * 0
        neural = tl.load(p_target + t)
        mixed = tl.exp2(neural * LOG2_E)
        kept = mixed
        left = mixed * 0 + 1.0
        for k in tl.static_range(NUM_ORDERS):
            o_k = t * NUM_ORDERS + k
            cell = tl.load(p_cell + o_k).to(tl.int32)
            if cell > 0:
                log_prob = tl.load(p_candidates + o_k)
                q_cell = cell * 0
                for i in tl.static_range(len(CUTS)):
                    q_cell += (log_prob >= CUTS[i]).to(tl.int32)
                place = (k * (len(CUTS) + 1) + q_cell) * N_CELLS + cell
                weight = tl.load(p_table + place)
                counted = weight * (tl.load(p_count + o_k).to(tl.float32) / tl.load(p_total + o_k).to(tl.float32))
                kept *= 1 - weight
                left *= 1 - weight
                mixed = (1 - weight) * mixed + counted
                tl.store(p_places + pending, place)
                tl.store(p_posteriors + pending, tl.where(mixed > 0, counted / tl.where(mixed > 0, mixed, 1.0), weight))
                pending += 1
        safe = tl.where(mixed > 1e-30, mixed, 1.0)
        tl.store(p_nll + t, tl.where(mixed > 1e-30, -tl.log2(safe) * LN_2, -(neural + tl.log2(left) * LN_2)))
        tl.store(p_share + t, tl.where(mixed > 1e-30, kept / safe, 1.0))
        tl.debug_barrier()
        t += 1
    tl.store(p_pending, pending)
