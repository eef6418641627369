"""float16 numbers to bits and back: each bit with adaptive odds, given the bits before it."""

import numba
import numpy as np

from pgolf.artifact.range_coder import TOTAL, check_end, decode, encode, flush, new_coder, peek

ADAPTATION = 30
SURE = TOTAL >> 10


def encode_halves(numbers: np.ndarray) -> bytes:
    """float16 numbers: eight high bits (sign, exponent, two of the mantissa), then three with the high ones as context,
    then five with the five before them."""
    words = np.ascontiguousarray(numbers, np.float16).view(np.uint16)
    stream = np.zeros(4 * len(words) + 16, np.uint8)
    coder = new_coder()
    _walk_halves(words, coder, stream, True)
    return flush(coder, stream)


def decode_halves(data: bytes, count: int) -> np.ndarray:
    stream = np.frombuffer(data, np.uint8).copy()
    coder = new_coder(stream)
    words = np.zeros(count, np.uint16)
    _walk_halves(words, coder, stream, False)
    check_end(coder, stream)
    return words.view(np.float16)


@numba.njit(cache=True)
def _walk_halves(words, coder, stream, encoding):
    high = np.full(256, TOTAL // 2, np.int64)
    middle = np.full((256, 8), TOTAL // 2, np.int64)
    low = np.full((32, 32), TOTAL // 2, np.int64)
    counts_high = np.zeros(256, np.int64)
    counts_middle = np.zeros((256, 8), np.int64)
    counts_low = np.zeros((32, 32), np.int64)
    for i in range(len(words)):
        word = np.int64(words[i])
        first = _tree(high, counts_high, 8, word >> 8, coder, stream, encoding)
        second = _tree(middle[first], counts_middle[first], 3, (word >> 5) & 7, coder, stream, encoding)
        prefix = (first & 3) << 3 | second
        third = _tree(low[prefix], counts_low[prefix], 5, word & 31, coder, stream, encoding)
        words[i] = first << 8 | second << 5 | third


@numba.njit(cache=True)
def _tree(odds, counts, bits, value, coder, stream, encoding):
    """A number bit by bit from the top, each bit with the odds that its predecessors lead to."""
    node = 1
    for place in range(bits - 1, -1, -1):
        zero = odds[node]
        if encoding:
            bit = (value >> place) & 1
            encode(coder, stream, zero if bit else 0, TOTAL - zero if bit else zero)
        else:
            bit = np.int64(peek(coder) >= zero)
            decode(coder, stream, zero if bit else 0, TOTAL - zero if bit else zero)
        counts[node] = min(counts[node] + 1, ADAPTATION)
        target = SURE if bit else TOTAL - SURE
        odds[node] = zero + (target - zero) // (counts[node] + 1)
        node = 2 * node + bit
    return node - (1 << bits)
