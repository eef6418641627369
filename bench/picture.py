"""Pictures of results: `python -m bench.picture [FILE ...]` draws each file's picture beside it; all if none."""

import argparse
import sys
from pathlib import Path

from bench.results import FOLDER, Results
from pgolf.report.charts import Chart, Curves, Dot, DotRows, Row, Series
from pgolf.report.scales import Axis
from pgolf.report.svg import write

PASSES, FAILS = 0, 1


def draw(results: Results, path: Path) -> list[Path]:
    """Ratios to every peer with their spread; and packed against dense products by the number of rows, where measured."""
    charts = {path: ratios(results), path.with_stem(f"{path.stem}-packed-rows"): crossover(results)}
    return [drawn for place, chart in charts.items() if chart and (drawn := write(chart, place))]


def ratios(results: Results) -> Chart:
    """A row a peer: its time over ours, on a logarithmic axis; the quartiles are the whisker."""
    rows = []
    for line in results.lines.values():
        for name, peer in line.peers.items():
            ratio = peer.ratio
            dot = Dot(ratio.median, PASSES if line.holds else FAILS, span=(ratio.low, ratio.high))
            says = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            rows.append(Row(f"{line.bench}: {name}", [dot], says))
    when = max(results.dates.values(), default="")
    return DotRows(
        f"{results.device}, {when}",
        Axis("time or bytes of the peer over ours", "ratio", log=True),
        rows,
        legend=[(PASSES, "gates hold"), (FAILS, "a gate fails")],
        head="benchmark and peer",
        note="Right of the line at 1 ours is better. Whiskers are the quartiles.",
        zero=1.0,
    )


def sweep(results: Results) -> list[tuple[int, float, float]]:
    """(rows, packed seconds, dense seconds) of every size that was measured."""
    points = []
    for line in results.lines.values():
        if "crossover rows" in line.figures and line.peers:
            dense = next(iter(line.peers.values())).value
            points.append((int(line.figures["crossover rows"]), line.ours.median, dense))
    return sorted(points)


def crossover(results: Results) -> Chart | None:
    points = sweep(results)
    if not points:
        return None
    rows, packed, dense = zip(*points, strict=True)
    series = [
        Series(name, rows, [1e6 * s for s in seconds]) for name, seconds in (("packed, 6 bits", packed), ("dense", dense))
    ]
    axes = Axis("input", "rows", log=True), Axis("time", "µs", log=True)
    return Curves(f"Packed and dense products, {results.device}", *axes, series)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="results of a device; all committed ones if not given")
    for path in parser.parse_args().files or sorted(FOLDER.glob("*.json")):
        try:
            print(*draw(Results.read(path), path.with_suffix(".svg")), sep="\n")
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
