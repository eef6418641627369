"""Launch tables of the scan's kernels, and the bytes and FLOPs of one launch: functions of shape and capability."""

import torch

from pgolf.kernels.launch import Launch, nearest

# Tokens of a chunk, on every device: a state is kept for each. Twice as many would double the work inside chunks,
# half as many the bytes of states.
CHUNK = 64
# Part of the width, warps and stages by capability; chosen by reasoning, unmeasured: what spills nothing. Programs take no
# more than 64 of a head's width at once, so that several share a multiprocessor and hide each other's chain of products.
FORWARD = {80: (64, 4, 3), 90: (64, 4, 3), 100: (64, 8, 2)}
STATES = {80: (64, 4, 3), 90: (64, 4, 3), 100: (64, 4, 1)}
CHUNKS = {80: (32, 8, 2), 90: (64, 8, 1), 100: (64, 8, 1)}
# The largest state whose gradients stay in registers.
LARGEST = {80: 16, 90: 32, 100: 32}


def _launch(table: dict[int, tuple[int, int, int]], size: int, capability: int) -> Launch:
    width, warps, stages = nearest(table, capability)
    return Launch({"BT": CHUNK, "BP": width, "BS": padded(size)}, num_warps=warps, num_stages=stages)


def launch_forward(size: int, capability: int) -> Launch:
    return _launch(FORWARD, size, capability)


def launch_states(size: int, capability: int) -> Launch:
    return _launch(STATES, size, capability)


def launch_chunks(size: int, capability: int) -> Launch:
    return _launch(CHUNKS, size, capability)


def padded(size: int) -> int:
    """The columns of a state's tile: a power of two, and no fewer than a product of matrices takes."""
    return max(16, 1 << (size - 1).bit_length())


def uses_kernels(width: int, size: int, dtype: torch.dtype, capability: int) -> bool:
    """Half precision, heads of 64 or 128 (narrower tiles have too few rows for Hopper's products) and small states, from
    Ampere on."""
    half = dtype in (torch.bfloat16, torch.float16)
    return capability >= min(FORWARD) and half and width in (64, 128) and 1 <= size <= nearest(LARGEST, capability)


def traffic_forward(tokens: int, heads: int, groups: int, width: int, size: int, element_size: int = 2) -> tuple[int, int]:
    """Bytes and FLOPs; the least bytes: what two heads of a group both read comes from the cache."""
    columns = padded(size)
    states = 4 * heads * width * size // CHUNK
    moved = 2 * heads * width * element_size + 2 * groups * size * element_size + states + 8 * heads
    return tokens * moved, tokens * heads * (2 * CHUNK * (columns + width) + 4 * columns * width)


def traffic_states(tokens: int, heads: int, groups: int, width: int, size: int, element_size: int = 2) -> tuple[int, int]:
    states = 4 * heads * width * size // CHUNK
    moved = heads * width * element_size + groups * size * element_size + states + 4 * heads
    return tokens * moved, tokens * heads * 2 * padded(size) * width


def traffic_chunks(tokens: int, heads: int, groups: int, width: int, size: int, element_size: int = 2) -> tuple[int, int]:
    """The same; where heads share a group, each has gradients of its own in float32."""
    columns = padded(size)
    states = 8 * heads * width * size // CHUNK
    shares = 2 * heads * size * (element_size if groups == heads else 4)
    moved = 3 * heads * width * element_size + 2 * groups * size * element_size + shares + states + 16 * heads
    return tokens * moved, tokens * heads * (2 * CHUNK * (3 * columns + 2 * width) + 6 * columns * width)
