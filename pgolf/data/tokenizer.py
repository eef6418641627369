"""The tokenizer, and how many bytes each token stands for.

A tokenizer trained here is lossless: what it encodes it gives back byte for byte. SentencePiece writes a space as
U+2581 inside, so two things need help, and `encode` gives it:

* the character U+2581 itself is written as its three byte tokens;
* a space that begins a text is written as its byte token, because the metric gives no byte to a piece's leading
  space after a control token: so the byte counts of a document after its BOS add up to its length, exactly.

The challenge's tokenizers normalise text (NFKC, runs of spaces), cannot give it back and are left as they are.

A model whose pieces 4 to 7 are the marks of CaseOps reads and writes text through that transform (pgolf/data/caseops.py).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from pgolf.data import caseops
from pgolf.data.errors import DataError
from pgolf.files import atomic_file, system_error

PAD, BOS, EOS, UNKNOWN = range(4)
FIRST_MARK = 4
SPACE_MARK = "\u2581"
# SentencePiece drops any line with this character while it trains.
RESERVED = "\u2585"
# Four control pieces and 256 bytes; then characters, then merges.
SMALLEST_VOCAB = 4 + 256 + 16
LARGEST_VOCAB = 1 << 16
CHARACTER_COVERAGE = 0.9999
LINE_CHARACTERS = 1 << 12
# how Python decodes bytes that are not UTF-8, if told to keep them
NO_TEXT = "[\udc80-\udcff]+"
PROBES = (
    "  two  spaces ",
    "\t\n\r\n\0\x7f",
    "\ufb01 \u2168 \uff11 e\u0301 \u00a0\u3000\u200b",
    "\u2581\U0001f600\u2585",
)


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: str | Path, *, case_ops: bool = False) -> None:
    """Trains a lossless SentencePiece BPE model on the documents and writes it to `path`, atomically.

    pad, bos, eos and unk are 0 to 3, the 256 bytes follow. Digits stay single. The same documents give the same file.

    case_ops  the model is of text after CaseOps, whose marks are pieces 4 to 7, before the bytes
    """
    if case_ops:
        documents = map(caseops.encode, documents)
    if not SMALLEST_VOCAB <= vocab_size <= LARGEST_VOCAB:
        raise DataError(f"a vocabulary has {SMALLEST_VOCAB} to {LARGEST_VOCAB} entries, not {vocab_size}")
    lines = list(_training_lines(documents, vocab_size))
    if not lines:
        raise DataError("there is no text to train a tokenizer on; give more documents")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            max_sentence_length=4 * LINE_CHARACTERS,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNKNOWN,
            user_defined_symbols=list(caseops.MARKS) if case_ops else [],
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        advice = f"this text allows at most {limit[1]}" if limit else str(error)
        raise DataError(
            f"cannot train a tokenizer of {vocab_size} entries: {advice}; give more text or a smaller vocabulary"
        ) from error
    with atomic_file(path) as file:
        file.write(model.getvalue())


def _training_lines(documents: Iterable[str], vocab_size: int) -> Iterable[str]:
    """Short stretches of text without rare characters, which would crowd out the merges and have their bytes."""
    documents = list(documents)
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    for never in (SPACE_MARK, RESERVED):
        counts.pop(never, None)
    wanted = CHARACTER_COVERAGE * counts.total()
    room = (vocab_size - SMALLEST_VOCAB) // 2 + 16
    frequent, covered = [], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room]:
        if covered >= wanted:
            break
        frequent.append(character)
        covered += count
    if not frequent:
        return
    line = re.compile(f"[{''.join(map(re.escape, frequent))}]{{1,{LINE_CHARACTERS}}}")
    for document in documents:
        yield from line.findall(document)


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer. Another kind of one needs a class with these and a branch in
    `load_tokenizer`."""

    path: Path
    """Where it came from, for messages."""
    vocab_size: int
    bos: int
    """The token that begins each document."""
    pieces: list[bytes]
    """The text of each token; control and unknown tokens have none."""
    lossless: bool
    """Whether any text comes back byte for byte."""
    marks: range
    """The tokens that are marks of CaseOps; none where text is not written that way."""

    @property
    def byte_table(self) -> ByteTable: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode_bytes(self, data: bytes) -> list[int]: ...

    def decode_bytes(self, tokens: Iterable[int]) -> bytes: ...


def load_tokenizer(path: str | Path, model: bytes | None = None) -> Tokenizer:
    """The tokenizer in a file, or in bytes that `path` tells the origin of."""
    return SentencePieceTokenizer(path, model)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model from a file, or from its bytes, which `path` then tells the origin of."""

    def __init__(self, path: str | Path, model: bytes | None = None):
        self.path = Path(path)
        try:
            model = self.path.read_bytes() if model is None else model
        except OSError as error:
            raise system_error("read tokenizer", path, error) from error
        try:
            # SentencePiece takes an empty file for "no model yet"
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model or b"empty")
        except (RuntimeError, TypeError) as error:
            raise DataError(f"{path} is not a SentencePiece model; give a file that SentencePiece wrote") from error
        self.vocab_size = self._model.vocab_size()
        self.bos = self._model.bos_id()
        if self.bos < 0:
            raise DataError(f"tokenizer {path} has no BOS piece; documents begin with one")
        if self.vocab_size > LARGEST_VOCAB:
            raise DataError(f"tokenizer {path} has {self.vocab_size} pieces; a shard holds at most {LARGEST_VOCAB}")
        self.marks = range(FIRST_MARK, FIRST_MARK + len(caseops.MARKS)) if self._is_case_ops() else range(0)
        # bytes of text per id, before CaseOps is undone; control and unknown pieces stand for none
        self.pieces = [self._piece_bytes(token) for token in range(self.vocab_size)]
        self._byte_tokens = {self.pieces[token]: token for token in range(self.vocab_size) if self._model.is_byte(token)}
        self._mark = [self._byte_tokens[bytes([byte])] for byte in SPACE_MARK.encode()] if self._has_bytes else []
        self.lossless = self._has_bytes and all(
            self._model.decode(self._model.encode(probe)) == probe.replace(SPACE_MARK, " ") for probe in PROBES
        )

    def _is_case_ops(self) -> bool:
        last = FIRST_MARK + len(caseops.MARKS)
        return self.vocab_size > last and tuple(map(self._model.id_to_piece, range(FIRST_MARK, last))) == caseops.MARKS

    @property
    def _has_bytes(self) -> bool:
        return len(self._byte_tokens) == 256

    def _piece_bytes(self, token: int) -> bytes:
        if self._silent(token):
            return b""
        piece = self._model.id_to_piece(token)
        return bytes([int(piece[3:5], 16)]) if self._model.is_byte(token) else piece.replace(SPACE_MARK, " ").encode()

    def _silent(self, token: int) -> bool:
        model = self._model
        return model.is_control(token) or model.is_unknown(token) or model.is_unused(token)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without BOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, on all processors."""
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise DataError("a text to encode holds half of a surrogate pair, which is not text; repair it") from error
        if self.marks:
            texts = [caseops.encode(text) for text in texts]
        split = [self._parts(text) if self.lossless else (False, [text]) for text in texts]
        encoded = iter(self._model.encode([part for _, parts in split for part in parts], num_threads=-1))
        joined = []
        for begins_with_space, parts in split:
            tokens = [self._byte_tokens[b" "]] if begins_with_space else []
            for number in range(len(parts)):
                tokens += (self._mark if number else []) + next(encoded)
            joined.append(tokens)
        return joined

    def encode_bytes(self, data: bytes) -> list[int]:
        """The tokens of any bytes, without BOS. A lossless tokenizer has a token for each byte that is not UTF-8, and gives
        all of them back; another one reads U+FFFD there."""
        if not self.lossless:
            return self.encode(data.decode("utf-8", "replace"))
        stretches = re.split(f"({NO_TEXT})", data.decode("utf-8", "surrogateescape"))
        tokens = []
        for stretch in stretches:
            if re.fullmatch(NO_TEXT, stretch):
                tokens += [self._byte_tokens[bytes([byte])] for byte in stretch.encode("utf-8", "surrogateescape")]
            elif stretch:
                tokens += self.encode(stretch)
        return tokens

    @staticmethod
    def _parts(text: str) -> tuple[bool, list[str]]:
        """Whether a space begins the text, and the stretches of the rest between its U+2581s."""
        return text.startswith(" "), text.removeprefix(" ").split(SPACE_MARK)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that the tokens stand for; a stretch of tokens may begin or end inside a character."""
        pieces = self.pieces
        try:
            joined = b"".join([pieces[token] for token in tokens])
        except IndexError as error:
            raise DataError(f"a token is outside the vocabulary of {self.vocab_size} of {self.path}") from error
        if not self.marks:
            return joined
        return caseops.decode_excerpt(joined.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of the tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def is_lossless(self, text: str) -> bool:
        """Whether this very text survives encoding and decoding."""
        return self.decode_bytes(self.encode(text)) == text.encode()

    @cached_property
    def byte_table(self) -> ByteTable:
        return ByteTable(self)


class ByteTable:
    """How many bytes of text each token earns, by the challenge's rule.

    Control, unknown and unused pieces are boundaries of 0 bytes; a byte piece is 1 byte; any other piece is the
    UTF-8 length of its text without the leading space. That space counts one more byte unless the token before is a
    boundary. (A space inside a piece is one byte as well, not the three of the mark that SentencePiece writes for it.)
    A mark of CaseOps is no byte, unless it is escaped and so stands for itself.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer):
        model, ids = tokenizer._model, range(tokenizer.vocab_size)
        spaced = [not model.is_byte(token) and model.id_to_piece(token).startswith(SPACE_MARK) for token in ids]
        self.boundary = np.array([tokenizer._silent(token) for token in ids])
        self.leading_space = np.array(spaced) & ~self.boundary
        self.base_bytes = np.array([len(piece) for piece in tokenizer.pieces], dtype=np.int16) - self.leading_space
        self.mark_bytes = np.zeros_like(self.base_bytes)
        self.mark_bytes[tokenizer.marks] = self.base_bytes[tokenizer.marks]
        self.base_bytes -= self.mark_bytes
        self.escape = tokenizer.marks[-1] if tokenizer.marks else None

    def count(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """The bytes of each target (int16, (..., T) as the targets), given the tokens before them, which run along T."""
        counted = self.base_bytes[targets] + (self.leading_space[targets] & ~self.boundary[previous])
        if self.escape is not None:
            counted += self.mark_bytes[targets] * self._escapes(previous)
        return counted

    def _escapes(self, tokens: np.ndarray) -> np.ndarray:
        """Whether each token escapes the one after it: in a run of escapes, which escape each other, every other one does."""
        is_escape = np.asarray(tokens) == self.escape
        place = np.broadcast_to(np.arange(is_escape.shape[-1]), is_escape.shape)
        before_run = np.maximum.accumulate(np.where(is_escape, -1, place), axis=-1)
        return is_escape & ((place - before_run) % 2 == 1)
