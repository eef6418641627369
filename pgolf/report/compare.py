"""One page of several runs: curves over each other, predictors side by side, and which differences are more than luck."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from pgolf.report.charts import COLOURS, Axis, Dot, Row, Series, choice, curves, dot_rows, missing, table, thinned
from pgolf.report.files import Run
from pgolf.report.html import Html, document, h, join
from pgolf.report.page import bar
from pgolf.report.sections.parts import section, spoken
from pgolf.report.sections.result import damage, stage_reached
from pgolf.report.sections.training import TRAINING_AXES, smoothed, training_axis
from pgolf.report.tables import columns
from pgolf.significance import student_tail, welch

UNITS = (("nats per token", "loss"), ("bits per byte", "bpb"))


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, whatever their seeds."""

    letter: str
    runs: list[Run]
    differs: str
    """In which settings from the first group."""

    @property
    def name(self) -> str:
        preset = self.runs[0].config.get("preset", "?")
        return f"{self.letter}: {preset}, {self.differs}" if self.differs else f"{self.letter}: {preset}"


def page(runs: Sequence[Run]) -> str:
    groups = groups_of(runs)
    anchors = [("groups", "Runs"), ("curves", "Curves"), ("results", "Predictors"), ("differences", "Differences")]
    body = join(
        [
            bar(anchors),
            h(
                "main",
                h("header", h("p", "pgolf comparison", class_="kicker"), h("h1", f"{len(runs)} runs")),
                [damage(run) for run in runs],
                overview(groups),
                training(groups),
                results(groups),
                differences(groups),
            ),
        ]
    )
    return document(f"{len(runs)} runs – pgolf", body)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    found: list[tuple[dict, list[Run]]] = []
    for run in runs:
        settings = flat(run.config)
        settings.pop("seed", None)
        for known, members in found:
            if known == settings:
                members.append(run)
                break
        else:
            found.append((settings, [run]))
    return [
        Group(chr(ord("A") + i) if i < 26 else f"G{i}", members, _difference(found[0][0], settings))
        for i, (settings, members) in enumerate(found)
    ]


def flat(table: dict, path: str = "") -> dict:
    found: dict = {}
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        found |= flat(value, name) if isinstance(value, dict) else {name: value}
    return found


def _difference(first: dict, other: dict, most: int = 4) -> str:
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key) and key not in ("description", "preset")]
    words = [f"{key} {other.get(key, 'unset')} instead of {first.get(key, 'unset')}" for key in keys[:most]]
    return ", ".join(words) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def common_result(runs: Sequence[Run]) -> str:
    """The run's score where all runs agree on it; or else the last code length that all of them have."""
    mains = {run.main for run in runs}
    if len(mains) == 1:
        return mains.pop()
    scored = [run.summary.get("score", {}) for run in runs]
    names = [name for name in scored[0] if all(name in score and score[name]["legal"] for score in scored)]
    return names[-1] if names else ""


def names_of(runs: Sequence[Run]) -> dict[Path, str]:
    """Folders' names, with as much of the path as makes them differ."""
    names = [run.name for run in runs]
    return {run.path: run.name if names.count(run.name) == 1 else str(run.path) for run in runs}


def every(groups: Sequence[Group]) -> list[tuple[Group, Run]]:
    return [(group, run) for group in groups for run in group.runs]


# ---- sections


def overview(groups: Sequence[Group]) -> Html:
    pairs = every(groups)
    names = names_of([run for _, run in pairs])
    rows = []
    for group, run in pairs:
        score = run.summary.get("score", {}).get(run.main)
        train, artifact = run.summary.get("train", {}), run.summary.get("artifact", {})
        rows.append(
            [
                names[run.path],
                group.letter,
                str(run.summary.get("seed", run.config.get("seed", ""))),
                f"{score['bpb']:.4f}" if score else stage_reached(run),
                spoken(run.main) or "–",
                f"{train['steps']:,}" if train else "–",
                f"{train['tokens']:,}" if train else "–",
                f"{train['seconds']:.1f}" if train else "–",
                f"{run.summary['scoring']['seconds']:.1f}" if "scoring" in run.summary else "–",
                f"{artifact['total_bytes']:,}" if artifact else "–",
            ]
        )
    heads = ["run", "group", "seed", "bits per byte", "result", "steps", "tokens", "training s", "scoring s", "bytes"]
    legend = h("ul", [h("li", group.name) for group in groups], class_="plain")
    says = "Runs whose settings agree in all but the seed are one group; the first group is what others are held against."
    return section("groups", "Runs", table(heads, rows, caption="Every run"), legend, says=says)


def training(groups: Sequence[Group]) -> Html:
    panels = []
    for name, axis in TRAINING_AXES:
        charts = []
        for title, key, y in (
            ("Training loss, smoothed", "loss", Axis("loss", "nats per token")),
            ("Speed", "tokens_per_second", Axis("speed", "tokens per second", low=0.0)),
        ):
            charts.append(curves(title, axis, y, _overlaid(groups, axis, key)))
        panels.append((name, h("div", charts, class_="grid")))
    return section("curves", "Curves", choice("compare-axis", "horizontal axis", panels))


def _overlaid(groups: Sequence[Group], axis: Axis, key: str) -> list[Series]:
    found = []
    pairs = every(groups)
    names = names_of([run for _, run in pairs])
    for i, (group, run) in enumerate(pairs):
        steps = run.steps
        if steps:
            values = np.array([float(event.get(key, math.nan)) for event in steps])
            across = training_axis(run, steps, axis)
            x, y, _, _ = thinned(across, smoothed(values) if key == "loss" else values)
            found.append(Series(f"{names[run.path]} ({group.letter})", x, y, style=i % COLOURS))
    return found


def results(groups: Sequence[Group]) -> Html:
    title = "Predictors"
    pairs = every(groups)
    results = list(dict.fromkeys(name for _, run in pairs for name in run.summary.get("score", {})))
    if not results:
        return section("results", title, missing("Nothing is scored", "None of the runs has predictors yet."))
    names = names_of([run for _, run in pairs])
    style = {group.letter: i % COLOURS for i, group in enumerate(groups)}
    rows = []
    for result in results:
        dots, said, legal = [], [], True
        for group, run in pairs:
            score = run.summary.get("score", {}).get(result)
            if score:
                legal = legal and score["legal"]
                label = f"{names[run.path]}: {score['bpb']:.4f}"
                dots.append(Dot(score["bpb"], style[group.letter], label=label))
        for group in groups:
            values = [run.summary["score"][result]["bpb"] for run in group.runs if result in run.summary.get("score", {})]
            if values:
                said.append(f"{group.letter} {mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else ""))
        note = "" if legal else " (as published; no code length)"
        rows.append(Row(spoken(result) + note, dots, ", ".join(said), quiet=not legal))
    legend = [(style[group.letter], group.letter) for group in groups]
    chart = dot_rows("Predictors of all runs", Axis("score", "bits per byte"), rows, legend=legend, head="result",
                     note="A dot a run; figures are means of groups, ± their standard deviation.")  # fmt: skip
    return section("results", title, chart)


def differences(groups: Sequence[Group]) -> Html:
    title = "Differences"
    scored = [Group(g.letter, [run for run in g.runs if run.main], g.differs) for g in groups]
    scored = [group for group in scored if group.runs]
    everyone = [run for group in scored for run in group.runs]
    if len(everyone) < 2:
        return section("differences", title, missing("Nothing to compare", "Fewer than two of the runs are scored."))
    result = common_result(everyone)
    if not result:
        return section("differences", title, missing("Nothing in common", "The runs have no code length in common."))
    parts: list[Html | None] = []
    if len(scored) > 1:
        parts.append(
            table(
                ["group", "runs", "unit", "mean", "standard deviation", "less than the first", "Welch's t", "p (one-sided)"],
                difference_rows(scored, result),
                caption=f"Groups, by the predictor {spoken(result)}",
            )
        )
    parts.append(_paired(everyone, result))
    says = (
        f"By the predictor “{spoken(result)}”. p is the chance of so large an improvement on the first group if there were "
        "none, by Welch's one-sided test over seeds; it needs two runs on either side."
    )
    return section("differences", title, parts, says=says)


def difference_rows(groups: Sequence[Group], result: str) -> list[list[str]]:
    """Mean, deviation and significance of every group, per token and per byte."""
    rows = []
    for group in groups:
        for unit, key in UNITS:
            ours = [run.summary["score"][result][key] for run in group.runs]
            theirs = [run.summary["score"][result][key] for run in groups[0].runs]
            row = [group.letter, str(len(ours)), unit, f"{mean(ours):.5f}", f"{stdev(ours):.5f}" if len(ours) > 1 else "–"]
            if group is groups[0]:
                row += ["", "", ""]
            else:
                row.append(f"{mean(theirs) - mean(ours):+.5f}")
                if min(len(ours), len(theirs)) > 1:
                    t, p = welch(ours, theirs)
                    row += [f"{t:.2f}", f"{p:.2g}"]
                else:
                    row += ["–", "one run has no spread"]
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Paired:
    """One run against another on the same documents."""

    gain: float
    """Bits per byte less."""
    error: float
    better: float
    """Share of documents that need fewer bits."""
    documents: int

    @property
    def p(self) -> float:
        """One-sided, by Student's distribution over documents."""
        if not self.error:
            return float(self.gain <= 0)
        return student_tail(self.gain / self.error, self.documents - 1)


def paired(first: Run, other: Run, result: str) -> Paired | None:
    """None where the runs were not scored on the same documents, or on one only."""
    ours, theirs = first.scores, other.scores
    if not ours or not theirs or first.summary.get("corpus") != other.summary.get("corpus"):
        return None
    sizes = ours.document_bytes
    if result not in ours.results or result not in theirs.results or not np.array_equal(sizes, theirs.document_bytes):
        return None
    if len(sizes) < 2 or not sizes.sum():
        return None
    gained = ours.bits_of(result) - theirs.bits_of(result)
    gain, documents = gained.sum() / sizes.sum(), len(sizes)
    apart = ((gained - gain * sizes) ** 2).sum() * documents / (documents - 1)
    return Paired(float(gain), math.sqrt(apart) / float(sizes.sum()), float((gained > 0).mean()), documents)


def paired_rows(runs: Sequence[Run], result: str) -> list[tuple[str, Paired]]:
    names = names_of(runs)
    found = [(names[run.path], paired(runs[0], run, result)) for run in runs[1:]]
    return [(name, pair) for name, pair in found if pair]


def _paired(runs: Sequence[Run], result: str) -> Html:
    title = "Run against run, document by document"
    rows = paired_rows(runs, result)
    if not rows:
        why = "The runs were not scored on the same documents, or their score.jsonl is missing."
        return missing(title, why)
    body = [
        [name, f"{pair.gain:+.5f}", f"{pair.error:.5f}", f"{pair.p:.2g}", f"{pair.better:.0%}", f"{pair.documents:,}"]
        for name, pair in rows
    ]
    heads = ["run", "bits per byte less", "standard error", "p (one-sided)", "documents better", "documents"]
    return table(heads, body, caption=f"{title}, against {names_of(runs)[runs[0].path]}; this holds for these seeds alone")


def tables(runs: Sequence[Run]) -> str:
    """The table of differences for the terminal."""
    groups = [Group(g.letter, [run for run in g.runs if run.main], g.differs) for g in groups_of(runs)]
    groups = [group for group in groups if group.runs]
    everyone = [run for group in groups for run in group.runs]
    result = common_result(everyone) if everyone else ""
    if len(everyone) < 2 or not result:
        return "fewer than two scored runs with a code length in common: nothing to compare"
    names = names_of(everyone)
    lines = ["\n".join(f"{group.name}: {', '.join(names[run.path] for run in group.runs)}" for group in groups)]
    head = [spoken(result), "runs", "unit", "mean", "std", "less than A", "t", "p"]
    lines.append(columns([head, *difference_rows(groups, result)]))
    rows = paired_rows(everyone, result)
    if rows:
        head = ["by document", "bits per byte less", "error", "p", "better in"]
        body = [
            [name, f"{one.gain:+.5f}", f"{one.error:.5f}", f"{one.p:.2g}", f"{one.better:.0%} of {one.documents:,}"]
            for name, one in rows
        ]
        lines.append(columns([head, *body]))
    return "\n\n".join(lines)
