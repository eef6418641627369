"""score.jsonl: a scored stream and the nats of each of its targets. Its only writer and its only reader.

The first line is the head, {"targets", "results", "unit", "bos", "kinds", "kind_of_token"}. Each further line has a few
hundred targets in a row: {"start", "tokens", "bytes", and under each result's name the nats}.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgolf.errors import PgolfError
from pgolf.files import atomic_file

TARGETS_PER_LINE = 512
TOKEN_KINDS = ("boundary", "byte", "space", "digit", "punctuation", "word start", "continuation")
# what values of an unexpected form can raise
ODD = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError)


class ScoreLogError(PgolfError):
    """A score.jsonl that cannot be read, in one line."""


@dataclass(frozen=True)
class Head:
    targets: int
    """Of the whole stream; a file that was cut off has fewer."""
    results: tuple[str, ...]
    bos: int = 1
    kinds: tuple[str, ...] = ()
    """Names of kinds of tokens."""
    kind_of_token: str = ""
    """One digit for each entry of the vocabulary: an index into `kinds`."""


@dataclass(frozen=True)
class Part:
    """Consecutive targets."""

    tokens: np.ndarray
    """(n,) int64"""
    bytes: np.ndarray
    """(n,) int64: bytes of text that each target stands for"""
    nats: dict[str, np.ndarray]
    """Of every result, (n,) float64"""


def write_scores(
    path: Path,
    tokens: np.ndarray,
    bytes_per_target: np.ndarray,
    results: dict[str, np.ndarray],
    *,
    bos: int,
    pieces: Iterable[bytes],
) -> None:
    """The targets tokens[1:] with their bytes and every result's nats; `pieces` are the vocabulary's bytes."""
    head = {
        "targets": len(tokens) - 1,
        "results": list(results),
        "unit": "nats",
        "bos": bos,
        "kinds": TOKEN_KINDS,
        "kind_of_token": "".join(str(TOKEN_KINDS.index(kind_of(piece))) for piece in pieces),
    }
    with atomic_file(path) as file:
        file.write((json.dumps(head) + "\n").encode())
        for start in range(0, len(tokens) - 1, TARGETS_PER_LINE):
            stop = min(start + TARGETS_PER_LINE, len(tokens) - 1)
            line = {
                "start": start,
                "tokens": tokens[start + 1 : stop + 1].tolist(),
                "bytes": bytes_per_target[start:stop].tolist(),
                **{name: [round(float(n), 5) for n in nats[start:stop]] for name, nats in results.items()},
            }
            file.write((json.dumps(line, separators=(",", ":")) + "\n").encode())


class ScoreLog:
    """A score.jsonl that is there to be read: `head`, and its targets in parts or all at once."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                table = json.loads(file.readline())
            self.head = Head(
                int(table["targets"]),
                tuple(str(name) for name in table["results"]),
                int(table.get("bos", 1)),
                tuple(str(kind) for kind in table.get("kinds", ())),
                str(table.get("kind_of_token", "")),
            )
        except OSError as error:
            raise ScoreLogError(f"{path} cannot be read: {error.strerror}; score the run again") from None
        except ODD as error:
            raise self._damaged(error) from None

    def parts(self, *, lines: int = 64, whole: bool = False) -> Iterator[Part]:
        """The targets of so many lines at a time, so that a stream of any length takes little memory.

        whole  a last line that was cut off is an error; otherwise what stands before it is read
        """
        with open(self.path, encoding="utf-8") as file:
            file.readline()
            waiting: list[dict] = []
            for text in file:
                try:
                    waiting.append(json.loads(text))
                except ValueError as error:
                    if whole:
                        raise self._damaged(error) from None
                    break
                if len(waiting) == lines:
                    yield self._part(waiting)
                    waiting = []
            if waiting:
                yield self._part(waiting)

    def read(self) -> Part:
        """All targets; the file must be whole."""
        parts = list(self.parts(whole=True))
        return Part(
            np.concatenate([np.empty(0, np.int64), *(part.tokens for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.bytes for part in parts)]),
            {name: np.concatenate([np.empty(0), *(part.nats[name] for part in parts)]) for name in self.head.results},
        )

    def _part(self, lines: list[dict]) -> Part:
        try:
            return Part(
                _column(lines, "tokens", np.int64),
                _column(lines, "bytes", np.int64),
                {name: _column(lines, name, np.float64) for name in self.head.results},
            )
        except ODD as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> ScoreLogError:
        return ScoreLogError(f"{self.path.name} is damaged: {error}; score the run again")


def _column(lines: list[dict], name: str, kind: type) -> np.ndarray:
    return np.array([value for line in lines for value in line[name]], kind)


def kind_of(piece: bytes) -> str:
    """What kind of token a vocabulary's entry is, by its bytes alone: a word starts where a space comes with it."""
    if not piece:
        return "boundary"
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "byte"
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isnumeric():
        return "digit"
    if not any(character.isalnum() for character in bare):
        return "punctuation"
    return "word start" if text[0] == " " else "continuation"
