"""score.jsonl to where the bits go, against plain loops."""

import json
import math

import numpy as np
import pytest

from pgolf.report.scores import EDGES, read_scores
from tests.report.folders import BOS, LENGTHS, READINGS, TOKEN_KINDS, stream, write_scores


def cell(value):
    return max(edge for edge in EDGES.tolist() if edge <= value)


def by_loops(tokens, size, bits):
    """Sums of tokens, bytes and bits by position, document length and kind, target by target."""
    documents, start = [], 0
    for i, token in enumerate(tokens):
        if token == BOS or i == len(tokens) - 1:
            documents.append(range(start, i + 1))
            start = i + 1
    found = {"position": {}, "length": {}, "kind": {}}
    for document in documents:
        for place, i in enumerate(document):
            keys = (cell(place), cell(len(document)), TOKEN_KINDS[int(str(tokens[i] % 7))])
            for kind, key in zip(found, keys, strict=True):
                sums = found[kind].setdefault(key, np.zeros(3))
                sums += (1, size[i], bits[i])
    return found, documents


@pytest.mark.parametrize("lines, per_line", [(64, 100), (1, 7), (2, 3), (3, 100_000)])
@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1, 40), (90,)])
def test_sums_are_those_of_plain_loops(tmp_path, lines, per_line, lengths):
    tokens, size, nats = stream(lengths)
    if lengths == (90,):
        tokens, size, nats = tokens[:-1], size[:-1], {name: values[:-1] for name, values in nats.items()}
    write_scores(tmp_path / "score.jsonl", tokens, size, nats, per_line)
    found = read_scores(tmp_path / "score.jsonl", lines=lines)
    assert found.results == READINGS and found.tokens == len(tokens)
    for column, name in enumerate(READINGS):
        expected, documents = by_loops(tokens, size, nats[name] / math.log(2))
        for kind, cells in (("position", found.by_position), ("length", found.by_length), ("kind", found.by_kind)):
            keys = cells.names if kind == "kind" else [int(key.replace(",", "")) for key in cells.names]
            assert set(keys) == set(expected[kind])
            for i, key in enumerate(keys):
                sums = cells.tokens[i], cells.bytes[i], cells.bits[i, column]
                np.testing.assert_allclose(sums, expected[kind][key], atol=1e-3)
        whole = [nats[name][list(document)].sum() / math.log(2) for document in documents]
        np.testing.assert_allclose(found.document_bits[:, column], whole, atol=1e-3)
        assert found.along.bits[:, column].sum() == pytest.approx(sum(whole), abs=1e-2)
    assert found.document_bytes.tolist() == [size[list(document)].sum() for document in documents]


def test_a_file_that_was_cut_off_counts_as_far_as_it_goes(tmp_path):
    tokens, size, nats = stream()
    path = tmp_path / "score.jsonl"
    write_scores(path, tokens, size, nats)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:10]) + lines[10][:200])
    found = read_scores(path)
    assert found.tokens == 900 and found.targets == len(tokens)
    assert found.document_bytes.sum() == size[:900].sum()


def test_an_earlier_file_without_kinds(tmp_path):
    tokens, size, nats = stream()
    head = {"targets": len(tokens), "results": READINGS, "unit": "nats"}
    write_scores(tmp_path / "score.jsonl", tokens, size, nats, head=head)
    found = read_scores(tmp_path / "score.jsonl")
    assert found.by_kind is None and found.by_position.bytes.sum() == size.sum()


def test_the_share_of_documents_that_gain(tmp_path):
    tokens, size, nats = stream((5, 5, 5, 5))
    nats["sliding"] = nats["non_overlapping"] + np.repeat([-1.0, 1.0, -1.0, -1.0], 5)
    write_scores(tmp_path / "score.jsonl", tokens, size, nats)
    assert read_scores(tmp_path / "score.jsonl").paired("non_overlapping", "sliding") == 0.75


def test_a_boundary_has_no_bits_per_byte(tmp_path):
    tokens, size, nats = stream()
    write_scores(tmp_path / "score.jsonl", tokens, np.where(tokens % 7 == 0, 0, size), nats)
    kinds = read_scores(tmp_path / "score.jsonl").by_kind
    assert math.isnan(kinds.per_byte(0)[kinds.names.index("boundary")])
    assert np.isfinite(kinds.per_token(0)).all()


def test_nonsense_is_said(tmp_path):
    (tmp_path / "score.jsonl").write_text(json.dumps([1, 2]) + "\n")
    from pgolf.report.files import read_run

    (line,) = read_run(tmp_path).damaged
    assert line.startswith("score.jsonl is damaged")
