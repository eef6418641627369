"""The honest part of the five-expert mixer: neural model, unigrams, bigrams and trigrams, each of them a distribution."""

import numpy as np
from numba import njit

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.counts import SMALLEST, find, roomy
from pgolf.evaluation.statistics import Statistics

SMOOTHING = (0.1, 0.1, 0.01)
CELLS = 5
NAMES = ("neural", "unigram", "bigram", "trigram")


@njit(nogil=True, cache=True)
def context_key(order, before, previous, vocab):
    """Contexts of one token, then of two: all different, none 0."""
    return np.uint64(1 + previous if order == 1 else 1 + vocab + before * vocab + previous)


@njit(nogil=True, cache=True)
def total_after(keys, values, key):
    slot = find(keys, key)
    return values[slot, 0] if keys[slot] == key else 0


@njit(nogil=True, cache=True)
def cell_of(total):
    """How much is known of the two tokens before."""
    return (total > 0) + (total > 1) + (total > 3) + (total > 15)


@njit(nogil=True, cache=True)
def experts_of(y, before, previous, unigram, counted, keys, values, pair_keys, pair_values, smoothing, experts):
    """The probabilities of y under the three n-gram experts, into experts[1:]; and the weights' cell."""
    vocab = unigram.shape[0]
    experts[1] = (unigram[y] + smoothing[0]) / (counted + smoothing[0] * vocab)
    total = 0
    for order in range(1, 3):
        context = context_key(order, before, previous, vocab)
        total = total_after(keys, values, context)
        count = total_after(pair_keys, pair_values, context * np.uint64(vocab) + np.uint64(y + 1)) if total > 0 else 0
        experts[order + 1] = (count + smoothing[order]) / (total + smoothing[order] * vocab)
    return cell_of(total)


@njit(nogil=True, cache=True)
def distribution(
    neural, before, previous, unigram, counted, keys, values, pair_keys, pair_values, weights, smoothing, mixed
):  # fmt: skip
    experts = np.empty(4)
    for y in range(neural.shape[0]):
        cell = experts_of(y, before, previous, unigram, counted, keys, values, pair_keys, pair_values, smoothing, experts)
        experts[0] = np.exp(neural[y])
        p = 0.0
        for k in range(4):
            p += weights[cell, k] * experts[k]
        mixed[y] = np.log(p)


@njit(nogil=True, cache=True)
def count(key, keys, values, used):
    slot = find(keys, key)
    if keys[slot] == 0:
        keys[slot] = key
        used += 1
    values[slot, 0] += 1
    return used


@njit(nogil=True, cache=True)
def add(y, before, previous, unigram, keys, values, pair_keys, pair_values, used):
    vocab = unigram.shape[0]
    unigram[y] += 1
    for order in range(1, 3):
        context = context_key(order, before, previous, vocab)
        used[0] = count(context, keys, values, used[0])
        used[1] = count(context * np.uint64(vocab) + np.uint64(y + 1), pair_keys, pair_values, used[1])


@njit(nogil=True, cache=True)
def mix(
    targets, neural, before, previous, unigram, counted, keys, values, pair_keys, pair_values, used, weights, visits,
    smoothing, nats,
):  # fmt: skip
    experts = np.empty(4)
    for t in range(targets.shape[0]):
        y = targets[t]
        cell = experts_of(y, before, previous, unigram, counted, keys, values, pair_keys, pair_values, smoothing, experts)
        experts[0] = np.exp(neural[t])
        p = 0.0
        for k in range(4):
            p += weights[cell, k] * experts[k]
        nats[t] = -np.log(p)
        rate = max(0.002, 1.0 / (visits[cell] + 50))
        visits[cell] += 1
        for k in range(4):
            weights[cell, k] *= 1 + rate * (experts[k] / p - 1)
        add(y, before, previous, unigram, keys, values, pair_keys, pair_values, used)
        counted += 1
        before, previous = previous, y


class NgramsPredictor(Predictor):
    """p = sum_k w_k q_k with exact counts of the whole stream, fresh to the last token.

    The weights follow the gradient of -log p itself, by exponentiated gradient to first order,
    w_k <- w_k (1 + r (q_k(y) / p - 1)), which keeps their sum; one set for each amount that is known of the last two
    tokens. (The published step follows each expert's own loss, and so ends at the single best one.)
    """

    name = "ngrams"
    document_local = False

    def __init__(self, vocab: int):
        self.unigram = np.zeros(vocab, np.int64)
        self.counted = 0
        self.before = self.previous = 0
        self.keys, self.values = np.zeros(SMALLEST, np.uint64), np.zeros((SMALLEST, 1), np.int32)
        self.pair_keys, self.pair_values = np.zeros(SMALLEST, np.uint64), np.zeros((SMALLEST, 1), np.int32)
        self.used = np.zeros(2, np.int64)
        self.weights = np.tile([0.91, 0.03, 0.03, 0.03], (CELLS, 1))
        self.visits = np.zeros(CELLS, np.int64)

    @classmethod
    def create(cls, vocab, mixer, ngram_table=None):
        return cls(vocab)

    def begin(self, token):
        self._reserve(1)
        self.unigram[token] += 1
        self.counted += 1
        self.before = self.previous = token

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        self._reserve(len(span))
        nats = np.empty(len(span))
        mix(
            span.targets.astype(np.int64), statistics.target, self.before, self.previous, self.unigram, self.counted,
            self.keys, self.values, self.pair_keys, self.pair_values, self.used, self.weights, self.visits,
            np.array(SMOOTHING), nats,
        )  # fmt: skip
        self._advance(span.targets)
        return nats

    def predict(self, log_probs):
        mixed = np.empty(len(log_probs))
        distribution(
            log_probs, self.before, self.previous, self.unigram, self.counted, self.keys, self.values, self.pair_keys,
            self.pair_values, self.weights, np.array(SMOOTHING), mixed,
        )  # fmt: skip
        self._predicted = log_probs
        return mixed

    def observe(self, token, start=False):
        """The token after a `predict`."""
        one = np.zeros(1)
        statistics = Statistics(one, self._predicted[[token]], one, np.empty((1, 0)))
        self.score(Span(0, np.array([token]), np.array([start])), statistics)

    def trace(self):
        means = self.visits @ self.weights / max(self.visits.sum(), 1) if self.visits.any() else self.weights[0]
        return dict(zip(NAMES, map(float, means), strict=True))

    def _reserve(self, tokens):
        self.keys, self.values = roomy(self.keys, self.values, self.used[0] + 2 * tokens)
        self.pair_keys, self.pair_values = roomy(self.pair_keys, self.pair_values, self.used[1] + 2 * tokens)

    def _advance(self, tokens):
        self.counted += len(tokens)
        self.before, self.previous = [self.before, self.previous, *map(int, tokens[-2:])][-2:]
