"""A dataset is a folder: tokenizer.model, token shards for training and validation, dataset.json."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pgolf.data.errors import DataError
from pgolf.data.passages import PASSAGE, shared_bytes
from pgolf.data.shards import LARGEST_VOCAB, check_shard, open_shard, token_count
from pgolf.data.tokenizer import Tokenizer, load_tokenizer
from pgolf.errors import PgolfError
from pgolf.files import atomic_file, sha256_of, system_error, write_whole

# Called as progress(what, done, total): bytes of text while reading and tokenizing; total is None while unknown.
Progress = Callable[[str, int, int | None], None]
Fact = TypeVar("Fact")

TABLE = "dataset.json"
TOKENIZER = "tokenizer.model"
SHARD_NAME = re.compile(r"(?P<name>.+)_(?P<split>train|val)_\d+\.bin")
# Training shards are searched for tokens outside the vocabulary when opened, up to this many tokens in all
# (a second or two); beyond it the loaders check every batch as they read it.
CHECKED_WHEN_OPENED = 1_000_000_000
# what a run only mentions is found in all of the training text where that is no more than so many tokens
READ_WHOLE = 10_000_000
MEASURED = "measured.json"


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

    @cached_property
    def shared(self) -> float | None:
        """The share of the validation text in such passages; None where there is too much training text to look through."""
        if not self.reads_whole():
            return None
        shared, total = self.shared_passages()
        return shared / total if total else 0.0

    def reads_whole(self) -> bool:
        return 0 < sum(map(token_count, self.train_shards)) <= READ_WHOLE

    def training_text(self) -> bytes:
        return b"".join(text for path in self.train_shards for text in self._texts(open_shard(path)))

    def measured(self, fact: str, measure: Callable[[], Any], read: Callable[[Any], Fact]) -> Fact:
        """What `measure` finds out about this text, in JSON's terms, as `read` takes it. It is kept beside the shards where
        that is possible, and measured again where what is kept cannot be read."""
        path, known = self.folder / MEASURED, {"digest": self.digest}
        with suppress(OSError, ValueError, RecursionError):
            table = json.loads(path.read_bytes())
            if isinstance(table, dict) and table.get("digest") == self.digest:
                known = table
        with suppress(KeyError, TypeError, ValueError, PgolfError):
            return read(known[fact])
        value = measure()
        with suppress(OSError, PgolfError):
            write_whole(path, json.dumps({**known, fact: value}) + "\n")
        return read(value)

    def _texts(self, tokens: np.ndarray) -> Iterator[bytes]:
        for document in np.split(tokens, self.documents(tokens)):
            yield self.tokenizer.decode_bytes(document.tolist())

    def _document_hashes(self, tokens: np.ndarray) -> Iterator[bytes]:
        for document in np.split(tokens, self.documents(tokens))[1:]:
            yield hashlib.blake2b(document.tobytes(), digest_size=16).digest()


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
    check_vocab(tokenizer, vocab_size)
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


def check_vocab(tokenizer: Tokenizer, vocab_size: int | None) -> None:
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
    """The contents of dataset.json, once their form is checked; None where there is no such file."""
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
