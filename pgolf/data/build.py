"""A dataset made of documents: split, tokenized, written as shards; and the built-in one, made once."""

from __future__ import annotations

import hashlib
import heapq
import io
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import zstandard

from pgolf.data.corpus import CorpusDigest, ZstdFrames, builtin_documents, builtin_fingerprint
from pgolf.data.dataset import (
    TOKENIZER,
    Dataset,
    Progress,
    byte_counts_of,
    check_vocab,
    open_dataset,
    shard_entry,
    write_table,
)
from pgolf.data.errors import DataError
from pgolf.data.shards import open_shard, shard_writer, write_shard
from pgolf.data.split import validation_documents
from pgolf.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pgolf.files import atomic_file, atomic_folder, sha256_of, system_error

# Changing how the built-in dataset is made must change this, so that no stale one is taken from a cache.
BUILTIN_RECIPE = 3
# What a tokenizer is trained on, at most: more changes its merges no further and takes minutes.
SAMPLE_BYTES = 1 << 24
SAMPLE_PIECE = 1 << 16
ENCODED_AT_ONCE = 1 << 22
SECTION_CHARACTERS = 2_048
LONGEST_SECTION = 8_192


def build_dataset(
    documents: Iterable[str],
    folder: str | Path,
    *,
    vocab_size: int | None,
    name: str = "text",
    tokenizer: str | Path | None = None,
    shard_tokens: int = 100_000_000,
    case_ops: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Makes a dataset of the documents in a new folder, which appears only when it is complete.

    Documents are read several times and never held in memory together; an iterator is first copied to disk. Each
    becomes BOS and its tokens. A fixed hash of the text sends a tenth of them to validation, those that share a passage
    together (split.py). If that leaves one side empty (a single book, say), documents are cut into sections at blank lines,
    and these are the documents.

    A tokenizer of `vocab_size` is trained on a sample of the training side, with or without CaseOps, or copied from the file
    `tokenizer`. With CaseOps every validation shard NAME_val_N.bin has NAME_val_bytes_N.bin beside it: the bytes of text of
    each token, as the challenge's CaseOps data has them.
    """
    try:
        return _build(documents, Path(folder), vocab_size, name, tokenizer, shard_tokens, progress or _silent, case_ops)
    except FileExistsError as error:
        raise DataError(f"{folder} already holds files; give a new folder or empty it") from error


def _silent(what: str, done: int, total: int | None) -> None:
    """Progress is not shown."""


def _build(documents, folder, vocab_size, name, tokenizer, shard_tokens, progress, case_ops=False) -> Dataset:
    if not re.fullmatch(r"[\w.-]+", name):
        raise DataError(f"a dataset's name has letters, digits, dots and dashes, not {name!r}")
    if shard_tokens < 1:
        raise DataError(f"a shard holds at least one token, not {shard_tokens}")
    if vocab_size is None and tokenizer is None:
        raise DataError("building a dataset needs a vocabulary size or a tokenizer")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(folder)
    with atomic_folder(folder) as staging:
        spool = staging / "documents.zst"
        if iter(documents) is documents:
            documents = _Spooled(documents, spool)
        survey = _Survey(documents, progress)
        if survey.one_sided:
            documents = _Sections(documents)
            survey = _Survey(documents, progress)
        if survey.one_sided:
            raise DataError(
                f"{survey.count} documents of {survey.bytes} bytes are too little text for a training and a "
                "validation side; give more text"
            )
        model = staging / TOKENIZER
        if tokenizer is None:
            progress("training the tokenizer", 0, None)
            train_tokenizer(survey.sample(), vocab_size, model, case_ops=case_ops)
        else:
            _copy(Path(tokenizer), model)
        encoder = load_tokenizer(model)
        check_vocab(encoder, vocab_size)
        if case_ops and not encoder.marks:
            raise DataError(f"tokenizer {tokenizer} has no CaseOps marks as pieces 4 to 7; leave case_ops out or give another")
        table = {
            "format": 1,
            "name": name,
            "digest": survey.digest,
            "vocab_size": encoder.vocab_size,
            "lossless": encoder.lossless,
            "tokenizer": {"file": TOKENIZER, "sha256": sha256_of(model)},
            "documents": survey.documents,
            "bytes": survey.text_bytes,
            "tokens": {},
            "shards": [],
        }
        done = 0
        for split in ("train", "val"):
            arrays = _encoded(documents, split, survey, encoder, done, progress)
            paths = _write_shards(arrays, staging, f"{name}_{split}", shard_tokens)
            done += survey.text_bytes[split]
            entries = [shard_entry(path, split) for path in paths]
            table["tokens"][split] = sum(entry["tokens"] for entry in entries)
            table["shards"] += entries
            if split == "val" and encoder.marks:
                write_byte_counts(paths, encoder)
        spool.unlink(missing_ok=True)
        write_table(staging, table)
    return open_dataset(folder)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise system_error("copy the tokenizer", source, error) from error


class _Spooled:
    """Documents that can be read only once, kept in a compressed file to be read again."""

    def __init__(self, documents: Iterable[str], path: Path):
        self._path = path
        with atomic_file(path) as file, zstandard.ZstdCompressor(3).stream_writer(file, closefd=False) as packed:
            for document in documents:
                data = document.encode()
                packed.write(len(data).to_bytes(8, "little") + data)

    def __iter__(self) -> Iterator[str]:
        with open(self._path, "rb") as file:
            stream = io.BufferedReader(ZstdFrames(file))
            while prefix := stream.read(8):
                yield stream.read(int.from_bytes(prefix, "little")).decode()


class _Sections:
    """Documents cut at blank lines into sections of about 2,000 characters that joined give the text back."""

    def __init__(self, documents: Iterable[str]):
        self._documents = documents

    def __iter__(self) -> Iterator[str]:
        for document in self._documents:
            section = ""
            for line in document.splitlines(keepends=True):
                for start in range(0, len(line), LONGEST_SECTION):
                    section += line[start : start + LONGEST_SECTION]
                    at_a_blank = len(section) >= SECTION_CHARACTERS and not line.strip()
                    if at_a_blank or len(section) >= LONGEST_SECTION:
                        yield section
                        section = ""
            if section:
                yield section


class _Survey:
    """One pass over the documents: the digest, the size of each side, and a sample for the tokenizer.

    The sample consists of the pieces of training text with the smallest hashes, so neither the order of documents nor
    the size of the corpus decides which text is in it, and only one sample is in memory.
    """

    def __init__(self, documents: Iterable[str], progress: Progress):
        digest = CorpusDigest()
        self.documents = {"train": 0, "val": 0}
        self.text_bytes = {"train": 0, "val": 0}
        self._sample: list[tuple[int, str]] = []
        self._sample_bytes = 0
        self._shut_out = 1 << 64
        self.validation = validation_documents(documents)
        for document, split in zip(documents, self.splits(), strict=True):
            digest.add(document)
            self.documents[split] += 1
            self.text_bytes[split] += len(document.encode())
            if split == "train":
                self._offer(document)
            progress("reading", self.bytes, None)
        self.digest = digest.hexdigest()

    def splits(self) -> Iterator[str]:
        return ("val" if chosen else "train" for chosen in self.validation)

    @property
    def count(self) -> int:
        return sum(self.documents.values())

    @property
    def bytes(self) -> int:
        return sum(self.text_bytes.values())

    @property
    def one_sided(self) -> bool:
        return 0 in self.documents.values()

    def _offer(self, document: str) -> None:
        for start in range(0, len(document), SAMPLE_PIECE):
            piece = document[start : start + SAMPLE_PIECE]
            data = piece.encode()
            priority = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
            if priority < self._shut_out:
                heapq.heappush(self._sample, (-priority, piece))
                self._sample_bytes += len(data)
        while self._sample_bytes > SAMPLE_BYTES and len(self._sample) > 1:
            # what ranks behind a piece that found no room finds none either, however short it is
            rank, piece = heapq.heappop(self._sample)
            self._shut_out = -rank
            self._sample_bytes -= len(piece.encode())

    def sample(self) -> list[str]:
        return [piece for _, piece in sorted(self._sample)]


def _encoded(documents, split, survey, tokenizer, done, progress) -> Iterator[np.ndarray]:
    """The token streams of one side, a few megabytes of text at a time."""
    batch: list[str] = []
    size = 0

    def tokens() -> np.ndarray:
        return np.concatenate([np.array([tokenizer.bos, *ids], np.uint16) for ids in tokenizer.encode_batch(batch)])

    for document, side in zip(documents, survey.splits(), strict=True):
        if side == split:
            batch.append(document)
            size += len(document.encode())
            if size >= ENCODED_AT_ONCE:
                yield tokens()
                done += size
                batch, size = [], 0
                progress("tokenizing", done, survey.bytes)
    if batch:
        yield tokens()
        progress("tokenizing", done + size, survey.bytes)


def _write_shards(arrays: Iterator[np.ndarray], folder: Path, prefix: str, shard_tokens: int) -> list[Path]:
    """Cuts a stream of tokens into shards of exactly `shard_tokens`, the last one shorter."""
    paths: list[Path] = []
    pending = next(arrays, None)
    while pending is not None:
        paths.append(folder / f"{prefix}_{len(paths):06d}.bin")
        with shard_writer(paths[-1]) as writer:
            while pending is not None and writer.count < shard_tokens:
                fits = shard_tokens - writer.count
                writer.append(pending[:fits])
                pending = pending[fits:] if len(pending) > fits else next(arrays, None)
    return paths


def write_byte_counts(shards: list[Path], tokenizer: Tokenizer) -> None:
    """Beside every shard of a stream one of the same length with the bytes of text that each token stands for."""
    previous = np.array([tokenizer.bos], np.uint16)
    for path in shards:
        tokens = open_shard(path)
        before = np.concatenate([previous, tokens[:-1]])
        write_shard(byte_counts_of(path), tokenizer.byte_table.count(before, tokens))
        previous = tokens[-1:]


def default_dataset(cache_folder: str | Path, *, vocab_size: int = 1024, progress: Progress | None = None) -> Dataset:
    """The built-in corpus as a dataset: made once for each Python and vocabulary, then taken from the cache folder.

    Any number of processes may ask for it at once: each builds in a folder of its own and the first to finish wins.
    """
    key = hashlib.sha256(f"{BUILTIN_RECIPE} {vocab_size} {builtin_fingerprint()}".encode()).hexdigest()[:16]
    folder = Path(cache_folder) / f"builtin-{vocab_size}-{key}"
    if not folder.is_dir():
        try:
            return _build(builtin_documents(), folder, vocab_size, "builtin", None, 100_000_000, progress or _silent)
        except FileExistsError:
            pass
    try:
        return open_dataset(folder)
    except DataError as error:
        raise DataError(f"the cached dataset is damaged: {error}; delete {folder} and it is built again") from error
