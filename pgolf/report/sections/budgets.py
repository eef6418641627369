"""Bytes against the limit, and both clocks."""

import math

from pgolf.report.charts import Bar, BarRows, Chart, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.scales import Axis
from pgolf.report.sections.section import Section, label, lead

TITLES = {"bytes": "Bytes of the artifact", "clocks": "The clocks"}
ABSENT = {
    "bytes": "The run has not been packed: pgolf pack RUN",
    "clocks": "Neither training nor scoring has come to its end.",
}


def charts(run: Run) -> dict[str, Chart]:
    drawn = {"bytes": _bytes(run), "clocks": _clocks(run)}
    return {name: chart for name, chart in drawn.items() if chart}


def body(run: Run) -> Html:
    drawn = charts(run)
    says = "Model and code against the limit, as the challenge counts them, and where both clocks went."
    boxes = [drawn.get(name) or missing(title, ABSENT[name]) for name, title in TITLES.items()]
    return join([lead(says), h("div", boxes, class_="stack")])


def _bytes(run: Run) -> Chart | None:
    artifact = run.summary.artifact
    if not artifact:
        return None
    parts, total, limit = dict(artifact.parts), artifact.total_bytes, artifact.limit
    matrices, embeddings = _split_codes(run, parts.pop("codes", 0))
    scales, small = parts.pop("scales", 0), parts.pop("small", 0)
    parts.pop("tokenizer", 0)
    named = [
        ("matrices", matrices, 0),
        ("embeddings", embeddings, 1),
        ("scales", scales, 2),
        ("small tensors", small, 3),
        ("everything else in the file", sum(parts.values()), 4),
        ("code", artifact.code_bytes, 5),
    ]
    bar = Bar(
        "model and code",
        [(what, size, style) for what, size, style in named if size],
        says=f"{total:,} ({100 * total / limit:.1f} %)",
        strong=True,
        limit=limit,
    )
    note = (
        f"{artifact.margin:,} bytes are left. The tokenizer, {artifact.tokenizer_bytes:,} bytes, is not counted, as in "
        "the challenge. Codes are divided between matrices and embeddings by their entropy."
    )
    return BarRows(TITLES["bytes"], Axis("size", "bytes"), [bar], note=note, show=lambda size: f"{size:,.0f}")


def _split_codes(run: Run, codes: int) -> tuple[int, int]:
    """The bytes of all codes between matrices and embeddings, in the proportion of their entropies."""
    bits = {"matrix": 0.0, "embedding": 0.0}
    for matrix in run.quantisation.get("matrices", []):
        bits[matrix["role"]] += matrix["entropy"] * math.prod(matrix["shape"])
    whole = sum(bits.values())
    mine = round(codes * bits["matrix"] / whole) if whole else codes
    return mine, codes - mine


def _clocks(run: Run) -> Chart | None:
    rows = []
    for name, clock in (("training", run.summary.train), ("scoring", run.summary.scoring)):
        if not clock:
            continue
        parts = [(label(part), seconds, i) for i, (part, seconds) in enumerate(clock.parts.items()) if seconds > 0]
        says = f"{clock.seconds:.1f} of {clock.limit:.0f} s"
        rows.append(Bar(name, parts, says=says, strong=True, limit=clock.limit))
    if not rows:
        return None
    untimed = run.summary.train.untimed if run.summary.train else {}
    off = [f"{label(part)} {seconds:.1f} s" for part, seconds in untimed.items() if seconds >= 0.05]
    note = f"Off the clock: {', '.join(off)}." if off else ""
    return BarRows(TITLES["clocks"], Axis("time", "seconds"), rows, note=note, show=lambda seconds: f"{seconds:.1f} s")


SECTION = Section("budgets", "Budgets", body, charts=charts)
