"""A run folder's files as plain values."""

import json

from pgolf.report.files import read_run


def test_traces_by_predictor(tmp_path):
    traces = [
        {"target": 100, "ngram_backoff": {"order 1": 0.1, "order 2": 0.2}},
        {"target": 200, "ngram_backoff": {"order 1": 0.2, "order 2": 0.1}, "published": {"neural": 0.5, "boosted": 0.5}},
    ]
    (tmp_path / "weights.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces) + '{"target": 3')
    found = read_run(tmp_path).traces
    assert [target for target, _ in found["ngram_backoff"]] == [100, 200]
    assert found["published"] == [(200, {"neural": 0.5, "boosted": 0.5})]
