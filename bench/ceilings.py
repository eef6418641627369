"""What the device at hand can do at most, measured: how fast it copies and how fast it multiplies random matrices.

A GPU copies from memory; on a CPU a copy that fits a cache is faster, so there the copy is measured at several sizes and
a floor takes the one that its own traffic would fit. Zeros would flatter the product: hardware saves power on them.
"""

from dataclasses import dataclass
from functools import partial

import torch

from bench.timing import DeviceClock, HostClock, Work, interleave

COPIES = {"cuda": (1 << 30,), "cpu": (1 << 18, 1 << 22, 1 << 28)}
SIDES = {"cuda": 8192, "cpu": 1024}
TINY = {"copies": (1 << 12,), "side": 64}


@dataclass(frozen=True)
class Ceilings:
    """bytes a second by the size of what is moved (read and written together), and FLOPs a second."""

    copies: dict[int, float]
    flops: float

    def floor(self, moved: int, flops: int) -> float:
        """Seconds that this traffic and these operations take at least."""
        fitting = [size for size in sorted(self.copies) if moved <= size] or [max(self.copies)]
        return max(moved / self.copies[fitting[0]], flops / self.flops)

    def named(self) -> dict[str, float]:
        return {**{f"copy of {size:,} bytes, B/s": rate for size, rate in self.copies.items()}, "product, FLOP/s": self.flops}


def measure_ceilings(device: str, clock: HostClock | DeviceClock, seconds: float, tiny: bool = False) -> Ceilings:
    """Bytes read and written both count; the product is bfloat16 on a GPU and float32 on a CPU."""
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    copies, side = (TINY["copies"], TINY["side"]) if tiny else (COPIES[device], SIDES[device])
    bandwidths = {}
    for moved in copies:
        source = torch.rand(moved // 8, device=device)
        target = torch.empty_like(source)
        bandwidths[moved] = moved / _seconds(partial(target.copy_, source), clock, seconds)
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    return Ceilings(bandwidths, 2 * side**3 / _seconds(lambda: a @ b, clock, seconds))


def _seconds(work: Work, clock: HostClock | DeviceClock, seconds: float) -> float:
    return interleave({"ours": work}, clock, seconds).of("ours").median
