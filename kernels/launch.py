"""How a kernel is launched, as data: chosen by pure functions, tested without a device."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Launch:
    """Tile sizes (the kernel's constexpr arguments) and the compiler's options. `max_registers` per thread is a cap that
    lets another block share the multiprocessor; None leaves the compiler free."""

    tiles: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments for `kernel[grid](...)`. Fusing multiply and add is pinned: Triton's default will flip."""
        cap = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True, **cap}

    def __str__(self) -> str:
        tiles = " ".join(f"{name}={size}" for name, size in self.tiles.items())
        cap = "" if self.max_registers is None else f" registers<={self.max_registers}"
        return f"{tiles} warps={self.num_warps} stages={self.num_stages}{cap}"


def capability_of(device) -> int:
    """Compute capability of a CUDA device as one number (90 for Hopper); 90 where there is no device, so that
    launch choices can be tested and interpreted anywhere."""
    import torch

    if torch.device(device).type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def cdiv(total: int, part: int) -> int:
    return -(-total // part)
