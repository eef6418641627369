"""What was expected before each token of a few stretches of text, so that a person can see where a predictor gains.

Where the stretches lie follows from the documents' lengths alone, before anything is scored. What is kept of them has no
influence on any score: the distributions come from copies of the predictors, after the span is committed.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.temperature import Temperature
from pgolf.evaluation.statistics import Statistics, log_probabilities

GUESSES = 5


@dataclass(frozen=True)
class Excerpt:
    """Targets start..stop-1 of the document that has the targets from `document[0]` to before `document[1]`."""

    why: str
    start: int
    stop: int
    document: tuple[int, int]


def excerpts(starts: np.ndarray, targets: int, length: int) -> list[Excerpt]:
    """Two documents: the end of the longest one, where predictors have learnt most, and the beginning of an ordinary one: of
    those with at least `length` tokens, or else of all others, the one of middle length."""
    if not length or not targets:
        return []
    ends = np.append(starts[1:], targets)
    lengths = ends - starts
    longest = int(lengths.argmax())
    last = int(ends[longest])
    found = [
        Excerpt(
            "the longest document, its end",
            max(int(starts[longest]), last - length),
            last,
            (int(starts[longest]), last),
        )
    ]
    others = [i for i in range(len(starts)) if i != longest]
    others = [i for i in others if lengths[i] >= length] or others
    if others:
        others.sort(key=lambda i: (lengths[i], i))
        middle = others[len(others) // 2]
        first, end = int(starts[middle]), int(ends[middle])
        found.append(Excerpt("a document of middle length, its beginning", first, min(first + length, end), (first, end)))
    return found


@dataclass
class Watched:
    """Predictors as they stood before a span."""

    predictors: list[Predictor]
    temperature: Temperature | None


@dataclass
class Words:
    """The guesses before every target of the excerpts, reading by predictor: guesses[reading][target] = [(token, p), ...].

    seconds   it stops once it has taken so many
    """

    excerpts: Sequence[Excerpt] = ()
    seconds: float = float("inf")
    now: Callable[[], float] = time.perf_counter
    guesses: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)
    spent: float = 0.0

    def among(self, targets: np.ndarray) -> np.ndarray:
        """Which of these targets the excerpts have, as indices."""
        inside = np.zeros(len(targets), bool)
        for excerpt in self.excerpts:
            inside |= (targets >= excerpt.start) & (targets < excerpt.stop)
        return np.flatnonzero(inside)

    def watch(self, predictors: Sequence[Predictor], temperature: Temperature | None, start: int, stop: int) -> Watched | None:
        """Copies of the plain predictor and of the last code length, if the span has a part of an excerpt."""
        if not any(start < excerpt.stop and excerpt.start < stop for excerpt in self.excerpts):
            return None
        chosen = {predictor.name: predictor for predictor in (predictors[0], *[r for r in predictors if r.legal][-1:])}
        return copy.deepcopy(Watched(list(chosen.values()), temperature))

    def take(self, watched: Watched | None, span: Span, statistics: Statistics, columns: dict[str, slice]) -> None:
        """After the span was committed. `statistics.kept` are the logits of its targets that the excerpts have."""
        if watched is None or statistics.kept is None or self.spent > self.seconds:
            return
        begun = self.now()
        places = self.among(span.start + np.arange(len(span)))
        logits = torch.from_numpy(statistics.kept)
        said = []
        for predictor in watched.predictors:
            rows = log_probabilities(logits, watched.temperature if predictor.tempered else None)
            mine = statistics.of_candidates(columns[predictor.name])
            said.append(expectations(predictor, span, mine, places, rows))
        for place, *rows in zip(places.tolist(), *said, strict=True):
            for predictor, row in zip(watched.predictors, rows, strict=True):
                best = np.argsort(-row, kind="stable")[:GUESSES]
                guesses = [(int(token), float(np.exp(row[token]))) for token in best]
                self.guesses.setdefault(predictor.name, {})[span.start + place] = guesses
            if self.spent + self.now() - begun > self.seconds:
                break
        self.spent += self.now() - begun


def expectations(
    predictor: Predictor, span: Span, statistics: Statistics, places: np.ndarray, rows: np.ndarray
) -> Iterator[np.ndarray]:
    """The predictor's distribution (V,) before each target of the span at `places`, rising; it is moved along."""
    done = 0
    for place, row in zip(places.tolist(), rows, strict=True):
        if done < place:
            piece = span[done:place]
            predictor.look(piece)
            predictor.score(piece, statistics[done:place])
        yield predictor.predict(row)
        predictor.observe(int(span.targets[place]), bool(span.starts[place]))
        done = place + 1
