"""CaseOps: bijective on all of Unicode, refuses what it did not write, and its bytes add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import build_dataset, caseops, load_tokenizer, train_tokenizer
from pgolf.data.caseops import ALLCAPS, CAPNEXT, ESC, TITLE
from pgolf.data.dataset import byte_counts_of
from pgolf.data.errors import DataError
from pgolf.data.shards import open_shard, write_shard

TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    "aBcZ 1\u00e9\u00c9\u212a" + TITLE + ALLCAPS + CAPNEXT + ESC
)


def transcription(text):
    """The rules of PR #1729 letter by letter: for each maximal run of ASCII letters."""
    is_letter = lambda character: "a" <= character <= "z" or "A" <= character <= "Z"
    is_capital = lambda character: "A" <= character <= "Z"
    encoded, place = "", 0
    while place < len(text):
        word = ""
        while place + len(word) < len(text) and is_letter(text[place + len(word)]):
            word += text[place + len(word)]
        place += max(1, len(word))
        capitals = [is_capital(letter) for letter in word]
        small = "".join(chr(ord(letter) + 32) if capital else letter for letter, capital in zip(word, capitals, strict=True))
        if not word:
            encoded += ESC * (text[place - 1] in TITLE + ALLCAPS + CAPNEXT + ESC) + text[place - 1]
        elif not any(capitals):
            encoded += word
        elif len(word) > 1 and all(capitals):
            encoded += ALLCAPS + small
        elif capitals[0] and not any(capitals[1:]):
            encoded += TITLE + small
        else:
            marks = [TITLE if capitals[0] else "", *(CAPNEXT if capital else "" for capital in capitals[1:])]
            encoded += "".join(mark + letter for mark, letter in zip(marks, small, strict=True))
    return encoded


@pytest.mark.parametrize(
    "text, encoded",
    [
        ("the", "the"),
        ("The I", f"{TITLE}the {TITLE}i"),
        ("NASA's", f"{ALLCAPS}nasa's"),
        ("iPhone McCoy", f"i{CAPNEXT}phone {TITLE}mc{CAPNEXT}coy"),
        ("ABc aBC", f"{TITLE}a{CAPNEXT}bc a{CAPNEXT}b{CAPNEXT}c"),
        ("\u00c9tE", f"\u00c9t{CAPNEXT}e"),
        (f"A{ESC}B{TITLE}", f"{TITLE}a{ESC}{ESC}{TITLE}b{ESC}{TITLE}"),
    ],
)
def test_examples(text, encoded):
    assert caseops.encode(text) == encoded
    assert caseops.decode(encoded) == text


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_every_text_comes_back(text):
    encoded = caseops.encode(text)
    assert encoded == transcription(text)
    assert caseops.decode(encoded) == caseops.decode_excerpt(encoded) == text


@pytest.mark.parametrize(
    "encoded",
    [TITLE, f"{ALLCAPS} a", f"{CAPNEXT}1", ESC, f"a{TITLE}b", f"{TITLE}{ALLCAPS}ab", f"a{CAPNEXT}{CAPNEXT}b", f"a{CAPNEXT}"],
)
def test_misplaced_marks_are_refused_and_excerpts_live_with_them(encoded):
    with pytest.raises(DataError, match="no CaseOps text: mark U\\+E00"):
        caseops.decode(encoded)
    left = caseops.decode_excerpt(encoded).lower()
    assert left == "".join(character for character in encoded if character not in caseops.MARKS)


@pytest.fixture(scope="module")
def tokenizer(documents, tmp_path_factory):
    path = tmp_path_factory.mktemp("caseops") / "t.model"
    train_tokenizer(documents[:40], 320, path, case_ops=True)
    return load_tokenizer(path)


def test_the_marks_are_pieces_four_to_seven(tokenizer, lossless):
    assert tokenizer.lossless and tokenizer.marks == range(4, 8) and not lossless.marks
    assert tokenizer.encode("The NASA iPhone")[0] == 4


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_a_tokenizer_gives_text_back_and_its_bytes_add_up(tokenizer, first, second):
    stream = np.array([1, *tokenizer.encode(first), 1, *tokenizer.encode(second), 1])
    assert tokenizer.decode_bytes(tokenizer.encode(first)) == first.encode()
    counted = tokenizer.byte_table.count(stream[:-1], stream[1:])
    assert counted.sum() == len(first.encode()) + len(second.encode())
    assert not counted[stream[1:] == tokenizer.bos].any()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_come_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_a_dataset_counts_its_bytes_beside_its_shards(documents, tmp_path):
    texts = [f"{text} {ESC}{ESC}{TITLE}" for text in documents[:60]]
    data = build_dataset(texts, tmp_path / "data", vocab_size=320, shard_tokens=5000, case_ops=True)
    assert len(data.val_shards) > 1
    beside = np.concatenate([open_shard(byte_counts_of(path)) for path in data.val_shards])
    tokens = np.asarray(data.val_tokens())
    assert len(beside) == len(tokens) and not beside[tokens == data.tokenizer.bos].any()
    assert beside.sum() == len(data.tokenizer.decode_bytes(tokens))
    assert (data.val_bytes() == beside[1:]).all()

    # another count, as a tokenizer that normalises would need it, is believed; one of another length is not
    whole = open_shard(byte_counts_of(data.val_shards[0])).copy()
    write_shard(byte_counts_of(data.val_shards[0]), whole + 1)
    assert (data.val_bytes()[: len(whole) - 1] == whole[1:] + 1).all()
    write_shard(byte_counts_of(data.val_shards[0]), whole[1:])
    with pytest.raises(DataError, match="counts bytes of"):
        data.val_bytes()


def test_a_tokenizer_without_marks_is_refused(dataset, documents, tmp_path):
    with pytest.raises(DataError, match="no CaseOps marks"):
        build_dataset(documents[:60], tmp_path / "d", vocab_size=None, tokenizer=dataset.tokenizer_path, case_ops=True)
