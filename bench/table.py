"""The table of a run, and the one for the README: `python -m bench.table [FILE ...]` (all committed results if none)."""

import argparse
import sys
from pathlib import Path

from bench.results import FOLDER, Line, Results

HEAD = ("bench", "ours", "peer", "theirs", "ratio", "spread", "of floor", "gate", "verdict")


def amount(value: float, unit: str) -> str:
    return duration(value) if unit == "s" else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def rows(line: Line) -> list[tuple[str, ...]]:
    """A row for each peer and for each gate, whichever are more; what belongs to the bench stands in the first."""
    peers = [
        (name, amount(peer.value, line.unit), f"{peer.ratio.median:.2f}", f"{peer.ratio.low:.2f} - {peer.ratio.high:.2f}")
        for name, peer in line.peers.items()
    ]
    peers += [(name, reason, "", "") for name, reason in line.absent.items()]
    gates = [(f"{gate.name}: {gate.why}", "holds" if gate.holds else "FAILS") for gate in line.gates]
    cells = []
    for i in range(max(len(peers), len(gates), 1)):
        first = (line.bench, amount(line.ours.median, line.unit)) if i == 0 else ("", "")
        roofline_fraction = f"{line.roofline_fraction:.0%}" if line.floor and i == 0 else ""
        peer, gate = (some[i] if i < len(some) else ("",) * width for some, width in ((peers, 4), (gates, 2)))
        cells.append((*first, *peer, roofline_fraction, *gate))
    cells += [("", "", f"  {name}", _figure(value), "", "", "", "", "") for name, value in line.figures.items()]
    return cells


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def text(results: Results) -> str:
    lines = [HEAD, *(row for line in results.lines.values() for row in rows(line))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([heading(results), "", *body])


def heading(results: Results) -> str:
    with_what = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    dates = sorted(set(results.dates.values()))
    when = " to ".join(dict.fromkeys(dates[:1] + dates[-1:]))
    ceilings = ", ".join(f"{name} {value:.3g}" for name, value in results.ceilings.items())
    return f"{results.device}; {when}; {with_what}\nmeasured ceilings: {ceilings}"


def markdown(results: Results) -> str:
    """A short table for the README: each bench against the peer that comes closest."""
    lines = ["| bench | ours | closest peer | ratio | of floor | gates |", "|---|---|---|---|---|---|"]
    for line in results.lines.values():
        closest = min(line.peers, key=lambda name: line.peers[name].ratio.median, default="")
        ratio = line.peers[closest].ratio if closest else None
        lines.append(
            f"| {line.bench} | {amount(line.ours.median, line.unit)} | {closest} | "
            f"{f'{ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})' if ratio else ''} | "
            f"{f'{line.roofline_fraction:.0%}' if line.floor else ''} | {verdict(line)} |"
        )
    return "\n".join([heading(results).replace("\n", "  \n"), "", *lines])


def verdict(line: Line) -> str:
    failed = [f"{gate.name}: {gate.why}" for gate in line.gates if not gate.holds]
    return f"fails {'; '.join(failed)}" if failed else "hold" if line.gates else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="results of a device; all committed ones if not given")
    parser.add_argument("--markdown", action="store_true", help="the README's short form")
    options = parser.parse_args()
    files = options.files or sorted(FOLDER.glob("*.json"))
    if not files:
        print(f"no results yet in {FOLDER}; measure with: pytest bench/ --benchmark --benchmark-accept", file=sys.stderr)
        return 1
    for path in files:
        try:
            results = Results.read(path)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print((markdown if options.markdown else text)(results), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
