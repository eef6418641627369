"""Whether a difference between seeds is more than luck."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from pgolf.errors import PgolfError


class TooFewSeeds(PgolfError):
    """One run says nothing of the spread between runs."""


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
