"""How the packed products are computed and launched: tables, choices, and the bytes and FLOPs of one launch, as functions of
shape and capability. Chosen by reasoning, unmeasured."""

from collections.abc import Sequence

import torch

from pgolf.kernels.launch import Launch, cdiv, nearest
from pgolf.kernels.packed import reference

# (most units or tokens, launch), the last for all above
Table = Sequence[tuple[int | None, Launch]]

# up to this many tokens, codes are expanded tile by tile on the way into the product; above, once for all tokens
CROSSOVER = {80: 128, 90: 256, 100: 128}
BACKWARD_CROSSOVER = {80: 64, 90: 64, 100: 64}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}

# by units in a row: the input is read without a detour through shared memory only while BU is below the thread count
GEMV: Table = (
    (31, Launch({"BN": 16, "BU": 16}, num_warps=1, num_stages=1)),
    (63, Launch({"BN": 16, "BU": 32}, num_warps=2, num_stages=1)),
    (127, Launch({"BN": 16, "BU": 64}, num_warps=4, num_stages=1)),
    (None, Launch({"BN": 32, "BU": 128}, num_warps=8, num_stages=1)),
)
EXPAND: Table = (
    (31, Launch({"BN": 32, "BU": 16}, num_warps=4, num_stages=1)),
    (63, Launch({"BN": 16, "BU": 32}, num_warps=4, num_stages=1)),
    (None, Launch({"BN": 16, "BU": 64}, num_warps=4, num_stages=1)),
)
# by tokens
_16 = Launch({"BM": 16, "BN": 64, "BU": 16}, num_warps=4, num_stages=4)
_32 = Launch({"BM": 32, "BN": 64, "BU": 16}, num_warps=4, num_stages=3)
_64 = Launch({"BM": 64, "BN": 64, "BU": 16}, num_warps=4, num_stages=3)
_128 = Launch({"BM": 128, "BN": 128, "BU": 16}, num_warps=8, num_stages=3)
MATMUL: dict[int, Table] = {
    80: ((16, _16), (32, _32), (None, _64)),
    90: ((16, _16), (32, _32), (64, _64), (None, _128)),
    100: ((16, _16), (None, _32)),  # each of eight chained products takes tensor memory of its own
}
BACKWARD: dict[int, Table] = {
    80: ((16, _16), (None, _32)),
    90: ((16, _16), (32, _32), (None, _64)),
    100: ((16, _16), (None, _32)),
}
REDUCE = Launch({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _up_to(table: Table, size: int) -> Launch:
    return next(launch for most, launch in table if most is None or size <= most)


def choose(tokens: int, rows: int, cols: int, dtype: torch.dtype, capability: int) -> str:
    """How x @ W.T is computed: "gemv", "split" (matmul with the sum divided among programs), "matmul" or "expand"."""
    if tokens == 1:
        return "gemv"
    if dtype == torch.float32 or tokens > nearest(CROSSOVER, capability):
        return "expand"  # tensor cores have no full float32: there the dense product is as good
    return "split" if matmul_splits(tokens, rows, cols, capability) > 1 else "matmul"


def choose_backward(tokens: int, cols: int, dtype: torch.dtype, capability: int) -> str:
    """How grad @ W is computed: "matmul" (always split where that fills the device) or "expand"."""
    small = tokens <= nearest(BACKWARD_CROSSOVER, capability)
    return "matmul" if small and cols % 32 == 0 and dtype != torch.float32 else "expand"


def launch_gemv(cols: int) -> Launch:
    return _up_to(GEMV, cols // 32)


def launch_expand(cols: int) -> Launch:
    return _up_to(EXPAND, cols // 32)


def launch_matmul(tokens: int, capability: int) -> Launch:
    return _up_to(nearest(MATMUL, capability), tokens)


def launch_backward(tokens: int, capability: int) -> Launch:
    return _up_to(nearest(BACKWARD, capability), tokens)


def launch_reduce() -> Launch:
    return REDUCE


def matmul_splits(tokens: int, rows: int, cols: int, capability: int) -> int:
    """Programs that share one tile's sum over the columns: enough for two programs a multiprocessor, two steps each."""
    tiles = launch_matmul(tokens, capability).tiles
    programs = cdiv(rows, tiles["BN"]) * cdiv(tokens, tiles["BM"])
    return _splits(programs, 4 * cdiv(cols // 32, tiles["BU"]), capability)


def backward_splits(tokens: int, rows: int, cols: int, capability: int) -> int:
    """The same for the sum over the rows."""
    tiles = launch_backward(tokens, capability).tiles
    programs = 4 * cdiv(cols // 32, tiles["BU"]) * cdiv(tokens, tiles["BM"])
    return _splits(programs, cdiv(rows, tiles["BN"]), capability)


def _splits(programs: int, steps: int, capability: int) -> int:
    wanted = 2 * nearest(MULTIPROCESSORS, capability) // programs
    return max(1, min(wanted, steps // 2, 16))


def packed_bytes(rows: int, cols: int, bits: int) -> int:
    return 4 * rows * (reference.words_per_row(bits, cols) + 1)


def traffic_gemv(rows: int, cols: int, bits: int, itemsize: int = 2) -> tuple[int, int]:
    """Bytes and FLOPs."""
    return packed_bytes(rows, cols, bits) + (rows + cols) * itemsize, 2 * rows * cols


def traffic_matmul(tokens: int, rows: int, cols: int, bits: int, itemsize: int = 2, splits: int = 1) -> tuple[int, int]:
    """Bytes and FLOPs; a split sum is written in float32 by each part, and the scales wait for the reduction."""
    written = tokens * rows * itemsize if splits == 1 else splits * tokens * rows * 4 - rows * 4
    return packed_bytes(rows, cols, bits) + tokens * cols * itemsize + written, 2 * tokens * rows * cols


def traffic_reduce(tokens: int, width: int, splits: int, itemsize: int = 2, scaled: bool = True) -> tuple[int, int]:
    """Bytes and FLOPs."""
    count = tokens * width
    return count * (4 * splits + itemsize) + 4 * width * scaled, count * (splits + scaled)


def traffic_expand(rows: int, cols: int, bits: int, itemsize: int = 2) -> tuple[int, int]:
    """Bytes and FLOPs."""
    return packed_bytes(rows, cols, bits) + rows * cols * itemsize, rows * cols


def traffic_backward(tokens: int, rows: int, cols: int, bits: int, itemsize: int = 2, splits: int = 1) -> tuple[int, int]:
    """Bytes and FLOPs."""
    written = tokens * cols * (itemsize if splits == 1 else 4 * splits)
    return packed_bytes(rows, cols, bits) + tokens * rows * itemsize + written, 2 * tokens * rows * cols
