"""An upper confidence bound on a sum, from a sample without replacement in which large terms are likelier.

Terms d_1..d_N with known limits 0 <= d_t <= u_t are drawn one after another, t with the probability u_t / U_i, where U_i is
the sum of the limits that are left before draw i. Then Z_i = d_t / u_t lies in [0, 1] and has, given the past, the mean
m_i = (D - D_i) / U_i, where D is the sum of all terms and D_i of those drawn before. For a supposed D and a stake c in
(0, 1]

    W_i = prod_{j <= i} (1 - c (Z_j - m_j) / (1 - m_j))

is never negative and has the mean one, so by Ville's inequality it exceeds 1 / delta at any time with a probability of at
most delta, if D is true. The bound is the largest D that the wealth, averaged over several stakes, does not contradict. It
may be read at any time, and becomes exact when everything was drawn. If no term is above zero, equal limits and c = 1 give
the hypergeometric bound.

Testing by betting: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024. Weighted
samples without replacement: Shekhar, Xu, Lipton, Liang and Ramdas, "Risk-limiting financial audits via weighted sampling
without replacement", UAI 2023.
"""

import math

import numpy as np

# stakes and how the wealth is shared among them: most is on finding nothing at all
STAKES = {0.02: 0.1, 0.1: 0.1, 0.3: 0.1, 0.7: 0.1, 1.0: 0.6}
BISECTIONS = 60


def draw_order(limits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All positions of limit above zero, in the order in which they are drawn: exponential clocks of the rates u_t (Efraimidis
    and Spirakis, "Weighted random sampling with a reservoir", 2006)."""
    positions = np.flatnonzero(limits > 0)
    return positions[np.argsort(rng.exponential(size=len(positions)) / limits[positions], kind="stable")]


def upper_bound(limits: np.ndarray, drawn: np.ndarray, terms: np.ndarray, confidence: float) -> float:
    """The bound on the sum of all terms.

    limits (N,)   u_t of every position
    drawn (K,)    positions in the order of `draw_order`, its first K
    terms (K,)    d_t at these positions; values outside [0, u_t] are taken as the nearest limit
    """
    limits = np.maximum(np.asarray(limits, dtype=np.float64), 0.0)
    here = limits[drawn]
    terms = np.clip(terms, 0.0, here)
    known = math.fsum(terms)
    if len(drawn) == np.count_nonzero(limits):
        return known
    before = np.concatenate([[0.0], np.cumsum(terms)[:-1]])
    # summed from the end, where nothing is left over by rounding
    rest = np.sort(limits[np.setdiff1d(np.arange(len(limits)), drawn)])
    left = math.fsum(rest) + np.cumsum(here[::-1])[::-1]
    ratio = np.divide(terms, here, out=np.zeros(len(terms)), where=here > 0)
    low, high = known, known + math.fsum(rest)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if wealth(middle, before, left, ratio) * (1 - confidence) >= 1:
            high = middle
        else:
            low = middle
    return high


def wealth(total: float, before: np.ndarray, left: np.ndarray, ratio: np.ndarray) -> float:
    """W after all draws, averaged over the stakes, if the terms add up to `total`."""
    means = (total - before) / left
    if (means >= 1).any():
        return math.inf
    odds = (ratio - means) / (1 - means)
    with np.errstate(divide="ignore"):
        logs = [math.log(share) + np.log(np.maximum(1 - stake * odds, 0.0)).sum() for stake, share in STAKES.items()]
    return float(np.exp(np.minimum(np.logaddexp.reduce(logs), 700.0)))
