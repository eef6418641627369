"""The likeliest tokens before each target of two excerpts of the stream, for the report.

Which excerpts follows from the documents' lengths alone, before anything is scored. No score depends on them: the
distributions come from copies of the predictors, after the span is committed.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pgolf.evaluation.observer import Observer
from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.selection import main_predictor
from pgolf.evaluation.predictors.temperature import Temperature
from pgolf.evaluation.statistics import Statistics, log_probabilities

TOP = 5


class Excerpt(NamedTuple):
    """Targets start..stop-1 of the document that has the targets from `document[0]` to before `document[1]`."""

    why: str
    start: int
    stop: int
    document: tuple[int, int]


def excerpts(starts: np.ndarray, targets: int, length: int) -> list[Excerpt]:
    """Of two documents up to `length` targets: the end of the longest one, where predictors have learnt most, and the
    beginning of the one of middle length among those with at least `length` targets (among all others if there is none)."""
    if not length or not targets:
        return []
    ends = np.append(starts[1:], targets)
    lengths = ends - starts
    longest = int(lengths.argmax())
    first, last = int(starts[longest]), int(ends[longest])
    chosen = [Excerpt("the longest document, its end", max(first, last - length), last, (first, last))]
    others = [i for i in range(len(starts)) if i != longest]
    others = [i for i in others if lengths[i] >= length] or others
    if others:
        others.sort(key=lambda i: (lengths[i], i))
        middle = others[len(others) // 2]
        first, last = int(starts[middle]), int(ends[middle])
        chosen.append(Excerpt("a document of middle length, its beginning", first, min(first + length, last), (first, last)))
    return chosen


class Snapshot(NamedTuple):
    """Predictors and temperature as they were before a span."""

    predictors: list[Predictor]
    temperature: Temperature | None

    @classmethod
    def of(cls, predictors: Sequence[Predictor], temperature: Temperature | None) -> "Snapshot":
        return copy.deepcopy(cls(list(predictors), temperature))


class TopPredictions(Observer):
    """guesses[result][target] = [(token, probability), ...], the likeliest first, for every target of the excerpts.

    seconds   no further targets once it has taken so many
    """

    def __init__(
        self,
        excerpts: Sequence[Excerpt] = (),
        seconds: float = float("inf"),
        now: Callable[[], float] = time.perf_counter,
    ):
        self.excerpts, self.seconds, self.now = excerpts, seconds, now
        self.guesses: dict[str, dict[int, list[tuple[int, float]]]] = {}
        self.spent = 0.0
        self._snapshot: Snapshot | None = None

    def wanted(self, targets: np.ndarray) -> np.ndarray:
        inside = np.zeros(len(targets), bool)
        for excerpt in self.excerpts:
            inside |= (targets >= excerpt.start) & (targets < excerpt.stop)
        return np.flatnonzero(inside)

    def before_span(self, predictors: Sequence[Predictor], temperature: Temperature | None, start: int, stop: int) -> None:
        """Copies the network's own predictor and the main one, if the span has a part of an excerpt."""
        self._snapshot = None
        if any(start < excerpt.stop and excerpt.start < stop for excerpt in self.excerpts):
            main = main_predictor(predictors)
            chosen = [predictors[0]] if main in (None, predictors[0]) else [predictors[0], main]
            self._snapshot = Snapshot.of(chosen, temperature)

    def after_span(self, span: Span, statistics: Statistics, columns: dict[str, slice]) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None or statistics.kept_logits is None or self.spent > self.seconds:
            return
        begun = self.now()
        places = self.wanted(span.start + np.arange(len(span)))
        logits = torch.from_numpy(statistics.kept_logits)
        rows = []
        for predictor in snapshot.predictors:
            neural = log_probabilities(logits, snapshot.temperature if predictor.tempered else None)
            rows.append(distributions_at(predictor, span, statistics.of_candidates(columns[predictor.name]), places, neural))
        for place, *of_predictors in zip(places.tolist(), *rows, strict=True):
            for predictor, row in zip(snapshot.predictors, of_predictors, strict=True):
                best = np.argsort(-row, kind="stable")[:TOP]
                guesses = [(int(token), float(np.exp(row[token]))) for token in best]
                self.guesses.setdefault(predictor.name, {})[span.start + place] = guesses
            if self.spent + self.now() - begun > self.seconds:
                break
        self.spent += self.now() - begun


def distributions_at(
    predictor: Predictor, span: Span, statistics: Statistics, places: np.ndarray, neural: np.ndarray
) -> Iterator[np.ndarray]:
    """The predictor's log-probabilities (V,) before each target of the span at `places`, rising, from the network's
    (P, V) there. The predictor, which stands where it stood before the span, moves on."""
    done = 0
    for place, row in zip(places.tolist(), neural, strict=True):
        if done < place:
            piece = span[done:place]
            predictor.candidates(piece)
            predictor.score(piece, statistics[done:place])
        yield predictor.predict(row)
        predictor.observe(int(span.targets[place]), bool(span.starts[place]))
        done = place + 1
