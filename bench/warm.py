"""Compile what the benchmarks launch on a GPU, without one, into Triton's cache: `python -m bench.warm [NAME ...] [--jobs N]`.

Each operator's CUDA form is called on CPU tensors of the full size, and every launch stops once its kernel is compiled. The
launches go through Triton's own just-in-time path, so the cache's keys are those that the GPU's process looks up, as long as
Triton's build, its ptxas and the kernels' sources are the same. Set TRITON_CACHE_DIR to choose the cache.
"""

import argparse
import functools
import importlib.util
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

CAPABILITY = 90


class NoDevice:
    """Stands for Triton's driver: it says for which target to compile, and has nothing to run on."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@functools.cache
def prepare(capability: int) -> None:
    """Of this process, for good: CUDA forms take CPU tensors, launches compile and do not run, random tensors are empty."""
    import torch
    import triton
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(NoDevice(capability))
    run, register = JITFunction.run, torch.library.impl

    def compile_only(self, *args, grid, warmup, **options):
        return run(self, *args, grid=grid, warmup=True, **options)

    def in_place_of_the_cpus(operator, device, *form, **options):
        """Of our operators, the form for CUDA is registered for CPUs, and the one for CPUs nowhere."""
        if not str(operator).startswith("pgolf::"):
            return register(operator, device, *form, **options)
        return register(operator, "CPU", *form, **options) if device == "CUDA" else None

    JITFunction.run = compile_only
    torch.library.impl = in_place_of_the_cpus
    torch.cuda.current_device = lambda: None  # the index of a CPU tensor's device
    torch.randn_like = torch.empty_like


def compile_one(name: str, capability: int = CAPABILITY) -> dict[str, str]:
    """What kept a form of a benchmark from being compiled; empty if nothing did."""
    prepare(capability)
    import torch

    from bench import benchmarks
    from bench.benchmarks import registry

    class FullSize(benchmarks.Place):
        """The size and the types of a GPU's benchmark, on a CPU and without values."""

        on_gpu = True

        def randn(self, *shape, grad=False, dtype=None):
            return torch.empty(*shape, dtype=dtype or self.dtype).requires_grad_(grad)

        def randint(self, high, *shape):
            return torch.zeros(shape, dtype=torch.int64)

    def ours_alone(form, leaves, **functions):
        """Peers are neither compiled nor run here."""
        return dict.fromkeys(functions) | registry.alike(form, leaves, ours=functions["ours"])

    for family in benchmarks.FAMILIES:
        if hasattr(family, "alike"):
            family.alike = ours_alone
    benchmarks.attention.flex_attention = lambda *arguments: None
    entry = next(entry for entry in benchmarks.BENCHMARKS if entry.name == name)
    failed = {}
    for form in entry.forms:
        try:
            entry.build(FullSize("cpu", "full"), form, *entry.shapes["full"]).ours()
        except (
            Exception
        ) as error:  # a compiler's, a launcher's or torch's: one benchmark must not keep others from being compiled
            failed[form] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return failed


def entries_of(cache: Path) -> set[str]:
    """Kernels that a cache holds, by the folder that Triton names after the key."""
    return {path.parent.name for path in cache.glob("*/*.cubin")}


def check(cache: Path, name: str = "XSA alone") -> int:
    """Whether a launch on the device finds what was compiled ahead."""
    from bench.benchmarks import BENCHMARKS, Place

    entry = next(entry for entry in BENCHMARKS if entry.name == name)
    before = entries_of(cache)
    for form in entry.forms:
        entry.build(Place("cuda", "full"), form, *entry.shapes["full"]).ours()
    anew = entries_of(cache) - before
    print(f"{name}: " + (f"{len(anew)} kernels were compiled again, the keys differ" if anew else "the keys match"))
    return 1 if anew else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.warm", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of benchmarks; all if none is given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes; default: one a core")
    parser.add_argument("--check", action="store_true", help="launch a benchmark on the GPU; say whether it finds its kernels")
    options = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        print("error: triton is not installed: there is nothing to compile with", file=sys.stderr)
        return 1
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    if options.check:
        return check(cache)
    from bench.benchmarks import BENCHMARKS

    names = options.names or [entry.name for entry in BENCHMARKS]
    unknown = set(names) - {entry.name for entry in BENCHMARKS}
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; python -m bench.once --list names them")
    before, failed = entries_of(cache), 0
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(compile_one, name): name for name in names}
        for done in as_completed(waiting):
            for form, why in done.result().items():
                failed += 1
                print(f"not compiled: {waiting[done]}, {form}: {why}", flush=True)
    after = entries_of(cache)
    print(f"cache {cache}: {len(before)} kernels before, {len(after - before)} compiled, {failed} forms failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
