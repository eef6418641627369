"""Launch tables of the rotary kernels, and the bytes and FLOPs of one launch: functions of shape and capability."""

from pgolf.kernels.launch import Launch, nearest

# Elements of one tile (tokens x head dim) and warps, per capability; chosen by reasoning, unmeasured: enough bytes in
# flight per thread to cover the latency of memory, few enough registers for eight blocks on a multiprocessor.
TILES = {
    80: {"forward": (2048, 4), "backward": (2048, 4)},
    90: {"forward": (4096, 4), "backward": (2048, 4)},
    100: {"forward": (4096, 4), "backward": (2048, 4)},
}


def launch_rotary(head_dim: int, dims: int, capability: int, direction: str) -> Launch:
    """The tile of one program: BT tokens of one head, rows padded to powers of two."""
    elements, warps = nearest(TILES, capability)[direction]
    width = max(16, _power_of_two(head_dim))
    tiles = {"BT": max(16, elements // width), "BD": width, "BH": _power_of_two(max(1, dims // 2))}
    return Launch(tiles, num_warps=warps, num_stages=1)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def traffic_rotary(
    tokens: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int, direction: str
) -> tuple[int, int]:
    """Bytes and FLOPs of one call. The tables and the partial sums of the gain are small beside the rows."""
    elements = tokens * (heads + kv_heads) * head_dim
    passes, work = (2, 4) if direction == "forward" else (3, 8)
    return passes * elements * element_bytes, work * elements
