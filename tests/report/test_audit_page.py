"""audit.html, from what audit.json holds."""

import json

from pgolf.report.audit_page import page
from tests.report.folders import audited
from tests.report.html_tree import parse


def of(path):
    return parse(page(json.loads((path / "audit.json").read_text()), "a run"))


def test_the_page_has_navigation_rules_tests_and_measurements(tmp_path):
    root = of(audited(tmp_path / "run"))
    anchors = [link.attributes["href"].removeprefix("#") for link in root.one("nav").all("a")]
    assert anchors == [one.attributes["id"] for one in root.all("section")] == ["verdict", "rules", "tests", "measurements"]
    assert "Every test that applies passed, in 12.0 s. 2 tests hold, 0 fail, 1 do not apply." in root.text
    assert "Proof by decoding" in root.text and "80,640 tokens came back whole" in root.text
    titles = [figure.one("h3").text for figure in root.all("figure", "chart")]
    assert titles == ["Sum of all probabilities", "Cost of uniform noise"]
    rules = root.all("table")[0]
    assert [row.one("th").text for row in rules.all("tr")[1:]] == ["mass", "future", "code"]


def test_a_predictor_that_does_not_count_fails_no_rule(tmp_path):
    root = of(audited(tmp_path / "run"))
    assert "Predictor: published (as published; not counted)" in root.text
    assert "✗" not in root.all("table")[0].text


def test_what_fails_is_in_the_verdict_and_the_rules(tmp_path):
    root = of(audited(tmp_path / "run", passed=False))
    assert "At least one test failed" in root.text and "1 fail" in root.text
    assert "✗ failed" in root.all("table")[0].text


def test_an_audit_of_nothing_is_still_a_page():
    root = parse(page({}, "<x>"))
    assert "The audit has no verdict" in root.text and root.one("h1").text == "<x>"
