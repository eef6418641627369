"""A range coder of 48 bits that puts out bytes and holds them back while a carry may still change them.

Probabilities are whole multiples of 2^-24. The coder's state is a vector of uint64, so that numba loops can contain it.
"""

import numba
import numpy as np

from pgolf.artifact.errors import ArtifactError

TOTAL_BITS = 24
TOTAL = 1 << TOTAL_BITS
WIDTH_BITS = 48
BOTTOM, MASK, CARRIED = np.uint64(1 << (WIDTH_BITS - 8)), np.uint64((1 << WIDTH_BITS) - 1), np.uint64(0xFF << (WIDTH_BITS - 8))
# the state: low end, width, last byte, bytes held back for a carry, next place in the buffer; the decoder's value
LOW, RANGE, CACHE, HELD, AT, VALUE = 0, 1, 2, 3, 4, 5


def new_coder(stream: np.ndarray | None = None) -> np.ndarray:
    coder = np.zeros(6, np.uint64)
    coder[RANGE] = MASK
    if stream is None:
        coder[HELD] = 1
    else:
        for _ in range(7):
            _next_byte(coder, stream)
    return coder


def flush(coder: np.ndarray, stream: np.ndarray) -> bytes:
    for _ in range(7):
        _shift(coder, stream)
    return stream[: int(coder[AT])].tobytes()


def check_end(coder: np.ndarray, stream: np.ndarray) -> None:
    """A stream that was made by the encoder is used up to its last byte, and ends on the encoder's low end."""
    if int(coder[AT]) != len(stream) or int(coder[VALUE]) != 0:
        raise ArtifactError("its coded numbers do not end where they should")


@numba.njit(cache=True)
def _shift(coder, stream):
    low = coder[LOW]
    if low < CARRIED or low > MASK:
        carry = low >> np.uint64(WIDTH_BITS)
        byte = coder[CACHE]
        while coder[HELD] > np.uint64(0):
            stream[np.int64(coder[AT])] = np.uint8((byte + carry) & np.uint64(0xFF))
            coder[AT] += np.uint64(1)
            byte = np.uint64(0xFF)
            coder[HELD] -= np.uint64(1)
        coder[CACHE] = (low >> np.uint64(WIDTH_BITS - 8)) & np.uint64(0xFF)
    coder[HELD] += np.uint64(1)
    coder[LOW] = (low << np.uint64(8)) & MASK


@numba.njit(cache=True)
def encode(coder, stream, start, count):
    unit = coder[RANGE] >> np.uint64(TOTAL_BITS)
    coder[LOW] += unit * np.uint64(start)
    coder[RANGE] = unit * np.uint64(count)
    while coder[RANGE] < BOTTOM:
        coder[RANGE] <<= np.uint64(8)
        _shift(coder, stream)


@numba.njit(cache=True)
def _next_byte(coder, stream):
    """Behind the end there are zeros; that too many were wanted shows in the place."""
    at = np.int64(coder[AT])
    byte = np.uint64(stream[at]) if at < len(stream) else np.uint64(0)
    coder[VALUE] = ((coder[VALUE] << np.uint64(8)) | byte) & MASK
    coder[AT] += np.uint64(1)


@numba.njit(cache=True)
def peek(coder):
    unit = coder[RANGE] >> np.uint64(TOTAL_BITS)
    return np.int64(min(coder[VALUE] // unit, np.uint64(TOTAL - 1)))


@numba.njit(cache=True)
def decode(coder, stream, start, count):
    unit = coder[RANGE] >> np.uint64(TOTAL_BITS)
    coder[VALUE] -= unit * np.uint64(start)
    coder[RANGE] = unit * np.uint64(count)
    while coder[RANGE] < BOTTOM:
        coder[RANGE] <<= np.uint64(8)
        _next_byte(coder, stream)
