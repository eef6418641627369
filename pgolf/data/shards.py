"""Token shards in the challenge's format.

A shard is 256 little-endian int32 words of header (20240520, version 1, token count, zeros) and then that many
little-endian uint16 tokens; nothing follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pgolf.data.errors import DataError
from pgolf.files import CHUNK_BYTES, atomic_file, system_error

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
TOKEN = np.dtype("<u2")
LARGEST_VOCAB = 1 << 16


def header(count: int) -> bytes:
    words = np.zeros(HEADER_WORDS, dtype="<i4")
    words[:3] = MAGIC, VERSION, count
    return words.tobytes()


class ShardWriter:
    """Tokens appended to an open shard; the header is written last, when their number is known."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.count = 0
        file.write(header(0))

    def append(self, tokens: np.ndarray | list[int]) -> None:
        tokens = np.asarray(tokens)
        if tokens.size and not (0 <= tokens.min() and tokens.max() < LARGEST_VOCAB):
            raise DataError(f"a shard holds tokens from 0 to {LARGEST_VOCAB - 1}, not {tokens.min()} to {tokens.max()}")
        self.file.write(tokens.astype(TOKEN).tobytes())
        self.count += tokens.size

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(header(self.count))


@contextmanager
def shard_writer(path: str | Path) -> Iterator[ShardWriter]:
    """A shard that is written piece by piece and takes its name when it is complete."""
    with atomic_file(path) as file:
        writer = ShardWriter(file)
        yield writer
        writer.finish()


def write_shard(path: str | Path, tokens: np.ndarray | list[int]) -> None:
    """Writes the tokens as one shard, atomically."""
    with shard_writer(path) as writer:
        writer.append(tokens)


def token_count(path: str | Path) -> int:
    """The number of tokens in a shard, after checking header and size."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise system_error("read shard", path, error) from error
    if len(head) < HEADER_BYTES:
        raise DataError(f"shard {path} is cut off: {size} bytes, its header alone has {HEADER_BYTES}; build it again")
    words = np.frombuffer(head, dtype="<i4")
    magic, version, count = (int(word) for word in words[:3])
    if magic != MAGIC:
        raise DataError(f"{path} is not a token shard: it begins with {magic}, a shard with {MAGIC}")
    if version != VERSION:
        raise DataError(f"shard {path} has version {version}; this program reads version {VERSION}")
    expected = HEADER_BYTES + TOKEN.itemsize * count
    if count < 0 or size != expected:
        raise DataError(
            f"shard {path} has {size} bytes, but its header promises {count} tokens, which is {expected}; "
            "it is cut off or damaged: fetch or build it again"
        )
    return count


def open_shard(path: str | Path, vocab_size: int | None = None) -> np.ndarray:
    """The shard's tokens, memory-mapped and read-only. With `vocab_size` every token is checked against it."""
    count = token_count(path)
    if vocab_size is not None:
        check_shard(path, vocab_size)
    if count == 0:
        return np.zeros(0, dtype=TOKEN)
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES, shape=(count,))


def check_shard(path: str | Path, vocab_size: int) -> None:
    """Reads the whole shard in chunks (about as fast as the disk) and refuses a token outside the vocabulary."""
    position = 0
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        while chunk := file.read(CHUNK_BYTES):
            check_tokens(np.frombuffer(chunk, dtype=TOKEN), vocab_size, path, position)
            position += len(chunk) // TOKEN.itemsize


def check_tokens(tokens: np.ndarray, vocab_size: int, path: str | Path, position: int) -> None:
    """Refuses a token outside the vocabulary, naming its place; `position` is that of the first token given."""
    if tokens.size and int(tokens.max()) >= vocab_size:
        at = int(np.argmax(tokens >= vocab_size))
        raise DataError(
            f"shard {path} holds token {tokens[at]} at position {position + at}, but the vocabulary has "
            f"{vocab_size}: it was made with another tokenizer, or is damaged"
        )
