"""PNG pictures, from the same files as the page."""

import json

from pgolf.report.files import read_run
from pgolf.report.pictures import draw
from tests.report.folders import scored, trained


def drawn(path):
    found = draw(read_run(path), path / "pictures")
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in found)
    return {picture.name for picture in found}


def test_pictures_of_a_run(tmp_path):
    names = {"loss.png", "learning_rate.png", "budget.png", "predictors.png", "where_bits_go.png", "weights.png"}
    assert drawn(scored(tmp_path / "run")) == names


def test_no_scoring_no_pictures_of_it(tmp_path):
    assert drawn(trained(tmp_path / "run", ended=False)) == {"loss.png", "learning_rate.png"}


def test_traces_by_predictor(tmp_path):
    traces = [
        {"target": 100, "ngram_backoff": {"order 1": 0.1, "order 2": 0.2}},
        {"target": 200, "ngram_backoff": {"order 1": 0.2, "order 2": 0.1}, "published": {"neural": 0.5, "boosted": 0.5}},
    ]
    (tmp_path / "weights.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces) + '{"target": 3')
    found = read_run(tmp_path).traces
    assert [target for target, _ in found["ngram_backoff"]] == [100, 200]
    assert found["published"] == [(200, {"neural": 0.5, "boosted": 0.5})]
