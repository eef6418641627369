"""The only door to validation tokens. A span is opened to be scored, committed with its scores, and only then
handed out for learning. Opening ahead of a commit, scoring twice and learning first are errors, so that
score-first is a property of this type and does not depend on its callers.

Positions are those of targets: target i is token i + 1 of the stream, and is predicted from tokens 0..i.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from pgolf.errors import PgolfError


class StreamError(PgolfError):
    """A caller read ahead, scored twice, or learnt before the score was final."""


@dataclass
class Ledger:
    """The committed scores, in nats, of every target and every predictor; and the order in which things happened."""

    targets: int
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    events: list[tuple[str, int, int, str]] = field(default_factory=list)

    def record(self, start: int, stop: int, scores: dict[str, np.ndarray]) -> None:
        if not scores:
            raise StreamError(f"targets {start} to {stop} were committed without a score")
        if self.scores and scores.keys() != self.scores.keys():
            raise StreamError(f"predictors changed along the stream: {sorted(self.scores)} before, {sorted(scores)} now")
        for name, values in scores.items():
            values = np.asarray(values, dtype=np.float64)
            if values.shape != (stop - start,):
                raise StreamError(f"{name}: {values.shape} scores for targets {start} to {stop}")
            if np.isnan(values).any():
                raise StreamError(f"{name}: a score of targets {start} to {stop} is not a number")
            column = self.scores.setdefault(name, np.full(self.targets, np.nan))
            if not np.isnan(column[start:stop]).all():
                raise StreamError(f"{name}: some of targets {start} to {stop} had a score already")
            column[start:stop] = values
        digest = hashlib.sha256(b"".join(np.asarray(v, dtype=np.float64).tobytes() for v in scores.values()))
        self.events.append(("commit", start, stop, digest.hexdigest()[:16]))

    def finished(self) -> dict[str, np.ndarray]:
        """All predictors, once every target has been scored exactly once."""
        for name, column in self.scores.items():
            missing = int(np.isnan(column).sum())
            if missing:
                raise StreamError(f"{name}: {missing} of {self.targets} targets have no score")
        if not self.scores and self.targets:
            raise StreamError(f"none of {self.targets} targets has a score")
        return self.scores


class OpenSpan:
    """A span open for scoring: its tokens and what came before them can be read, nothing after."""

    def __init__(self, tokens: np.ndarray, floor: int, start: int, stop: int):
        self._tokens = tokens
        self._floor = floor
        self.start = start
        self.stop = stop

    def inputs(self, start: int, stop: int) -> np.ndarray:
        """The tokens that stand before targets start..stop-1."""
        self._check(start, stop)
        return self._tokens[start:stop]

    def targets(self, start: int, stop: int) -> np.ndarray:
        self._check(start, stop)
        return self._tokens[start + 1 : stop + 1]

    def _check(self, start: int, stop: int) -> None:
        if start < self._floor or stop > self.stop or start > stop:
            raise StreamError(f"targets {start} to {stop} were asked for, but {self._floor} to {self.stop} are open")


class ScoredStream:
    """Tokens that must be scored in order, once, before they can be learnt from."""

    def __init__(self, tokens: np.ndarray, ledger: Ledger | None = None, *, first: int = 0, last: int | None = None):
        if tokens.flags.writeable:
            tokens = tokens.copy()
            tokens.setflags(write=False)
        self.__tokens = tokens
        self.first = first
        self.last = len(tokens) - 1 if last is None else last
        if not 0 <= self.first <= self.last <= max(len(tokens) - 1, 0):
            raise StreamError(f"targets {first} to {last} are not within a stream of {len(tokens)} tokens")
        self.ledger = ledger or Ledger(self.last)
        self.cursor = first
        self.__open: OpenSpan | None = None

    def __len__(self) -> int:
        return self.last - self.first

    def open(self, stop: int) -> OpenSpan:
        """Open the targets from the cursor to `stop`. Only one span can be open."""
        if self.__open is not None:
            raise StreamError(f"targets {self.__open.start} to {self.__open.stop} are still open: commit them first")
        if not self.cursor < stop <= self.last:
            raise StreamError(f"cannot open up to target {stop}: the cursor is at {self.cursor} of {self.last}")
        self.__open = OpenSpan(self.__tokens, self.first, self.cursor, stop)
        return self.__open

    def commit(self, scores: dict[str, np.ndarray]) -> None:
        """Make the scores of the open span final. From now on it can be learnt from."""
        if self.__open is None:
            raise StreamError("nothing is open: a span must be opened before its scores are committed")
        self.ledger.record(self.__open.start, self.__open.stop, scores)
        self.cursor = self.__open.stop
        # a caller that kept the opened span cannot read through it any more
        self.__open._tokens = np.empty(0, dtype=self.__tokens.dtype)
        self.__open._floor = self.__open.stop
        self.__open = None

    def learn(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop (one more than the targets they hold), all of them committed."""
        if not self.first <= start <= stop <= self.cursor:
            raise StreamError(f"targets {start} to {stop} cannot be learnt from: scores are final up to {self.cursor}")
        self.ledger.events.append(("learn", start, stop, ""))
        return self.__tokens[start : stop + 1]

    def split(self, boundaries: list[int]) -> list["ScoredStream"]:
        """Independent streams over [first, b0), [b0, b1), ... that share one ledger: for documents scored side by side.
        This stream is spent afterwards."""
        if self.cursor != self.first or self.__open is not None:
            raise StreamError("a stream can only be split before anything of it was scored")
        edges = [self.first, *boundaries, self.last]
        if edges != sorted(edges):
            raise StreamError("the boundaries of a split must rise, inside the stream")
        spans = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
        parts = [ScoredStream(self.__tokens, self.ledger, first=a, last=b) for a, b in spans]
        self.cursor = self.last
        return parts


def document_starts(tokens: np.ndarray, bos: int) -> np.ndarray:
    """The first target of every document."""
    return np.concatenate([[0], np.flatnonzero(tokens[1:-1] == bos) + 1])


def document_bounds(tokens: np.ndarray, bos: int) -> list[int]:
    """The first targets of all documents but the first, for `ScoredStream.split`. A document predicts its own tokens and,
    as its last target, the BOS of the next one."""
    return document_starts(tokens, bos)[1:].tolist()
