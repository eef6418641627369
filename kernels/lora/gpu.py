"""Triton kernels of the per-document adapters.

One product kernel serves forward (x, W, A, B give y and t) and, transposed, the input's gradient (dy, Wᵀ, Bᵀ, Aᵀ give dx
and dt). WIDTH is the width of the rows it reads, OUT of those it writes, RANK the true rank; R (and R2, a second block,
where the next power of two would waste too much) are the padded ones.
"""

import triton
import triton.language as tl


@triton.jit
def document_tile(i_tile, p_bounds, docs, length, rows, SIZE: tl.constexpr, RAGGED: tl.constexpr):
    """The document that tile i_tile lies in, its first row, the end of its document, and its number within it.

    Dense documents have `length` rows each. Ragged ones need no table: document d owns the tiles from bounds[d] // SIZE + d
    on, which is always enough of them and at most one too many. Behind the last comes the tail, document `docs`.
    """
    if RAGGED:
        before = 0
        for d in range(0, docs + 1, 128):
            o_d = d + tl.arange(0, 128)
            b_bound = tl.load(p_bounds + o_d, mask=o_d <= docs, other=0)
            before += tl.sum(((b_bound // SIZE + o_d <= i_tile) & (o_d <= docs)).to(tl.int32))
        i_doc = before - 1
        start = tl.load(p_bounds + i_doc)
        end = tl.load(p_bounds + i_doc + 1, mask=i_doc < docs, other=rows)
        i_part = i_tile - (start // SIZE + i_doc)
    else:
        per_document = tl.cdiv(length, SIZE)
        i_doc = i_tile // per_document
        i_part = i_tile % per_document
        start = i_doc * length
        end = start + length
    return i_doc, start + i_part * SIZE, end, i_part


@triton.jit
def load_adapter(p_adapter, i_doc, docs, o_in, o_out, IN: tl.constexpr, OUT: tl.constexpr, TRANSPOSED: tl.constexpr):
    """A tile [len(o_in), len(o_out)] of one document's (IN, OUT) adapter, stored as (OUT, IN) where TRANSPOSED. The tail
    behind the last document has an adapter of zeros."""
    p_doc = p_adapter + i_doc.to(tl.int64) * (IN * OUT)
    m = (o_in[:, None] < IN) & (o_out[None, :] < OUT) & (i_doc < docs)
    if TRANSPOSED:
        return tl.load(p_doc + o_out[None, :] * IN + o_in[:, None], mask=m, other=0.0)
    return tl.load(p_doc + o_in[:, None] * OUT + o_out[None, :], mask=m, other=0.0)


@triton.jit(do_not_specialize=["docs", "length", "rows"])
def lora_shrink_kernel(
    p_x, p_a, p_t, p_bounds, docs, length, rows, scale,
    WIDTH: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, R2: tl.constexpr, RAGGED: tl.constexpr,
    BACKWARD: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """t = scale · x Aᵀ; backward, dt = scale · dy B."""
    i_doc, first, end, _ = document_tile(tl.program_id(0), p_bounds, docs, length, rows, BM, RAGGED)
    if first >= end:
        return
    o_m = first + tl.arange(0, BM)
    # rows behind the document are computed and not stored: an unmasked load is a faster load
    p_rows = p_x + tl.minimum(o_m, rows - 1).to(tl.int64)[:, None] * WIDTH
    o_r = tl.arange(0, R)
    b_t = tl.zeros([BM, R], dtype=tl.float32)
    if R2 > 0:
        o_r2 = R + tl.arange(0, R2)
        b_t2 = tl.zeros([BM, R2], dtype=tl.float32)
    for k in range(0, WIDTH, BK):
        o_k = k + tl.arange(0, BK)
        if WIDTH % BK == 0:
            b_x = tl.load(p_rows + o_k[None, :])  # [BM, BK]
        else:
            b_x = tl.load(p_rows + o_k[None, :], mask=o_k[None, :] < WIDTH, other=0.0)
        b_a = load_adapter(p_a, i_doc, docs, o_k, o_r, WIDTH, RANK, not BACKWARD).to(b_x.dtype)  # [BK, R]
        b_t = tl.dot(b_x, b_a, b_t, input_precision="ieee")
        if R2 > 0:
            b_a2 = load_adapter(p_a, i_doc, docs, o_k, o_r2, WIDTH, RANK, not BACKWARD).to(b_x.dtype)
            b_t2 = tl.dot(b_x, b_a2, b_t2, input_precision="ieee")
    p_out = p_t + o_m.to(tl.int64)[:, None] * RANK
    m_m = (o_m < end)[:, None]
    tl.store(p_out + o_r[None, :], b_t * scale, mask=m_m & (o_r < RANK)[None, :])
    if R2 > 0:
        tl.store(p_out + o_r2[None, :], b_t2 * scale, mask=m_m & (o_r2 < RANK)[None, :])


@triton.jit(do_not_specialize=["docs", "length", "rows"])
def lora_product_kernel(
    p_x, p_w, p_a, p_b, p_t, p_y, p_bounds, docs, length, rows, scale,
    WIDTH: tl.constexpr, OUT: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, RK: tl.constexpr, SHRINK: tl.constexpr,
    RAGGED: tl.constexpr, BACKWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = x Wᵀ + t Bᵀ, the adapter being one more step of the same accumulation. With SHRINK, t = scale · x Aᵀ is computed
    on the way, by every column of tiles and stored by the first; otherwise it is read."""
    # columns of tiles run fastest, so that a tile of x is read from memory once and then from cache
    i_n = tl.program_id(0) % tl.cdiv(OUT, BN)
    i_tile = tl.program_id(0) // tl.cdiv(OUT, BN)
    i_doc, first, end, _ = document_tile(i_tile, p_bounds, docs, length, rows, BM, RAGGED)
    if first >= end:
        return
    o_m = first + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    if OUT % BN == 0:
        o_n_in = o_n
    else:
        o_n_in = tl.minimum(o_n, OUT - 1)
    o_m_in = tl.minimum(o_m, rows - 1).to(tl.int64)
    p_rows = p_x + o_m_in[:, None] * WIDTH
    o_r = tl.arange(0, R)
    b_y = tl.zeros([BM, BN], dtype=tl.float32)
    b_t = tl.zeros([BM, R], dtype=tl.float32)
    for k in range(0, WIDTH, BK):
        o_k = k + tl.arange(0, BK)
        if BACKWARD:
            p_weights = p_w + o_k[:, None] * OUT + o_n_in[None, :]
        else:
            p_weights = p_w + o_n_in[None, :] * WIDTH + o_k[:, None]
        if WIDTH % BK == 0:
            b_x = tl.load(p_rows + o_k[None, :])  # [BM, BK]
            b_w = tl.load(p_weights)  # [BK, BN]
        else:
            b_x = tl.load(p_rows + o_k[None, :], mask=o_k[None, :] < WIDTH, other=0.0)
            b_w = tl.load(p_weights, mask=o_k[:, None] < WIDTH, other=0.0)
        b_y = tl.dot(b_x, b_w, b_y, input_precision="ieee")
        if SHRINK:
            b_a = load_adapter(p_a, i_doc, docs, o_k, o_r, WIDTH, RANK, not BACKWARD).to(b_x.dtype)  # [BK, R]
            b_t = tl.dot(b_x, b_a, b_t, input_precision="ieee")
    dtype = p_y.dtype.element_ty
    m_m = (o_m < end)[:, None]
    if SHRINK:
        b_t *= scale
        if i_n == 0:
            p_out = p_t + o_m.to(tl.int64)[:, None] * RANK + o_r[None, :]
            tl.store(p_out, b_t, mask=m_m & (o_r < RANK)[None, :])
        b_b = load_adapter(p_b, i_doc, docs, o_r, o_n, RANK, OUT, not BACKWARD).to(dtype)  # [R, BN]
        b_y = tl.dot(b_t.to(dtype), b_b, b_y, input_precision="ieee")
    else:
        b_y = expand(b_y, p_t, p_b, o_m_in, i_doc, docs, o_n, RANK, OUT, RK, BACKWARD)
    tl.store(p_y + o_m.to(tl.int64)[:, None] * OUT + o_n[None, :], b_y, mask=m_m & (o_n < OUT)[None, :])


@triton.jit
def expand(
    b_y, p_t, p_b, o_m, i_doc, docs, o_n,
    RANK: tl.constexpr, OUT: tl.constexpr, RK: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """b_y + t Bᵀ for rows o_m and columns o_n, in steps of RK ranks."""
    for r in range(0, RANK, RK):
        o_r = r + tl.arange(0, RK)
        b_t = tl.load(p_t + o_m[:, None] * RANK + o_r[None, :], mask=(o_r < RANK)[None, :], other=0.0)  # [BM, RK]
        b_b = load_adapter(p_b, i_doc, docs, o_r, o_n, RANK, OUT, not BACKWARD).to(b_t.dtype)  # [RK, BN]
        b_y = tl.dot(b_t, b_b, b_y, input_precision="ieee")
    return b_y


@triton.jit(do_not_specialize=["docs", "length", "rows"])
def lora_expand_kernel(
    p_t, p_b, p_y, p_bounds, docs, length, rows,
    OUT: tl.constexpr, RANK: tl.constexpr, RK: tl.constexpr, ADD: tl.constexpr, RAGGED: tl.constexpr,
    BACKWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y += t Bᵀ, or y = t Bᵀ where there is no base product."""
    i_n = tl.program_id(0) % tl.cdiv(OUT, BN)
    i_tile = tl.program_id(0) // tl.cdiv(OUT, BN)
    i_doc, first, end, _ = document_tile(i_tile, p_bounds, docs, length, rows, BM, RAGGED)
    if first >= end:
        return
    if ADD:
        if i_doc == docs:
            return
    o_m = first + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    b_y = tl.zeros([BM, BN], dtype=tl.float32)
    b_y = expand(b_y, p_t, p_b, tl.minimum(o_m, rows - 1).to(tl.int64), i_doc, docs, o_n, RANK, OUT, RK, BACKWARD)
    m = (o_m < end)[:, None] & (o_n < OUT)[None, :]
    p_out = p_y + o_m.to(tl.int64)[:, None] * OUT + o_n[None, :]
    if ADD:
        b_y += tl.load(p_out, mask=m, other=0.0).to(tl.float32)
    tl.store(p_out, b_y, mask=m)


@triton.jit
def outer(
    p_x, p_t, p_whole, p_partial, i_c, i_doc, first, last, whole,
    WIDTH: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, R2: tl.constexpr, RANK_FIRST: tl.constexpr,
    BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """xᵀ t over rows first to last for columns i_c of x: (RANK, WIDTH) where RANK_FIRST, else (WIDTH, RANK). Written as the
    document's gradient if that is the whole of it, as a partial sum otherwise."""
    o_c = i_c * BC + tl.arange(0, BC)
    o_r = tl.arange(0, R)
    b_g = tl.zeros([BC, R], dtype=tl.float32)
    if R2 > 0:
        o_r2 = R + tl.arange(0, R2)
        b_g2 = tl.zeros([BC, R2], dtype=tl.float32)
    for m in range(first, last, BM):
        o_m = m + tl.arange(0, BM)
        m_m = (o_m < last)[:, None]
        p_rows = p_x + o_m.to(tl.int64)[:, None] * WIDTH + o_c[None, :]
        p_ranks = p_t + o_m.to(tl.int64)[:, None] * RANK
        b_x = tl.load(p_rows, mask=m_m & (o_c < WIDTH)[None, :], other=0.0)  # [BM, BC]
        b_t = tl.load(p_ranks + o_r[None, :], mask=m_m & (o_r < RANK)[None, :], other=0.0)  # [BM, R]
        b_g = tl.dot(tl.trans(b_x), b_t, b_g, input_precision="ieee")
        if R2 > 0:
            b_t2 = tl.load(p_ranks + o_r2[None, :], mask=m_m & (o_r2 < RANK)[None, :], other=0.0)
            b_g2 = tl.dot(tl.trans(b_x), b_t2, b_g2, input_precision="ieee")
    if RANK_FIRST:
        o_g = o_r[None, :] * WIDTH + o_c[:, None]
    else:
        o_g = o_c[:, None] * RANK + o_r[None, :]
    m_g = (o_c < WIDTH)[:, None] & (o_r < RANK)[None, :]
    p_whole += i_doc.to(tl.int64) * (WIDTH * RANK)
    if whole:
        tl.store(p_whole + o_g, b_g, mask=m_g)
    else:
        tl.store(p_partial + o_g, b_g, mask=m_g)
    if R2 > 0:
        if RANK_FIRST:
            o_g2 = o_r2[None, :] * WIDTH + o_c[:, None]
        else:
            o_g2 = o_c[:, None] * RANK + o_r2[None, :]
        m_g2 = (o_c < WIDTH)[:, None] & (o_r2 < RANK)[None, :]
        if whole:
            tl.store(p_whole + o_g2, b_g2, mask=m_g2)
        else:
            tl.store(p_partial + o_g2, b_g2, mask=m_g2)


@triton.jit(do_not_specialize=["docs", "length", "rows"])
def lora_bwd_adapters_kernel(
    p_x, p_dy, p_t, p_dt, p_da, p_db, p_partial, p_bounds, docs, length, rows,
    IN: tl.constexpr, OUT: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, R2: tl.constexpr, RAGGED: tl.constexpr,
    CHUNK: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dA = dtᵀ x and dB = dyᵀ t over CHUNK rows of one document. A document of one chunk is done; the chunks of a longer one
    are left in p_partial, one (dA, dB) in float32 for each, for lora_bwd_reduce_kernel to add in order."""
    i_slot = tl.program_id(0)
    i_c = tl.program_id(1)
    i_doc, first, end, i_part = document_tile(i_slot, p_bounds, docs, length, rows, CHUNK, RAGGED)
    if i_doc == docs:
        return
    # a document without rows still has its first chunk, which writes zeros
    if first >= end and i_part > 0:
        return
    whole = (i_part == 0) & (end - first <= CHUNK)
    last = tl.minimum(end, first + CHUNK)
    p_slot = p_partial + i_slot.to(tl.int64) * ((IN + OUT) * RANK)
    if i_c < tl.cdiv(IN, BC):
        outer(p_x, p_dt, p_da, p_slot, i_c, i_doc, first, last, whole, IN, RANK, R, R2, True, BC, BM)
    else:
        p_slot += IN * RANK
        outer(p_dy, p_t, p_db, p_slot, i_c - tl.cdiv(IN, BC), i_doc, first, last, whole, OUT, RANK, R, R2, False, BC, BM)


@triton.jit(do_not_specialize=["docs", "length"])
def lora_bwd_reduce_kernel(
    p_partial, p_da, p_db, p_bounds, docs, length,
    IN: tl.constexpr, OUT: tl.constexpr, RANK: tl.constexpr, RAGGED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of each document that has more than one chunk, first to last."""
    i_doc = tl.program_id(0)
    if RAGGED:
        start = tl.load(p_bounds + i_doc)
        chunks = tl.cdiv(tl.load(p_bounds + i_doc + 1) - start, CHUNK)
        slot = start // CHUNK + i_doc
    else:
        chunks = tl.cdiv(length, CHUNK)
        slot = i_doc * chunks
    if chunks <= 1:
        return
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = o < (IN + OUT) * RANK
    b_g = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(chunks):
        b_g += tl.load(p_partial + (slot + i).to(tl.int64) * ((IN + OUT) * RANK) + o, mask=m, other=0.0)
    o_a = i_doc.to(tl.int64) * (IN * RANK) + o
    o_b = i_doc.to(tl.int64) * (OUT * RANK) + o - IN * RANK
    tl.store(p_da + o_a, b_g, mask=o < IN * RANK)
    tl.store(p_db + o_b, b_g, mask=m & (o >= IN * RANK))


@triton.jit
def table_entry(p_table, tensors, BT: tl.constexpr):
    """Which tensor of a list this program works on, and on which of its blocks: the table's last column holds the number
    of each tensor's first block."""
    i_block = tl.program_id(0)
    before = 0
    for t in range(0, tensors, BT):
        o_t = t + tl.arange(0, BT)
        b_first = tl.load(p_table + o_t * 6 + 5, mask=o_t < tensors, other=i_block + 1)
        before += tl.sum((b_first <= i_block).to(tl.int32))
    p_row = p_table + (before - 1) * 6
    return p_row, i_block - tl.load(p_row + 5).to(tl.int32)


@triton.jit(do_not_specialize=["tensors", "rate", "decay"])
def lora_adam_kernel(
    p_table, p_steps, p_rates, p_active, tensors, rate, decay, beta1, beta2, rest1, rest2, log_beta1, log_beta2, eps,
    P: tl.constexpr, G: tl.constexpr, S: tl.constexpr, FIRST: tl.constexpr, RATES: tl.constexpr, ACTIVE: tl.constexpr,
    ALIGNED: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one document of one tensor. Table row: parameter, gradient, first, second, length, first block."""
    i_doc = tl.program_id(1)
    if ACTIVE:
        if tl.load(p_active + i_doc) == 0:
            return
    p_row, i_block = table_entry(p_table, tensors, BT)
    length = tl.load(p_row + 4)
    if ALIGNED:
        # changes nothing, but the compiler reads from it that wide loads are allowed
        length = length // 16 * 16
    o_doc = i_doc.to(tl.int64) * length
    o = i_block * BLOCK + tl.arange(0, BLOCK)
    m = o < length
    p_p = addresses(p_row, o_doc, o, P, ALIGNED)
    p_g = addresses(p_row + 1, o_doc, o, G, ALIGNED)
    p_v = addresses(p_row + 3, o_doc, o, S, ALIGNED)
    b_p = tl.load(p_p, mask=m).to(tl.float32)
    b_g = tl.load(p_g, mask=m).to(tl.float32)
    b_v = tl.load(p_v, mask=m).to(tl.float32)
    step = tl.load(p_steps + i_doc).to(tl.float32)
    if RATES:
        rate = tl.load(p_rates + i_doc)
    b_v = beta2 * b_v + rest2 * b_g * b_g
    tl.store(p_v, b_v, mask=m)
    direction = b_g
    if FIRST:
        p_m = addresses(p_row + 2, o_doc, o, S, ALIGNED)
        b_m = beta1 * tl.load(p_m, mask=m).to(tl.float32) + rest1 * b_g
        tl.store(p_m, b_m, mask=m)
        direction = b_m / correction(step, log_beta1)
    b_root = tl.sqrt_rn(b_v / correction(step, log_beta2)) + eps
    tl.store(p_p, b_p * (1 - rate * decay) - rate * direction / b_root, mask=m)


@triton.jit
def addresses(p_entry, o_doc, o, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Where the elements o of one document lie in the tensor whose address is in the table."""
    p = tl.load(p_entry).to(tl.pointer_type(DTYPE)) + o_doc + o
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def correction(step, log_beta):
    """1 - betaᵗ, in double precision for the one number it is: single loses four digits at the first step."""
    return (1.0 - tl.exp((step * log_beta).to(tl.float64))).to(tl.float32)


@triton.jit(do_not_specialize=["tensors"])
def lora_reset_kernel(p_table, p_chosen, tensors, CHOSEN: tl.constexpr, BT: tl.constexpr, BLOCK: tl.constexpr):
    """Copy or clear one block of one document, as 16-bit words of whatever type. Table row: target, source (0 clears),
    whether all is aligned, unused, length, first block."""
    i_doc = tl.program_id(1)
    if CHOSEN:
        if tl.load(p_chosen + i_doc) == 0:
            return
    p_row, i_block = table_entry(p_table, tensors, BT)
    if tl.load(p_row + 2) != 0:
        copy_words(p_row, i_doc, i_block, True, BLOCK)
    else:
        copy_words(p_row, i_doc, i_block, False, BLOCK)


@triton.jit
def copy_words(p_row, i_doc, i_block, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    length = tl.load(p_row + 4)
    if ALIGNED:
        # changes nothing, but the compiler reads from it that wide loads are allowed
        length = length // 16 * 16
    o = i_block * BLOCK + tl.arange(0, BLOCK)
    m = o < length
    copies = tl.load(p_row + 1) != 0
    b = tl.load(addresses(p_row + 1, 0, o, tl.int16, ALIGNED), mask=m & copies, other=0)
    tl.store(addresses(p_row, i_doc.to(tl.int64) * length, o, tl.int16, ALIGNED), b, mask=m)
