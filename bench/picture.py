"""Pictures of results: `python -m bench.picture [FILE ...]` draws each file's picture beside it; all if none."""

import argparse
import sys
from pathlib import Path

from bench.results import FOLDER, Results

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")


def draw(results: Results, path: Path) -> Path:
    """Ratios to every peer with their spread; and packed against dense products by the number of rows, where measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(line, peer) for line in results.lines.values() for peer in line.peers]
    sweep = crossover(results)
    panels = [max(2.0, 0.24 * len(bars) + 1.2)] + [3.2] * bool(sweep)
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(11, sum(panels)), height_ratios=panels, squeeze=False, layout="constrained"
    )
    _ratios(axes[0, 0], bars)
    if sweep:
        _crossover(axes[1, 0], sweep)
    figure.suptitle(f"{results.device}, {max(results.dates.values(), default='')}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _ratios(axis, bars) -> None:
    names = list(dict.fromkeys(peer for _, peer in bars))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    for place, (line, peer) in enumerate(bars):
        ratio = line.peers[peer].ratio
        spread = [[max(0.0, ratio.median - ratio.low)], [max(0.0, ratio.high - ratio.median)]]
        axis.barh(place, ratio.median, color=colour[peer], height=0.7, xerr=spread, error_kw={"lw": 0.8})
        axis.text(ratio.high * 1.03, place, f"{ratio.median:.2f}", va="center", fontsize=7)
    axis.axvline(1.0, color="black", lw=0.8)
    axis.set_yticks(range(len(bars)), [line.bench for line, _ in bars], fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.margins(x=0.1)
    axis.set_xlabel("theirs over ours, in time or bytes (right of 1: ours is better); lines: quartiles", fontsize=8)
    handles = [axis.barh(0, 0, color=colour[name], label=name) for name in names]
    axis.legend(handles=handles, fontsize=7, loc="lower right")


def crossover(results: Results) -> list[tuple[int, float, float]]:
    """(rows, packed seconds, dense seconds) of every size that was measured."""
    found = []
    for line in results.lines.values():
        if "crossover rows" in line.figures and line.peers:
            dense = next(iter(line.peers.values())).value
            found.append((int(line.figures["crossover rows"]), line.ours.median, dense))
    return sorted(found)


def _crossover(axis, sweep) -> None:
    rows, packed, dense = zip(*sweep, strict=True)
    for seconds, name, colour in ((packed, "packed, 6 bits", COLOURS[0]), (dense, "dense", COLOURS[1])):
        axis.plot(rows, [1e6 * s for s in seconds], marker="o", ms=3, color=colour, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("rows of the input", fontsize=8)
    axis.set_ylabel("microseconds", fontsize=8)
    axis.legend(fontsize=7)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.picture", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="results of a device; all committed ones if not given")
    for path in parser.parse_args().files or sorted(FOLDER.glob("*.json")):
        try:
            print(draw(Results.read(path), path.with_suffix(".png")))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
