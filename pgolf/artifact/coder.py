"""Codes to bits and back, near their entropy.

A code is expected to be m + s z: z from one of a few unit shapes between Laplace and flat, s^2 = (the row's variance) x
(the column's), m what a low-rank model of the matrix says. Or it is one of the zeros that pruning adds. All of this is
learnt on the way from codes that both sides know already, and goes on from one matrix to the next of the same kind;
nothing is stored. How far rows, columns and directions differ among themselves is learnt too, and what a single one has
shown counts accordingly. Because the model moves with every code, it cannot be handed to a library's coder in advance: our
own range coder is part of the loop.

A matrix that multiplies what another one puts out has columns about as large as that one's rows: a hidden unit with weak
inputs has weak outputs. So where such a matrix came before, its rows' energy is where the columns start from.

Both sides must find the same bits on any machine. The shapes' tables are integers made with decimal arithmetic. The loop
uses + - * / and square roots of float64 in a fixed order, which IEEE 754 defines to the last bit (numba, without
fastmath, neither reorders nor fuses them); and from z on, all is integers.
"""

from collections.abc import Hashable, Iterable, Sequence
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import numba
import numpy as np

from pgolf.artifact.range_coder import TOTAL, TOTAL_BITS, check_end, decode, encode, flush, new_coder, peek

# the shapes exp(-|z|^power): tables of their cumulative distribution, SPAN deviations to both sides
POWERS = ("1", "1.25", "1.5", "1.75", "2", "2.35", "2.8", "3.6")
SPAN, CELLS, TABLE_BITS, FRACTION_BITS = 8, 64, 30, 10
GUESS_BITS = 9

# how fast the model learns; found on trained networks
ROW_LEAST, ROW_MOST = 8.0, 4096.0
"""A row's variance starts as if it had been seen on so many codes already: fewer where rows differ, more where not."""
ROW_RATE, SPREAD_RATE, COLUMN_RATE, SHAPE_RATE, DIRECTION_RATE = 0.2, 0.02, 0.004, 0.02, 0.02
COLUMN_START = 8.0
"""What the columns of the last matrix said counts as so many rows of this one."""
TRUST_DECAY, FACTOR_DECAY = 0.999, 0.9995
LEAST_VARIANCE = 0.01
ZEROS_START, ZEROS_LEAST, ZEROS_MOST, ZEROS_RATE = 0.01, 0.0005, 0.98, 0.1
"""The share of codes that are zero because they were pruned."""

# one kind's memory: a flat array of float64, by these places
TRUST, TRUST_OF, KURTOSIS, VARIANCE, SPREAD, ROWS, ZEROS, MEMORY = 0, 1, 2, 3, 4, 5, 6, 7


class Outline(NamedTuple):
    """What both sides know of a matrix before its codes."""

    kind: Hashable
    """Matrices of one kind are much alike."""
    shape: tuple[int, int]
    largest: int
    """No code is beyond it."""
    rank: int = 0
    """How many directions the rows may have in common. Each costs time, and where there are none, a little space."""
    scales: np.ndarray | None = None
    """What each row's codes are multiples of, float16."""
    feeder: int | None = None
    """Which of the matrices before this one puts out, row for row, what this one's columns multiply."""

    def given(self, scales: np.ndarray) -> "Outline":
        return self._replace(scales=scales)


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
    """What has been learnt of one kind of matrix, all of them with the same number of columns."""

    def __init__(self, columns: int, rank: int):
        self.memory = np.zeros(MEMORY)
        self.memory[TRUST_OF] = 50.0 * columns
        self.memory[KURTOSIS] = 3.0
        self.memory[VARIANCE] = 16.0
        self.memory[SPREAD] = 0.02
        self.memory[ZEROS] = ZEROS_START
        self.columns = np.ones(columns)
        # any directions will do to start from; small, so that they say nothing yet
        pattern = (np.arange(columns * rank, dtype=np.int64) * 40503 + 12345) % 65536 - 32768
        self.factors = pattern.reshape(columns, rank).astype(np.float64) * (0.2 / 32768)
        self.moments = np.eye(rank) * 20.0
        # where rows lie among the directions: mean and variance
        self.centre = np.zeros(rank)
        self.centre[:1] = 1.0
        self.scatter = np.ones(rank)


def encode_matrices(outlines: Iterable[Outline], matrices: Sequence[np.ndarray]) -> bytes:
    """Codes int8 (rows, columns), one matrix after another, as one stream."""
    stream = np.zeros(4 * sum(codes.size for codes in matrices) + 16, np.uint8)
    coder = new_coder()
    walk = Walk(coder, stream, encoding=True)
    for outline, codes in zip(outlines, matrices, strict=True):
        if codes.shape != outline.shape:
            raise ValueError(f"codes of {outline.kind} are {codes.shape}, not {outline.shape}")
        if codes.size and int(np.abs(codes.astype(np.int16)).max()) > outline.largest:
            raise ValueError(f"a code of {outline.kind} is beyond the largest, {outline.largest}")
        walk(outline, np.ascontiguousarray(codes))
    return flush(coder, stream)


def decode_matrices(data: bytes, outlines: Iterable[Outline]) -> list[np.ndarray]:
    """The codes of matrices that were encoded with the same outlines."""
    stream = np.frombuffer(data, np.uint8).copy()
    coder = new_coder(stream)
    walk = Walk(coder, stream, encoding=False)
    for outline in outlines:
        walk(outline, np.zeros(outline.shape, np.int8))
    check_end(coder, stream)
    return [codes for codes, _ in walk.done]


class Walk:
    """One matrix after another through the coder, with what each kind has taught."""

    def __init__(self, coder: np.ndarray, stream: np.ndarray, *, encoding: bool):
        self.coder, self.stream, self.encoding = coder, stream, encoding
        self.models: dict[Hashable, Model] = {}
        self.done: list[tuple[np.ndarray, Outline]] = []

    def __call__(self, outline: Outline, codes: np.ndarray) -> None:
        columns = outline.shape[1]
        key = (outline.kind, columns, outline.rank)
        model = self.models.setdefault(key, Model(columns, outline.rank))
        start = np.ones(columns)
        if outline.feeder is not None:
            feeder, known = self.done[outline.feeder]
            if known.scales is not None and len(feeder) == columns:
                _row_energies(feeder, known.scales.astype(np.float64), start)
        learnt = (model.memory, model.columns, model.factors, model.moments, model.centre, model.scatter)
        _walk(codes, start, outline.largest, *shape_tables(), *learnt, self.coder, self.stream, self.encoding)
        self.done.append((codes, outline))


# ---- the model


@numba.njit(cache=True)
def _row_energies(codes, scales, energies):
    """Mean squares of rows, relative to their mean; as they were if that is no number to divide by."""
    total = 0.0
    for row in range(len(codes)):
        square = np.int64(0)
        for j in range(codes.shape[1]):
            square += np.int64(codes[row, j]) * np.int64(codes[row, j])
        total += square * scales[row] * scales[row]
    if 0.0 < total < 1e30:
        for row in range(len(codes)):
            square = np.int64(0)
            for j in range(codes.shape[1]):
                square += np.int64(codes[row, j]) * np.int64(codes[row, j])
            energies[row] = min(max(square * scales[row] * scales[row] * len(codes) / total, 0.01), 100.0)


@numba.njit(cache=True, nogil=True)
def _walk(
    codes, start, largest, tables, guesses, kurtoses,
    memory, columns, factors, moments, centre, scatter, coder, stream, encoding,
):  # fmt: skip
    """All codes of a matrix, row after row. One function for both directions, so that they cannot differ."""
    rows, width = codes.shape
    rank = factors.shape[1]
    part = np.empty(rank)
    spread = np.empty((rank, rank))
    gain = np.empty(rank)
    share_of = np.empty(width)
    # a matrix is much like the last one of its kind, but not the same: its first rows count for more
    memory[ROWS] = min(memory[ROWS], 1.0)
    for row in range(rows):
        shape = 0
        while shape + 1 < len(kurtoses) and kurtoses[shape] + kurtoses[shape + 1] > 2.0 * memory[KURTOSIS]:
            shape += 1
        table = tables[shape]
        trust = min(max(memory[TRUST] / memory[TRUST_OF], 0.0), 1.0)
        # the square of a code is uncertain by so much of itself
        doubt = max(memory[KURTOSIS] - 1.0, 0.0)
        column_rate = max(1.0 / (COLUMN_START + memory[ROWS]), COLUMN_RATE)
        _columns_now(columns, start, doubt * column_rate, share_of)
        before = min(max(doubt / memory[SPREAD], ROW_LEAST), ROW_MOST)
        seen = before
        energy = seen * memory[VARIANCE]
        for x in range(rank):
            part[x] = centre[x]
            for y in range(rank):
                spread[x, y] = scatter[x] if x == y else 0.0
        fourth = 0.0
        zeros = np.int64(memory[ZEROS] * TOTAL)
        pruned = 0.0
        for j in range(width):
            # what the directions say, and how sure they are
            foretold, unsure = 0.0, 0.0
            gain[:] = 0.0
            for y in range(rank):
                factor = factors[j, y]
                foretold += factor * part[y]
                for x in range(rank):
                    gain[x] += spread[y, x] * factor
            for x in range(rank):
                unsure += gain[x] * factors[j, x]
            noise = max(energy / seen * share_of[j], LEAST_VARIANCE)
            variance = noise + trust * unsure
            mean = trust * foretold
            narrow = 1.0 / np.sqrt(variance)
            if encoding:
                code = np.int64(codes[row, j])
                low = _below(code, mean, narrow, table, largest, zeros)
                high = _below(code + 1, mean, narrow, table, largest, zeros)
                encode(coder, stream, low, high - low)
            else:
                share = peek(coder)
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
                decode(coder, stream, low, high - low)
                codes[row, j] = code
            if code == 0:
                # how likely it is that this zero is a pruned one
                pruned += zeros / (high - low)
            # where the row lies among the directions: one Kalman step
            total = noise + unsure
            surprise = (code - foretold) / total
            for x in range(rank):
                part[x] += gain[x] * surprise
                step = gain[x] / total
                for y in range(rank):
                    spread[x, y] -= step * gain[y]
            # and what the code says of its row, its column, the shape, and of how far to trust the directions
            weight = narrow * narrow
            memory[TRUST] += foretold * code * weight
            memory[TRUST_OF] += foretold * foretold * weight
            # the square without what the directions were unsure of
            relative = (code - mean) * (code - mean) * weight
            square = relative * noise
            fourth += min(relative * relative, 400.0)
            energy += square / share_of[j]
            seen += 1.0
            renewed = columns[j] + (square * seen / ((energy + LEAST_VARIANCE) * start[j]) - columns[j]) * column_rate
            columns[j] = min(max(renewed, 0.01), 100.0)
        memory[ROWS] += 1.0
        own = (energy - before * memory[VARIANCE]) / width
        beyond = own / memory[VARIANCE] - 1.0
        # rows differ by more than chance if this is positive on average
        beyond = min(beyond * beyond, 4.0) - doubt / width
        memory[SPREAD] += (beyond - memory[SPREAD]) * max(SPREAD_RATE, 1.0 / (memory[ROWS] + 8.0))
        memory[SPREAD] = max(memory[SPREAD], 1e-9)
        memory[VARIANCE] += (own - memory[VARIANCE]) * max(ROW_RATE, 1.0 / (memory[ROWS] + 1.0))
        memory[VARIANCE] = max(memory[VARIANCE], LEAST_VARIANCE)
        memory[KURTOSIS] += (fourth / width - memory[KURTOSIS]) * max(SHAPE_RATE, 1.0 / (memory[ROWS] + 4.0))
        memory[ZEROS] += (min(pruned / width, 1.0) - memory[ZEROS]) * ZEROS_RATE
        memory[ZEROS] = min(max(memory[ZEROS], ZEROS_LEAST), ZEROS_MOST)
        memory[TRUST] *= TRUST_DECAY
        memory[TRUST_OF] *= TRUST_DECAY
        if rank:
            _learn(codes[row], part, spread, factors, moments, centre, scatter)


@numba.njit(cache=True)
def _columns_now(columns, start, doubt, share_of):
    """Variances of columns, as far as they differ by more than `doubt`, the relative variance that chance gives them."""
    width = len(columns)
    middle = 0.0
    for j in range(width):
        middle += columns[j]
    middle /= width
    differing = 0.0
    for j in range(width):
        off = columns[j] / middle - 1.0
        differing += off * off
    differing /= width
    kept = max(1.0 - doubt / max(differing, 1e-9), 0.0)
    for j in range(width):
        share_of[j] = start[j] * (1.0 + kept * (columns[j] / middle - 1.0))


@numba.njit(cache=True, inline="always")
def _below(code, mean, narrow, table, largest, zeros):
    """In 2^-24, the probability of all codes before this one; each code has at least 2^-24 to itself."""
    if code <= -largest:
        return np.int64(0)
    if code > largest:
        return np.int64(TOTAL)
    z = (code - 0.5 - mean) * narrow
    # written so that no number at all is the low end too
    z = min(z, SPAN - 0.01) if z > -SPAN + 0.01 else -SPAN + 0.01
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
def _learn(row, part, spread, factors, moments, centre, scatter):
    """A finished row turns the directions towards itself: recursive least squares."""
    rank = len(part)
    for x in range(rank):
        away = part[x] - centre[x]
        scatter[x] += (away * away + spread[x, x] - scatter[x]) * DIRECTION_RATE
        centre[x] += away * DIRECTION_RATE
        for y in range(rank):
            moments[x, y] = moments[x, y] * FACTOR_DECAY + part[x] * part[y]
        moments[x, x] += 1e-3
    system, share = moments.copy(), part.copy()
    for x in range(rank):
        for y in range(x + 1, rank):
            ratio = system[y, x] / system[x, x]
            for k in range(x, rank):
                system[y, k] -= ratio * system[x, k]
            share[y] -= ratio * share[x]
    for x in range(rank - 1, -1, -1):
        for y in range(x + 1, rank):
            share[x] -= system[x, y] * share[y]
        share[x] /= system[x, x]
    for j in range(len(row)):
        missed = np.float64(row[j])
        for x in range(rank):
            missed -= factors[j, x] * part[x]
        for x in range(rank):
            factors[j, x] += missed * share[x]
