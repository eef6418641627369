"""How a kernel is launched, as data: chosen by pure functions, tested without a device; and how an operator's forms are
registered, within ranges that profilers can see."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

# Set PGOLF_NVTX=1 before the start to have ranges; without it nothing is wrapped, so that they cost nothing.
RANGES = os.environ.get("PGOLF_NVTX", "0") not in ("", "0")

T = TypeVar("T")


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


def capability_of(device: "torch.device | str") -> int:
    """Compute capability of a CUDA device as one number (90 for Hopper); 90 where there is no device, so that
    launch choices can be tested and interpreted anywhere."""
    import torch

    if torch.device(device).type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def nearest(table: Mapping[int, T], capability: int) -> T:
    """The entry of a launch table (keyed by capability: 80, 90, 100, ...) for the nearest capability at or below this one;
    the lowest entry where there is none below. A card newer than the table, or between two entries, gets a launch too."""
    # torch's compiler traces this, and has no `max` with a default
    below = [known for known in table if known <= capability]
    return table[max(below) if below else min(table)]


def cdiv(total: int, part: int) -> int:
    """Parts of that size that cover the total."""
    return -(-total // part)


def next_power(size: int) -> int:
    """The smallest power of two that is not below `size`: what a Triton block can span."""
    return 1 << max(0, size - 1).bit_length()


@contextmanager
def span(name: str) -> Iterator[None]:
    """A range of this name for torch's own profiler, and for Nsight (NVTX) where there is a GPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    with torch.profiler.record_function(name):
        if on_gpu:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if on_gpu:
                torch.cuda.nvtx.range_pop()


def implement(operator: str, device: str, form: Callable, ranges: bool = RANGES) -> None:
    """Register one form of an operator ("pgolf::name") for a device ("CPU" or "CUDA").

    A CUDA form runs with its arguments' device as the current one: Triton launches on the current device, whatever device
    the tensors are on. A range lies within the dispatcher, where a compiled graph calls it too. It is named pgolf.name:
    profilers take nested ranges of one name for one, and the dispatcher has one of its own."""
    import torch

    if device == "CUDA":
        form = on_device_of_arguments(form)
    torch.library.impl(operator, device, within_span(operator.replace("::", "."), form) if ranges else form)


def on_device_of_arguments(form: Callable) -> Callable:
    """`form`, called with the device of its first tensor as the current CUDA device."""
    import torch

    @functools.wraps(form)
    def work(*args: Any, **kwargs: Any) -> Any:
        tensors = (x for argument in args for x in (argument if isinstance(argument, (list, tuple)) else [argument]))
        device = next(x.device for x in tensors if isinstance(x, torch.Tensor))
        if device.index == torch.cuda.current_device():
            return form(*args, **kwargs)
        with torch.cuda.device(device):
            return form(*args, **kwargs)

    return work


def outside_graphs(name: str) -> AbstractContextManager:
    """A span for work that no operator of ours does; a compiled graph leaves it out."""
    import torch

    return span(name) if RANGES and not torch.compiler.is_compiling() else nullcontext()


def within_span(name: str, form: Callable) -> Callable:
    @functools.wraps(form)
    def work(*args: Any, **kwargs: Any) -> Any:
        with span(name):
            return form(*args, **kwargs)

    return work
