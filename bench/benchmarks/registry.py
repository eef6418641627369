"""The registry of benchmarks and what their builders share.

A benchmark pits one operator against the strongest peers there are, on the same random inputs. Its functions return what they
computed, so that results are compared before any of them is timed. Bytes and FLOPs are those that the operator's docstring
states, each tensor crossing memory once.
"""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.timing import Work

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Place:
    """The device of a benchmark and its size: tiny, cpu or full."""

    device: str
    size: str

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def element(self) -> int:
        return self.dtype.itemsize

    def randn(self, *shape: int, grad: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype or self.dtype).requires_grad_(grad)

    def randint(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, device=self.device)


@dataclass
class Benchmark:
    """
    ours, peers   functions of no argument that do the same work and return the same tensors
    work          (bytes, FLOPs) of the least traffic, for the roofline
    per_call      what one call gets through, for a rate: (number, unit)
    absent        peers that cannot run here, and why
    min_speedup   by peer: the least ratio of its time to ours that passes; on a CPU 0.8 at least, or none
    min_roofline  the least share of the roofline that passes on a GPU; 0: any
    tolerance     of the results: root mean square of the difference over that of the peer's
    figures       what else is to be kept, by name
    """

    ours: Work
    peers: dict[str, Work]
    work: tuple[int, int] = (0, 0)
    per_call: tuple[float, str] = (0, "")
    absent: dict[str, str] = field(default_factory=dict)
    min_speedup: dict[str, float] = field(default_factory=dict)
    min_roofline: float = 0.0
    tolerance: float = 2e-2
    figures: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A builder by name, with its shapes for each size and the directions that are timed."""

    name: str
    build: Callable[..., Benchmark]
    shapes: dict[str, tuple]
    forms: tuple[str, ...] = (FORWARD, BOTH)


BENCHMARKS: list[Entry] = []


def benchmark(name: str, *, tiny: tuple, full: tuple, cpu: tuple | None = None, forms=(FORWARD, BOTH)):
    """Register a builder. Without a shape for a CPU the benchmark runs on a GPU alone (and tiny anywhere)."""

    def enter(build):
        BENCHMARKS.append(Entry(name, build, {"tiny": tiny, "full": full, **({"cpu": cpu} if cpu else {})}, tuple(forms)))
        return build

    return enter


# ---- what benchmarks share


def performed(function: Callable, leaves: list[Tensor], form: str) -> Work:
    """`function` of the leaves, with the gradients of those that ask for one if the form says so."""

    def forward():
        with torch.no_grad():
            return function(*leaves)

    if form == FORWARD:
        return forward
    asking = [leaf for leaf in leaves if leaf.requires_grad]
    outputs = forward()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out) for out in outputs]

    def both():
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return *outputs, *torch.autograd.grad(outputs, asking, upstream)

    both.upstream = upstream
    return both


def alike(form: str, leaves: list[Tensor], **functions: Callable) -> dict[str, Work]:
    """All contenders with the same leaves and the same upstream gradient. Names carry spaces as underscores."""
    contenders, first = {}, None
    for name, function in functions.items():
        work = performed(function, leaves, form)
        if form == BOTH:
            first = first or work
            for own, shared in zip(work.upstream, first.upstream, strict=True):
                own.copy_(shared)
        contenders[name.replace("_", " ")] = work
    return contenders


def compiled(place: Place, function: Callable) -> dict[str, Callable]:
    """torch.compile of the reference: the peer that every kernel has to beat."""
    if not place.on_gpu:
        return {}
    return {"torch.compile": torch.compile(function, fullgraph=True, dynamic=False)}


def without_gpu(place: Place, *names: str) -> dict[str, str]:
    return {} if place.on_gpu else dict.fromkeys(names, "needs a GPU")


def not_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def split(contenders: dict[str, Work]) -> tuple[Work, dict[str, Work]]:
    return contenders["ours"], {name: work for name, work in contenders.items() if name != "ours"}


def results_of(results) -> Iterator[Tensor]:
    if isinstance(results, Tensor):
        yield results
    elif isinstance(results, (tuple, list)):
        for part in results:
            yield from results_of(part)


def disagreement(ours, wanted) -> float:
    """The largest relative error (root mean square) of all results; a NaN is infinite."""
    worst = 0.0
    for one, other in zip(results_of(ours), results_of(wanted), strict=True):
        one, other = one.detach().double(), other.detach().double()
        size = other.pow(2).mean().sqrt().clamp_min(1e-30)
        error = ((one - other).pow(2).mean().sqrt() / size).item()
        worst = max(worst, error if error == error else math.inf)
    return worst


def sum_of(traffic: Callable, form: str) -> tuple[int, int]:
    """(bytes, FLOPs) of the directions that a form takes."""
    per_direction = [traffic(direction) for direction in ("forward", "backward")[: 1 + (form == BOTH)]]
    return tuple(map(sum, zip(*per_direction, strict=True)))


def first_peer(place: Place, peers: dict, on_cpu: float, on_gpu: float = 1.0) -> dict[str, float]:
    """The least ratio to the first peer: torch.compile on a GPU, plain torch on a CPU."""
    return {next(iter(peers)): on_gpu if place.on_gpu else on_cpu}


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Compiled graphs are counted by function: each benchmark starts with a fresh count."""
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
