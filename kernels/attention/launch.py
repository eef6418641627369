"""Launch tables of the attention and XSA kernels, and the bytes and FLOPs of one launch: functions of shape and capability."""

from pgolf.kernels.launch import Launch, nearest

# by capability, bits per element and head dim: (BM, BN, warps, stages[, most registers])
Table = dict[int, dict[int, dict[int, tuple[int, ...]]]]

# Tiles by capability, bits per element and head dim, as (BM, BN, warps, stages) and, where two blocks are to share a
# multiprocessor, a cap on registers; chosen by reasoning, unmeasured: the largest tiles that spill nothing with every
# option on. A block of 128 rows halves what K and V cost in the L2 cache, which at head dim 64 would else be the limit.
# Eight warps are two warpgroups of 64 rows; they take softmax and matmul in step, so a second block is what keeps the
# tensor cores busy meanwhile. float32 multiplies without tensor cores, for comparison rather than speed.
FORWARD: Table = {
    80: {16: {64: (128, 64, 8, 3), 128: (64, 64, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (32, 16, 8, 2)}},
    90: {16: {64: (128, 64, 8, 3, 128), 128: (128, 64, 8, 3)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    100: {16: {64: (128, 64, 4, 3), 128: (128, 64, 8, 3)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
}
BACKWARD_KV: Table = {
    80: {16: {64: (32, 128, 8, 2), 128: (32, 64, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
    90: {16: {64: (64, 128, 8, 2), 128: (32, 128, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
    100: {16: {64: (32, 128, 8, 2, 128), 128: (64, 128, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
}
BACKWARD_Q: Table = {
    80: {16: {64: (128, 64, 8, 2), 128: (128, 32, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    90: {16: {64: (64, 64, 4, 2), 128: (128, 64, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    100: {16: {64: (128, 64, 8, 2, 128), 128: (128, 64, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
}
# On Hopper the backward kernels have no cap: with one of 128 registers ptxas serialises the products of dQ.
# Elements of a tile (tokens x head dim) of the kernels that only stream, on eight warps: 16 per thread and tensor, which
# keeps several blocks on a multiprocessor and enough loads in flight to cover the latency of memory.
STREAMED = 4096


def _launch_matmul(table: Table, head_dim: int, element_bits: int, capability: int) -> Launch:
    rows, columns, warps, stages, *cap = nearest(table, capability)[element_bits][64 if head_dim <= 64 else 128]
    return Launch({"BM": rows, "BN": columns}, warps, stages, *cap)


def launch_attention_fwd(head_dim: int, element_bits: int, capability: int) -> Launch:
    """BN divides BM: the diagonal of a query tile is a whole number of key blocks."""
    return _launch_matmul(FORWARD, head_dim, element_bits, capability)


def launch_attention_bwd_kv(head_dim: int, element_bits: int, capability: int) -> Launch:
    """BM divides BN: the diagonal of a key tile is a whole number of query blocks."""
    return _launch_matmul(BACKWARD_KV, head_dim, element_bits, capability)


def launch_attention_bwd_q(head_dim: int, element_bits: int, capability: int) -> Launch:
    """BN divides BM, as in the forward kernel."""
    return _launch_matmul(BACKWARD_Q, head_dim, element_bits, capability)


def launch_attention_bwd_prepare(head_dim: int) -> Launch:
    return Launch({"BT": STREAMED // max(32, head_dim)}, num_warps=8, num_stages=1)


def launch_xsa(head_dim: int) -> Launch:
    """64 tokens of one group at head dim 64; odd head dims are padded to a power of two."""
    width = max(16, 1 << (head_dim - 1).bit_length())
    return Launch({"BT": max(1, STREAMED // max(32, width)), "BD": width}, num_warps=8, num_stages=1)


def launch_document_bounds() -> Launch:
    return Launch({"BT": 512}, num_warps=4, num_stages=1)


# Bytes and FLOPs of one launch. `pairs` is the number of visible (query, key) pairs of one head, summed over the batch.


def traffic_attention_fwd(
    tokens: int,
    pairs: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int,
    xsa: bool = False,
    gate: bool = False,
) -> tuple[int, int]:
    rows = (2 + gate) * heads + 2 * kv_heads
    per_head = 4 * tokens * heads * (1 + xsa + gate)
    return tokens * rows * head_dim * element_bytes + per_head, 4 * pairs * heads * head_dim


def traffic_attention_bwd_prepare(
    tokens: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int, xsa: bool = False, gate: bool = False
) -> tuple[int, int]:
    rows = (3 if xsa or gate else 2) * heads + (2 * kv_heads if xsa else 0)
    per_head = 4 * tokens * heads * (1 + xsa + 2 * gate)
    return tokens * rows * head_dim * element_bytes + per_head, (10 if xsa else 3) * tokens * heads * head_dim


def traffic_attention_bwd_kv(
    tokens: int, pairs: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int, xsa: bool = False
) -> tuple[int, int]:
    rows = 2 * heads + (5 if xsa else 4) * kv_heads
    return tokens * rows * head_dim * element_bytes + 8 * tokens * heads, 8 * pairs * heads * head_dim


def traffic_attention_bwd_q(
    tokens: int, pairs: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int
) -> tuple[int, int]:
    rows = 3 * heads + 2 * kv_heads
    return tokens * rows * head_dim * element_bytes + 8 * tokens * heads, 6 * pairs * heads * head_dim


def traffic_xsa(
    tokens: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int, direction: str, gate: bool = False
) -> tuple[int, int]:
    rows, work = (2 * heads + kv_heads, 4) if direction == "forward" else (3 * heads + 2 * kv_heads, 10)
    gates = 4 * tokens * heads * gate * (1 if direction == "forward" else 2)
    return tokens * rows * head_dim * element_bytes + gates, work * tokens * heads * head_dim
