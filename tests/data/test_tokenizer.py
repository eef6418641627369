import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import load_tokenizer, train_tokenizer
from pgolf.errors import PgolfError

HARD = [
    "",
    " ",
    "   ",
    " leading",
    "trailing ",
    "  two  and   three   ",
    "\ttab\n\nlines\r\n\x0b\x0c",
    "\u2581",
    " \u2581 \u2581\u2581a\u2581",
    "\u2585\u2047 \u2047",
    "\0 a\0b\0",
    "\x01\x1f\x7f\x80\x9f",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\ufeffbom \ufffd \ufffe \U0010ffff",
    "<s></s><pad><unk><0x41> <0x0A>",
    "\ufb01 \u2168 \uff11 e\u0301 \u00e9 \u00a0\u3000\u200b\u2028",
    "1234567890 3.14159",
    "\u6f22\u5b57\u304b\u306a \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0639\u0631\u0628\u0649",
    "word" * 5000,
]


def seeds_bytes(path, previous, target):
    """The challenge's rule for one token, written down once more from its description."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    nothing = lambda token: model.is_control(token) or model.is_unknown(token) or model.is_unused(token)
    if nothing(target):
        return 0
    if model.is_byte(target):
        return 1
    piece = model.id_to_piece(target)
    if not piece.startswith("\u2581"):
        return len(piece.encode("utf-8"))
    return len(piece[1:].encode("utf-8")) + (0 if nothing(previous) else 1)


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_hard_strings_survive(lossless, text):
    tokens = lossless.encode(text)
    assert lossless.decode(tokens) == text
    assert lossless.decode_bytes(tokens) == text.encode()
    assert lossless.is_lossless(text)
    assert tokens == lossless.encode_batch(["x", text, "y"])[1]


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \u2581\u2585\t\na1\0"))
def test_every_text_survives_and_its_bytes_are_counted(lossless, text):
    tokens = lossless.encode(text)
    assert lossless.decode_bytes(tokens) == text.encode()
    stream = np.array([lossless.bos, *tokens, lossless.bos])
    assert lossless.byte_table.count(stream[:-1], stream[1:]).sum() == len(text.encode())


def test_the_bytes_of_a_stream_of_documents_are_exact(lossless, documents):
    texts = [*documents[:200], *HARD]
    stream = np.concatenate([[lossless.bos, *tokens] for tokens in lossless.encode_batch(texts)])
    counted = lossless.byte_table.count(stream[:-1], stream[1:])
    assert counted.sum() == sum(len(text.encode()) for text in texts)
    assert (counted[stream[1:] == lossless.bos] == 0).all()


@pytest.mark.parametrize("kind", ["lossless", "lossy"])
def test_the_byte_table_is_the_challenges(kind, dataset, lossy_path):
    path = dataset.tokenizer_path if kind == "lossless" else lossy_path
    tokenizer = load_tokenizer(path)
    targets = np.arange(tokenizer.vocab_size)
    ordinary = tokenizer.vocab_size - 1
    for previous in (0, 1, 2, 3, 4, ordinary):
        expected = [seeds_bytes(path, previous, int(target)) for target in targets[::7]]
        assert tokenizer.byte_table.count(np.full(len(expected), previous), targets[::7]).tolist() == expected
    table = tokenizer.byte_table
    assert table.boundary.tolist() == [True] * 4 + [False] * (tokenizer.vocab_size - 4)
    assert table.leading_space.any() and not table.leading_space[:260].any()


def test_a_normalising_tokenizer_is_left_as_it_is(lossy_path):
    tokenizer = load_tokenizer(lossy_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(lossy_path))
    for text in (" two  spaces ", "\ufb01ne\u2581", "plain text"):
        assert tokenizer.encode(text) == model.encode(text)
    assert not tokenizer.lossless
    assert tokenizer.is_lossless("plain text") and not tokenizer.is_lossless("two  spaces")


def test_training_is_deterministic_and_normal(tmp_path, documents):
    texts = [*documents[:30], "2026 2026 2026 " * 999]
    train_tokenizer(texts, 333, tmp_path / "a.model")
    train_tokenizer(iter(texts), 333, tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    assert (model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id()) == (0, 1, 2, 3)
    assert model.vocab_size() == 333
    assert model.encode("2026", out_type=str) == list("2026"), "digits stay single, however frequent the number"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_text_with_more_characters_than_the_vocabulary_trains(tmp_path):
    rare = "".join(map(chr, range(0x4E00, 0x5E00)))
    train_tokenizer([rare + "the cat and the dog and the bird " * 200], 300, tmp_path / "t.model")
    tokenizer = load_tokenizer(tmp_path / "t.model")
    assert tokenizer.lossless and tokenizer.decode(tokenizer.encode(rare)) == rare
    assert len(tokenizer.encode("the cat and the dog")) < 10, "the rare characters left room for merges"


def test_errors_of_tokenizers(tmp_path, lossless, tiny_tokenizer):
    with pytest.raises(PgolfError, match=r"allows at most 2\d\d; give more text or a smaller"):
        train_tokenizer(["abc abd"], 5000, tmp_path / "t.model")
    with pytest.raises(PgolfError, match="no text to train"):
        train_tokenizer(["\u2581"], 500, tmp_path / "t.model")
    with pytest.raises(PgolfError, match="has 276 to 65536 entries, not 100"):
        train_tokenizer(["abc"], 100, tmp_path / "t.model")
    with pytest.raises(PgolfError, match="cannot read tokenizer .*t.model: No such file"):
        load_tokenizer(tmp_path / "t.model")
    for content in (b"", b"not a model", tiny_tokenizer.read_bytes()[:1000]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(PgolfError, match="bad.model is not a SentencePiece model"):
            load_tokenizer(tmp_path / "bad.model")
    with pytest.raises(PgolfError, match="surrogate"):
        lossless.encode("a\ud800")
    with pytest.raises(PgolfError, match="outside the vocabulary"):
        lossless.decode([5, lossless.vocab_size])
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.model"]
