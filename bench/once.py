"""Operators once, forward and backward, for a tool that watches kernels: Nsight Compute, Nsight Systems, compute-sanitizer.

    python -m bench.once --list
    ncu --profile-from-start off -k regex:attention_fwd_kernel python -m bench.once --size full "attention with XSA"
    compute-sanitizer --tool racecheck python -m bench.once

Everything is warm when the watched part begins (cudaProfilerStart).
"""

import argparse
import sys

from bench.benchmarks import BENCHMARKS, FORWARD, Place


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.once", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of benchmarks; all if none is given")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--forward", action="store_true", help="no backward pass")
    options = parser.parse_args()
    if options.list:
        print("\n".join(entry.name for entry in BENCHMARKS))
        return 0
    unknown = set(options.names) - {entry.name for entry in BENCHMARKS}
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)[0]!r}; --list names them")
    import torch

    if not torch.cuda.is_available():
        print("error: kernels run on an NVIDIA GPU, and torch sees none here", file=sys.stderr)
        return 1
    for entry in BENCHMARKS:
        if options.names and entry.name not in options.names:
            continue
        # small sizes still have more than one tile, where a CPU's size was thought of
        size = "full" if options.size == "full" else "cpu" if "cpu" in entry.shapes else "tiny"
        for form in entry.forms[:1] if options.forward and FORWARD in entry.forms else entry.forms:
            ours = entry.build(Place("cuda", size), form, *entry.shapes[size]).ours
            ours()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            ours()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
            print(f"ran {entry.name}, {form}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
