"""score.jsonl comes back as it was written, and what cannot be read is said in one line."""

import json

import numpy as np
import pytest

from pgolf.score_log import TOKEN_KINDS, ScoreLog, ScoreLogError, kind_of, write_scores

PIECES = [b"", b"", b" a", b"7"]


@pytest.fixture
def log(tmp_path):
    rng = np.random.default_rng(0)
    tokens, size = rng.integers(0, 4, 1501), rng.integers(0, 5, 1500)
    nats = {"sliding": rng.gamma(2.0, 1.2, 1500), "ngram_backoff": rng.gamma(2.0, 1.0, 1500)}
    path = tmp_path / "score.jsonl"
    write_scores(path, tokens, size, nats, bos=1, pieces=PIECES)
    return path, tokens, size, nats


@pytest.mark.parametrize("lines", [1, 2, 64])
def test_what_was_written_is_read(log, lines):
    path, tokens, size, nats = log
    head = ScoreLog(path).head
    assert (head.targets, head.results, head.bos) == (1500, tuple(nats), 1)
    assert [head.kinds[int(kind)] for kind in head.kind_of_token] == ["boundary", "boundary", "word start", "digit"]
    parts, whole = list(ScoreLog(path).parts(lines=lines)), ScoreLog(path).read()
    assert max(len(part.tokens) for part in parts) <= 512 * lines
    assert np.array_equal(np.concatenate([part.tokens for part in parts]), tokens[1:])
    assert np.array_equal(whole.tokens, tokens[1:]) and np.array_equal(whole.bytes, size)
    for name, column in nats.items():
        np.testing.assert_allclose(whole.nats[name], column, rtol=0, atol=5.1e-6)
        assert np.array_equal(np.concatenate([part.nats[name] for part in parts]), whole.nats[name])


def test_a_line_that_was_cut_off(log):
    path = log[0]
    path.write_bytes(path.read_bytes()[:-40])
    assert sum(len(part.tokens) for part in ScoreLog(path).parts()) == 1024
    with pytest.raises(ScoreLogError, match="score.jsonl is damaged"):
        ScoreLog(path).read()


@pytest.mark.parametrize("text", ["", "[1, 2]\n", "{}\n", '{"targets": "many", "results": []}\n', "\0\n"])
def test_no_head(tmp_path, text):
    (tmp_path / "score.jsonl").write_text(text)
    with pytest.raises(ScoreLogError, match="score.jsonl is damaged") as said:
        ScoreLog(tmp_path / "score.jsonl")
    assert "\n" not in str(said.value)


def test_a_line_without_a_result(log):
    path = log[0]
    head, first, *rest = path.read_text().splitlines()
    line = json.loads(first)
    del line["sliding"]
    path.write_text("\n".join([head, json.dumps(line), *rest]))
    with pytest.raises(ScoreLogError, match="sliding"):
        list(ScoreLog(path).parts())


def test_no_file(tmp_path):
    with pytest.raises(ScoreLogError, match="cannot be read: No such file"):
        ScoreLog(tmp_path / "score.jsonl")


def test_what_a_token_is():
    pieces = [b"", b"\xe2", b" \n", b" 12", b"),", b" Word", b"ing", b"7", "\u00fc".encode(), b"\x07"]
    kinds = ["boundary", "byte", "space", "digit", "punctuation", "word start", "continuation", "digit", "continuation"]
    assert [kind_of(piece) for piece in pieces] == [*kinds, "punctuation"] and set(kinds) == set(TOKEN_KINDS)
