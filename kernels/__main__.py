"""Print what every kernel compiles to: `python -m pgolf.kernels [--target 90] [operator ...]`. Needs no GPU."""

import argparse
import sys

from pgolf.kernels.compile import CAPABILITIES, H100, H200, OPERATORS, TARGETS, cases, compile_case, floor_microseconds

HEAD = "kernel configuration target registers spilled shared occupancy tensor shape bytes flops H100_us H200_us".split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pgolf.kernels", description=__doc__)
    parser.add_argument("operators", nargs="*", default=[], metavar="operator", help=f"some of: {', '.join(OPERATORS)}")
    parser.add_argument("--target", type=int, action="append", choices=CAPABILITIES, help="capability; all if not given")
    arguments = parser.parse_args()
    for operator in arguments.operators:
        if operator not in OPERATORS:
            parser.error(f"no operator {operator!r}; there are {', '.join(OPERATORS)}")
    rows, bad = [HEAD], []
    for operator in arguments.operators or OPERATORS:
        for capability in arguments.target or CAPABILITIES:
            for case in cases(operator, capability):
                made = compile_case(case, capability)
                rows.append([
                    f"{operator}/{case.name}",
                    str(case.launch),
                    f"sm_{capability}",
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
                ])
                if made.spilled or made.shared > TARGETS[capability].shared_per_block:
                    bad.append(rows[-1][0] + " " + rows[-1][2])
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{len(rows) - 1} compiled, {len(bad)} with spills or too much shared memory")
    for name in bad:
        print(f"  {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
