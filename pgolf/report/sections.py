"""The sections of one run's page, each from what the run folder holds; where something is missing, they say so."""

import math
from collections.abc import Sequence

import numpy as np

from pgolf.report.charts import (
    Axis,
    Bar,
    Dot,
    Mark,
    Row,
    Series,
    bars,
    choice,
    curves,
    dot_rows,
    missing,
    number,
    table,
    thinned,
)
from pgolf.report.files import Run
from pgolf.report.html import Html, data, h, join

SMOOTHING = 40
"""A smoothed curve forgets over this share of the run."""
HEAT_BITS = 12.0
"""Tokens of so many bits get the darkest shade."""
TWO_SIDED_95 = 1.96


def spoken(name: str) -> str:
    return name.replace("_", " ")


def section(anchor: str, title: str, *children, says: str = "") -> Html:
    return h("section", h("h2", title), h("p", says, class_="says") if says else None, *children, id=anchor)


# ---- head

def head(run: Run) -> Html:
    summary = run.summary
    score = summary.get("score", {}).get(run.main)
    return h(
        "section",
        h(
            "div",
            h("div", h("span", f"{score['bpb']:.4f}" if score else "no score yet", class_="score"), class_="figure"),
            h("p", "bits per byte" if score else stage_reached(run), class_="unit"),
            h("p", sentence(run), class_="sentence"),
            verdict(run),
            class_="hero",
        ),
        facts(run),
        id="result",
        class_="result",
    )


def stage_reached(run: Run) -> str:
    summary = run.summary
    if "artifact" in summary:
        return "trained and packed, not scored"
    if "train" in summary:
        return "trained, not packed"
    steps = run.steps
    return f"in training, or cut off after step {steps[-1]['step']:,}" if steps else "not trained"


def sentence(run: Run) -> str:
    """What the score means."""
    score = run.summary.get("score", {}).get(run.main)
    if not score:
        return "The score is known once the stage score has run; what is there so far is below."
    share = score["bpb"] / 8
    whole = "a part of the validation text" if score.get("partial") else "the whole validation text"
    model = run.summary.get("artifact", {}).get("total_bytes")
    given = f"Given this artifact of {model:,} bytes" if model else "Given this artifact"
    return (
        f"{given}, {whole}, {score['bytes']:,} bytes long, comes down to {score['nats'] / math.log(2) / 8:,.0f} bytes: "
        f"{100 * share:.1f} % of its length, with the reading “{spoken(run.main)}”."
    )


def checks(run: Run) -> list[tuple[str, bool | None, str]]:
    """What makes a score legal: its name, whether it holds (None: not known), and the figures."""
    summary = run.summary
    score = summary.get("score", {}).get(run.main)
    found: list[tuple[str, bool | None, str]] = []
    if score:
        found.append(("a code length", bool(score["legal"]), "the reading sums to one over the vocabulary"))
        part = bool(score.get("partial"))
        found.append(("the whole stream", not part, f"{score['tokens']:,} tokens" + (", a part of it" if part else "")))
    else:
        found.append(("a code length", None, "not scored"))
    artifact = summary.get("artifact")
    if artifact:
        total, limit = artifact["total_bytes"], artifact["limit"]
        found.append(("fits", total <= limit, f"{total:,} of {limit:,} bytes"))
    else:
        found.append(("fits", None, "not packed"))
    for name, key in (("training clock", "train"), ("scoring clock", "scoring")):
        clock = summary.get(key)
        if clock:
            found.append((name, clock["seconds"] <= clock["limit"], f"{clock['seconds']:.1f} of {clock['limit']:.0f} s"))
        else:
            found.append((name, None, "not run"))
    passed = run.audit.get("passed")
    found.append(("audit", passed if isinstance(passed, bool) else None, _audit_words(run)))
    return found


def _audit_words(run: Run) -> str:
    if not run.audit:
        return "not audited"
    tests = audit_tests(run)
    failed = [str(test.get("title", test.get("id", "?"))) for test in tests if test.get("passed") is False]
    undecided = sum(test.get("passed") is None for test in tests)
    said = f"{sum(test.get('passed') is True for test in tests)} of {len(tests)} tests passed"
    if undecided:
        said += f", {undecided} not applicable"
    return f"{said}; failed: {', '.join(failed)}" if failed else said


def audit_tests(run: Run) -> list[dict]:
    """With a verdict that is true, false or None."""
    tests = run.audit.get("tests", [])
    found = [test for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    return [test | {"passed": test["passed"] if isinstance(test.get("passed"), bool) else None} for test in found]


SIGNS = {True: "✓", False: "✗", None: "?"}
WORDS = {True: "holds", False: "broken", None: "not known"}
VERDICTS = {True: ("good", "✓ passed"), False: ("bad", "✗ failed"), None: ("open", "– not applicable")}


def verdict(run: Run) -> Html:
    found = checks(run)
    broken = [name for name, holds, _ in found if holds is False]
    unknown = [name for name, holds, _ in found if holds is None]
    if broken:
        kind, words = "bad", f"Not legal. What does not hold: {', '.join(broken)}."
    elif unknown:
        kind, words = "open", f"Nothing speaks against it, but not all is known yet: {', '.join(unknown)}."
    else:
        kind, words = "good", "Legal: every rule holds, and the audit passed."
    chips = [
        h("li", h("b", SIGNS[holds], aria_hidden="true"), h("span", name), h("small", says, h("span", f" ({WORDS[holds]})",
          class_="unseen")), class_={True: "good", False: "bad", None: "open"}[holds])
        for name, holds, says in found
    ]  # fmt: skip
    return h("div", h("p", words, class_=f"words {kind}"), h("ul", chips, class_="chips"), class_="verdict")


def facts(run: Run) -> Html:
    summary = run.summary
    corpus, train = summary.get("corpus", {}), summary.get("train", {})
    versions = summary.get("versions", {})
    rows = [
        ("preset", summary.get("preset") or run.config.get("preset")),
        ("seed", summary.get("seed", run.config.get("seed"))),
        ("corpus", f"{corpus['name']} ({corpus['digest'][:12]})" if "name" in corpus else None),
        ("parameters", f"{summary['parameters']:,}" if "parameters" in summary else None),
        ("trained on", f"{train['tokens']:,} tokens in {train['steps']:,} steps" if "tokens" in train else None),
        ("weights", train.get("weights")),
        ("device", summary.get("device")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
    ]
    return h(
        "dl",
        [[h("dt", name), h("dd", "unknown" if value in (None, "") else str(value))] for name, value in rows],
        class_="facts",
    )


def damage(run: Run) -> Html | None:
    if not run.damaged:
        return None
    lines = h("ul", [h("li", line) for line in run.damaged])
    return h("section", h("h2", "Files that could not be read"), lines, id="damaged")


# ---- budgets and audit

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
    for matrix in _matrices(run):
        bits[matrix["role"]] += matrix["entropy"] * math.prod(matrix["shape"])
    whole = sum(bits.values())
    mine = round(codes * bits["matrix"] / whole) if whole else codes
    return mine, codes - mine


def _matrices(run: Run) -> list[dict]:
    return run.quantisation.get("matrices", [])


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


def audit(run: Run) -> Html:
    title = "Audit"
    if not run.audit:
        why = "There is no audit.json: nobody has tried to break this score yet."
        return section("audit", title, missing("Not audited", why))
    rows = []
    for test in audit_tests(run):
        kind, sign = VERDICTS[test["passed"]]
        figure = test.get("figure")
        rows.append([
            str(test.get("title", test.get("id", ""))),
            spoken(str(test.get("reading") or "")),
            h("span", sign, class_=kind),
            number(figure, 3) if isinstance(figure, (int, float)) else str(figure if figure is not None else ""),
            str(test.get("says") or ""),
        ])
    decoded = run.audit.get("decoded")
    lines = []
    if isinstance(decoded, dict):
        told = ", ".join(f"{spoken(str(name))} {_plain(value)}" for name, value in decoded.items())
        lines.append(h("p", f"Decoded again from the bitstream: {told}."))
    passed, seconds = run.audit.get("passed"), run.audit.get("seconds")
    says = "The audit has no verdict"
    if isinstance(passed, bool):
        says = "Every test that applies passed" if passed else "At least one test failed"
    says += f", in {seconds:.1f} s." if isinstance(seconds, (int, float)) else "."
    return section(
        "audit",
        title,
        table(["test", "reading", "verdict", "figure", "in words"], rows, caption="Tests of the audit"),
        *lines,
        says=says,
    )


def _plain(value) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return number(value)


# ---- training

def training(run: Run) -> Html:
    title = "Training"
    steps = run.steps
    if not steps:
        return section("training", title, missing("No steps yet", "train.jsonl has no step of this run."))
    panels = []
    for name, axis in TRAINING_AXES:
        across = training_axis(run, steps, axis)
        marks = _phases(run, steps, axis)
        panels.append((name, h("div", _training_charts(run, steps, across, axis, marks), class_="grid")))
    done = any(event["kind"] == "end" for event in run.events)
    last = steps[-1]
    says = f"{last['step']:,} steps, {last['step'] * run.batch_tokens:,} tokens, {last['elapsed']:.1f} s on the clock."
    if not done:
        says += " Training has not come to its end: it is still running, or was cut off here."
    return section("training", title, choice("training-axis", "horizontal axis", panels), says=says)


TRAINING_AXES = (
    ("tokens", Axis("training tokens", "tokens")),
    ("seconds", Axis("training clock", "s")),
)


def training_axis(run: Run, steps: Sequence[dict], axis: Axis) -> np.ndarray:
    if axis.unit == "s":
        return np.array([event["elapsed"] for event in steps])
    return np.array([event["step"] * run.batch_tokens for event in steps])


def _phases(run: Run, steps: Sequence[dict], axis: Axis) -> list[Mark]:
    at = training_axis(run, steps, axis)
    by_step = [event["step"] for event in steps]
    found = []
    for event in run.events:
        if event["kind"] == "phase":
            place = min(int(np.searchsorted(by_step, event["step"])), len(at) - 1)
            where = 0.0 if event["step"] == 0 else float(at[place])
            found.append(Mark(where, f"{event['name']}, from step {event['step']:,}"))
    return found


def _training_charts(run: Run, steps: Sequence[dict], across: np.ndarray, axis: Axis, marks: Sequence[Mark]) -> list[Html]:
    loss = _column(steps, "loss")
    return [
        curves("Training loss", axis, Axis("loss", "nats per token"), loss_series(run, steps, across, axis), marks=marks,
               note="" if _validations(run) else "No validation along the way: training.validate_every is 0."),
        curves("Learning rates", axis, Axis("learning rate", "per step"), _rates(run, steps, across)),
        curves("Gradient norm", axis, Axis("norm", "before clipping", log=True),
               _one("gradient norm", across, _column(steps, "gradient_norm"), 3)),
        curves("Speed", axis, Axis("speed", "tokens per second", low=0.0),
               _one("tokens per second", across, _column(steps, "tokens_per_second"), 2)),
    ] if len(loss) else []  # fmt: skip


def _column(steps: Sequence[dict], key: str) -> np.ndarray:
    values = [event.get(key) for event in steps]
    return np.array([np.nan if value is None else float(value) for value in values])


def loss_series(run: Run, steps: Sequence[dict], across: np.ndarray, axis: Axis) -> list[Series]:
    x, y, low, high = thinned(across, _column(steps, "loss"))
    smooth_x, smooth_y, _, _ = thinned(across, smoothed(_column(steps, "loss")))
    found = [
        Series("each step", x, y, low, high, style=1, thin=True),
        Series("smoothed", smooth_x, smooth_y, style=0),
    ]
    validations = _validations(run)
    if validations:
        by_step = np.array([event["step"] for event in steps])
        places = np.minimum(np.searchsorted(by_step, [event["step"] for event in validations]), len(across) - 1)
        losses = [float(event["loss"]) for event in validations]
        found.append(Series("validation", across[places], losses, style=5, dots=True))
    return found


def smoothed(values: np.ndarray) -> np.ndarray:
    """An exponential mean that forgets over a fortieth of the run, unbiased at its beginning."""
    keep = math.exp(-1 / max(len(values) / SMOOTHING, 1.0))
    found, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found[i] = total / weight if weight else np.nan
    return found


def _validations(run: Run) -> list[dict]:
    return [e for e in run.events if e["kind"] == "validation" and isinstance(e.get("loss"), (int, float))]


def _rates(run: Run, steps: Sequence[dict], across: np.ndarray) -> list[Series]:
    options, multiplier = run.config.get("training", {}), _column(steps, "multiplier")
    rates = [("matrices (Muon)", "muon_lr"), ("embeddings", "token_lr"), ("scales", "scalar_lr")]
    found = []
    for i, (name, key) in enumerate(rates):
        if key in options:
            x, y, _, _ = thinned(across, options[key] * multiplier)
            found.append(Series(name, x, y, style=i))
    return found


def _one(name: str, across: np.ndarray, values: np.ndarray, style: int) -> list[Series]:
    x, y, low, high = thinned(across, values)
    return [Series(name, x, y, low, high, style=style)] if len(x) else []


# ---- scoring

def scoring(run: Run) -> Html:
    title = "Scoring"
    scores = run.summary.get("score")
    if not scores:
        return section("scoring", title, missing("Not scored", "There are no readings yet: python -m pgolf.run score RUN"))
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
            if run.scores and {name, score["over"]} <= set(run.scores.readings) and len(run.scores.document_bytes) > 1:
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
        head="reading",
        note="A line leads from the reading below to this one. ± is one standard error of the gain, paired document by "
        "document; whiskers are 95 %. Less is better.",
    )


def readings_shown(run: Run, most: int = 5) -> list[tuple[int, str, int]]:
    """Readings worth a curve, as (column, name, style): the plain ones, what adapts, the run's score; no published ones."""
    if not run.scores:
        return []
    scores = run.summary["score"]
    names = [name for name in run.scores.readings if scores.get(name, {}).get("legal", True)]
    while len(names) > most:
        # in the middle of the onion: its ends say most
        middle = [name for name in names[1:] if name != run.main]
        names.remove(middle[len(middle) // 2])
    styles = iter(style for style in (0, 2, 3, 4, 5))
    return [(run.scores.readings.index(name), name, 1 if name == run.main else next(styles)) for name in names]


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
        series = [Series(spoken(name), middles, cells.per_byte(i), style=style) for i, name, style in readings_shown(run)]
        found.append(curves(title, Axis(label, "tokens", log=True), Axis("score", "bits per byte"), series))
    return found


def _along(run: Run) -> Html | None:
    if not run.scores:
        return None
    along = run.scores.along
    firsts = [int(name) for name in along.names]
    series = []
    for i, name, style in readings_shown(run):
        series.append(Series(spoken(name), firsts, smoothed_ratio(along.bits[:, i], along.bytes), style=style))
    note = "Smoothed over the neighbouring stretches."
    return curves("Along the stream", Axis("targets scored", "tokens"), Axis("score", "bits per byte"), series, note=note)


def smoothed_ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    width = max(len(above) // SMOOTHING, 1)
    kernel = np.ones(2 * width + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.convolve(above, kernel, "same") / np.convolve(below, kernel, "same")


def _kinds(run: Run) -> Html | None:
    title = "By kind of token"
    if not run.scores:
        return None
    cells = run.scores.by_kind
    if cells is None or not run.main or run.main not in run.scores.readings:
        return missing(title, "score.jsonl does not say what its tokens are; score the run again.")
    plain, main = 0, run.scores.readings.index(run.main)
    share = cells.bits[:, main] / cells.bits[:, main].sum()
    rows = []
    for i, name in enumerate(cells.names):
        before, after = cells.per_token(plain)[i], cells.per_token(main)[i]
        says = f"{after:.2f} bits · {share[i]:.1%} of all bits, {cells.tokens[i] / cells.tokens.sum():.1%} of tokens"
        rows.append(Row(name, [Dot(before, 0), Dot(after, 1, origin=before)], says))
    return dot_rows(
        title,
        Axis("cost", "bits per token", low=0.0),
        rows,
        legend=[(0, spoken(run.scores.readings[plain])), (1, spoken(run.main))],
        head="kind",
        note="By the piece alone: a word starts where a space comes with it; a boundary ends a document.",
    )


def _weights(run: Run) -> Html:
    if not run.traces:
        why = "weights.jsonl is empty: no reading of this run has weights that move."
        return missing("Weights of the experts along the stream", why)
    charts = []
    for reader, points in run.traces.items():
        at = [target for target, _ in points]
        series = []
        for name in points[0][1]:
            x, y, _, _ = thinned(at, [weights.get(name, math.nan) for _, weights in points])
            series.append(Series(spoken(name), x, y))
        temperature = reader == "temperature"
        axis = Axis("temperature", "divides the logits") if temperature else Axis("weight", "share, 0 to 1")
        charts.append(curves(f"Weights along the stream: {spoken(reader)}", Axis("targets scored", "tokens"), axis, series))
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
    if given.get("readings"):
        lines.append("readings left out: " + ", ".join(map(spoken, given["readings"])))
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


# ---- words

def words(run: Run) -> Html:
    title = "Words"
    excerpts = run.words.get("excerpts", [])
    if not excerpts:
        why = "No words were recorded: the run is not scored, or evaluation.words is 0."
        return section("words", title, missing("The text itself", why))
    pieces = run.words.get("pieces", {})
    says = (
        "The validation text, each token shaded by its cost. Point at a token, or move with the arrow keys, to see what "
        "was expected there. Which documents are shown follows from their lengths alone: the end of the longest one, and "
        "the beginning of one of middle length."
    )
    return section("words", title, [_excerpt(run, one, pieces, i) for i, one in enumerate(excerpts)], says=says)


def _excerpt(run: Run, excerpt: dict, pieces: dict[str, str], index: int) -> Html:
    readings = list(excerpt["nats"])
    main = run.main if run.main in readings else readings[-1]
    base = readings[0]
    bits = {name: np.array(excerpt["nats"][name], float) / math.log(2) for name in readings}
    tokens = []
    for i, token in enumerate(excerpt["tokens"]):
        cost, before = bits[main][i], bits[base][i]
        gain = before - cost
        shades = [_shade(cost), _shade(before), _shade(max(gain, 0.0), 6.0), _shade(max(-gain, 0.0), 6.0)]
        place = ";".join(f"--{name}:{shade}" for name, shade in zip("abgl", shades, strict=True) if shade)
        text, kind = _visible(pieces.get(str(token), ""))
        tokens.append(h("i", text, style=place or None, class_=kind))
        if "\n" in pieces.get(str(token), ""):
            tokens.append(Html("<br>"))
    first, last = excerpt["document"]
    total = int(sum(excerpt["bytes"]))
    rate = f"{bits[main].sum() / total:.3f} bits per byte here" if total else ""
    before = f", {bits[base].sum() / total:.3f} with {spoken(base)}" if total and base != main else ""
    begun = excerpt["start"] - first
    where = f"tokens {begun + 1:,} to {begun + len(excerpt['tokens']):,} of {last - first:,}"
    told = {
        "r": [spoken(name) for name in readings],
        "m": readings.index(main),
        "b": [[round(float(value), 2) for value in bits[name]] for name in readings],
        "g": {spoken(name): places for name, places in excerpt["guesses"].items()},
        "p": {token: _visible(text)[0] for token, text in pieces.items()} if index == 0 else {},
        "t": excerpt["tokens"],
    }
    text = h(
        "div",
        tokens,
        class_="text",
        tabindex="0",
        role="application",
        aria_label=f"Text of {excerpt['why']}. Arrow keys move from token to token.",
    )
    panel = h("div", h("p", "Point at a token."), class_="panel-of-token", aria_live="polite")
    shading = choice(
        f"words-{index}",
        "shade by",
        [
            (f"cost with {spoken(main)}", Html("")),
            (f"cost with {spoken(base)}", Html("")),
            ("what was gained between them", Html("")),
        ],
        kind="shading",
    )
    scale = h(
        "p",
        h("span", "0 bits"),
        h("b", class_="ramp"),
        h("span", f"{HEAT_BITS:.0f} bits or more"),
        h("span", "gained", class_="gained"),
        h("span", "lost", class_="lost"),
        class_="scale",
    )
    return h(
        "figure",
        h("figcaption", h("h3", excerpt["why"][:1].upper() + excerpt["why"][1:]), h("p", f"{where}; {rate}{before}")),
        shading,
        scale,
        h("div", text, panel, class_="beside"),
        data(told),
        class_="chart words",
    )


def _shade(bits: float, most: float = HEAT_BITS) -> int:
    return max(0, min(round(100 * bits / most), 100)) if math.isfinite(bits) else 100


def _visible(piece: str) -> tuple[str, str | None]:
    """A token as it can be seen."""
    if not piece:
        return "¶", "end"
    return piece.replace("\n", "↵").replace("\t", "⇥").replace("\r", "\\r"), None


# ---- compression

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
    drawn = [
        Bar(name, [(name, bpb, 1 if ours else 0)], f"{bpb:.4f} · {size:,.0f} bytes", strong=ours)
        for name, bpb, size, ours in rows
    ]
    note = "The same text, as one stream. A compressor starts from nothing; the model brings what training has taught it."
    if len(rows) == 1:
        note = "No other compressor was run on this text."
    chart = bars("The same text by general compressors", Axis("size", "bits per byte"), drawn, head="compressor", note=note)
    return section("compression", title, chart)


# ---- quantisation

def quantisation(run: Run) -> Html:
    title = "Quantisation"
    matrices = _matrices(run)
    if not matrices:
        why = "There is no quantisation.json: the run has not been packed, or by an earlier version."
        return section("quantisation", title, missing("What rounding did", why))
    kinds: dict[str, list[dict]] = {}
    for matrix in matrices:
        kinds.setdefault(kind_of(matrix["name"]), []).append(matrix)
    charts = [
        dot_rows(chart, Axis(label, unit, low=0.0), [_matrix_row(kind, some, key, show) for kind, some in kinds.items()],
                 head="matrix", note=note)
        for chart, label, unit, key, show, note in (
            ("Rounding error", "error", "% of the weights' norm", "error", lambda v: f"{100 * v:.2f} %",
             "Root of the squared error over that of the weights. A dot a layer."),
            ("Bits", "entropy of the codes", "bits per weight", "entropy", lambda v: f"{v:.2f}",
             "If codes are drawn one by one from the matrix's own histogram."),
            ("Clip", "where rows are clipped", "standard deviations", "clip", lambda v: f"{v:.1f}", ""),
            ("Outliers", "farthest weight", "standard deviations", "farthest", lambda v: f"{v:.1f}",
             "The greatest weight of a matrix, in standard deviations of its row."),
        )
    ]  # fmt: skip
    rows = [
        [
            matrix["name"],
            "×".join(map(str, matrix["shape"])),
            matrix["bits"],
            f"{matrix['entropy']:.3f}",
            f"{100 * matrix['error']:.3f} %",
            f"{matrix['clip']:.2f} σ",
            f"{100 * matrix['outliers']:.4f} %",
            f"{matrix['farthest']:.1f} σ",
            f"{100 * matrix['zeros']:.1f} %",
        ]
        for matrix in matrices
    ]
    heads = ["matrix", "shape", "bits", "entropy", "error", "clip", "beyond the clip", "farthest weight", "zeros"]
    weights = sum(math.prod(matrix["shape"]) for matrix in matrices)
    codes = run.summary.get("artifact", {}).get("parts", {}).get("codes")
    says = f"{len(matrices)} matrices with {weights:,} weights, rounded by {run.quantisation.get('rounding', '?')}"
    says += f"; the file needs {8 * codes / weights:.3f} bits a weight for their codes." if codes else "."
    details = h("details", h("summary", "Every matrix"), table(heads, rows, caption="Rounding, matrix by matrix"))
    return section("quantisation", title, h("div", charts, class_="grid"), details, says=says)


def kind_of(name: str) -> str:
    """A matrix's name without its layer."""
    words = name.split(".")
    return ".".join(word for i, word in enumerate(words) if not word.isdigit() and not (i == 0 and word == "blocks"))


def _matrix_row(kind: str, some: list[dict], key: str, show) -> Row:
    factor = 100 if key == "error" else 1
    dots = [Dot(factor * matrix[key], 0, label=f"{matrix['name']}: {show(matrix[key])}") for matrix in some]
    low, high = min(m[key] for m in some), max(m[key] for m in some)
    return Row(kind.removesuffix(".weight"), dots, show(low) if len(some) == 1 else f"{show(low)} – {show(high)}")


# ---- settings

def settings(run: Run) -> Html:
    if not run.config:
        return section("settings", "Settings", missing("No settings", "config.toml is missing or damaged."))
    lines = join([h("details", h("summary", name), h("pre", text)) for name, text in _tables(run.config)])
    return section("settings", "Settings", lines, says="Every setting, as it was used.")


def _tables(config: dict, path: str = "") -> list[tuple[str, str]]:
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    found = [(path or "run", "\n".join(f"{key} = {value}" for key, value in plain.items()))] if plain else []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _tables(value, f"{path}.{key}" if path else key)
    return found
