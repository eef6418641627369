"""Whether a difference between seeds is more than luck."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from pgolf.errors import PgolfError


class TooFewSeeds(PgolfError):
    """The spread between runs cannot be told from one run."""


def welch(ours: Sequence[float], theirs: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    """(t, p) of Welch's one-sided test that ours are lower than theirs by more than the margin."""
    if min(len(ours), len(theirs)) < 2:
        raise TooFewSeeds("a significance needs at least two seeds on either side")
    parts = [stdev(sample) ** 2 / len(sample) for sample in (ours, theirs)]
    difference = mean(theirs) - mean(ours) - margin
    if not sum(parts):
        return math.copysign(math.inf, difference), float(difference <= 0)
    t = difference / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (ours, theirs), strict=True))
    return t, student_tail(t, freedom)


def student_tail(t: float, freedom: float, slices: int = 2000) -> float:
    """P(T > t) of Student's distribution. With T = sqrt(freedom) tan(a) its density is that of cos(a)^(freedom - 1),
    which Simpson's rule integrates from 0 to t."""
    end = math.atan(abs(t) / math.sqrt(freedom))
    heights = [math.cos(end * i / slices) ** (freedom - 1) for i in range(slices + 1)]
    area = end / slices / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
    half = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi) * area
    return max(0.0, 0.5 - math.copysign(half, t))


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """(mean, its standard error, p) of differences between pairs: Student's two-sided test that they are none."""
    if len(differences) < 2:
        raise TooFewSeeds("a significance needs at least two pairs")
    change, error = mean(differences), stdev(differences) / math.sqrt(len(differences))
    if not error:
        return change, 0.0, float(change == 0)
    return change, error, min(1.0, 2 * student_tail(abs(change) / error, len(differences) - 1))


def student_quantile(p: float, freedom: float) -> float:
    """The t that Student's distribution exceeds with probability p, at most one half; by bisection."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > p else (low, middle)
    return (low + high) / 2


def holm(ps: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false discovery is bounded (Holm, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = running
    return adjusted
