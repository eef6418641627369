"""What a test of the audit gives, and the registry of the tests that look at trials."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pgolf.audit.interface import NOISE_CAP, Claims, Scored
from pgolf.audit.trials import Trials

# a scorer that computes fewer targets at once may round otherwise, by so many nats
SHAPE_TOLERANCE = 2e-4


@dataclass(frozen=True)
class Finding:
    """One test's verdict on one predictor (`result`), or on the submission as a whole ("all")."""

    id: str
    rule: str
    """What it checks: a condition C1 to C4, or what the submission says of itself."""
    title: str
    result: str
    figure: str
    passed: bool | None
    """None: the test does not apply."""
    says: str

    def as_dict(self) -> dict:
        return dict(self.__dict__)


Verdict = tuple[str, bool | None, str]
"""Figure, whether it holds, and one sentence."""
Check = Callable[[Trials, str, Claims], Verdict]
CHECKS: dict[str, tuple[str, str, Check]] = {}
"""By id: the rule, the title and the test."""


def check(id: str, rule: str, title: str) -> Callable[[Check], Check]:
    """Register a test under its id."""

    def add(function: Check) -> Check:
        CHECKS[id] = rule, title, function
        return function

    return add


def findings(trials: Trials, result: str, claims: Claims, only: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Every test of one predictor, or only some. What noise it declares counts up to the cap."""
    capped = replace(claims, noise=min(claims.noise, NOISE_CAP))
    for id, (rule, title, function) in CHECKS.items():
        if only and id not in only:
            continue
        figure, passed, says = function(trials, result, claims if id == "R1" else capped)
        yield Finding(id, rule, title, result, figure, None if passed is None else bool(passed), says)


# ---- differences between two runs


def difference(trials: Trials, result: str, other: Scored, targets: slice | np.ndarray) -> tuple[int, int, float]:
    """(how many targets cost something else than in the plain run, the first of them, the largest difference)."""
    mine, theirs = np.asarray(trials.plain[result].nats)[targets], np.asarray(other.nats)[targets]
    with np.errstate(invalid="ignore"):
        gaps = np.where(mine == theirs, 0.0, np.abs(mine - theirs))
    gaps = np.nan_to_num(gaps, nan=np.inf)
    moved = np.flatnonzero(gaps)
    places = np.arange(trials.targets)[targets]
    return len(moved), int(places[moved[0]]) if len(moved) else -1, float(gaps.max(initial=0.0))


def vectors_differ(trials: Trials, result: str, other: Scored, below: int) -> tuple[int, float]:
    """(how many of the distributions at targets below a place were looked at, the largest difference of an entry)."""
    base, largest, count = trials.probed[result].distributions, 0.0, 0
    for target, row in other.distributions.items():
        if target < below and target in base:
            count += 1
            largest = max(largest, apart(base[target], row))
    return count, largest


def apart(one, other) -> float:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        gaps = np.where(one == other, 0.0, np.abs(one - other))
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))
