"""An online bias on the logits z of each document: softmax(z + o), the honest form of the bias of #1014."""

import numpy as np
from numba import njit

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.statistics import Statistics


@njit(nogil=True, cache=True)
def follow(rows, targets, starts, bias, surplus, waiting, granularity, rate, nats):
    vocab = rows.shape[1]
    weights = np.empty(vocab)
    for t in range(rows.shape[0]):
        peak = -np.inf
        for a in range(vocab):
            peak = max(peak, rows[t, a] + bias[a])
        total = 0.0
        for a in range(vocab):
            weights[a] = np.exp(rows[t, a] + bias[a] - peak)
            total += weights[a]
        y = targets[t]
        nats[t] = np.log(total) + peak - (rows[t, y] + bias[y])
        if starts[t]:
            bias[:], surplus[:], waiting[0] = 0.0, 0.0, 0
            continue
        for a in range(vocab):
            surplus[a] += weights[a] / total
        surplus[y] -= 1.0
        waiting[0] += 1
        if waiting[0] == granularity:
            for a in range(vocab):
                bias[a] -= rate * surplus[a]
            surplus[:], waiting[0] = 0.0, 0


class BiasPredictor(Predictor):
    """o <- o - rate * sum over the group (p - onehot), the gradient of -log p, after every `granularity` targets of a
    document; o = 0 where a document begins."""

    name = "bias_honest"
    needs_logits = True

    def __init__(self, vocab: int, granularity: int, rate: float = 0.02):
        self.granularity, self.rate = granularity, rate
        self.bias, self.surplus = np.zeros(vocab), np.zeros(vocab)
        self.waiting = np.zeros(1, np.int64)

    @classmethod
    def create(cls, vocab, mixer, ngram_table=None):
        return cls(vocab, mixer.granularity)

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        nats = np.empty(len(span))
        self._follow(statistics.logits, span, nats)
        return nats

    def predict(self, log_probs):
        self._predicted = log_probs
        raised = log_probs + self.bias
        return raised - np.logaddexp.reduce(raised)

    def observe(self, token, start=False):
        """The token after a `predict`."""
        self._follow(self._predicted[None], Span(0, np.array([token]), np.array([start])), np.empty(1))

    def _follow(self, rows, span, nats):
        state = (self.bias, self.surplus, self.waiting, self.granularity, self.rate)
        follow(rows, span.targets.astype(np.int64), span.starts, *state, nats)
