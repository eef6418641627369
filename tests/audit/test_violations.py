"""Every animal of the zoo is caught by the test that it was made for, and no twin is."""

import pytest

from pgolf.audit import audit
from pgolf.audit.subjects import load
from pgolf.audit.violations import ANIMALS, EFFORT, examine, published_animals, text

EVERYBODY = (*ANIMALS, *published_animals())
TWINS = list({animal.legal: animal.name for animal in EVERYBODY}.items())


def test_no_violation_is_missing():
    assert {animal.number for animal in EVERYBODY} >= {f"V{number}" for number in range(1, 29)}


@pytest.mark.parametrize("animal", EVERYBODY, ids=lambda animal: f"{animal.number} {animal.name}")
def test_an_animal_is_caught_for_the_right_reason(animal, tmp_path):
    report = examine(animal.illegal, tmp_path / "animal")
    assert not report.passed
    failed = {one.id: one for one in report.failed}
    assert set(animal.caught_by) <= failed.keys()
    # a sentence for a person, and a figure
    assert all(one.says.endswith(".") and one.figure for one in failed.values())


@pytest.mark.parametrize("legal", [legal for legal, _ in TWINS], ids=[name for _, name in TWINS])
def test_a_twin_passes(legal, tmp_path):
    report = examine(legal, tmp_path / "twin")
    assert report.passed, [f"{one.id}: {one.figure}; {one.says}" for one in report.failed]


def test_the_published_mixtures_give_away_more_than_there_is():
    for animal in published_animals():
        report = audit(animal.illegal(), text(EFFORT.targets), effort=EFFORT)
        assert report.sums["score"]["mean"] > 1.2 and max(report.sums["score"]["sums"]) > 2
        # on uniform noise, both end below what noise must cost
        assert report.uniform["results"]["score"][-1] < report.uniform["allowed"] < 0


def test_a_name_is_enough_for_another_process():
    name = "scorer=pgolf.audit.violations.ground:LeftToRight"
    report = audit(load(name), text(EFFORT.targets), effort=EFFORT, name=name)
    (clean,) = [one for one in report.findings if one.id == "A1"]
    assert clean.passed and report.passed
