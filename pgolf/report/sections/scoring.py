"""The score breakdown, predictor by predictor, and what the clock took."""

import numpy as np

from pgolf.report.charts import Chart, Curves, Dot, DotRows, Row, Series, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.scales import Axis
from pgolf.report.sections.section import Section, grid, label, lead
from pgolf.report.tables import columns, given_up

TWO_SIDED_95 = 1.96


def charts(run: Run) -> dict[str, Chart]:
    return {"score_breakdown": breakdown(run), **_decisions(run)} if run.summary.score else {}


def body(run: Run) -> Html:
    if not run.summary.score:
        return missing("Not scored", "There is no score yet: pgolf score RUN")
    notes = []
    if run.config.get("evaluation", {}).get("adaptation", {}).get("method", "none") == "none":
        notes.append("This run does not adapt while it scores (evaluation.adaptation.method is none).")
    if not run.config.get("evaluation", {}).get("mixer", {}).get("honest"):
        notes.append("It uses no mixer (evaluation.mixer.honest is empty).")
    return join([lead(" ".join(notes)), breakdown(run), _gave_up(run), grid(_decisions(run).values())])


def text(run: Run) -> str:
    rows = []
    for name, score in run.summary.score.items():
        if score.baseline is None or score.gain is None:
            continue
        error = score.gain_error
        better = ""
        if run.scores and {name, score.baseline} <= set(run.scores.results):
            better = f"{run.scores.paired(score.baseline, name):.0%}"
        spread = f"{error:.5f}" if error is not None else "–"
        rows.append([f"  {label(name)}", label(score.baseline), f"{score.gain:+.5f}", spread, better])
    head = ["gain in bits per byte", "over", "gain", "standard error", "documents better"]
    parts = [columns([head, *rows])] if rows else []
    if run.summary.scoring:
        parts.append("given up for the clock: " + (", ".join(given_up(run.summary)) or "nothing"))
    return "\n\n".join(parts)


def breakdown(run: Run) -> Chart:
    """Every predictor's score, with its gain over the one that it builds on."""
    scores = run.summary.score
    rows = []
    for name, score in scores.items():
        says, error, origin = f"{score.bpb:.4f}", None, None
        if score.baseline is not None and score.gain is not None:
            error = score.gain_error
            spread = f" ± {error:.4f}" if error is not None else ""
            says += f", {0.0 - score.gain:+.4f}{spread} on {label(score.baseline)}"
            if run.scores and {name, score.baseline} <= set(run.scores.results) and len(run.scores.document_bytes) > 1:
                share = run.scores.paired(score.baseline, name)
                says += f"; better in {share:.0%} of {len(run.scores.document_bytes):,} documents"
            origin = scores[score.baseline].bpb if score.baseline in scores else None
        main = name == run.main
        dot = Dot(score.bpb, 1 if main else 0 if score.legal else 5, TWO_SIDED_95 * error if error else None, origin)
        note = "" if score.legal else " (as published; no code length)"
        rows.append(Row(label(name) + note, [dot], says, strong=main, quiet=not score.legal))
    published = any(row.quiet for row in rows)
    return DotRows(
        "Score breakdown: every predictor over the one it builds on",
        Axis("score", "bits per byte"),
        rows,
        legend=[(1, "the run's score"), (0, "other code lengths"), (5, "no code length")][: 2 + published],
        head="predictor",
        note="A line leads from the predictor that it builds on to this one. ± is one standard error of the gain, paired by "
        "document; whiskers are 95 %. Less is better.",
    )


def _gave_up(run: Run) -> Html:
    lines = given_up(run.summary)
    if not lines:
        stride, epochs = run.plan.get("wanted", [None, None])
        asked = f" at stride {stride} with {epochs} epochs" if stride and epochs else ""
        lines = [f"Nothing: all of the stream was scored{asked} as the settings ask."]
    return h(
        "div", h("h3", "Given up for the clock"), h("ul", [h("li", line) for line in lines], class_="plain"), class_="told"
    )


def _decisions(run: Run) -> dict[str, Chart]:
    """What the planner of the scoring clock decided, where it decided anything."""
    spans = run.plan.get("spans", [])
    ends = [*(span[0] for span in spans[1:]), run.plan.get("targets", 0)]
    drawn: dict[str, Chart] = {}
    for name, title, axis, place in (
        ("stride", "Stride, span by span", Axis("stride", "tokens; 0: the first pass alone", low=0.0), 1),
        ("epochs", "Epochs of adaptation, span by span", Axis("epochs", "passes over a span", low=0.0), 2),
    ):
        decided = [span[place] for span in spans]
        if len(set(decided)) > 1:
            edges = [edge for span, end in zip(spans, ends, strict=True) for edge in (span[0], end)]
            drawn[name] = Curves(title, Axis("scored", "tokens"), axis, [Series("decided", edges, np.repeat(decided, 2))])
    return drawn


SECTION = Section("scoring", "Score breakdown", body, text, charts)
