"""Counts of one stream on a CPU: arrays that grow, and the calls into numba that work on them."""

from collections.abc import Sequence

import numpy as np

from pgolf.kernels.ngram import cpu

MULTIPLIER = -7046029254386353131


class Trie:
    """Counts of what followed every context, up to the longest order, of the document at hand (or of all: `shared`)."""

    def __init__(self, orders: Sequence[int], granularity: int, shared: bool, multiplier: int = MULTIPLIER):
        self.orders = np.array(orders, dtype=np.int64)
        self.granularity, self.shared, self.multiplier = granularity, shared, multiplier
        self.records = np.empty((1, 8), dtype=np.int32)
        self.table = np.empty(cpu.SMALLEST_TABLE, dtype=np.int64)
        self.scalars = np.zeros(6, dtype=np.int64)
        self.waiting = np.empty(granularity, dtype=np.int32)
        self.known = np.empty(0, dtype=np.int64)
        self.edges = np.empty((granularity, max(orders) + 1), dtype=np.int32)
        self.reading = np.full(max(orders) + 1, cpu.ABSENT, dtype=np.int64)
        self.writing = self.reading.copy()
        cpu.clear(self.records, self.table, self.scalars)

    def new_evidence(self, count: int) -> list[np.ndarray]:
        """Room for the evidence on so many tokens: top symbol, cell, count, total."""
        kinds = (np.int32, np.uint8, np.int32, np.int32)
        return [np.empty((count, len(self.orders)), dtype=kind) for kind in kinds]

    def follow(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        evidence: Sequence[np.ndarray],
        dense_at: Sequence[int] | np.ndarray = (),
        vocabulary: int = 0,
    ) -> np.ndarray:
        """Read and count a piece of the stream, writing the `evidence` (top, cell, count, total).

        Returns how often each symbol of the vocabulary followed each order's context at the places `dense_at`.
        """
        self._reserve(tokens, starts)
        dense = np.zeros((len(dense_at), len(self.orders), vocabulary), dtype=np.int32)
        cpu.follow(
            tokens, starts, self.records, self.table, self.scalars, self.multiplier, self.granularity,
            self.shared, self.waiting, self.edges, self.reading, self.writing, self.orders, *evidence,
            np.array(dense_at, dtype=np.int64), self._symbols(vocabulary), dense,
        )  # fmt: skip
        return dense

    def peek(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evidence on the next token, whatever it will be: top symbols, cells and totals, each (1, K)."""
        self._reserve_edges(0)
        top, cell, _, total = self.new_evidence(1)
        cpu.peek(
            *self._state(), self.granularity, self.waiting, self.edges, self.reading, self.writing, self.orders,
            0, top, cell, total,
        )  # fmt: skip
        return top, cell, total

    def successors(self, vocabulary: int) -> np.ndarray:
        """How often each symbol followed the context of each order: (K, V)."""
        counts = np.zeros((len(self.orders), vocabulary), dtype=np.int32)
        cpu.successors(*self._state(), self.reading, self.orders, self._symbols(vocabulary), counts)
        return counts

    def _symbols(self, vocabulary: int) -> np.ndarray:
        """Where symbols of the empty context are kept, if all of a vocabulary may be asked for."""
        if len(self.known) < vocabulary:
            self.known = np.empty(vocabulary, dtype=np.int64)
            self.scalars[[cpu.SCANNED, cpu.KNOWN]] = 1, 0
        return self.known

    def _state(self) -> tuple:
        return self.records, self.table, self.scalars, self.multiplier

    def _reserve(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        """Room for what this piece may add: to the document at hand, and to documents it opens."""
        if self.shared:
            return self._reserve_edges(len(tokens))
        ends = [*np.flatnonzero(starts), len(tokens)]
        self._reserve_edges(ends[0])
        longest = max((end - begin for begin, end in zip(ends, ends[1:], strict=False)), default=0)
        self._reserve_records(1 + longest * len(self.reading))

    def _reserve_edges(self, tokens: int) -> None:
        """Room for so many tokens more than are counted or waiting."""
        self._reserve_records(self.scalars[cpu.USED] + (tokens + self.scalars[cpu.WAITING]) * len(self.reading))

    def _reserve_records(self, needed: int) -> None:
        if needed > len(self.records):
            records = np.empty((max(needed, 2 * len(self.records)), 8), dtype=np.int32)
            records[: self.scalars[cpu.USED]] = self.records[: self.scalars[cpu.USED]]
            self.records = records
        size = len(self.table)
        # the kernels quadruple the table while it is more than half full
        while 2 * len(self.records) >= size:
            size *= 4
        if size > len(self.table):
            table = np.empty(size, dtype=np.int64)
            held = self.scalars[cpu.MASK] + 1
            table[:held] = self.table[:held]
            self.table = table
