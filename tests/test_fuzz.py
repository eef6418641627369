"""2,000 mutations of a run's files; `python -m tests.fuzz` makes 20,000."""

import pytest

from tests import fuzz


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    assert fuzz.fuzz(2000, 1, tmp_path) == []


@pytest.mark.parametrize(
    "broken, says",
    [
        (lambda: {}["key"], "KeyError: 'key'"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: (_ for _ in ()).throw(fuzz.PgolfError("two\nlines")), "not one line"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(broken, says):
    assert fuzz.outcome(lambda: None) == ""
    assert says in fuzz.outcome(lambda: next(broken()) if says == "not one line" else broken())


def test_a_reader_that_breaks_is_found(tmp_path, monkeypatch):
    """The same mutations, with a reader that believes what it reads."""
    monkeypatch.setattr(fuzz, "read_summary", lambda path: fuzz.json.loads(path.read_bytes())["train"]["seconds"] + 1.0)
    failures = fuzz.fuzz(40, 1, tmp_path)
    assert any(line.startswith("summary.json") for line in failures)
