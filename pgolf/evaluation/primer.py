"""Training text that the artifact carries for the context mixing to have read before it scores, as bytes."""

import lzma
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pgolf.errors import PgolfError

SECTION = "text"
MOST_TOKENS = 1 << 26
# 16-bit words: of each, the low and the high byte have statistics of their own
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 1, "pb": 1}]


class PrimerError(PgolfError):
    """A section of training text that cannot be read, in one line."""


class Primer(NamedTuple):
    pieces: Sequence[bytes]
    """The bytes of each token."""
    tokens: np.ndarray
    """(n,) int64: what is read first"""


def primer_to_bytes(tokens: np.ndarray) -> bytes:
    return lzma.compress(np.asarray(tokens, "<u2").tobytes(), lzma.FORMAT_RAW, filters=FILTERS)


def primer_from_bytes(data: bytes, vocab: int, where: str) -> np.ndarray:
    """The inverse of `primer_to_bytes`; the bytes are checked, for the file may be anybody's."""
    if not data:
        return np.empty(0, np.int64)
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
        words = decoder.decompress(data, max_length=2 * MOST_TOKENS)
    except lzma.LZMAError as error:
        raise PrimerError(f"{where} is damaged: {error}") from None
    if not decoder.eof or decoder.unused_data or len(words) % 2:
        raise PrimerError(f"{where} is damaged: it does not end where it should")
    tokens = np.frombuffer(words, "<u2").astype(np.int64)
    if len(tokens) and tokens.max() >= vocab:
        raise PrimerError(f"{where} is damaged: it has tokens beyond the vocabulary's {vocab:,}")
    return tokens
