"""A few warm steps of a preset under a profiler: `python -m bench.profiling PRESET`; bench/profile.sh chooses the profiler.

--by torch    torch's own profiler; prints the top kernels with their share and their fraction of the floor
--by range    nothing of its own: marks the steps for nsys or ncu (cudaProfilerStart and Stop)
--report CSV  no run: the same table from a summary that nsys or ncu has written
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.table import duration

WARM_UP = 3


@dataclass(frozen=True)
class Kernel:
    name: str
    seconds: float
    """Of all calls together."""
    calls: int


def table(kernels: Iterable[Kernel], floor_of: Callable[[str], float | None], top: int = 20) -> str:
    """`floor_of` gives the least seconds of one call, where a kernel has one."""
    ranked = sorted(kernels, key=lambda kernel: -kernel.seconds)
    total = sum(kernel.seconds for kernel in ranked) or 1.0
    lines = [("kernel", "calls", "each", "share", "of floor")]
    for kernel in ranked[:top]:
        floor, each = floor_of(kernel.name), kernel.seconds / kernel.calls
        share_of_floor = f"{floor / each:.0%}" if floor and each else ""
        lines.append((kernel.name[:70], str(kernel.calls), duration(each), f"{kernel.seconds / total:.1%}", share_of_floor))
    rest = sum(kernel.seconds for kernel in ranked[top:])
    if rest:
        lines.append((f"{len(ranked) - top} more", "", "", f"{rest / total:.1%}", ""))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def kernels_in_csv(text: str) -> list[Kernel]:
    """From `nsys stats --report cuda_gpu_kern_sum --format csv` or `ncu --csv`; lines before the header are skipped."""
    rows = list(csv.reader(io.StringIO(text)))
    for start, row in enumerate(rows):
        if "Total Time (ns)" in row:
            name, time, calls = (row.index(column) for column in ("Name", "Total Time (ns)", "Instances"))
            return [Kernel(r[name], float(r[time]) / 1e9, int(r[calls])) for r in rows[start + 1 :] if len(r) == len(row)]
        if "Kernel Name" in row and "Metric Value" in row:
            columns = [row.index(column) for column in ("Kernel Name", "Metric Name", "Metric Unit", "Metric Value")]
            return _of_ncu([[r[column] for column in columns] for r in rows[start + 1 :] if len(r) == len(row)])
    raise ValueError("neither nsys' cuda_gpu_kern_sum nor ncu's --csv: no header of theirs was found")


def _of_ncu(rows: list[list[str]]) -> list[Kernel]:
    units = {"ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3, "s": 1.0, "second": 1.0}
    sums: dict[str, tuple[float, int]] = {}
    for name, metric, unit, value in rows:
        if metric in ("gpu__time_duration.sum", "Duration"):
            seconds, calls = sums.get(name, (0.0, 0))
            sums[name] = seconds + float(value.replace(",", "")) * units[unit], calls + 1
    return [Kernel(name, *total) for name, total in sums.items()]


def kernels_of_torch(watched, on_gpu: bool) -> list[Kernel]:
    """Kernels on a GPU; on a CPU the operators' own time, which is the nearest thing to it."""
    kernels = []
    for event in watched.key_averages():
        ours = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        there = event.device_type.name == ("CUDA" if on_gpu else "CPU")
        if ours > 0 and there and not event.is_user_annotation:
            kernels.append(Kernel(event.key, ours / 1e6, event.count))
    return kernels


def work_of(what: str, preset: str, device: str, tiny: bool) -> tuple[Callable[[], object], dict[str, tuple[int, int]]]:
    """What is profiled, and the least traffic of its kernels where it is known."""
    from bench.floors import training_floors
    from bench.steps import AdaptersStep, TrainingStep, preset_for, scoring_rates

    settings = preset_for(preset, device, tiny=tiny)
    if what == "training":
        step = TrainingStep(settings, device)
        return step, training_floors(settings, step.tokens_per_step // step.micro_steps)
    if what == "adapters":
        documents, length = (64, 2048) if device == "cuda" else (2, 64)
        return AdaptersStep(settings, device, "kernels", documents=documents, length=length, rank=8), {}
    return lambda: scoring_rates(settings, device, spans=1), {}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset")
    parser.add_argument("--what", choices=("training", "adapters", "scoring"), default="training")
    parser.add_argument("--by", choices=("torch", "range"), default="torch")
    parser.add_argument("--steps", type=int, default=3, help="profiled; default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="the preset at the size that a CPU can do")
    parser.add_argument("--trace", type=Path, help="with --by torch: write a trace for a browser (chrome://tracing, perfetto)")
    parser.add_argument("--report", type=Path, help="a CSV by nsys or ncu")
    options = parser.parse_args()

    import torch

    from bench.ceilings import measure_ceilings
    from bench.timing import HostClock, device_clock
    from pgolf.errors import PgolfError

    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    try:
        work, floors = work_of(options.what, options.preset, device, options.tiny or not on_gpu)
        kernels = kernels_in_csv(options.report.read_text()) if options.report else None
    except (PgolfError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if kernels is None:
        for _ in range(WARM_UP):
            work()
        if options.by == "range":
            if not on_gpu:
                print("error: nsys and ncu look at a GPU, and torch sees none here; leave --by out", file=sys.stderr)
                return 1
            in_range(work, options.steps)
            return 0
        kernels = by_torch(work, options.steps, on_gpu, options.trace)
    ceilings = measure_ceilings(device, device_clock() if on_gpu else HostClock(), 0.3)

    def floor_of(name: str) -> float | None:
        from bench.floors import kernel_of

        kernel = kernel_of(name, floors)
        return ceilings.floor(*floors[kernel]) if kernel else None

    print(f"{options.steps} steps of {options.preset}, {options.what}, on {device}")
    print(table(kernels, floor_of))
    return 0


def in_range(work: Callable[[], object], steps: int) -> None:
    import torch

    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for _ in range(steps):
        work()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def by_torch(work: Callable[[], object], steps: int, on_gpu: bool, trace: Path | None) -> list[Kernel]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as watched:
        for _ in range(steps):
            work()
        if on_gpu:
            torch.cuda.synchronize()
    if trace:
        watched.export_chrome_trace(str(trace))
    return kernels_of_torch(watched, on_gpu)


if __name__ == "__main__":
    sys.exit(main())
