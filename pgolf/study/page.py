"""A study's page and its table for a pull request. It needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pgolf.files import write_whole
from pgolf.report.charts import Dot, DotRows, Row, missing, table
from pgolf.report.files import read_run
from pgolf.report.html import Html, document, h, join
from pgolf.report.page import bar
from pgolf.report.scales import Axis
from pgolf.report.sections.section import label, lead, section
from pgolf.report.svg import write
from pgolf.study.ledger import Ledger
from pgolf.study.plan import BASE, Study
from pgolf.study.results import Comparison, compared, score_of, trouble_of

KINDS = {True: "good", False: "bad", None: "open"}
STYLES = {True: 2, False: 1, None: 0}


def publish(study: Study, folder: Path) -> str:
    """Writes study.html, study.md and forest.svg; gives what a terminal shows."""
    comparisons, base = compared(study, folder), base_scores(study, folder)
    write_whole(folder / "study.html", page(study, folder, comparisons, base))
    text = markdown(study, comparisons, base)
    write_whole(folder / "study.md", text)
    write(forest(comparisons), folder / "forest.svg")
    return "\n".join([*(one.verdict for one in comparisons), f"page {folder / 'study.html'}, table {folder / 'study.md'}"])


def base_scores(study: Study, folder: Path) -> list[float]:
    arm = study.arms[BASE]
    runs = [folder / "runs" / f"{BASE}-{seed}" for seed in study.seeds]
    scores = [score_of(read_run(path, scores=False), arm.score) for path in runs if path.exists()]
    return [score for score in scores if score is not None]


def page(study: Study, folder: Path, comparisons: Sequence[Comparison], base: Sequence[float]) -> str:
    text = h("pre", markdown(study, comparisons, base))
    sections: dict[str, list[Any]] = {
        "Verdicts": [lead(describe(study, base)), verdicts(study, folder, comparisons)],
        "Differences": [forest(comparisons), differences(comparisons)],
        "Cost": [cost(comparisons)],
        "Runs": [runs(study, folder)],
        "Markdown": [h("details", h("summary", "The table for a pull request"), text)],
    }
    head = h("header", h("p", "pgolf study", class_="kicker"), h("h1", study.title))
    main = h("main", head, [section(title.lower(), title, *parts) for title, parts in sections.items()])
    return document(f"{study.title} – pgolf", join([bar([(title.lower(), title) for title in sections]), main]))


def describe(study: Study, base: Sequence[float]) -> str:
    arm = study.arms[BASE]
    training = arm.settings.training
    budget = f"{training.steps:,} steps" if training.steps else f"{training.seconds:g} s of training"
    said = f"{len(study.others)} arms against the base, preset {arm.settings.preset} ({arm.settings.scale}), {budget}, "
    said += f"seeds {', '.join(map(str, study.seeds))}."
    if base:
        spread = f" ± {stdev(base):.4f} over seeds" if len(base) > 1 else ""
        said += f" The base reaches {mean(base):.4f}{spread} bits per byte."
    return (
        f"{said} Differences are ours minus theirs, of the same seed: below zero is better. p-values are of paired two-sided "
        "t-tests over seeds, with Holm's correction over the arms; errors over documents are beside them."
    )


def verdicts(study: Study, folder: Path, comparisons: Sequence[Comparison]) -> Html:
    items = [h("li", one.verdict, class_=KINDS[one.better]) for one in comparisons]
    for one in comparisons:
        items += [h("li", f"{one.arm.name} gave up for the clock: {line}", class_="open") for line in one.lost]
    states = Ledger(folder / "ledger.jsonl").states()
    for arm in study.arms:
        items += [h("li", line, class_="open") for line in trouble_of(study, arm, states)]
    return h("ul", items, class_="verdicts")


def forest(comparisons: Sequence[Comparison]) -> DotRows:
    rows = []
    for one in comparisons:
        if one.change is None or one.why_not:
            continue
        dot = Dot(one.change, STYLES[one.better], span=one.interval)
        seeds = [Dot(change, 5, label=f"seed {seed}: {change:+.4f}") for seed, change in one.changes.items()]
        said = f"{one.change:+.4f}" + (f" ± {one.error:.4f}" if one.error is not None else "")
        said += f", p = {one.adjusted:.2g}" if one.adjusted is not None else ""
        rows.append(Row(one.arm.title, [*seeds, dot] if len(seeds) > 1 else [dot], said, strong=one.better is not None))
    return DotRows(
        "Difference of every arm, with 95 % intervals",
        Axis("ours minus theirs", "bits per byte"),
        rows,
        legend=[(2, "better"), (1, "worse"), (0, "within the spread"), (5, "single seeds")],
        head="arm",
        note="Left of the line the arm is better. The interval is over seeds, or over documents where there is one seed.",
        zero=0.0,
    )


def differences(comparisons: Sequence[Comparison]) -> Html:
    rows = []
    for one in comparisons:
        numbers = [_number(one.change, "+.5f"), _number(one.error, ".5f"), _number(one.p, ".2g"), _number(one.adjusted, ".2g")]
        documents = one.documents
        by_document = f"{documents.change:+.5f} ± {documents.error:.5f}" if documents else "–"
        better = f"{documents.better:.0%} of {documents.count:,}" if documents else "–"
        rows.append([one.arm.title, label(one.arm.score), one.arm.against, len(one.changes), *numbers, by_document, better])
    heads = ["arm", "predictor", "against", "pairs", "difference", "error", "p", "p (Holm)", "by document", "documents better"]
    return table(heads, rows, caption="Differences in bits per byte")


def cost(comparisons: Sequence[Comparison]) -> Html:
    rows = []
    for one in comparisons:
        seconds = f"{100 * (one.seconds - 1):+.1f} %" if one.seconds is not None else "–"
        rows.append([one.arm.title, _number(one.change, "+.5f"), seconds, _number(one.bytes, "+,.0f")])
    if not rows:
        return missing("Nothing to compare", "The study has no arm.")
    return table(
        ["arm", "difference", "seconds", "bytes"], rows, caption="Change in score, in training and scoring time, in size"
    )


def runs(study: Study, folder: Path) -> Html:
    rows = []
    for line in Ledger(folder / "ledger.jsonl").lines():
        if line["kind"] == "end":
            score = line.get("figures", {}).get("score.main")
            ended = "done" if line.get("exit") == 0 else str(line.get("reason"))
            about = [
                line["stage"],
                ended,
                f"{line.get('seconds', 0):.1f}",
                _number(score, ".4f"),
                str(line.get("device") or "–"),
            ]
            rows.append([line["run"], *about])
    if not rows:
        return missing("Nothing has run", "The ledger is empty.")
    return table(["run", "stage", "ended", "seconds", "bits per byte", "device"], rows, caption="The ledger")


def markdown(study: Study, comparisons: Sequence[Comparison], base: Sequence[float]) -> str:
    heads = ["arm", "difference", "error", "p (Holm)", "by document", "seconds", "bytes", "verdict"]
    rows = [heads, ["---"] * len(heads), *(_markdown_row(one) for one in comparisons)]
    lines = [f"## {study.title}", "", describe(study, base), "", *(f"| {' | '.join(row)} |" for row in rows)]
    notes = [f"- {one.arm.title}: {one.arm.note}" for one in comparisons if one.arm.note]
    trouble = [f"- {line}" for one in comparisons for line in one.trouble]
    return "\n".join([*lines, *(["", *notes] if notes else []), *(["", *trouble] if trouble else [])]) + "\n"


def _markdown_row(one: Comparison) -> list[str]:
    word = {True: "better", False: "worse", None: "within the spread"}[one.better]
    if one.change is None:
        word = "no result"
    elif one.why_not:
        word = "not comparable"
    elif one.adjusted is None:
        word = "one seed"
    return [
        one.arm.title.replace("|", "\\|"),
        _number(one.change, "+.4f"),
        _number(one.error, ".4f"),
        _number(one.adjusted, ".2g"),
        f"{one.documents.change:+.4f} ± {one.documents.error:.4f}" if one.documents else "–",
        f"{100 * (one.seconds - 1):+.1f} %" if one.seconds is not None else "–",
        _number(one.bytes, "+,.0f"),
        word,
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
