"""Pictures of a scoring, from the files it leaves."""

import json

from pgolf.report.pictures import draw, read_traces

SUMMARY = {
    "main": "chain",
    "score": {
        "non_overlapping": {"bpb": 2.5, "legal": True},
        "sliding": {"bpb": 2.4, "legal": True, "over": "non_overlapping", "gain": 0.1, "gain_error": 0.01},
        "chain": {"bpb": 2.2, "legal": True, "over": "sliding", "gain": 0.2, "gain_error": None},
        "published": {"bpb": 1.9, "legal": False, "over": "sliding", "gain": 0.5, "gain_error": 0.1},
    },
    "scoring": {
        "by_position": {"from": [0, 64], "bytes": [10, 20], "sliding": [2.6, 2.3], "chain": [2.6, 2.0]},
        "by_length": {"from": [64], "bytes": [30], "sliding": [2.4], "chain": [2.2]},
    },
}
TRACES = [
    {"target": 100, "chain": {"order 1": 0.1, "order 2": 0.2}},
    {"target": 200, "chain": {"order 1": 0.2, "order 2": 0.1}, "published": {"neural": 0.5, "boosted": 0.5}},
]


def test_pictures_of_a_scoring(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "weights.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in TRACES))
    drawn = draw(tmp_path)
    assert {path.name for path in drawn} == {"readings.png", "where_bits_go.png", "weights.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_no_traces_no_picture_of_weights(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"score": SUMMARY["score"]}))
    assert [path.name for path in draw(tmp_path)] == ["readings.png"]


def test_traces_by_reader(tmp_path):
    (tmp_path / "weights.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in TRACES))
    found = read_traces(tmp_path / "weights.jsonl")
    assert [target for target, _ in found["chain"]] == [100, 200]
    assert found["published"] == [(200, {"neural": 0.5, "boosted": 0.5})]
