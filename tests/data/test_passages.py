"""Shared passages: every one of 64 bytes is found, none shorter; documents that share one are one group."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import build_dataset, split
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


def test_a_dataset_states_its_overlap(tmp_path, capsys, documents, monkeypatch):
    texts = documents[:30] + [f"{text[:40]}{documents[0][:200]}{text[40:80]}" for text in documents[30:60]]
    # as splits are made elsewhere, document by document
    monkeypatch.setattr(split, "GROUPED_BYTES", 0)
    data = build_dataset(texts, tmp_path / "data", vocab_size=300)
    shared, total = data.shared_passages()
    sides = [[text for path in paths for text in data._texts(np.fromfile(path, "<u2")[512:])] for paths in
             (data.val_shards, data.train_shards)]  # fmt: skip
    assert total == sum(map(len, sides[0]))
    assert shared == covered(*sides, PASSAGE) > 0
    assert data.shared == shared / total
    assert main(["data", "--overlap", str(tmp_path / "data")]) == 0
    assert f"{shared:,} of {total:,} validation bytes, {shared / total:.1%}" in capsys.readouterr().out


def test_the_split_keeps_passages_on_one_side(documents):
    validation = split.validation_documents(documents)
    sides = [[text.encode() for text, chosen in zip(documents, validation, strict=True) if chosen == side] for side in (1, 0)]
    assert shared_bytes(*sides) == 0
    assert 0.05 < sum(map(len, sides[0])) / sum(map(len, sides[0] + sides[1])) < 0.15
    # the order of documents and what else is there decide nothing
    order = list(range(len(documents)))[::-1]
    assert (split.validation_documents([documents[place] for place in order]) == validation[order]).all()


def test_a_group_goes_where_its_first_hash_goes_and_a_large_one_is_trained_on():
    lonely = [text_of(seed, 3000) for seed in range(400)]
    alone = split.validation_documents(lonely)
    assert alone.tolist() == [split.is_validation(text) for text in lonely] and 20 < alone.sum() < 70
    shared = text_of(1000, 200)
    pair = [shared + text_of(2000 + seed, 100) for seed in range(2)]
    both = split.validation_documents(lonely + pair)[-2:]
    assert both[0] == both[1] == split.is_validation(min(pair, key=split._digest))
    many = [shared + text_of(3000 + seed, 3000) for seed in range(60)]
    assert not split.validation_documents(lonely + many)[-60:].any()
    # where everything shares a passage, groups would leave nothing to validate on
    copies = [shared + text_of(5000 + seed, 10) for seed in range(60)]
    assert split.validation_documents(copies).tolist() == [split.is_validation(text) for text in copies]
