"""How the MLP's products are computed and launched: tables, choices, and the bytes and FLOPs of one launch, as functions of
shape and capability. Chosen by reasoning, unmeasured."""

import torch

from pgolf.kernels.launch import Launch, cdiv, nearest

# By capability; the first tile is for work that fills the device with it. Without a tensor memory accelerator (below
# sm_90) tiles come in by pointer.
TILES = {
    80: [{"BM": 128, "BN": 256, "BK": 32, "TMA": 0}, {"BM": 128, "BN": 128, "BK": 32, "TMA": 0}],
    90: [{"BM": 128, "BN": 256, "BK": 64, "TMA": 1}, {"BM": 128, "BN": 128, "BK": 64, "TMA": 1}],
    100: [{"BM": 128, "BN": 256, "BK": 64, "TMA": 1}, {"BM": 128, "BN": 128, "BK": 64, "TMA": 1}],
}
MULTIPROCESSORS = {80: 108, 90: 132, 100: 148}


def _launch(rows: int, columns: int, capability: int, stages: int) -> Launch:
    wide, narrow = nearest(TILES, capability)
    fills = cdiv(rows, wide["BM"]) * cdiv(columns, wide["BN"]) >= nearest(MULTIPROCESSORS, capability)
    return Launch(wide if fills else narrow, num_warps=8, num_stages=stages)


def launch_up(rows: int, hidden: int, capability: int) -> Launch:
    return _launch(rows, hidden, capability, stages=4)


def launch_down(rows: int, out: int, capability: int) -> Launch:
    return _launch(rows, out, capability, stages=4)


def launch_hidden(rows: int, hidden: int, capability: int) -> Launch:
    """One stage less than forward: the tiles of s on their way in and of dpre on their way out need the space."""
    return _launch(rows, hidden, capability, stages=3)


def launch_w_down(capability: int) -> Launch:
    return Launch(nearest(TILES, capability)[0], num_warps=8, num_stages=4)


def parts_of_rows(rows: int, hidden: int, out: int, launch: Launch, multiprocessors: int) -> tuple[int, int]:
    """How many parts the sum over rows is cut into, so that the tiles of a small matrix fill the device, and their length."""
    tiles = cdiv(hidden, launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"])
    parts = max(1, min(multiprocessors // tiles, rows // 1024))
    length = cdiv(cdiv(rows, parts), launch.tiles["BK"]) * launch.tiles["BK"]
    return cdiv(rows, length), length


def uses_kernels(d: int, hidden: int, out: int, dtype: torch.dtype, capability: int) -> bool:
    """Half precision in whole 16-byte rows, which tensor descriptors ask for, from Ampere on; plain torch serves all
    else."""
    half = dtype in (torch.bfloat16, torch.float16)
    return capability >= min(TILES) and half and d % 8 == hidden % 8 == out % 8 == 0


def magnitude_product(rows: int, hidden: int, slope: float) -> str:
    """How a product consumes |s|: "plain" where s has no sign to clear, "copy" where s is small enough to stay in L2,
    so that a pass over it costs next to nothing and cuBLAS can do the rest, else "kernel"."""
    if slope == 0:
        return "plain"
    return "copy" if 2 * rows * hidden <= 16 * 2**20 else "kernel"


def traffic_up(rows: int, d: int, hidden: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * (rows * d + d * hidden + rows * hidden), 2 * rows * d * hidden


def traffic_down(rows: int, hidden: int, out: int, element_size: int = 2) -> tuple[int, int]:
    return traffic_up(rows, hidden, out, element_size)


def traffic_hidden(rows: int, hidden: int, out: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * (rows * out + out * hidden + 2 * rows * hidden), 2 * rows * out * hidden


def traffic_w_down(rows: int, hidden: int, out: int, parts: int, element_size: int = 2) -> tuple[int, int]:
    return element_size * rows * (hidden + out) + 4 * parts * hidden * out, 2 * rows * out * hidden
