"""The audit of one subject: trials, tests, and the verdict."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pgolf.audit import checks, claim_checks
from pgolf.audit.checks import Finding
from pgolf.audit.interface import AuditError
from pgolf.audit.sandbox import Sandbox
from pgolf.audit.trials import Effort, OneScorer, Subject, Trials, run_trials

# C2, C1, C3, C4, isolation, bytes, sandbox, size, clocks, repetition, data, seeds
ORDER = "N1 N2 N3 N4 N5 N5b C1a C1b C1c C1d C3 C4 D1 B1 A1 A2 T1 R1 L1 S".split()
LEAST_TARGETS = 16
# points of a curve in audit.json
CURVE_POINTS = 200


@dataclass
class Report:
    findings: list[Finding]
    results: list[str]
    seconds: float
    sums: dict = field(default_factory=dict)
    """Of each predictor {target: sum over the vocabulary}."""
    uniform: dict = field(default_factory=dict)
    """How the cost of uniform noise runs away from n ln V, in bits."""
    decoded: dict | None = None

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
    name: str = "",
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> Report:
    """Audit a scorer (see interface.py) or a subject on the first tokens of a text.

    tokens  the text on which it is tried; `effort.targets` of it are used
    stream  the whole validation text, for counting bytes; None: `tokens`
    name    how another process can load the same subject (subjects.load); empty: no sandbox
    """
    begun = time.perf_counter()
    subject: Subject = scorer if hasattr(scorer, "results") else OneScorer(scorer)
    effort = effort or Effort()
    sample = sample_of(tokens, effort, subject)
    sandbox = Sandbox(name, sample) if name else None
    try:
        trials = run_trials(subject, sample, effort, seed=seed, progress=progress)
        findings = list(findings_of(subject, trials))
        findings += claim_checks.findings(subject.claims, sample if stream is None else stream)
        findings.append(sandboxed(sandbox, trials, subject))
    finally:
        if sandbox:
            sandbox.close()
    findings.sort(key=lambda one: (list(subject.results).index(one.result) if one.result in subject.results else -1,
                                   ORDER.index(one.id)))  # fmt: skip
    legal = [result for result, legal in subject.results.items() if legal]
    return Report(findings, legal, time.perf_counter() - begun, sums_of(trials), uniform_of(trials))


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


# ---- A1


def sandboxed(sandbox: Sandbox | None, trials: Trials, subject: Subject) -> Finding:
    title = "alone with its files, it scores the same"
    if sandbox is None:
        return Finding("A1", "C1", title, "all", "no name", None, "It has no name by which another process could load it.")
    found = sandbox.result()
    if "error" in found:
        return Finding("A1", "C1", title, "all", "no score", False, f"In a sandbox it gives no score: {found['error']}")
    for what, verb in (("reached", "reached out"), ("opened", "opened what it does not name")):
        if found[what]:
            figure = f"{len(found[what])} {what}"
            return Finding("A1", "C1", title, "all", figure, False, f"In a sandbox it {verb}: {', '.join(found[what][:3])}.")
    gap = 0.0
    for result, scored in trials.plain.items():
        if result not in found["nats"] or len(found["nats"][result]) != len(scored.nats):
            return Finding("A1", "C1", title, "all", result, False, "In a sandbox it does not score the same targets.")
        gap = max(gap, checks.apart(scored.nats, found["nats"][result]))
    figure = f"at most {gap:.1e} nats apart"
    # another process may use other threads, which add up in another order
    if gap > max(checks.SHAPE_TOLERANCE, subject.claims.noise):
        return Finding("A1", "C1", title, "all", figure, False, "Without its usual surroundings it scores something else.")
    says = "Alone with the files it names, without network and training data, it gives the same costs."
    return Finding("A1", "C1", title, "all", figure, True, says)


# ---- what is drawn


def sums_of(trials: Trials) -> dict:
    found = {}
    for result, scored in trials.probed.items():
        logs = checks.log_sums(scored, trials.vocab)
        if logs:
            sums = {target: math.exp(min(value, 700.0)) for target, value in sorted(logs.items())}
            found[result] = {
                "targets": list(sums),
                "sums": [value if math.isfinite(value) else None for value in sums.values()],
                "mean": float(np.mean(list(sums.values()))),
            }
    return found


def uniform_of(trials: Trials) -> dict:
    """Bits that the noise cost beyond n ln V, added up along the stream."""
    if trials.uniform is None:
        return {}
    found: dict = {"results": {}}
    for result in trials.uniform[1]:
        surplus = -np.cumsum(checks.coin_gains(trials, result)) / math.log(2)
        at = np.unique(np.linspace(0, len(surplus) - 1, CURVE_POINTS).astype(int))
        found["at"] = (at + 1).tolist()
        found["results"][result] = [float(value) for value in surplus[at]]
    found["allowed"] = -(checks.COIN_NATS + math.log(checks.RESTARTS)) / math.log(2)
    return found


def joined(reports: Sequence[Report]) -> Report:
    """Reports of several subjects of one run; what the run says of itself is taken from the first."""
    first, *others = reports
    found = replace(first, findings=list(first.findings), sums=dict(first.sums), uniform=dict(first.uniform))
    for other in others:
        found.findings += [one for one in other.findings if one.result != "all"]
        found.sums |= other.sums
        found.seconds += other.seconds
        if other.uniform:
            found.uniform = {**found.uniform, "further": [*found.uniform.get("further", ()), other.uniform]}
    return found
