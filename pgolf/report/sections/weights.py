"""The weights of mixtures along the stream."""

import math

from pgolf.report.charts import Chart, Curves, Series, missing, thinned
from pgolf.report.files import Run
from pgolf.report.html import Html
from pgolf.report.scales import Axis
from pgolf.report.sections.section import Section, grid, label
from pgolf.report.tables import columns


def charts(run: Run) -> dict[str, Chart]:
    drawn: dict[str, Chart] = {}
    for predictor, points in run.traces.items():
        at = [target for target, _ in points]
        series = []
        for name in points[0][1]:
            x, y, _, _ = thinned(at, [weights.get(name, math.nan) for _, weights in points])
            series.append(Series(label(name), x, y))
        temperature = predictor == "temperature"
        axis = Axis("temperature", "divides the logits") if temperature else Axis("weight", "share, 0 to 1")
        title = f"Weights along the stream: {label(predictor)}"
        drawn[f"weights_{predictor}"] = Curves(title, Axis("scored", "tokens"), axis, series)
    return drawn


def body(run: Run) -> Html:
    if not run.traces:
        why = "weights.jsonl is empty: no predictor of this run has weights that move."
        return missing("Weights of the experts along the stream", why)
    return grid(charts(run).values())


def text(run: Run) -> str:
    rows = []
    for predictor, points in run.traces.items():
        for name in points[0][1]:
            values = [weights.get(name, math.nan) for _, weights in points]
            rows.append([f"  {label(predictor)}: {label(name)}", f"{values[0]:.4f}", f"{values[-1]:.4f}"])
    return columns([["weights along the stream", "first", "last"], *rows]) if rows else ""


SECTION = Section("weights", "Mixture weights", body, text, charts)
