"""Where the bits go: by position, by length of the document, along the stream, by kind of token."""

import math
from collections.abc import Sequence

import numpy as np

from pgolf.report.charts import Chart, Curves, Dot, DotRows, Row, Series, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, join
from pgolf.report.scales import Axis
from pgolf.report.scores import Cells
from pgolf.report.sections.section import Section, grid, label
from pgolf.report.tables import columns

CELLS_SMOOTHED = 40
"""Curves along the stream are means over this share of it, to either side."""
KINDS = "By kind of token"


def charts(run: Run) -> dict[str, Chart]:
    if not run.scores or not run.summary.score:
        return {}
    drawn = {
        "by_position": _by("position", run),
        "by_length": _by("length", run),
        "along_the_stream": _along(run, run.scores.along),
    }
    if run.scores.by_kind is not None and run.main in run.scores.results:
        drawn["by_kind"] = _kinds(run, run.scores.results, run.scores.by_kind)
    return drawn


def body(run: Run) -> Html:
    drawn = charts(run)
    if not drawn:
        return missing("Where the bits go", "There is no score.jsonl with what each token cost.")
    kinds = drawn.get("by_kind") or missing(KINDS, "score.jsonl does not say what its tokens are; score the run again.")
    return join([grid([drawn["by_position"], drawn["by_length"]]), drawn["along_the_stream"], kinds])


def text(run: Run) -> str:
    if not run.scores:
        return ""
    shown = [(i, name) for i, name, _ in predictors_shown(run)]
    names = [label(name) for _, name in shown]
    tables = []
    for title, cells in (("tokens from", run.scores.by_position), ("documents of tokens from", run.scores.by_length)):
        rows = []
        for k, name in enumerate(cells.names):
            figures = [f"{cells.per_byte(i)[k]:.4f}" if cells.bytes[k] else "–" for i, _ in shown]
            rows.append([f"  {name}", f"{int(cells.bytes[k]):,}", *figures])
        tables.append(columns([[f"bits per byte, {title}", "bytes", *names], *rows]))
    kinds = run.scores.by_kind
    if kinds is not None:
        rows = [
            [f"  {name}", f"{int(kinds.tokens[k]):,}", *(f"{kinds.per_token(i)[k]:.3f}" for i, _ in shown)]
            for k, name in enumerate(kinds.names)
        ]
        tables.append(columns([["bits per token", "tokens", *names], *rows]))
    return "\n\n".join(tables)


def predictors_shown(run: Run, most: int = 5) -> list[tuple[int, str, int]]:
    """Predictors worth a curve, as (column, name, style): the plain ones, what adapts, the run's score; no published ones."""
    if not run.scores:
        return []
    scores = run.summary.score
    names = [name for name in run.scores.results if name not in scores or scores[name].legal]
    while len(names) > most:
        # from the middle: the first and the last ones say most
        middle = [name for name in names[1:] if name != run.main]
        names.remove(middle[len(middle) // 2])
    styles = iter(style for style in (0, 2, 3, 4, 5))
    return [(run.scores.results.index(name), name, 1 if name == run.main else next(styles)) for name in names]


def _by(kind: str, run: Run) -> Chart:
    title, unit = {
        "position": ("By position in the document", "tokens from the document's beginning"),
        "length": ("By length of the document", "tokens of the document"),
    }[kind]
    cells = getattr(run.scores, f"by_{kind}")
    # a cell is drawn at the geometric middle of its edges; the first one begins at 0
    edges = [int(name.replace(",", "")) for name in cells.names]
    middles = [math.sqrt(max(edge, 2) * max(2 * edge, 16)) for edge in edges]
    series = [Series(label(name), middles, cells.per_byte(i), style=style) for i, name, style in predictors_shown(run)]
    return Curves(title, Axis(kind, unit, log=True), Axis("score", "bits per byte"), series)


def _along(run: Run, along: Cells) -> Chart:
    firsts = [int(name) for name in along.names]
    series = [
        Series(label(name), firsts, smoothed_ratio(along.bits[:, i], along.bytes), style=style)
        for i, name, style in predictors_shown(run)
    ]
    note = "Smoothed over the neighbouring stretches."
    return Curves("Along the stream", Axis("scored", "tokens"), Axis("score", "bits per byte"), series, note=note)


def smoothed_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    width = max(len(above) // CELLS_SMOOTHED, 1)
    kernel = np.ones(2 * width + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.convolve(above, kernel, "same") / np.convolve(below, kernel, "same")


def _kinds(run: Run, results: Sequence[str], cells: Cells) -> Chart:
    plain, main = 0, results.index(run.main)
    share = cells.bits[:, main] / cells.bits[:, main].sum()
    rows = []
    for i, name in enumerate(cells.names):
        before, after = cells.per_token(plain)[i], cells.per_token(main)[i]
        rate = f", {cells.per_byte(main)[i]:.2f} a byte" if cells.bytes[i] else ""
        says = f"{after:.2f} bits{rate} · {share[i]:.1%} of all bits, {cells.tokens[i] / cells.tokens.sum():.1%} of tokens"
        rows.append(Row(name, [Dot(before, 0), Dot(after, 1, origin=before)], says))
    return DotRows(
        KINDS,
        Axis("cost", "bits per token", low=0.0),
        rows,
        legend=[(0, label(results[plain])), (1, label(run.main))],
        head="kind",
        note="By the token's piece alone: a word starts where a space comes with it; a boundary ends a document.",
    )


SECTION = Section("where", "Where the bits go", body, text, charts)
