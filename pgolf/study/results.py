"""What a study's runs say: every arm against the one it is held against, pair by pair. It needs no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from pgolf.report.files import Run, read_run
from pgolf.report.sections.section import label
from pgolf.report.tables import given_up, same_work
from pgolf.significance import holm, paired, student_quantile, student_tail
from pgolf.study.ledger import Ledger, State
from pgolf.study.plan import Arm, Study

LEVEL = 0.05


@dataclass(frozen=True)
class Documents:
    """The change on the documents of the text, averaged over seeds; its error is over documents."""

    change: float
    error: float
    count: int
    better: float
    """Share of documents that need fewer bits."""

    @property
    def p(self) -> float:
        """Two-sided."""
        if not self.error:
            return float(self.change == 0)
        return min(1.0, 2 * student_tail(abs(self.change) / self.error, self.count - 1))


@dataclass
class Comparison:
    """One arm. Changes are ours minus theirs, in bits per byte: below zero is better."""

    arm: Arm
    scores: dict[int, float]
    """By seed."""
    changes: dict[int, float] = field(default_factory=dict)
    change: float | None = None
    error: float | None = None
    p: float | None = None
    """Paired Student's test over seeds, two-sided."""
    adjusted: float | None = None
    """The same after Holm's correction over the study's arms."""
    documents: Documents | None = None
    seconds: float | None = None
    """Training and scoring, as a share of those of the other arm."""
    bytes: float | None = None
    """Of model and code, more than the other arm's."""
    why_not: str = ""
    """What keeps the runs from being compared."""
    lost: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    """What crashed, was stopped or has not run."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, over seeds; over documents where there is one seed."""
        if self.change is None:
            return None
        if self.error is not None:
            half = student_quantile(LEVEL / 2, len(self.changes) - 1) * self.error
        elif self.documents:
            half = student_quantile(LEVEL / 2, self.documents.count - 1) * self.documents.error
        else:
            return None
        return self.change - half, self.change + half

    @property
    def better(self) -> bool | None:
        """None: nothing can be said."""
        if self.why_not or self.change is None or self.adjusted is None or self.adjusted >= LEVEL:
            return None
        return self.change < 0

    @property
    def verdict(self) -> str:
        if self.change is None:
            return f"{self.arm.title}: no result" + (f"; {self.trouble[0]}" if self.trouble else "")
        own = self.arm.against == self.arm.name
        said = f"{self.change:+.4f} bits per byte against "
        said += f"its own score by {label(self.arm.against_score)}" if own else self.arm.against
        if self.why_not:
            return f"{self.arm.title}: not comparable, because {self.why_not} ({said})"
        if self.adjusted is None:
            more = f"; over documents p = {self.documents.p:.2g}" if self.documents else ""
            return f"{self.arm.title}: {said} with one seed, which says nothing of other seeds{more}"
        if self.better is None:
            return f"{self.arm.title}: no difference beyond the spread of the seeds, {said} (p = {self.adjusted:.2g})"
        return f"{self.arm.title}: {'better' if self.better else 'worse'}, {said} (p = {self.adjusted:.2g})"


def compared(study: Study, folder: Path) -> list[Comparison]:
    """Every arm but the base, with the p-values corrected together."""
    states = Ledger(folder / "ledger.jsonl").states()
    runs = {
        (arm, seed): read_run(path)
        for arm in study.arms
        for seed in study.seeds
        if (path := folder / "runs" / f"{arm}-{seed}").exists()
    }
    comparisons = [_comparison(study, arm, runs, states) for arm in study.others]
    tested = [one for one in comparisons if one.p is not None and not one.why_not]
    for one, adjusted in zip(tested, holm([one.p for one in tested if one.p is not None]), strict=True):
        one.adjusted = adjusted
    return comparisons


def score_of(run: Run | None, predictor: str) -> float | None:
    if run is None:
        return None
    score = run.summary.score.get(run.main if predictor == "main" else predictor)
    return score.bpb if score else None


def trouble_of(study: Study, arm: str, states: dict[str, State]) -> list[str]:
    lines = []
    for seed in study.seeds:
        state = states.get(f"{arm}-{seed}", State())
        lines += [f"{arm}-{seed}: {stage} failed, {why}" for stage, why in state.crashed.items()]
        if state.stopped:
            lines.append(f"{arm}-{seed}: stopped by a gate, {state.stopped}")
        elif not state.crashed and "score" not in state.done:
            lines.append(f"{arm}-{seed}: not finished")
    return lines


def _comparison(study: Study, arm: Arm, runs: dict[tuple[str, int], Run], states: dict[str, State]) -> Comparison:
    scores = {seed: value for seed in study.seeds if (value := score_of(runs.get((arm.name, seed)), arm.score)) is not None}
    comparison = Comparison(arm, scores, trouble=trouble_of(study, arm.name, states))
    pairs = []
    for seed, ours in scores.items():
        theirs = score_of(runs.get((arm.against, seed)), arm.against_score)
        if theirs is not None:
            comparison.changes[seed] = ours - theirs
            pairs.append((runs[arm.against, seed], runs[arm.name, seed]))
    if not pairs:
        return comparison
    comparison.why_not = next((why for first, other in pairs if (why := _why_not(first, other))), "")
    comparison.lost = list(dict.fromkeys(line for _, run in pairs for line in given_up(run.summary)))
    comparison.change = mean(comparison.changes.values())
    if len(pairs) > 1:
        _, comparison.error, comparison.p = paired(list(comparison.changes.values()))
    if not comparison.why_not:
        comparison.documents = by_document(pairs, arm.against_score, arm.score)
    comparison.seconds = _ratio(pairs, _seconds)
    sizes = [(a.summary.artifact, b.summary.artifact) for a, b in pairs]
    grown = [b.total_bytes - a.total_bytes for a, b in sizes if a and b]
    if len(grown) == len(pairs):
        comparison.bytes = mean(grown)
    return comparison


def _why_not(first: Run, other: Run) -> str:
    if first.summary.corpus != other.summary.corpus:
        return "the runs were scored on different text"
    return "" if same_work(first.summary, other.summary) else "the clock made the runs give up different work"


def _seconds(run: Run) -> float:
    train, scoring = run.summary.train, run.summary.scoring
    return (train.seconds if train else math.nan) + (scoring.seconds if scoring else math.nan)


def _ratio(pairs: Sequence[tuple[Run, Run]], read) -> float | None:
    values = [read(other) / read(first) for first, other in pairs if read(first)]
    return mean(values) if values and all(map(math.isfinite, values)) else None


def by_document(pairs: Sequence[tuple[Run, Run]], theirs: str, ours: str) -> Documents | None:
    """None where the runs were not scored on the same documents, or on one only."""
    changes, sizes = [], None
    for first, other in pairs:
        names = [run.main if name == "main" else name for run, name in ((first, theirs), (other, ours))]
        if not first.scores or not other.scores:
            return None
        if names[0] not in first.scores.results or names[1] not in other.scores.results:
            return None
        if not np.array_equal(first.scores.document_bytes, other.scores.document_bytes):
            return None
        if sizes is not None and not np.array_equal(sizes, first.scores.document_bytes):
            return None
        sizes = first.scores.document_bytes
        changes.append(other.scores.bits_of(names[1]) - first.scores.bits_of(names[0]))
    if sizes is None or len(sizes) < 2 or not sizes.sum():
        return None
    changed, count = np.mean(changes, axis=0), len(sizes)
    change = changed.sum() / sizes.sum()
    apart = ((changed - change * sizes) ** 2).sum() * count / (count - 1)
    return Documents(float(change), math.sqrt(apart) / float(sizes.sum()), count, float((changed < 0).mean()))
