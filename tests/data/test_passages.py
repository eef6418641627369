"""Shared passages: every one of 64 bytes is found, none shorter; documents that share one are one group."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import build_dataset
from pgolf.data.passages import PASSAGE, groups_by_passage, shared_bytes
from pgolf.run import main


def covered(validation, training, passage):
    """The definition, byte by byte: a byte counts if some window around it stands in a training document."""
    total = 0
    for text in validation:
        marked = set()
        for start in range(len(text) - passage + 1):
            if any(text[start : start + passage] in other for other in training):
                marked |= set(range(start, start + passage))
        total += len(marked)
    return total


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(st.binary(max_size=30), max_size=4), st.integers(1, 6))
def test_shared_bytes_are_those_of_the_definition(validation, training, passage):
    few = bytes.maketrans(bytes(range(256)), bytes(value % 3 for value in range(256)))
    validation, training = [text.translate(few) for text in validation], [text.translate(few) for text in training]
    assert shared_bytes(validation, iter(training), passage) == covered(validation, training, passage)


def text_of(seed, count):
    return "".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz \u00e9", k=count))


@pytest.mark.parametrize("shift", [0, 1, 7, 40, 333])
def test_documents_that_share_a_passage_are_one_group(shift):
    shared = text_of(0, PASSAGE)  # in bytes a little longer
    documents = [text_of(1, 900), text_of(2, shift) + shared + text_of(3, 50), text_of(4, 200), shared + text_of(5, 500)]
    assert groups_by_passage(documents).tolist() == [0, 1, 2, 1]
    # through others: the first shares one passage with the last, the last another one with the second
    documents = [text_of(6, 100) + shared, text_of(7, 300), shared + text_of(7, 300)[100:200]]
    assert groups_by_passage(documents).tolist() == [0, 0, 0]
    assert groups_by_passage(["", "short", "short"]).tolist() == [0, 1, 2] and not len(groups_by_passage([]))


def test_half_a_passage_makes_no_group():
    shared = text_of(0, PASSAGE)[: PASSAGE // 2]
    assert groups_by_passage([text_of(1, 90) + shared + text_of(2, 90), text_of(3, 90) + shared]).tolist() == [0, 1]


def test_a_dataset_states_its_overlap(tmp_path, capsys, documents):
    texts = documents[:30] + [f"{text[:40]}{documents[0][:200]}{text[40:80]}" for text in documents[30:60]]
    data = build_dataset(texts, tmp_path / "data", vocab_size=300)
    shared, total = data.shared_passages()
    sides = [[text for path in paths for text in data._texts(np.fromfile(path, "<u2")[512:])] for paths in
             (data.val_shards, data.train_shards)]  # fmt: skip
    assert total == sum(map(len, sides[0]))
    assert shared == covered(*sides, PASSAGE) > 0
    assert main(["data", "--overlap", str(tmp_path / "data")]) == 0
    assert f"{shared:,} of {total:,} validation bytes, {shared / total:.1%}" in capsys.readouterr().out
