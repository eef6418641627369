"""Every known violation is caught by the test that it is meant for, and no legal control is."""

import pytest

from pgolf.audit import audit
from pgolf.audit.violations.base import text
from pgolf.audit.violations.cases import CASES, CLAIMED, EFFORT, FEW, LEAKS, examine, published_cases

ALL = (*CASES, *published_cases(), *LEAKS)
CONTROLS = list({case.legal: case.name for case in ALL}.items())


def test_no_violation_is_missing():
    assert {case.number for case in ALL} >= {f"V{number}" for number in range(1, 29)}


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.number} {case.name}")
def test_a_case_is_caught_for_the_right_reason(case, tmp_path):
    report = examine(case.illegal, tmp_path / "case", CLAIMED if "P1" in case.caught_by else FEW)
    assert not report.passed
    failed = {one.id: one for one in report.failed}
    assert set(case.caught_by) <= failed.keys()
    # a sentence for a person, and a figure
    assert all(one.says.endswith(".") and one.figure for one in failed.values())


@pytest.mark.parametrize("legal", [legal for legal, _ in CONTROLS], ids=[name for _, name in CONTROLS])
def test_a_legal_control_passes(legal, tmp_path):
    report = examine(legal, tmp_path / "control")
    assert report.passed, [f"{one.id}: {one.figure}; {one.says}" for one in report.failed]


def test_the_published_mixtures_give_away_more_than_there_is():
    for case in published_cases():
        report = audit(case.illegal(), text(EFFORT.targets), effort=EFFORT)
        assert report.sums["score"]["mean"] > 1.2 and max(report.sums["score"]["sums"]) > 2
        # on uniform noise, both end below what noise must cost
        assert report.uniform["results"]["score"][-1] < report.uniform["allowed"] < 0


def test_what_a_leak_gains_is_bounded(tmp_path):
    """The bound is not below what the scorer stole: every target of the claim was replayed."""
    (case,) = [case for case in LEAKS if case.name == "peeks at two places in a hundred"]
    bound = examine(case.illegal, tmp_path).bound
    honest = examine(case.legal, tmp_path).bound
    assert bound["replays"] == bound["targets"] == CLAIMED
    assert bound["bits"] > 5 > 0.1 > honest["bits"]
