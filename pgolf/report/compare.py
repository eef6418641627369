"""One page of several runs: a verdict a configuration, curves over each other, scores, and how significant differences are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from pgolf.report.charts import COLOURS, Dot, DotRows, Row, choice, missing, table
from pgolf.report.files import Run
from pgolf.report.html import Html, document, h, join
from pgolf.report.page import bar
from pgolf.report.scales import Axis
from pgolf.report.sections.result import damage, stage_reached
from pgolf.report.sections.section import grid, label, section
from pgolf.report.sections.training import AXES, METRICS, overlaid
from pgolf.report.tables import columns, given_up, same_work
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
    anchors = [
        ("verdicts", "Verdicts"),
        ("groups", "Runs"),
        ("curves", "Curves"),
        ("scores", "Scores"),
        ("differences", "Differences"),
    ]
    body = join(
        [
            bar(anchors),
            h(
                "main",
                h("header", h("p", "pgolf comparison", class_="kicker"), h("h1", f"{len(runs)} runs")),
                [damage(run) for run in runs],
                conclusions(groups),
                overview(groups),
                training(groups),
                scores(groups),
                differences(groups),
            ),
        ]
    )
    return document(f"{len(runs)} runs – pgolf", body)


def groups_of(runs: Sequence[Run]) -> list[Group]:
    alike: list[tuple[dict, list[Run]]] = []
    for run in runs:
        settings = flat(run.config)
        settings.pop("seed", None)
        for known, members in alike:
            if known == settings:
                members.append(run)
                break
        else:
            alike.append((settings, [run]))
    return [
        Group(chr(ord("A") + i) if i < 26 else f"G{i}", members, _difference(alike[0][0], settings))
        for i, (settings, members) in enumerate(alike)
    ]


def flat(table: dict, path: str = "") -> dict:
    values: dict = {}
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        values |= flat(value, name) if isinstance(value, dict) else {name: value}
    return values


def _difference(first: dict, other: dict, most: int = 4) -> str:
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key) and key not in ("description", "preset")]
    words = [f"{key} {other.get(key, 'unset')} instead of {first.get(key, 'unset')}" for key in keys[:most]]
    return ", ".join(words) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def common_predictor(runs: Sequence[Run]) -> str:
    """The run's score where all runs agree on it; or else the last code length that all of them have."""
    mains = {run.main for run in runs}
    if len(mains) == 1:
        return mains.pop()
    scored = [run.summary.score for run in runs]
    names = [name for name in scored[0] if all(name in score and score[name].legal for score in scored)]
    return names[-1] if names else ""


def names_of(runs: Sequence[Run]) -> dict[Path, str]:
    """Folders' names, with as much of the path as makes them differ."""
    names = [run.name for run in runs]
    return {run.path: run.name if names.count(run.name) == 1 else str(run.path) for run in runs}


def every(groups: Sequence[Group]) -> list[tuple[Group, Run]]:
    return [(group, run) for group in groups for run in group.runs]


# ---- the conclusion


@dataclass(frozen=True)
class Verdict:
    """What the runs of one group say beside those of the first. better: true, false, or None where nothing can be said."""

    group: Group
    better: bool | None
    words: str

    @property
    def sentence(self) -> str:
        return f"{self.group.name}: {self.words}"


def scored_groups(groups: Sequence[Group]) -> list[Group]:
    scored = [Group(group.letter, [run for run in group.runs if run.main], group.differs) for group in groups]
    return [group for group in scored if group.runs]


def lost_work(groups: Sequence[Group]) -> list[str]:
    """A line for every run that gave something up for the clock."""
    pairs = every(groups)
    names = names_of([run for _, run in pairs])
    given_up_by_run = [(names[run.path], given_up(run.summary)) for _, run in pairs]
    return [f"{name} gave up for the clock: {', '.join(lost)}" for name, lost in given_up_by_run if lost]


def comparable(one: Group, other: Group) -> str:
    """Why the scores of two groups may not be compared; empty if they may."""
    runs = [*one.runs, *other.runs]
    if any(run.summary.corpus != runs[0].summary.corpus for run in runs):
        return "the runs were scored on different text"
    if not all(same_work(runs[0].summary, run.summary) for run in runs):
        return "the clock made the runs give up different work"
    return ""


def verdicts(groups: Sequence[Group], predictor: str) -> list[Verdict]:
    first, *others = groups
    return [_verdict(first, group, predictor) for group in others]


def _verdict(first: Group, group: Group, predictor: str) -> Verdict:
    ours, theirs = ([run.summary.score[predictor].bpb for run in one.runs] for one in (group, first))
    change = mean(ours) - mean(theirs)
    said = f"{change:+.4f} bits per byte against {first.letter}"
    why = comparable(first, group)
    if why:
        return Verdict(group, None, f"not comparable, because {why} ({said})")
    if min(len(ours), len(theirs)) < 2:
        return Verdict(group, None, f"{said}; two runs or more on either side are needed to tell it from chance")
    _, p = welch(ours, theirs)
    if p < 0.05:
        return Verdict(group, True, f"better, {said} (p = {p:.2g})")
    _, worse = welch(theirs, ours)
    if worse < 0.05:
        return Verdict(group, False, f"worse, {said} (p = {worse:.2g})")
    return Verdict(group, None, f"no difference beyond the spread of the seeds, {said} (p = {p:.2g})")


def conclusions(groups: Sequence[Group]) -> Html:
    scored = scored_groups(groups)
    predictor = common_predictor([run for group in scored for run in group.runs]) if scored else ""
    judged = verdicts(scored, predictor) if predictor and len(scored) > 1 else []
    items = [h("li", line, class_="open") for line in lost_work(groups)]
    items += [h("li", one.sentence, class_={True: "good", False: "bad", None: "open"}[one.better]) for one in judged]
    if not judged:
        items.append(h("li", "Fewer than two configurations are scored: there is nothing to conclude."))
    return section("verdicts", "Verdicts", h("ul", items, class_="verdicts"))


# ---- sections


def overview(groups: Sequence[Group]) -> Html:
    pairs = every(groups)
    names = names_of([run for _, run in pairs])
    rows = []
    for group, run in pairs:
        score = run.summary.score.get(run.main)
        train, scoring, artifact = run.summary.train, run.summary.scoring, run.summary.artifact
        rows.append(
            [
                names[run.path],
                group.letter,
                str(run.config.get("seed", "") if run.summary.seed is None else run.summary.seed),
                f"{score.bpb:.4f}" if score else stage_reached(run),
                label(run.main) or "–",
                f"{train.steps:,}" if train else "–",
                f"{train.tokens:,}" if train else "–",
                f"{train.seconds:.1f}" if train else "–",
                f"{scoring.seconds:.1f}" if scoring else "–",
                f"{artifact.total_bytes:,}" if artifact else "–",
            ]
        )
    heads = ["run", "group", "seed", "bits per byte", "predictor", "steps", "tokens", "training s", "scoring s", "bytes"]
    legend = h("ul", [h("li", group.name) for group in groups], class_="plain")
    says = "Runs whose settings agree in all but the seed are one group; the first group is what others are held against."
    return section("groups", "Runs", table(heads, rows, caption="Every run"), legend, says=says)


def training(groups: Sequence[Group]) -> Html:
    pairs = every(groups)
    names = names_of([run for _, run in pairs])
    runs = [(f"{names[run.path]} ({group.letter})", run) for group, run in pairs]
    panels = [(name, grid(overlaid(metric, axis, runs) for metric in METRICS if metric.compared)) for name, axis in AXES]
    return section("curves", "Curves", choice("compare-axis", "horizontal axis", panels))


def scores(groups: Sequence[Group]) -> Html:
    title = "Scores"
    pairs = every(groups)
    predictors = list(dict.fromkeys(name for _, run in pairs for name in run.summary.score))
    if not predictors:
        return section("scores", title, missing("Nothing is scored", "None of the runs has a score yet."))
    names = names_of([run for _, run in pairs])
    style = {group.letter: i % COLOURS for i, group in enumerate(groups)}
    rows = []
    for predictor in predictors:
        dots, said, legal = [], [], True
        for group, run in pairs:
            score = run.summary.score.get(predictor)
            if score:
                legal = legal and score.legal
                said_of = f"{names[run.path]}: {score.bpb:.4f}"
                dots.append(Dot(score.bpb, style[group.letter], label=said_of))
        for group in groups:
            values = [run.summary.score[predictor].bpb for run in group.runs if predictor in run.summary.score]
            if values:
                said.append(f"{group.letter} {mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else ""))
        note = "" if legal else " (as published; no code length)"
        rows.append(Row(label(predictor) + note, dots, ", ".join(said), quiet=not legal))
    legend = [(style[group.letter], group.letter) for group in groups]
    note = "A dot a run; figures are means of groups, ± their standard deviation."
    chart = DotRows("Scores of all runs", Axis("score", "bits per byte"), rows, legend, head="predictor", note=note)
    return section("scores", title, chart)


def differences(groups: Sequence[Group]) -> Html:
    title = "Differences"
    scored = scored_groups(groups)
    everyone = [run for group in scored for run in group.runs]
    if len(everyone) < 2:
        return section("differences", title, missing("Nothing to compare", "Fewer than two of the runs are scored."))
    predictor = common_predictor(everyone)
    if not predictor:
        return section("differences", title, missing("Nothing in common", "The runs have no code length in common."))
    parts: list[Html | None] = []
    if len(scored) > 1:
        head = ["group", "runs", "unit", "mean", "standard deviation", f"difference from {scored[0].letter}", "Welch's t"]
        rows = difference_rows(scored, predictor)
        parts.append(table([*head, "p (one-sided)"], rows, caption=f"Groups, by the predictor “{label(predictor)}”"))
    parts.append(_paired(everyone, predictor))
    says = (
        f"By the predictor “{label(predictor)}”; a negative difference is an improvement. p is the chance of so large an "
        "improvement on the first group if there were none, by Welch's one-sided test over seeds; it needs two runs on "
        "either side that gave up the same work."
    )
    return section("differences", title, parts, says=says)


def difference_rows(groups: Sequence[Group], predictor: str) -> list[list[str]]:
    """Mean, deviation and significance of every group, per token and per byte."""
    rows = []
    for group in groups:
        for unit, key in UNITS:
            ours = [getattr(run.summary.score[predictor], key) for run in group.runs]
            theirs = [getattr(run.summary.score[predictor], key) for run in groups[0].runs]
            row = [group.letter, str(len(ours)), unit, f"{mean(ours):.5f}", f"{stdev(ours):.5f}" if len(ours) > 1 else "–"]
            if group is groups[0]:
                row += ["", "", ""]
            else:
                row.append(f"{mean(ours) - mean(theirs):+.5f}")
                why = comparable(groups[0], group)
                if why:
                    row += ["–", why]
                elif min(len(ours), len(theirs)) > 1:
                    t, p = welch(ours, theirs)
                    row += [f"{t:.2f}", f"{p:.2g}"]
                else:
                    row += ["–", "one run has no spread"]
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Paired:
    """One run against another on the same documents."""

    change: float
    """In bits per byte; below zero where the other one is better."""
    error: float
    better: float
    """Share of documents that need fewer bits."""
    documents: int

    @property
    def p(self) -> float:
        """One-sided, by Student's distribution over documents."""
        if not self.error:
            return float(self.change >= 0)
        return student_tail(-self.change / self.error, self.documents - 1)


def paired(first: Run, other: Run, predictor: str) -> Paired | None:
    """None where the runs were not scored on the same documents, on one only, or gave up different work for the clock."""
    ours, theirs = first.scores, other.scores
    if not ours or not theirs or first.summary.corpus != other.summary.corpus:
        return None
    if not same_work(first.summary, other.summary):
        return None
    sizes = ours.document_bytes
    if predictor not in ours.results or predictor not in theirs.results or not np.array_equal(sizes, theirs.document_bytes):
        return None
    if len(sizes) < 2 or not sizes.sum():
        return None
    changed = theirs.bits_of(predictor) - ours.bits_of(predictor)
    change, documents = changed.sum() / sizes.sum(), len(sizes)
    apart = ((changed - change * sizes) ** 2).sum() * documents / (documents - 1)
    return Paired(float(change), math.sqrt(apart) / float(sizes.sum()), float((changed < 0).mean()), documents)


def paired_rows(runs: Sequence[Run], predictor: str) -> list[tuple[str, Paired]]:
    names = names_of(runs)
    pairs = [(names[run.path], paired(runs[0], run, predictor)) for run in runs[1:]]
    return [(name, pair) for name, pair in pairs if pair]


def _paired(runs: Sequence[Run], predictor: str) -> Html:
    title = "Run against run, document by document"
    rows = paired_rows(runs, predictor)
    if not rows:
        why = "The runs were not scored on the same documents, gave up different work, or their score.jsonl is missing."
        return missing(title, why)
    body = [
        [name, f"{pair.change:+.5f}", f"{pair.error:.5f}", f"{pair.p:.2g}", f"{pair.better:.0%}", f"{pair.documents:,}"]
        for name, pair in rows
    ]
    heads = ["run", "difference in bits per byte", "standard error", "p (one-sided)", "documents better", "documents"]
    return table(heads, body, caption=f"{title}, against {names_of(runs)[runs[0].path]}; this holds for these seeds alone")


def tables(runs: Sequence[Run]) -> str:
    """Verdicts and the table of differences for the terminal; what the clock took comes first."""
    groups = groups_of(runs)
    lines = ["\n".join(lost_work(groups))] if lost_work(groups) else []
    groups = scored_groups(groups)
    everyone = [run for group in groups for run in group.runs]
    predictor = common_predictor(everyone) if everyone else ""
    if len(everyone) < 2 or not predictor:
        return "fewer than two scored runs with a code length in common: nothing to compare"
    names = names_of(everyone)
    lines.append("\n".join(f"{group.name}: {', '.join(names[run.path] for run in group.runs)}" for group in groups))
    head = [label(predictor), "runs", "unit", "mean", "std", "minus A", "t", "p"]
    lines.append(columns([head, *difference_rows(groups, predictor)]))
    rows = paired_rows(everyone, predictor)
    if rows:
        head = ["by document", "difference", "error", "p", "better in"]
        body = [
            [name, f"{one.change:+.5f}", f"{one.error:.5f}", f"{one.p:.2g}", f"{one.better:.0%} of {one.documents:,}"]
            for name, one in rows
        ]
        lines.append(columns([head, *body]))
    lines += [one.sentence for one in verdicts(groups, predictor)]
    return "\n\n".join(lines)
