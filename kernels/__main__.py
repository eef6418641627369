"""What every kernel compiles to, and an estimate of its time: `python -m pgolf.kernels [operator ...]`. Needs no GPU."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgolf.kernels.compile import Row

WIDTH = 100
LEGEND = (
    "estimate, at best, floor: microseconds of one launch on the target's card; nothing was measured (kernels/estimate.py).\n"
    "--all adds launch, shape, traffic and cycles; --json prints every row with everything."
)


def main() -> int:
    if importlib.util.find_spec("triton") is None:
        print(
            "error: python -m pgolf.kernels compiles with Triton, which is not installed: pip install triton", file=sys.stderr
        )
        return 1
    from pgolf.kernels.compile import CAPABILITIES, OPERATORS, cases, compile_all, sample, workers

    parser = argparse.ArgumentParser(prog="python -m pgolf.kernels", description=__doc__)
    parser.add_argument("operators", nargs="*", default=[], metavar="operator", help=f"some of: {', '.join(OPERATORS)}")
    parser.add_argument(
        "--target", type=int, action="append", choices=CAPABILITIES, help="compute capability; 90 if not given"
    )
    parser.add_argument("--sample", action="store_true", help="one case of each kernel and launch")
    parser.add_argument("--all", action="store_true", help="a second line a kernel: launch, shape, traffic, cycles by pipe")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows, and nothing else")
    arguments = parser.parse_args()
    for operator in arguments.operators:
        if operator not in OPERATORS:
            parser.error(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
    with workers() as pool:
        targets = arguments.target or [90]
        rows = list(compile_all(arguments.operators or OPERATORS, targets, pool, sample if arguments.sample else cases))
    bad = [row for row in rows if row.trouble]
    if arguments.json:
        print(json.dumps([row.record() for row in rows], indent=1))
        return 1 if bad else 0
    for line in table(rows, full=arguments.all):
        print(line)
    print(f"\n{LEGEND}\n\n{len(rows)} compiled, {len(bad)} with findings")
    for row in bad:
        print(f"  {row.operator}/{row.case.name} [{row.case.launch}] sm_{row.capability} {row.trouble}")
    return 1 if bad else 0


def table(rows: Sequence["Row"], full: bool = False) -> list[str]:
    """Lines of at most 100 columns; with `full` a second, longer one for each row."""
    titles = " ".join(f"{title:>9}" for title in ("estimate", "at best", "floor"))
    lines = [f"{'kernel and case':42} {'sm':>3} regs occ. {'bound':7} {titles}"]
    for row in rows:
        made, guess = row.compiled, row.compiled.estimate
        name = f"{row.operator}/{row.case.name}"
        name = name if len(name) <= 42 else name[:41] + "…"
        times = " ".join(f"{time:9.2f}" for time in (guess.estimate_us, guess.at_best_us, guess.floor_us))
        mark = "!" if row.findings else ""
        lines.append(
            f"{name:42} {row.capability:>3} {made.registers:>4} {made.occupancy:>4.0%} {guess.bound:7} {times} {mark}".rstrip()
        )
        if full:
            cycles = " ".join(f"{pipe}={count:.0f}" for pipe, count in guess.cycles.items() if count)
            traffic = f"{row.case.bytes:,} bytes {row.case.flops:,} FLOPs"
            tensor = made.tensor_core or "no tensor cores"
            lines.append(
                f"    {row.case.launch} | {row.case.shape} | {traffic} | shared {made.shared} | {tensor} | cycles {cycles}"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
