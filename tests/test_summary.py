import json

import pytest

from pgolf.summary import VERSION, Audit, Compressor, Corpus, Summary, SummaryError, read_summary, write_summary
from tests import summaries

WHOLE = Summary(
    preset="quick",
    seed=3,
    corpus=Corpus("builtin", "ab" * 32),
    parameters=12,
    device="a CPU",
    versions={"torch": "2.13"},
    train=summaries.train(loss=float("inf")),
    artifact=summaries.artifact(),
    score={"plain": summaries.score(), "main": summaries.score(baseline="plain", gain=0.1)},
    main="main",
    scoring=summaries.scoring(gave_up={"results": ["sliding"]}),
    compressors={"xz": Compressor(100, 3.0, 240)},
    audit=Audit(True, [], 5, ["main"], 2.0),
)


@pytest.mark.parametrize("summary", [WHOLE, Summary(), Summary(train=summaries.train())], ids=["whole", "empty", "trained"])
def test_what_is_written_is_read(tmp_path, summary):
    path = tmp_path / "summary.json"
    write_summary(path, summary)
    assert read_summary(path) == summary
    assert "null" not in path.read_text()


def test_no_file_is_an_empty_summary(tmp_path):
    assert read_summary(tmp_path / "summary.json") == Summary()
    assert WHOLE.main_score == WHOLE.score["main"] and Summary().main_score is None


def test_the_names_that_stay(tmp_path):
    write_summary(tmp_path / "summary.json", WHOLE)
    table = json.loads((tmp_path / "summary.json").read_text())
    assert table["main"] == "main" and {"bpb", "nats", "tokens", "bytes", "legal"} <= table["score"]["main"].keys()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"version": 1}, f"has version 1, but this pgolf reads {VERSION}"),
        ({"version": None}, "has version None"),
        ({"trian": {}}, "no entry 'trian'; did you mean 'train'"),
        ({"train": 3}, "train is 3, but a table is wanted"),
        ({"train": {"seconds": 1.0}}, "train has no limit"),
        ({"score": {"x": []}}, r"score.x is \[\], but a table is wanted"),
        ({"seed": "1"}, "seed is '1', but a whole number is wanted"),
        ({"compressors": {"xz": {"bytes": 1, "bpb": True, "text_bytes": 1}}}, "bpb is True, but a number is wanted"),
        ({"scoring": {**vars(summaries.scoring()), "seconds": 10**400}}, "seconds is 1000.*, but a number is wanted"),
    ],
)
def test_odd_summaries_get_one_line(tmp_path, change, complaint):
    path = tmp_path / "summary.json"
    write_summary(path, WHOLE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SummaryError, match=complaint) as raised:
        read_summary(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b'{"version": 2, "seed": 1e999}'])
def test_what_is_no_summary_gets_one_line(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(SummaryError):
        read_summary(path)
