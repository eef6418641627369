"""Two sparse predictors that raise the logits of symbols which contexts predict: p'(a) = p(a) e^(g(a)) / Z with
Z = 1 + sum_a p(a) (e^(g(a)) - 1), so that only the raised symbols' probabilities are needed."""

import numpy as np

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.counts import TopCounts
from pgolf.evaluation.statistics import Statistics

TILT_ORDER, TILT_CONFIDENCE, TILT = 16, 0.8, 2.625
BOOST_CONTEXTS = tuple(range(1, 10))


class Raised(Predictor):
    """The logits of the symbols that `gains` names are raised, the others stay; divided by Z."""

    document_local = local_candidates = False

    def __init__(self, contexts: tuple[int, ...]):
        self.num_candidates = len(contexts)
        self.counts = TopCounts(contexts)
        self._raised: tuple[np.ndarray, np.ndarray]
        """Symbols and gains of the span at hand."""

    def gains(self, top: np.ndarray, count: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, num_candidates) symbols, no symbol twice in a row, -1 for none; and how far each is raised before `strength`."""
        raise NotImplementedError

    def strength(self, entropy: np.ndarray) -> np.ndarray:
        """(n,) factor of the gains, from the entropy of the neural distribution."""
        return np.ones_like(entropy)

    def begin(self, token):
        self.counts.read(np.array([token]))

    def candidates(self, span: Span) -> np.ndarray:
        self._raised = self.gains(*self.counts.read(span.targets))
        return self._raised[0]

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        symbols, gains = self._raised
        gains = gains * self.strength(statistics.entropy)[:, None]
        surplus = np.where(symbols >= 0, np.exp(statistics.candidate_log_probs) * np.expm1(gains), 0).sum(1)
        own = np.where(symbols == span.targets[:, None], gains, 0).sum(1)
        return np.log1p(surplus) - own - statistics.target

    def predict(self, log_probs):
        symbols, gains = (x[0] for x in self.gains(*(x[None] for x in self.counts.peek())))
        entropy = -(np.exp(log_probs) * log_probs).sum()
        raised = log_probs.copy()
        raised[symbols[symbols >= 0]] += gains[symbols >= 0] * self.strength(np.array([entropy]))
        return raised - np.log(np.exp(raised).sum())

    def observe(self, token, start=False):
        self.counts.read(np.array([token]))


class TiltPredictor(Raised):
    """Where the last 15 tokens were followed by one symbol in at least four of five cases, its logit gains 2.625."""

    name = "tilt"

    def __init__(self):
        super().__init__((TILT_ORDER - 1,))

    def gains(self, top, count, total):
        sure = count >= TILT_CONFIDENCE * np.maximum(total, 1)
        return np.where(sure, top, -1), np.full(top.shape, TILT)


class BoostPredictor(Raised):
    """#1014's logit boost as a distribution: the gains of all symbols, not of the target alone, and the context of order
    n is the n - 1 tokens right before it.

    beta = ln(1 + full) - ln(1 + max(context - full, 1)) is above zero only for a symbol that followed more often than all
    others together, so each order raises at most one symbol; the highest gain counts where orders agree.
    """

    name = "boost_honest"

    def __init__(self):
        super().__init__(BOOST_CONTEXTS)

    def gains(self, top, count, total):
        beta = np.log1p(count) - np.log1p(np.maximum(total - count, 1))
        symbols, gains = np.where(beta > 0, top, -1), np.where(beta > 0, beta, 0.0)
        for level in range(1, self.num_candidates):
            for lower in range(level):
                same = (symbols[:, lower] == symbols[:, level]) & (symbols[:, level] >= 0)
                gains[:, lower] = np.where(same, np.maximum(gains[:, lower], gains[:, level]), gains[:, lower])
                symbols[:, level] = np.where(same, -1, symbols[:, level])
        return symbols, gains

    def strength(self, entropy):
        return 0.05 + 0.55 / (1 + np.exp(2 * (entropy - 4)))
