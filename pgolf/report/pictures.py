"""The charts of a run's report as SVG files of their own."""

from pathlib import Path

from pgolf.report.files import ODD, Run
from pgolf.report.sections import SECTIONS
from pgolf.report.svg import write


def draw(run: Run, folder: Path) -> list[Path]:
    """Every picture that the run's files allow."""
    drawn = []
    for one in SECTIONS:
        try:
            charts = one.charts(run)
        except ODD:
            continue  # the page says what is wrong with the file
        drawn += [path for name, chart in charts.items() if (path := write(chart, folder / f"{name}.svg"))]
    return drawn
