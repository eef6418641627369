"""Codes and float16 numbers to bits and back, near their entropy.

A code is expected to be m + s z: z from one of a few unit shapes between Laplace and flat, s^2 = (the row's variance) x
(the column's), m what a low-rank model of the matrix says. Or it is one of the zeros that pruning adds. All of this is
learnt on the way from codes that both sides know already, and goes on from one matrix to the next of the same role;
nothing is stored. Because the model moves with every code, it cannot be handed to a library's coder in advance: the range
coder is part of the loop.

Both sides must find the same bits on any machine. The shapes' tables are integers made with decimal arithmetic. The loop
uses + - * / and square roots of float64 in a fixed order, which IEEE 754 defines to the last bit (numba, without
fastmath, neither reorders nor fuses them); and from z on, all is integers.
"""

from collections.abc import Hashable, Iterable
from decimal import Decimal, localcontext
from functools import cache

import numba
import numpy as np

from pgolf.artifact.errors import ArtifactError

RANK = 8
# the shapes exp(-|z|^power): tables of their cumulative distribution, SPAN deviations to both sides
POWERS = ("1", "1.25", "1.5", "1.75", "2", "2.35", "2.8", "3.6")
SPAN, CELLS, TABLE_BITS, FRACTION_BITS = 8, 64, 30, 10
GUESS_BITS = 9
TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS
BOTTOM = np.uint64(1 << 24)

# how fast the model learns; found on trained networks
ROW_WEIGHT = 40.0
"""A row's variance starts as if it had been seen on so many codes already."""
ROW_RATE, COLUMN_RATE, SHAPE_RATE, PREFERENCE_RATE = 0.2, 0.008, 0.02, 0.02
COLUMN_START = 6.0
TRUST_DECAY, FACTOR_DECAY = 0.999, 0.9995
LEAST_VARIANCE = 0.01
ZEROS_START, ZEROS_LEAST, ZEROS_MOST, ZEROS_RATE = 0.01, 0.0005, 0.98, 0.1
"""The share of codes that are zero because they were pruned."""

# one role's memory: a flat array of float64, by these places
TRUST, TRUST_OF, KURTOSIS, VARIANCE, ROWS, ZEROS, PREFERENCE = 0, 1, 2, 3, 4, 5, 6
MEMORY = PREFERENCE + RANK
# the range coder: low end, width, bytes held back for a carry, next place in the buffer; the decoder's value
LOW, RANGE, CACHE, HELD, AT, VALUE = 0, 1, 2, 3, 4, 5


@cache
def shape_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shapes with unit variance, from Laplace to flat: cumulative tables (in 2^-30), roughly their inverses (where
    a decoder begins to search), and their falling kurtoses."""
    tables, kurtoses = [], []
    with localcontext() as context:
        context.prec = 18
        for power in map(Decimal, POWERS):
            grid = [Decimal(i) / CELLS for i in range(4 * SPAN * CELLS)]
            density = [(-(x**power)).exp() if x else Decimal(1) for x in grid]
            mass = sum(density) - density[0] / 2
            second = sum((d * x * x for d, x in zip(density, grid, strict=True)), Decimal(0))
            fourth = sum((d * x**4 for d, x in zip(density, grid, strict=True)), Decimal(0))
            kurtoses.append(float(fourth * mass / second**2))
            deviation = (second / mass).sqrt()
            middles = [(Decimal(i) + Decimal("0.5")) / CELLS * deviation for i in range(SPAN * CELLS)]
            slices = [(-(x**power)).exp() for x in middles]
            half, passed, upper = sum(slices), Decimal(0), []
            for area in slices:
                upper.append((1 + passed / half) / 2)
                passed += area
            both = [Decimal(0), *(1 - value for value in reversed(upper[1:])), *upper, Decimal(1)]
            tables.append([int(value * (1 << TABLE_BITS)) for value in both])
    cumulative = np.array(tables, np.int64)
    shares = (np.arange(1 << GUESS_BITS) << (TABLE_BITS - GUESS_BITS)) + (1 << (TABLE_BITS - GUESS_BITS - 1))
    guesses = np.array([np.searchsorted(table, shares) / CELLS - SPAN for table in cumulative])
    return cumulative, guesses, np.array(kurtoses)


class Model:
    """What has been learnt of one role's matrices, all of them with the same number of columns."""

    def __init__(self, columns: int):
        self.memory = np.zeros(MEMORY)
        self.memory[TRUST_OF] = 50.0 * columns
        self.memory[KURTOSIS] = 3.0
        self.memory[VARIANCE] = 16.0
        self.memory[ZEROS] = ZEROS_START
        self.memory[PREFERENCE] = 1.0
        self.columns = np.ones(columns)
        # any directions will do to start from; small, so that they say nothing yet
        pattern = (np.arange(columns * RANK, dtype=np.int64) * 40503 + 12345) % 65536 - 32768
        self.factors = pattern.reshape(columns, RANK).astype(np.float64) * (0.2 / 32768)
        self.moments = np.eye(RANK) * 20.0


def encode_matrices(matrices: Iterable[tuple[Hashable, np.ndarray, int]]) -> bytes:
    """(role, codes int8 (rows, columns), largest code) one after another, as one stream."""
    matrices = list(matrices)
    stream = np.zeros(2 * sum(codes.size for _, codes, _ in matrices) + 16, np.uint8)
    coder = _start()
    models: dict[Hashable, Model] = {}
    for role, codes, largest in matrices:
        if codes.size and int(np.abs(codes.astype(np.int16)).max()) > largest:
            raise ValueError(f"a code of {role} is beyond the largest, {largest}")
        _walk(np.ascontiguousarray(codes), largest, *_parts(models, role, codes.shape[1]), coder, stream, True)
    return _finished(coder, stream)


def decode_matrices(data: bytes, wanted: Iterable[tuple[Hashable, tuple[int, int], int]]) -> list[np.ndarray]:
    """The codes of (role, (rows, columns), largest code) in the order in which they were encoded."""
    stream = np.frombuffer(data, np.uint8).copy()
    coder = _start(stream)
    models: dict[Hashable, Model] = {}
    found = []
    for role, shape, largest in wanted:
        codes = np.zeros(shape, np.int8)
        _walk(codes, largest, *_parts(models, role, shape[1]), coder, stream, False)
        found.append(codes)
    _check_end(coder, stream)
    return found


def _parts(models: dict[Hashable, Model], role: Hashable, columns: int) -> tuple[np.ndarray, ...]:
    model = models.setdefault((role, columns), Model(columns))
    return (*shape_tables(), model.memory, model.columns, model.factors, model.moments)


# ---- the model

@numba.njit(cache=True, nogil=True)
def _walk(codes, largest, tables, guesses, kurtoses, memory, columns, factors, moments, coder, stream, encoding):
    """All codes of a matrix, row after row. One function for both directions, so that they cannot differ."""
    rows, width = codes.shape
    part = np.empty(RANK)
    spread = np.empty((RANK, RANK))
    gain = np.empty(RANK)
    # a matrix is much like the last one of its role, but not the same: its first rows count for more
    memory[ROWS] = min(memory[ROWS], 1.0)
    for row in range(rows):
        shape = 0
        while shape + 1 < len(kurtoses) and kurtoses[shape] + kurtoses[shape + 1] > 2.0 * memory[KURTOSIS]:
            shape += 1
        table = tables[shape]
        trust = min(max(memory[TRUST] / memory[TRUST_OF], 0.0), 1.0)
        column_rate = max(1.0 / (COLUMN_START + memory[ROWS]), COLUMN_RATE)
        seen = ROW_WEIGHT
        energy = seen * memory[VARIANCE]
        for x in range(RANK):
            part[x] = memory[PREFERENCE + x]
            for y in range(RANK):
                spread[x, y] = 1.0 if x == y else 0.0
        fourth = 0.0
        zeros = np.int64(memory[ZEROS] * TOTAL)
        pruned = 0.0
        for j in range(width):
            foretold = 0.0
            for x in range(RANK):
                foretold += factors[j, x] * part[x]
            variance = max(energy / seen * columns[j], LEAST_VARIANCE)
            mean = trust * foretold
            narrow = 1.0 / np.sqrt(variance)
            if encoding:
                code = np.int64(codes[row, j])
                low = _below(code, mean, narrow, table, largest, zeros)
                high = _below(code + 1, mean, narrow, table, largest, zeros)
                _encode(coder, stream, low, high - low)
            else:
                share = _peek(coder)
                guess = mean + guesses[shape, share >> (TOTAL_BITS - GUESS_BITS)] * variance * narrow
                code = min(max(np.int64(np.floor(guess + 0.5)), -largest), largest)
                low = _below(code, mean, narrow, table, largest, zeros)
                if low > share:
                    while low > share:
                        high = low
                        code -= 1
                        low = _below(code, mean, narrow, table, largest, zeros)
                else:
                    high = _below(code + 1, mean, narrow, table, largest, zeros)
                    while high <= share:
                        low = high
                        code += 1
                        high = _below(code + 1, mean, narrow, table, largest, zeros)
                _decode(coder, stream, low, high - low)
                codes[row, j] = code
            if code == 0:
                # how likely it is that this zero is a pruned one
                pruned += zeros / (high - low)
            # where the row lies among the low-rank directions: one Kalman step
            total = variance
            gain[:] = 0.0
            for y in range(RANK):
                factor = factors[j, y]
                for x in range(RANK):
                    gain[x] += spread[y, x] * factor
            for x in range(RANK):
                total += gain[x] * factors[j, x]
            surprise = (code - foretold) / total
            for x in range(RANK):
                part[x] += gain[x] * surprise
                step = gain[x] / total
                for y in range(RANK):
                    spread[x, y] -= step * gain[y]
            # and what the code says of its row, its column, the shape, and of how far to trust the directions
            error = code - mean
            square = error * error
            weight = narrow * narrow
            memory[TRUST] += foretold * code * weight
            memory[TRUST_OF] += foretold * foretold * weight
            energy += square / columns[j]
            seen += 1.0
            relative = square * weight
            fourth += min(relative * relative, 400.0)
            renewed = columns[j] + (square * seen / (energy + LEAST_VARIANCE) - columns[j]) * column_rate
            columns[j] = min(max(renewed, 0.01), 100.0)
        memory[ROWS] += 1.0
        memory[VARIANCE] += (energy / seen - memory[VARIANCE]) * max(ROW_RATE, 1.0 / (memory[ROWS] + 1.0))
        memory[KURTOSIS] += (fourth / width - memory[KURTOSIS]) * max(SHAPE_RATE, 1.0 / (memory[ROWS] + 4.0))
        memory[ZEROS] += (min(pruned / width, 1.0) - memory[ZEROS]) * ZEROS_RATE
        memory[ZEROS] = min(max(memory[ZEROS], ZEROS_LEAST), ZEROS_MOST)
        memory[TRUST] *= TRUST_DECAY
        memory[TRUST_OF] *= TRUST_DECAY
        _learn(codes[row], part, memory, factors, moments)


@numba.njit(cache=True, inline="always")
def _below(code, mean, narrow, table, largest, zeros):
    """In 2^-16, the probability of all codes before this one; each code has at least 2^-16 to itself."""
    if code <= -largest:
        return np.int64(0)
    if code > largest:
        return np.int64(TOTAL)
    z = min(max((code - 0.5 - mean) * narrow, -SPAN + 0.01), SPAN - 0.01)
    place = np.int64((z + SPAN) * (CELLS << FRACTION_BITS))
    cell, fraction = place >> FRACTION_BITS, place & ((1 << FRACTION_BITS) - 1)
    value = table[cell] + ((table[cell + 1] - table[cell]) * fraction >> FRACTION_BITS)
    room = TOTAL - 2 * largest - 1
    shaped = value * room >> TABLE_BITS
    shaped -= shaped * zeros >> TOTAL_BITS
    if code > 0:
        shaped += room * zeros >> TOTAL_BITS
    return shaped + code + largest


@numba.njit(cache=True)
def _learn(row, part, memory, factors, moments):
    """A finished row turns the directions towards itself: recursive least squares."""
    for x in range(RANK):
        memory[PREFERENCE + x] += (part[x] - memory[PREFERENCE + x]) * PREFERENCE_RATE
        for y in range(RANK):
            moments[x, y] = moments[x, y] * FACTOR_DECAY + part[x] * part[y]
        moments[x, x] += 1e-3
    system, share = moments.copy(), part.copy()
    for x in range(RANK):
        for y in range(x + 1, RANK):
            ratio = system[y, x] / system[x, x]
            for k in range(x, RANK):
                system[y, k] -= ratio * system[x, k]
            share[y] -= ratio * share[x]
    for x in range(RANK - 1, -1, -1):
        for y in range(x + 1, RANK):
            share[x] -= system[x, y] * share[y]
        share[x] /= system[x, x]
    for j in range(len(row)):
        missed = np.float64(row[j])
        for x in range(RANK):
            missed -= factors[j, x] * part[x]
        for x in range(RANK):
            factors[j, x] += missed * share[x]


# ---- the range coder: a width of 32 bits, bytes out, carries resolved late

def _start(stream: np.ndarray | None = None) -> np.ndarray:
    coder = np.zeros(6, np.uint64)
    coder[RANGE] = 0xFFFFFFFF
    if stream is None:
        coder[HELD] = 1
    else:
        for _ in range(5):
            _next_byte(coder, stream)
    return coder


def _finished(coder: np.ndarray, stream: np.ndarray) -> bytes:
    for _ in range(5):
        _shift(coder, stream)
    return stream[: int(coder[AT])].tobytes()


def _check_end(coder: np.ndarray, stream: np.ndarray) -> None:
    """A stream that was made by the encoder is used up to its last byte, and ends on the encoder's low end."""
    if int(coder[AT]) != len(stream) or int(coder[VALUE]) != 0:
        raise ArtifactError("its coded numbers do not end where they should")


@numba.njit(cache=True)
def _shift(coder, stream):
    low = coder[LOW]
    if low < np.uint64(0xFF000000) or low > np.uint64(0xFFFFFFFF):
        carry = low >> np.uint64(32)
        byte = coder[CACHE]
        while coder[HELD] > np.uint64(0):
            stream[np.int64(coder[AT])] = np.uint8((byte + carry) & np.uint64(0xFF))
            coder[AT] += np.uint64(1)
            byte = np.uint64(0xFF)
            coder[HELD] -= np.uint64(1)
        coder[CACHE] = (low >> np.uint64(24)) & np.uint64(0xFF)
    coder[HELD] += np.uint64(1)
    coder[LOW] = (low << np.uint64(8)) & np.uint64(0xFFFFFFFF)


@numba.njit(cache=True)
def _encode(coder, stream, start, count):
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
    coder[VALUE] = ((coder[VALUE] << np.uint64(8)) | byte) & np.uint64(0xFFFFFFFF)
    coder[AT] += np.uint64(1)


@numba.njit(cache=True)
def _peek(coder):
    unit = coder[RANGE] >> np.uint64(TOTAL_BITS)
    return np.int64(min(coder[VALUE] // unit, np.uint64(TOTAL - 1)))


@numba.njit(cache=True)
def _decode(coder, stream, start, count):
    unit = coder[RANGE] >> np.uint64(TOTAL_BITS)
    coder[VALUE] -= unit * np.uint64(start)
    coder[RANGE] = unit * np.uint64(count)
    while coder[RANGE] < BOTTOM:
        coder[RANGE] <<= np.uint64(8)
        _next_byte(coder, stream)


# ---- float16 numbers

PREFIXES = 256 * 8 + 32 * 32
ADAPTATION = 30


def encode_halves(numbers: np.ndarray) -> bytes:
    """float16 numbers: eight high bits (sign, exponent, two of the mantissa), then three with the high ones as context,
    then five with the five before them."""
    words = np.ascontiguousarray(numbers, np.float16).view(np.uint16)
    stream = np.zeros(4 * len(words) + 16, np.uint8)
    coder = _start()
    _walk_halves(words, coder, stream, True)
    return _finished(coder, stream)


def decode_halves(data: bytes, count: int) -> np.ndarray:
    stream = np.frombuffer(data, np.uint8).copy()
    coder = _start(stream)
    words = np.zeros(count, np.uint16)
    _walk_halves(words, coder, stream, False)
    _check_end(coder, stream)
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
            _encode(coder, stream, zero if bit else 0, TOTAL - zero if bit else zero)
        else:
            bit = np.int64(_peek(coder) >= zero)
            _decode(coder, stream, zero if bit else 0, TOTAL - zero if bit else zero)
        counts[node] = min(counts[node] + 1, ADAPTATION)
        target = 64 if bit else TOTAL - 64
        odds[node] = zero + (target - zero) // (counts[node] + 1)
        node = 2 * node + bit
    return node - (1 << bits)
