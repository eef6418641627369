"""The audit of one subject: trials, replays of its claim, tests, and the verdict."""

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pgolf.audit import checks, claim_checks, replay
from pgolf.audit.checks import Finding
from pgolf.audit.decoding import prove
from pgolf.audit.external import ExternalScorer, Processes, ScorerFailed
from pgolf.audit.interface import SIZE_LIMIT, AuditError
from pgolf.audit.sandbox import isolation, note
from pgolf.audit.trials import Effort, OneScorer, Subject, Trials, run_trials
from pgolf.evaluation.stream import StreamError

# the record, replays, C2, C1, C3, C4, isolation, bytes, sandbox, size, clocks, repetition, data, seeds
ORDER = "F1 F2 P1 P2 N1 N2 N3 N4 N5 N5b C1a C1b C1c C1d C3 C4 D1 B1 A1 A2 T1 R1 L1 L2 S".split()
LEAST_TARGETS = 16
# points of a curve in audit.json
CURVE_POINTS = 200
# of an external scorer's trials: seconds, calls as long as the sample beside those for every cut, targets
TRIAL_SECONDS, WHOLE_CALLS = 12.0, 12.0
FEWEST_TARGETS, MOST_TARGETS = 300, 20_000


@dataclass
class Report:
    findings: list[Finding]
    results: list[str]
    seconds: float
    sums: dict = field(default_factory=dict)
    """Of each predictor {target: sum over the vocabulary}."""
    uniform: dict = field(default_factory=dict)
    """How the cost of uniform noise runs away from n ln V, in bits."""
    bound: dict | None = None
    """What of the claim may not be earned (Replayed.as_dict)."""
    decoded: dict | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all tests hold that apply to predictors that call themselves legal, and what was decoded is the text."""
        return not self.failed and (self.decoded is None or self.decoded["passed"])

    @property
    def judged(self) -> list[Finding]:
        """The findings that count: not those of predictors that are no code lengths by their own account."""
        return [one for one in self.findings if one.result in ("all", *self.results)]

    @property
    def failed(self) -> list[Finding]:
        return [one for one in self.judged if one.passed is False]

    def as_dict(self) -> dict:
        return {
            "passed": self.passed,
            "bound": self.bound,
            "notes": self.notes,
            "seconds": self.seconds,
            "results": self.results,
            "tests": [one.as_dict() for one in self.judged],
            "shown": [one.as_dict() for one in self.findings if one not in self.judged],
            "decoded": self.decoded,
            "sums": self.sums,
            "uniform": self.uniform,
        }


def audit(
    scorer,
    tokens: np.ndarray,
    *,
    effort: Effort | None = None,
    stream: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> Report:
    """Audit a scorer (see interface.py) or a subject in this process, on the first tokens of a text.

    tokens  the text on which it is tried; `effort.targets` of it are used
    stream  the whole validation text, for counting bytes; None: `tokens`
    """
    begun = time.perf_counter()
    subject: Subject = scorer if hasattr(scorer, "results") else OneScorer(scorer)
    effort = effort or Effort()
    sample = sample_of(tokens, effort, subject)
    trials = run_trials(subject, sample, effort, seed=seed, progress=progress)
    findings = [*findings_of(subject, trials), *claim_checks.findings(subject.claims, sample if stream is None else stream)]
    return report_of(subject, findings, trials, time.perf_counter() - begun)


def audit_external(
    scorer: ExternalScorer,
    tokens: np.ndarray,
    *,
    seed: int | None = None,
    effort: Effort | None = None,
    replays: int = 0,
    decode: int = 0,
    byte_counts: np.ndarray | None = None,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> Report:
    """The audit of an external scorer: its claim for a text, replays of that claim, and trials on other streams.

    seed         of positions and streams; None: drawn after the claim is fixed
    effort       of the trials; None: as the clock allows
    replays      at the beginning of the text; 0: as many as the clock allows
    decode       tokens of the claim that are compressed by the scorer's distributions and decoded again
    byte_counts  bytes of each of the text's targets, if the scorer does not say them
    """
    begun = time.perf_counter()
    tokens = np.asarray(tokens).astype(np.int64)
    sample_of(tokens, Effort(), scorer)
    replayed, trials, decoded, findings = None, None, None, []
    try:
        progress("measuring its speed", 0.0)
        speed = replay.measure(scorer, tokens, scorer.by_steps)
        targets = claimed_targets(speed, scorer, tokens)
        progress("its claim", 0.0)
        claim = replay.claim_of(scorer, tokens[: targets + 1], replay.LATE * replay.CLAIM_SECONDS)
        tokens, targets = claim.tokens, claim.targets
        seed = fresh_seed() if seed is None else seed
        effort = effort or effort_for(speed, targets)
        sample = sample_of(tokens, effort, scorer)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(replay.replay, scorer, claim, speed, seed=seed, replays=replays)
            try:
                trials = run_trials(scorer, sample, effort, seed=seed, progress=progress)
            finally:
                progress("replaying the claim", 0.5)
                replayed = running.result()
        findings += [*replay.findings_of(replayed, scorer.claims.noise), *findings_of(scorer, trials)]
        if decode:
            decoded = prove(scorer, claim, decode, lambda share: progress("compressing and decoding", share))
        failure = ""
    except ScorerFailed as error:
        failure = str(error)
    except StreamError as error:
        # the guard of the stream, which the scorer itself uses, has stopped it
        failure = ""
        title = checks.CHECKS["C3"][1]
        findings.append(Finding("C3", "C3", title, "score", "refused by the guard", False, f"{error}."))
    findings += claim_checks.findings(scorer.claims, tokens)
    if byte_counts is None and scorer.claims.bytes_of is not None:
        byte_counts = np.asarray(scorer.claims.bytes_of(tokens))
    scorer.close()
    findings.append(alone(scorer, tokens, failure))
    report = report_of(scorer, findings, trials, time.perf_counter() - begun)
    if replayed is not None:
        report.bound = replace(replayed, byte_counts=byte_counts).as_dict()
    report.notes.append(note())
    report.decoded = decoded
    return report


def fresh_seed() -> int:
    """Nothing that a scorer could know."""
    return int.from_bytes(os.urandom(4), "little")


def claimed_targets(speed: replay.Speed, scorer: ExternalScorer, tokens: np.ndarray) -> int:
    """As much of a text as a scorer claims a score for: what it gets through in the seconds for it."""
    most = len(tokens) - 1
    if not scorer.by_steps:
        most = min(most, int((replay.CLAIM_SECONDS - speed.call) / speed.target))
    if scorer.steps:
        stepping = speed if scorer.by_steps else replay.measure(scorer, tokens, True)
        most = min(most, int(replay.DENSE_SECONDS / 2 / stepping.target))
    return max(most, min(LEAST_TARGETS + 1, len(tokens) - 1))


def effort_for(speed: replay.Speed, targets: int) -> Effort:
    """As large a sample as the seconds for trials allow."""
    calls = WHOLE_CALLS + Effort.cuts
    affordable = (TRIAL_SECONDS - (calls + Effort.substitutions * Effort.samples) * speed.call) / (speed.target * calls)
    return Effort(targets=min(int(np.clip(affordable, FEWEST_TARGETS, MOST_TARGETS)), targets))


def sample_of(tokens: np.ndarray, effort: Effort, subject: Subject) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) <= LEAST_TARGETS:
        raise AuditError(f"an audit needs a text of more than {LEAST_TARGETS} tokens")
    if int(tokens.max()) >= subject.vocab:
        raise AuditError(f"the text has the token {int(tokens.max())}, but the scorer's symbols end at {subject.vocab - 1}")
    return tokens[: effort.targets + 1]


def findings_of(subject: Subject, trials: Trials):
    for result in subject.results:
        if result in trials.plain:
            yield from checks.findings(trials, result, subject.claims)
        else:
            said = next(iter(trials.refused.values()), "it gave no scores")
            yield Finding("C3", "C3", checks.CHECKS["C3"][1], result, "refused by the guard", False, f"{said}.")


def in_order(findings: Sequence[Finding], results: Sequence[str]) -> list[Finding]:
    """What concerns the submission as a whole first, then result by result."""
    place = {result: number for number, result in enumerate(results)}
    return sorted(findings, key=lambda one: (place.get(one.result, -1), ORDER.index(one.id)))


def report_of(subject: Subject, findings: list[Finding], trials: Trials | None, seconds: float) -> Report:
    findings = in_order(findings, list(subject.results))
    legal = [result for result, legal in subject.results.items() if legal]
    if trials is None:
        return Report(findings, legal, seconds)
    return Report(findings, legal, seconds, sums_of(trials), uniform_of(trials))


# ---- A1


def alone(scorer: Processes, tokens: np.ndarray, failure: str) -> Finding:
    """What its processes opened and connected to, beside its own files."""
    title = "alone with its files, it scores"
    if failure:
        return Finding(
            "A1", "sandbox", title, "all", "no score", False, f"In a sandbox it gives no score: {failure.rstrip('.')}."
        )
    if scorer.connected:
        figure = f"{len(scorer.connected)} connections"
        says = f"In a sandbox it reached out: {', '.join(sorted(scorer.connected)[:3])}."
        return Finding("A1", "sandbox", title, "all", figure, False, says)
    if scorer.seen:
        figure = f"{len(scorer.seen)} files"
        says = f"In a sandbox it opened what it does not name: {', '.join(sorted(scorer.seen)[:3])}."
        return Finding("A1", "sandbox", title, "all", figure, False, says)
    for path, size in scorer.sizes.items():
        if size > SIZE_LIMIT:
            says = f"{path}, which it names as its own, is larger than the rules allow."
            return Finding("A1", "sandbox", title, "all", f"{size:,} bytes or more", False, says)
        if holds(path, tokens):
            says = f"{path}, which it names as its own, holds the text that it is scored on."
            return Finding("A1", "sandbox", title, "all", f"{size:,} bytes", False, says)
    total = sum(scorer.sizes.values())
    figure = f"{len(scorer.sizes):,} files of its own, {total:,} bytes"
    if not isolation():
        return Finding("A1", "sandbox", title, "all", figure, None, note())
    return Finding("A1", "sandbox", title, "all", figure, True, f"It scores alone with its files. {note()}")


def holds(path: str, tokens: np.ndarray) -> bool:
    """Whether a file holds a stretch of the stream, as integers of any usual width."""
    count = min(64, len(tokens) // 2)
    stretches = [tokens[start : start + count] for start in (1, len(tokens) // 2, len(tokens) - count)]
    needles = [stretch.astype(kind).tobytes() for stretch in stretches for kind in ("<u2", "<i4", "<i8", "<f4", "<f8")]
    files = [Path(path)] if Path(path).is_file() else [one for one in Path(path).rglob("*") if one.is_file()]
    return any(needle in data for data in map(Path.read_bytes, files) for needle in needles)


# ---- what is drawn


def sums_of(trials: Trials) -> dict:
    by_result = {}
    for result, scored in trials.probed.items():
        logs = checks.log_sums(scored, trials.vocab)
        if logs:
            sums = {target: math.exp(min(value, 700.0)) for target, value in sorted(logs.items())}
            by_result[result] = {
                "targets": list(sums),
                "sums": [value if math.isfinite(value) else None for value in sums.values()],
                "mean": float(np.mean(list(sums.values()))),
            }
    return by_result


def uniform_of(trials: Trials) -> dict:
    """Bits that the noise cost beyond n ln V, added up along the stream."""
    if trials.uniform is None:
        return {}
    curves: dict = {"results": {}}
    for result in trials.uniform[1]:
        surplus = -np.cumsum(checks.coin_gains(trials, result)) / math.log(2)
        at = np.unique(np.linspace(0, len(surplus) - 1, CURVE_POINTS).astype(int))
        curves["at"] = (at + 1).tolist()
        curves["results"][result] = [float(value) for value in surplus[at]]
    curves["allowed"] = -(checks.COIN_NATS + math.log(checks.RESTARTS)) / math.log(2)
    return curves


def joined(reports: Sequence[Report]) -> Report:
    """Reports of several subjects of one run; what the run says of itself is taken from the first."""
    first, *others = reports
    report = replace(first, findings=list(first.findings), sums=dict(first.sums), uniform=dict(first.uniform))
    for other in others:
        report.findings += [one for one in other.findings if one.result != "all"]
        report.sums |= other.sums
        report.seconds += other.seconds
        if other.uniform:
            report.uniform = {**report.uniform, "further": [*report.uniform.get("further", ()), other.uniform]}
    return report
