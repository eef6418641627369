"""What each layer of scoring is worth, where the bits go, and what the clock took."""

import math

import numpy as np

from pgolf.report.charts import Axis, Bar, Dot, Row, Series, bars, curves, dot_rows, missing, thinned
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.sections.parts import section, spoken

TWO_SIDED_95 = 1.96
CELLS_SMOOTHED = 40
"""Curves along the stream are means over this share of it, to either side."""


def scoring(run: Run) -> Html:
    title = "Scoring"
    scores = run.summary.get("score")
    if not scores:
        return section("scoring", title, missing("Not scored", "There are no predictors yet: python -m pgolf.run score RUN"))
    parts = [_onion(run), h("div", _where(run), class_="grid"), _along(run), _kinds(run), _weights(run), _gave_up(run)]
    notes = []
    if run.config.get("evaluation", {}).get("adaptation", {}).get("method", "none") == "none":
        notes.append("This run does not adapt while it scores (evaluation.adaptation.method is none).")
    if not run.config.get("evaluation", {}).get("mixer", {}).get("honest"):
        notes.append("It uses no mixer (evaluation.mixer.honest is empty).")
    return section("scoring", title, *parts, says=" ".join(notes))


def _onion(run: Run) -> Html:
    """Every reading, from the outermost layer in, with its gain over the one it builds on."""
    scores = run.summary["score"]
    rows = []
    for name, score in scores.items():
        says, error, origin = f"{score['bpb']:.4f}", None, None
        if "over" in score:
            error = score.get("gain_error")
            spread = f" ± {error:.4f}" if error is not None else ""
            says += f", {0.0 - score['gain']:+.4f}{spread} on {spoken(score['over'])}"
            if run.scores and {name, score["over"]} <= set(run.scores.results) and len(run.scores.document_bytes) > 1:
                share = run.scores.paired(score["over"], name)
                says += f"; better in {share:.0%} of {len(run.scores.document_bytes):,} documents"
            origin = scores.get(score["over"], {}).get("bpb")
        main = name == run.main
        dot = Dot(score["bpb"], 1 if main else 0 if score["legal"] else 5, TWO_SIDED_95 * error if error else None, origin)
        note = "" if score["legal"] else " (as published; no code length)"
        rows.append(Row(spoken(name) + note, [dot], says, strong=main, quiet=not score["legal"]))
    published = any(row.quiet for row in rows)
    return dot_rows(
        "The onion: what each layer of scoring is worth",
        Axis("score", "bits per byte"),
        rows,
        legend=[(1, "the run's score"), (0, "other code lengths"), (5, "no code length")][: 2 + published],
        head="result",
        note="A line leads from the predictor below to this one. ± is one standard error of the gain, paired document by "
        "document; whiskers are 95 %. Less is better.",
    )


def results_shown(run: Run, most: int = 5) -> list[tuple[int, str, int]]:
    """Predictors worth a curve, as (column, name, style): the plain ones, what adapts, the run's score; no published ones."""
    if not run.scores:
        return []
    scores = run.summary["score"]
    names = [name for name in run.scores.results if scores.get(name, {}).get("legal", True)]
    while len(names) > most:
        # in the middle of the onion: its ends say most
        middle = [name for name in names[1:] if name != run.main]
        names.remove(middle[len(middle) // 2])
    styles = iter(style for style in (0, 2, 3, 4, 5))
    return [(run.scores.results.index(name), name, 1 if name == run.main else next(styles)) for name in names]


def _where(run: Run) -> list[Html]:
    if not run.scores:
        return [missing("Where the bits go", "There is no score.jsonl with what each token cost.")]
    found = []
    for title, label, cells in (
        ("By position in the document", "tokens from the document's beginning", run.scores.by_position),
        ("By length of the document", "tokens of the document", run.scores.by_length),
    ):
        # a cell is drawn at the geometric middle of its edges; the first one begins at 0
        edges = [int(name.replace(",", "")) for name in cells.names]
        middles = [math.sqrt(max(edge, 2) * max(2 * edge, 16)) for edge in edges]
        series = [Series(spoken(name), middles, cells.per_byte(i), style=style) for i, name, style in results_shown(run)]
        found.append(curves(title, Axis(label, "tokens", log=True), Axis("score", "bits per byte"), series))
    return found


def _along(run: Run) -> Html | None:
    if not run.scores:
        return None
    along = run.scores.along
    firsts = [int(name) for name in along.names]
    series = []
    for i, name, style in results_shown(run):
        series.append(Series(spoken(name), firsts, smoothed_ratio(along.bits[:, i], along.bytes), style=style))
    note = "Smoothed over the neighbouring stretches."
    return curves("Along the stream", Axis("targets scored", "tokens"), Axis("score", "bits per byte"), series, note=note)


def smoothed_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    width = max(len(above) // CELLS_SMOOTHED, 1)
    kernel = np.ones(2 * width + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.convolve(above, kernel, "same") / np.convolve(below, kernel, "same")


def _kinds(run: Run) -> Html | None:
    title = "By kind of token"
    if not run.scores:
        return None
    cells = run.scores.by_kind
    if cells is None or not run.main or run.main not in run.scores.results:
        return missing(title, "score.jsonl does not say what its tokens are; score the run again.")
    plain, main = 0, run.scores.results.index(run.main)
    share = cells.bits[:, main] / cells.bits[:, main].sum()
    rows = []
    for i, name in enumerate(cells.names):
        before, after = cells.per_token(plain)[i], cells.per_token(main)[i]
        rate = f", {cells.per_byte(main)[i]:.2f} a byte" if cells.bytes[i] else ""
        says = f"{after:.2f} bits{rate} · {share[i]:.1%} of all bits, {cells.tokens[i] / cells.tokens.sum():.1%} of tokens"
        rows.append(Row(name, [Dot(before, 0), Dot(after, 1, origin=before)], says))
    return dot_rows(
        title,
        Axis("cost", "bits per token", low=0.0),
        rows,
        legend=[(0, spoken(run.scores.results[plain])), (1, spoken(run.main))],
        head="kind",
        note="By the piece alone: a word starts where a space comes with it; a boundary ends a document.",
    )


def _weights(run: Run) -> Html:
    if not run.traces:
        why = "weights.jsonl is empty: no predictor of this run has weights that move."
        return missing("Weights of the experts along the stream", why)
    charts = []
    for predictor, points in run.traces.items():
        at = [target for target, _ in points]
        series = []
        for name in points[0][1]:
            x, y, _, _ = thinned(at, [weights.get(name, math.nan) for _, weights in points])
            series.append(Series(spoken(name), x, y))
        temperature = predictor == "temperature"
        axis = Axis("temperature", "divides the logits") if temperature else Axis("weight", "share, 0 to 1")
        charts.append(curves(f"Weights along the stream: {spoken(predictor)}", Axis("targets scored", "tokens"), axis, series))
    return h("div", charts, class_="grid")


GAVE_UP = {
    "coarser_stride": "of the stream at a coarser stride than asked for",
    "adaptation": "of the adaptation left out",
    "first_pass_stands": "of the stream with nothing but the first pass",
}


def given_up(given: dict) -> list[str]:
    lines = [f"{share:.1%} {GAVE_UP[name]}" for name, share in given.items() if name in GAVE_UP]
    if given.get("documents_without_adapters"):
        lines.append(f"{given['documents_without_adapters']:,} documents without adapters")
    if given.get("results"):
        lines.append("predictors left out: " + ", ".join(map(spoken, given["results"])))
    return lines


def _gave_up(run: Run) -> Html:
    title = "What the clock planner gave up"
    lines = given_up(run.summary.get("scoring", {}).get("gave_up", {}))
    if not lines:
        wanted = run.plan.get("wanted", [None, None])
        asked = f" at stride {wanted[0]} with {wanted[1]} epochs" if wanted[0] and wanted[1] else ""
        lines.append(f"Nothing: all of the stream was scored{asked} as the settings ask.")
    told = h("div", h("h3", title), h("ul", [h("li", line) for line in lines], class_="plain"), class_="told")
    spans = run.plan.get("spans", [])
    ends = [*(span[0] for span in spans[1:]), run.plan.get("targets", 0)]
    charts = []
    for name, axis, place in (
        ("Stride, span by span", Axis("stride (0: the first pass stands)", "tokens", low=0.0), 1),
        ("Epochs of adaptation, span by span", Axis("epochs", "passes over a span", low=0.0), 2),
    ):
        decided = [span[place] for span in spans]
        if len(set(decided)) > 1:
            across = [edge for span, end in zip(spans, ends, strict=True) for edge in (span[0], end)]
            series = [Series("decided", across, np.repeat(decided, 2), style=place - 1)]
            charts.append(curves(name, Axis("targets scored", "tokens"), axis, series))
    return join([told, h("div", charts, class_="grid") if charts else None])


def compression(run: Run) -> Html:
    title = "Compression"
    scores = run.summary.get("score", {})
    main = scores.get(run.main)
    if not main:
        return section("compression", title, missing("Against general compressors", "The run has not been scored."))
    rows = [("pgolf: " + spoken(run.main), main["bpb"], main["nats"] / math.log(2) / 8, True)]
    for name, peer in run.summary.get("compressors", {}).items():
        if isinstance(peer, dict) and "bpb" in peer:
            rows.append((name, peer["bpb"], peer["bytes"], False))
    rows.sort(key=lambda row: row[1])
    # a bar longer than the text itself would leave nothing to see of the others
    beyond = [row for row in rows if row[1] > 8]
    drawn = [
        Bar(name, [(name, bpb, 1 if ours else 0)], f"{bpb:.4f} · {size:,.0f} bytes", strong=ours)
        for name, bpb, size, ours in rows
        if bpb <= 8
    ]
    note = "The same text, as one stream. A compressor starts from nothing; the model brings what training has taught it."
    if len(rows) == 1:
        note = "No other compressor was run on this text."
    if beyond:
        told = "; ".join(f"{name}, {size:,.0f} bytes ({bpb:.2f} bits per byte)" for name, bpb, size, _ in beyond)
        note += f" More than the text itself takes: {told}."
    chart = bars("The same text by general compressors", Axis("size", "bits per byte"), drawn, head="compressor", note=note)
    return section("compression", title, chart)
