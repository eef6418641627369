"""Print what every kernel compiles to: `python -m pgolf.kernels [--target 90] [operator ...]`. Needs no GPU."""

import argparse
import sys

from pgolf.kernels.compile import CAPABILITIES, H100, H200, OPERATORS, compile_all, floor_microseconds, workers

HEAD = "kernel configuration target registers spilled shared occupancy tensor shape bytes flops H100_us H200_us".split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pgolf.kernels", description=__doc__)
    parser.add_argument("operators", nargs="*", default=[], metavar="operator", help=f"some of: {', '.join(OPERATORS)}")
    parser.add_argument("--target", type=int, action="append", choices=CAPABILITIES, help="capability; all if not given")
    arguments = parser.parse_args()
    for operator in arguments.operators:
        if operator not in OPERATORS:
            parser.error(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
    lines, bad = [HEAD], []
    with workers() as pool:
        rows = list(compile_all(arguments.operators or OPERATORS, arguments.target or CAPABILITIES, pool))
    for row in rows:
        case, made = row.case, row.compiled
        lines.append(
            [
                f"{row.operator}/{case.name}",
                str(case.launch),
                f"sm_{row.capability}",
                str(made.registers),
                str(made.spilled),
                str(made.shared),
                f"{made.occupancy:.0%}",
                made.tensor_core or "-",
                case.shape,
                f"{case.bytes:,}",
                f"{case.flops:,}",
                f"{floor_microseconds(case, H100):.2f}",
                f"{floor_microseconds(case, H200):.2f}",
            ]
        )
        if row.trouble:
            bad.append(f"{row.operator}/{case.name} [{case.launch}] sm_{row.capability} {row.trouble}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\n{len(lines) - 1} compiled, {len(bad)} in trouble")
    for trouble in bad:
        print(f"  {trouble}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
