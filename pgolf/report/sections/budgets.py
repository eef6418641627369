"""Bytes against the limit, and both clocks."""

import math

from pgolf.report.charts import Axis, Bar, bars, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, h
from pgolf.report.sections.parts import section, spoken


def budgets(run: Run) -> Html:
    return section(
        "budgets",
        "Bytes and seconds",
        h("div", _bytes(run), _clocks(run), class_="stack"),
        says="Model and code against the limit, as the challenge counts them, and where both clocks went.",
    )


def _bytes(run: Run) -> Html:
    artifact = run.summary.get("artifact")
    title = "Bytes of the artifact"
    if not artifact:
        return missing(title, "The run has not been packed: python -m pgolf.run pack RUN")
    parts, total, limit = dict(artifact["parts"]), artifact["total_bytes"], artifact["limit"]
    matrices, embeddings = _split_codes(run, parts.pop("codes", 0))
    scales, small = parts.pop("scales", 0), parts.pop("small", 0)
    parts.pop("tokenizer", 0)
    rest = sum(parts.values())
    named = [
        ("matrices", matrices, 0),
        ("embeddings", embeddings, 1),
        ("scales", scales, 2),
        ("small tensors", small, 3),
        ("everything else in the file", rest, 4),
        ("code", artifact["code_bytes"], 5),
    ]
    bar = Bar(
        "model and code",
        [(what, size, style) for what, size, style in named if size],
        says=f"{total:,} ({100 * total / limit:.1f} %)",
        strong=True,
        limit=limit,
    )
    note = (
        f"{artifact['margin']:,} bytes are left. The tokenizer, {artifact['tokenizer_bytes']:,} bytes, travels along "
        "uncounted, as in the challenge. Codes are shared out between matrices and embeddings by their entropy."
    )
    return bars(title, Axis("size", "bytes"), [bar], note=note, show=lambda size: f"{size:,.0f}")


def _split_codes(run: Run, codes: int) -> tuple[int, int]:
    """The bytes of all codes between matrices and embeddings, in the proportion of their entropies."""
    bits = {"matrix": 0.0, "embedding": 0.0}
    for matrix in run.quantisation.get("matrices", []):
        bits[matrix["role"]] += matrix["entropy"] * math.prod(matrix["shape"])
    whole = sum(bits.values())
    mine = round(codes * bits["matrix"] / whole) if whole else codes
    return mine, codes - mine


def _clocks(run: Run) -> Html:
    rows, off = [], []
    for name, key in (("training", "train"), ("scoring", "scoring")):
        clock = run.summary.get(key)
        if not clock:
            continue
        parts = [(spoken(part), seconds, i) for i, (part, seconds) in enumerate(clock["parts"].items()) if seconds > 0]
        says = f"{clock['seconds']:.1f} of {clock['limit']:.0f} s"
        rows.append(Bar(name, parts, says=says, strong=True, limit=clock["limit"]))
        untimed = {part: seconds for part, seconds in clock.get("untimed", {}).items() if seconds >= 0.05}
        off += [f"{spoken(part)} {seconds:.1f} s" for part, seconds in untimed.items()]
    if not rows:
        return missing("The clocks", "Neither training nor scoring has come to its end.")
    note = f"Off the clock: {', '.join(off)}." if off else ""
    return bars("The clocks", Axis("time", "seconds"), rows, note=note, show=lambda seconds: f"{seconds:.1f} s")
