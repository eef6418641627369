"""Launch tables of the rotary kernels, and the bytes and FLOPs of one launch: functions of shape and capability."""

from pgolf.kernels.launch import Launch, nearest, next_power

# Elements of one head's tile (tokens x head dim) on four warps, per capability; chosen by reasoning, unmeasured: eight a
# thread are one load of 16 bytes in half precision, and leave the registers for a token's angles and several blocks a
# multiprocessor.
TILES = {80: 1024, 90: 1024, 100: 1024}


def launch_rotary(head_dim: int, capability: int) -> Launch:
    """The tile of one program: BT tokens, rows padded to powers of two."""
    width = max(16, next_power(head_dim))
    return Launch({"BT": max(1, nearest(TILES, capability) // width), "BD": width}, num_warps=4, num_stages=1)


def traffic_rotary(
    tokens: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int, direction: str
) -> tuple[int, int]:
    """Bytes and FLOPs of one call. The tables and the gain's share of each row are small beside the rows."""
    elements = tokens * (heads + kv_heads) * head_dim
    passes, work = (2, 4) if direction == "forward" else (3, 8)
    return passes * elements * element_bytes, work * elements
