"""What a predictor is: one way to turn the network's distribution and the past into the distribution that is scored."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from pgolf.config import MixerSettings
from pgolf.evaluation.statistics import Statistics
from pgolf.evaluation.windows import Window

if TYPE_CHECKING:
    from pgolf.evaluation.mixing.tree import Tree
    from pgolf.evaluation.primer import Primer


@dataclass(frozen=True)
class Span:
    """The targets being scored, and where they stand."""

    start: int
    """Position of the first target in the stream."""
    targets: np.ndarray
    """(n,) int32"""
    starts: np.ndarray
    """(n,) bool: this target opens a document"""
    windows: Sequence[Window] = ()
    """The windows whose statistics are in `by_window`, in that order; empty for a decoder and an audit."""
    context: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """(m,) the tokens of the stream from some way before those windows to the last target"""
    context_start: int = 0
    """Where in the stream the context begins."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, part: slice) -> "Span":
        first = part.indices(len(self))[0]
        return Span(self.start + first, self.targets[part], self.starts[part])


@dataclass(frozen=True)
class Decisions:
    """A distribution as binary decisions: a code needs those on one token's path, and never the whole row."""

    probability: Callable[[int, int], float]
    """Of a 1, at a decision of the tree that is the n-th on its path; asked for in the path's order."""
    tree: "Tree"

    def path(self, token: int) -> list[tuple[int, int]]:
        """(decision, bit) from the root to the token."""
        steps = slice(self.tree.start[token], self.tree.start[token + 1])
        return list(zip(self.tree.path[steps].tolist(), self.tree.bit[steps].tolist(), strict=True))


class Predictor:
    """One way of scoring. A stream is read in order: `begin` with its first token, then spans, or single tokens.

    Spans:   symbols = predictor.candidates(span)       before the network runs: whose log-probabilities it needs
             nats = predictor.score(span, statistics)   statistics.candidate_log_probs are those of these symbols
    Tokens:  log_probs = predictor.predict(log_probs)   the whole distribution, before the token is known
             predictor.observe(token, start)

    Both give the same numbers, in pieces of any size, and both learn on the way: the distribution of a target depends on
    the targets before it alone. `predict` makes a predictor decodable; one that is no distribution has none.
    """

    name = ""
    """Of its result in the summary."""
    legal = True
    """Its scores are code lengths."""
    tempered = True
    """The log-probabilities it is given have the temperature applied."""
    num_candidates = 0
    """Symbols whose log-probabilities it asks for at each target."""
    needs_logits = False
    """It needs whole rows of logits."""
    document_local = True
    """Its state is of the document at hand alone, so that documents can be coded in any order."""
    local_candidates = True
    """The candidates it asks for depend on the document at hand alone, so that documents can be forwarded in any order."""

    @classmethod
    def create(cls, vocab: int, mixer: MixerSettings, ngram_table=None) -> Self:
        """As the settings want it; `ngram_table` is what an artifact carries for the n-gram back-off, if it does."""
        return cls()

    def primed_with(self, primer: "Primer") -> Self:
        """The same for an artifact with training text to read first; for most predictors that changes nothing."""
        return self

    def decisions(self, log_probs: np.ndarray) -> Decisions | None:
        """What `predict` says, as binary decisions; None where only whole rows are known."""
        return None

    def begin(self, token: int) -> None:
        """The stream's first token, which is not scored."""

    def candidates(self, span: Span) -> np.ndarray:
        """(n, num_candidates) int32: symbols whose log-probabilities are wanted at each target, -1 for none. Called once
        before the span's `score`, because a predictor may count the span's tokens on the way."""
        return np.empty((len(span), 0), dtype=np.int32)

    def candidates_of(self, texts: Sequence[np.ndarray], sizes: Sequence[int], device: torch.device) -> torch.Tensor:
        """The same on a device for the last `sizes` targets of documents, whose texts begin with the token before their first
        target: (targets, num_candidates), document after document. For predictors whose candidates are document-local."""
        raise NotImplementedError(f"{self.name} has no counts of documents side by side")

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        """(n,) float64: the nats of each target."""
        raise NotImplementedError

    def predict(self, log_probs: np.ndarray) -> np.ndarray:
        """(V,) log-probabilities of the next token, from the neural model's."""
        raise NotImplementedError(f"{self.name} is no distribution, so there is nothing to predict with")

    def observe(self, token: int, start: bool = False) -> None:
        """The token that came; `start` if it opens a document."""

    def trace(self) -> dict[str, float]:
        """Its weights at this moment, by name, for a picture of them over time."""
        return {}

    def distributions(self, span: Span, statistics: Statistics, at: Sequence[int], log_probs: np.ndarray) -> np.ndarray:
        """(P, V): the log-probabilities it committed to at places `at`, rising, of a span, given the neural ones (P, V)
        there. For an audit: the predictor must stand where it stood before the span, and is left as it is."""
        predictor, done, rows = copy.deepcopy(self), 0, []
        for place, row in zip(at, log_probs, strict=True):
            if done < place:
                piece = span[done:place]
                predictor.candidates(piece)
                predictor.score(piece, statistics[done:place])
                done = place
            rows.append(copy.deepcopy(predictor).predict(row))
        return np.stack(rows)
