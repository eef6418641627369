"""score.jsonl, target by target, to where the bits go: by position, by document, by kind of token, along the stream.

The file is read once, a few thousand targets at a time, so that a stream of any length needs no more memory than sums.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pgolf.score_log import Head, Part, ScoreLog

# tokens from a document's beginning, and tokens of a document
EDGES = np.array([0, *(2**i for i in range(4, 21))])
CELLS_ALONG = 200


@dataclass
class Cells:
    """Sums over groups of targets: bits[i, reading]."""

    names: list[str]
    tokens: np.ndarray
    bytes: np.ndarray
    bits: np.ndarray

    def present(self) -> "Cells":
        """Without the groups that have nothing."""
        keep = np.flatnonzero(self.tokens)
        return Cells([self.names[i] for i in keep], self.tokens[keep], self.bytes[keep], self.bits[keep])

    def per_byte(self, result: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.bytes > 0, self.bits[:, result] / self.bytes, np.nan)

    def per_token(self, result: int) -> np.ndarray:
        return self.bits[:, result] / np.maximum(self.tokens, 1)


@dataclass
class Breakdown:
    results: list[str]
    targets: int
    """That the file announces; fewer where it was cut off."""
    by_position: Cells
    by_length: Cells
    by_kind: Cells | None
    along: Cells
    """Equal stretches of the stream; names are the first target of each."""
    document_bytes: np.ndarray
    document_bits: np.ndarray
    """(documents, predictors)"""

    @property
    def tokens(self) -> int:
        return int(self.along.tokens.sum())

    def bits_of(self, result: str) -> np.ndarray:
        """Of each document."""
        return self.document_bits[:, self.results.index(result)]

    def paired(self, below: str, above: str) -> float:
        """The share of documents that the second reading needs fewer bits for."""
        return float((self.bits_of(below) > self.bits_of(above)).mean())


@dataclass
class _Sums:
    """Sums by the number of a group."""

    groups: int
    results: int
    tokens: np.ndarray = field(init=False)
    bytes: np.ndarray = field(init=False)
    bits: np.ndarray = field(init=False)

    def __post_init__(self):
        self.tokens = np.zeros(self.groups, np.int64)
        self.bytes = np.zeros(self.groups, np.int64)
        self.bits = np.zeros((self.groups, self.results))

    def add(self, group: np.ndarray, size: np.ndarray, bits: np.ndarray) -> None:
        self.tokens += np.bincount(group, minlength=self.groups)
        self.bytes += np.bincount(group, size, minlength=self.groups).astype(np.int64)
        for i, column in enumerate(bits):
            self.bits[:, i] += np.bincount(group, column, minlength=self.groups)

    def cells(self, names: list[str]) -> Cells:
        return Cells(names, self.tokens, self.bytes, self.bits)


def read_scores(path: Path, *, lines: int = 64) -> Breakdown:
    """Sums of all that the file has, from so many of its lines at a time."""
    log = ScoreLog(path)
    counter = _Counter(log.head)
    for part in log.parts(lines=lines):
        counter.take(part)
    return counter.finished()


class _Counter:
    def __init__(self, head: Head):
        self.results, self.targets, self.bos, self.kinds = list(head.results), head.targets, head.bos, list(head.kinds)
        count = len(self.results)
        self.kind_of_token = np.frombuffer(head.kind_of_token.encode(), np.uint8).astype(np.int64) - ord("0")
        self.by_position = _Sums(len(EDGES), count)
        self.by_kind = _Sums(len(self.kinds), count)
        cells = max(min(CELLS_ALONG, self.targets // 64), 1)
        self.stretch = max(-(-self.targets // cells), 1)
        self.along = _Sums(cells, count)
        # documents that have ended: tokens, bytes, bits by reading; and the one that goes on
        self.documents: list[np.ndarray] = []
        self.open = np.zeros(2 + count)
        self.done = 0

    def take(self, part: Part) -> None:
        tokens, size = part.tokens, part.bytes
        columns = [part.nats[name] for name in self.results]
        bits = np.stack(columns) / math.log(2) if columns else np.zeros((0, len(tokens)))
        # a target that is BOS ends its document
        ends = np.flatnonzero(tokens == self.bos) + 1
        starts = np.concatenate([[0], ends[ends < len(tokens)]])
        places = np.arange(len(tokens))
        position = places - starts[np.searchsorted(starts, places, side="right") - 1]
        position[: ends[0] if len(ends) else len(tokens)] += int(self.open[0])
        self.by_position.add(np.searchsorted(EDGES, position, side="right") - 1, size, bits)
        if self.kinds:
            self.by_kind.add(self.kind_of_token[tokens], size, bits)
        self.along.add(np.minimum((self.done + places) // self.stretch, self.along.groups - 1), size, bits)
        self._close_documents(starts, ends, np.vstack([np.ones_like(tokens), size, bits]))
        self.done += len(tokens)

    def _close_documents(self, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> None:
        sums = np.add.reduceat(rows, starts, axis=1).T
        sums[0] += self.open
        if len(ends) and ends[-1] == rows.shape[1]:
            self.documents.append(sums)
            self.open = np.zeros_like(self.open)
        else:
            self.documents.append(sums[:-1])
            self.open = sums[-1]

    def finished(self) -> Breakdown:
        if self.open[0]:
            self.documents.append(self.open[None])
        documents = np.concatenate(self.documents) if self.documents else np.zeros((0, len(self.open)))
        by_length = _Sums(len(EDGES), len(self.results))
        group = np.searchsorted(EDGES, documents[:, 0], side="right") - 1
        np.add.at(by_length.tokens, group, documents[:, 0].astype(np.int64))
        np.add.at(by_length.bytes, group, documents[:, 1].astype(np.int64))
        np.add.at(by_length.bits, group, documents[:, 2:])
        edges = [f"{edge:,}" for edge in EDGES]
        firsts = [str(i * self.stretch) for i in range(self.along.groups)]
        return Breakdown(
            self.results,
            self.targets,
            self.by_position.cells(edges).present(),
            by_length.cells(edges).present(),
            self.by_kind.cells(self.kinds).present() if self.kinds else None,
            self.along.cells(firsts).present(),
            documents[:, 1],
            documents[:, 2:],
        )
