"""The confidence bound: it holds as often as it says, and is exact when everything was drawn."""

import math

import numpy as np
import pytest

from pgolf.audit.bounds import draw_order, upper_bound


def terms_of(rng, limits, share, size):
    """A share of the positions hold so large a part of their limit, the rest nothing."""
    return np.where(rng.random(len(limits)) < share, size * limits, 0.0)


@pytest.mark.parametrize("share, size", [(0.0, 1.0), (0.02, 1.0), (0.3, 0.05), (1.0, 0.01)])
def test_the_true_sum_is_below_the_bound_as_often_as_it_says(share, size):
    rng = np.random.default_rng(1)
    limits = rng.uniform(1, 20, 200)
    missed = 0
    for _ in range(200):
        terms = terms_of(rng, limits, share, size)
        drawn = draw_order(limits, rng)[:80]
        missed += terms.sum() > upper_bound(limits, drawn, terms[drawn], 0.9)
    assert missed <= 0.1 * 200 + 3 * math.sqrt(200 * 0.09)


def test_it_is_exact_when_everything_was_drawn():
    rng = np.random.default_rng(2)
    limits = rng.uniform(1, 20, 50)
    terms = terms_of(rng, limits, 0.3, 0.5)
    drawn = draw_order(limits, rng)
    assert upper_bound(limits, drawn, terms[drawn], 0.99) == pytest.approx(terms.sum(), rel=1e-12)
    # one short of all: at most that one's limit more
    bound = upper_bound(limits, drawn[:-1], terms[drawn[:-1]], 0.99)
    assert bound <= terms[drawn[:-1]].sum() + limits[drawn[-1]] + 1e-9


def test_nothing_found_among_equal_limits_is_the_hypergeometric_bound():
    """With m of N bad, K draws miss them all with probability C(N - m, K) / C(N, K)."""
    limits, drawn = np.ones(1000), np.arange(400)
    bound = upper_bound(limits, drawn, np.zeros(400), 0.99)
    chance = lambda m: math.comb(1000 - m, 400) / math.comb(1000, 400)
    # six tenths of the wealth are at the stake of one
    exact = next(m for m in range(1000) if chance(m) < 0.01)
    assert exact - 1 <= bound <= next(m for m in range(1000) if chance(m) < 0.01 * 0.6) + 1


def test_positions_that_cannot_have_earned_too_much_are_not_drawn():
    limits = np.array([3.0, 0.0, -2.0, 1.0])
    order = draw_order(limits, np.random.default_rng(0))
    assert sorted(order.tolist()) == [0, 3]
    first = [draw_order(limits, np.random.default_rng(seed))[0] for seed in range(400)]
    assert np.mean(np.array(first) == 0) == pytest.approx(0.75, abs=0.08)
