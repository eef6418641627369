"""A dataset is a folder: tokenizer.model, token shards for training and validation, dataset.json."""

from __future__ import annotations

import glob
import hashlib
import heapq
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import zstandard

from pgolf.data.corpus import (
    CorpusDigest,
    ZstdFrames,
    builtin_documents,
    builtin_fingerprint,
)
from pgolf.data.errors import DataError
from pgolf.data.passages import PASSAGE, shared_bytes
from pgolf.data.shards import LARGEST_VOCAB, check_shard, open_shard, shard_writer, token_count, write_shard
from pgolf.data.split import validation_documents
from pgolf.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pgolf.files import atomic_file, atomic_folder, sha256_of, system_error

# Called as progress(what, done, total): bytes of text while reading and tokenizing; total is None while unknown.
Progress = Callable[[str, int, int | None], None]

TABLE = "dataset.json"
TOKENIZER = "tokenizer.model"
SHARD_NAME = re.compile(r"(?P<name>.+)_(?P<split>train|val)_\d+\.bin")
# Changing how the built-in dataset is made must change this, so that no stale one is taken from a cache.
BUILTIN_RECIPE = 3
# What a tokenizer is trained on, at most: more changes its merges no further and takes minutes.
SAMPLE_BYTES = 1 << 24
SAMPLE_PIECE = 1 << 16
ENCODED_AT_ONCE = 1 << 22
# Training shards are searched for tokens outside the vocabulary when opened, up to this many tokens in all
# (a second or two); beyond it the loaders check every batch as they read it.
CHECKED_WHEN_OPENED = 1_000_000_000
SECTION_CHARACTERS = 2_048
LONGEST_SECTION = 8_192


@dataclass(frozen=True)
class Dataset:
    folder: Path
    name: str
    train_shards: tuple[Path, ...]
    val_shards: tuple[Path, ...]
    tokenizer_path: Path
    vocab_size: int
    digest: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_path)

    def val_tokens(self, seq_len: int | None = None) -> np.ndarray:
        """The validation stream (uint16). With `seq_len`: its first n * seq_len + 1 tokens, n as large as possible."""
        if not self.val_shards:
            raise DataError(f"{self.folder} has no validation shards ({self.name}_val_*.bin); add one to score on")
        parts = [open_shard(path) for path in self.val_shards]
        tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if seq_len is None:
            return tokens
        whole = (len(tokens) - 1) // seq_len
        if whole < 1:
            raise DataError(
                f"the validation text of {self.folder} has {len(tokens)} tokens, fewer than one sequence of {seq_len} "
                "and its target; use a shorter sequence or more text"
            )
        return tokens[: whole * seq_len + 1]

    def val_bytes(self) -> np.ndarray:
        """Bytes of text of each validation target, the stream without its first token: from the files beside the shards where
        the data has them, as its maker counted them before any normalisation; by the tokenizer otherwise."""
        beside = [byte_counts_of(path) for path in self.val_shards]
        if not all(path.is_file() for path in beside):
            tokens = np.asarray(self.val_tokens())
            return self.tokenizer.byte_table.count(tokens[:-1], tokens[1:])
        for path, shard in zip(beside, self.val_shards, strict=True):
            if token_count(path) != token_count(shard):
                raise DataError(f"{path} counts bytes of {token_count(path)} tokens, {shard.name} has {token_count(shard)}")
        return np.concatenate([open_shard(path) for path in beside])[1:].astype(np.int16)

    def held_out(self, count: int) -> np.ndarray:
        """The end of the training text, for what is learnt after training: `count` tokens, at most a tenth of the last
        shard."""
        if not self.train_shards:
            return np.empty(0, np.uint16)
        shard = open_shard(max(self.train_shards, key=lambda path: path.name))
        return shard[len(shard) - min(count, len(shard) // 10) :]

    def documents(self, tokens: np.ndarray) -> np.ndarray:
        """Where documents begin: the positions of BOS."""
        return np.flatnonzero(np.asarray(tokens) == self.tokenizer.bos)

    def shared_documents(self) -> int:
        """How many validation documents also stand, token for token, among the training shards; it should be none."""
        held_out = {data for path in self.val_shards for data in self._document_hashes(open_shard(path))}
        seen = {data for path in self.train_shards for data in self._document_hashes(open_shard(path))}
        return len(held_out & seen)

    def shared_passages(self, passage: int = PASSAGE) -> tuple[int, int]:
        """How many bytes of the validation text lie in passages of so many bytes that also stand in a training document, and
        how many bytes it has."""
        validation = [text for path in self.val_shards for text in self._texts(open_shard(path))]
        training = (text for path in self.train_shards for text in self._texts(open_shard(path)))
        return shared_bytes(validation, training, passage), sum(map(len, validation))

    def _texts(self, tokens: np.ndarray) -> Iterator[bytes]:
        for document in np.split(tokens, self.documents(tokens)):
            yield self.tokenizer.decode_bytes(document.tolist())

    def _document_hashes(self, tokens: np.ndarray) -> Iterator[bytes]:
        for document in np.split(tokens, self.documents(tokens))[1:]:
            yield hashlib.blake2b(document.tobytes(), digest_size=16).digest()


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
    """Progress that nobody watches."""


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
        _check_vocab(encoder, vocab_size)
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


def _check_vocab(tokenizer: Tokenizer, vocab_size: int | None) -> None:
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} entries, but a vocabulary of {vocab_size} was "
            "asked for; leave the size out or give the matching tokenizer"
        )


def shard_entry(path: Path, split: str) -> dict:
    """A shard's line in dataset.json."""
    return {"file": path.name, "split": split, "tokens": token_count(path), "sha256": sha256_of(path)}


def write_table(folder: Path, table: dict) -> None:
    with atomic_file(folder / TABLE) as file:
        file.write(json.dumps(table, indent=1).encode() + b"\n")


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


def byte_counts_of(shard: Path) -> Path:
    """NAME_val_bytes_000000.bin for NAME_val_000000.bin."""
    start, _, number = shard.name.rpartition("_")
    return shard.with_name(f"{start}_bytes_{number}")


def open_dataset(
    folder_or_glob: str | Path, tokenizer_path: str | Path | None = None, vocab_size: int | None = None
) -> Dataset:
    """Opens a dataset folder, or the challenge's: a folder (or a pattern) of NAME_train_*.bin and NAME_val_*.bin.

    Every shard's header and size are checked; every validation token and the first billion training tokens too, against the
    vocabulary and, where there is a dataset.json, the shard's sha256.
    """
    folder, files = _find(folder_or_glob)
    table = _read_table(folder) if files is None else None
    if table is None:
        files = sorted(folder.glob("*.bin")) if files is None else files
        shards = [(path, match) for path in files if (match := SHARD_NAME.fullmatch(path.name))]
    else:
        shards = [(path, match) for path in table["paths"] if (match := SHARD_NAME.fullmatch(path.name))]
    names = sorted({match["name"] for _, match in shards})
    if not names:
        raise DataError(f"no token shards (NAME_train_000000.bin, NAME_val_000000.bin) in {folder_or_glob}")
    if len(names) > 1:
        raise DataError(f"{folder_or_glob} holds several datasets: {', '.join(names)}; choose one: {folder}/{names[0]}_*")
    train = tuple(path for path, match in shards if match["split"] == "train")
    val = tuple(path for path, match in shards if match["split"] == "val")

    tokenizer_path = Path(tokenizer_path) if tokenizer_path is not None else folder / TOKENIZER
    if not tokenizer_path.is_file():
        raise DataError(f"no tokenizer at {tokenizer_path}; name the SentencePiece model that made the shards")
    tokenizer = load_tokenizer(tokenizer_path)
    _check_vocab(tokenizer, vocab_size)
    if table is not None:
        _check_table(table, tokenizer)
        _check_digests(table, val, train)
    _check_shards(train, val, tokenizer.vocab_size)
    if table is not None:
        digest = table["digest"]
    else:
        entries = [shard_entry(path, "val") for path in val]
        entries += [{"file": path.name, "split": "train", "tokens": token_count(path)} for path in train]
        digest = shards_digest(entries)
    return Dataset(folder, names[0], train, val, tokenizer_path, tokenizer.vocab_size, digest)


def _find(folder_or_glob: str | Path) -> tuple[Path, list[Path] | None]:
    """The folder, and the chosen files where a pattern chose them."""
    path = Path(folder_or_glob)
    if path.is_dir():
        return path, None
    if not glob.has_magic(str(path)):
        raise DataError(f"no dataset folder at {path}; check the path, or make it with: python -m pgolf.run data")
    files = [Path(file) for file in sorted(glob.glob(str(path)))]
    if not files:
        raise DataError(f"no file matches {path}; check the pattern")
    return files[0].parent, files


def _read_table(folder: Path) -> dict | None:
    """What dataset.json says, believed only as far as its form is right; None where there is no such file."""
    path = folder / TABLE
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_bytes())
        table["paths"] = [folder / Path(entry["file"]).name for entry in table["shards"]]
        counts = [entry["tokens"] for entry in table["shards"]]
        well_formed = isinstance(table["digest"], str) and isinstance(table["tokenizer"]["sha256"], str)
    except OSError as error:
        raise system_error("read", path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error!r}); make the dataset again") from error
    if not well_formed:
        raise DataError(f"{path} is damaged (a digest is not a string); make the dataset again")
    for shard, count in zip(table["paths"], counts, strict=True):
        if token_count(shard) != count:
            raise DataError(f"shard {shard} has {token_count(shard)} tokens, {TABLE} says {count}; make it again")
    return table


def _check_table(table: dict, tokenizer: Tokenizer) -> None:
    if sha256_of(tokenizer.path) != table["tokenizer"]["sha256"]:
        raise DataError(f"tokenizer {tokenizer.path} is not the one that made the shards (its sha256 differs)")


def _check_digests(table: dict, val: tuple[Path, ...], train: tuple[Path, ...]) -> None:
    """Every validation shard, and the first billion training tokens, against what their maker wrote down of them."""
    digests = {Path(entry["file"]).name: entry.get("sha256") for entry in table["shards"]}
    tokens = 0
    for path in (*val, *train):
        tokens += 0 if path in val else token_count(path)
        if tokens <= CHECKED_WHEN_OPENED and sha256_of(path) != digests[path.name]:
            raise DataError(f"shard {path} is not what was written (its sha256 differs from {TABLE}); make the dataset again")


def _check_shards(train: tuple[Path, ...], val: tuple[Path, ...], vocab_size: int) -> None:
    for path in val:
        token_count(path)
        check_shard(path, vocab_size)
    tokens = 0
    for path in train:
        tokens += token_count(path)
        if tokens <= CHECKED_WHEN_OPENED and vocab_size < LARGEST_VOCAB:
            check_shard(path, vocab_size)


def shards_digest(entries: Iterable[dict]) -> str:
    """Names tokens whose text is not at hand: the contents of validation, names and sizes of the training shards."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry["file"]):
        named_by = entry["sha256"] if entry["split"] == "val" else entry["tokens"]
        digest.update(f"{entry['file']} {named_by}\n".encode())
    return digest.hexdigest()


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
