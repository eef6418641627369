import math

import pytest

from pgolf.significance import TooFewSeeds, holm, paired, student_quantile, student_tail, welch


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [(0, 3, 0.5), (1, 1, 0.25), (2.015048, 5, 0.05), (-2.015048, 5, 0.95), (4.604095, 4, 0.005), (2.326, 1e6, 0.01)],
)
def test_student_tails_are_those_of_the_tables(t, freedom, tail):
    assert math.isclose(student_tail(t, freedom), tail, rel_tol=2e-3)


def test_welch_is_one_sided_and_has_a_margin():
    ours, theirs = [1.0600, 1.0606, 1.0603], [1.0710, 1.0722, 1.0716]
    t, p = welch(ours, theirs)
    spread = math.sqrt((0.0003**2 + 0.0006**2) / 3)
    assert math.isclose(t, 0.0113 / spread, rel_tol=1e-6) and p < 1e-4
    assert math.isclose(welch(ours, theirs, 0.0113)[1], 0.5, abs_tol=1e-6)
    assert math.isclose(welch(theirs, ours)[1], 1 - p, abs_tol=1e-9)
    assert welch([1.0, 1.0], [2.0, 2.0]) == (math.inf, 0.0)
    with pytest.raises(TooFewSeeds, match="at least two seeds"):
        welch([1.0], theirs)


def test_pairs_are_tested_two_sided():
    change, error, p = paired([0.1, 0.2, 0.3])
    assert (change, error) == (pytest.approx(0.2), pytest.approx(0.1 / math.sqrt(3)))
    assert math.isclose(p, 2 * student_tail(0.2 / error, 2)) and math.isclose(paired([-0.1, -0.2, -0.3])[2], p)
    assert paired([0.0, 0.0]) == (0.0, 0.0, 1.0) and paired([1.0, 1.0])[2] == 0.0
    with pytest.raises(TooFewSeeds):
        paired([0.1])


@pytest.mark.parametrize(("p", "freedom", "t"), [(0.025, 2, 4.302653), (0.025, 9, 2.262157), (0.05, 1, 6.313752)])
def test_student_quantiles_are_those_of_the_tables(p, freedom, t):
    assert math.isclose(student_quantile(p, freedom), t, rel_tol=1e-4)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
