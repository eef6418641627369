"""How the symmetric product is launched, when, and what it moves and computes."""

import torch

from pgolf.kernels.launch import Launch, cdiv, nearest

# By compute capability. Chosen by reasoning, unmeasured: square tiles, two programs on a multiprocessor.
TILES = {80: {"BM": 128, "BK": 32}, 90: {"BM": 128, "BK": 64}}


def launch_symmetric(capability: int) -> Launch:
    return Launch(nearest(TILES, capability), num_warps=8, num_stages=3)


def triangle(m: int, tile: int) -> int:
    """Tiles on and below the diagonal of an m x m matrix."""
    side = cdiv(m, tile)
    return side * (side + 1) // 2


def uses_kernel(m: int, n: int, dtype: torch.dtype, capability: int) -> bool:
    """Half precision in rows of whole 16 bytes, and enough tiles for a triangle of them to save something; plain torch
    serves all else."""
    half = dtype in (torch.bfloat16, torch.float16)
    return capability >= min(TILES) and half and m % 8 == n % 8 == 0 and m > nearest(TILES, capability)["BM"]


def traffic_symmetric(batch: int, m: int, k: int, tile: int, linear: bool, element_size: int = 2) -> tuple[int, int]:
    """Bytes with every matrix read once, and the FLOPs of the tiles that are computed."""
    return batch * element_size * (m * k + m * m), batch * triangle(m, tile) * tile * tile * 2 * (k + linear)
