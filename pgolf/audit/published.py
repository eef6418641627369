"""What the published mixtures give to every symbol, not only to the one that came: their masses, which are not one."""

import math

import numpy as np

from pgolf.kernels.hedge import BoostedCache, HedgeMixer
from pgolf.kernels.hedge.reference import BOOST_MULTIPLIER, BOOST_ORDERS, BOOST_PRIMES


def hedge_row(mixer: HedgeMixer, log_probs: np.ndarray, before: int, previous: int) -> np.ndarray:
    """(V,) logarithms of what #688's five experts together give each symbol after `before` and `previous`."""
    if mixer.tokens < mixer.warmup:
        return log_probs
    vocab = len(log_probs)
    finite = log_probs[np.isfinite(log_probs)]
    entropy = -float((np.exp(finite) * finite).sum())
    bucket = ((36_313 * before) ^ (27_191 * previous)) % len(mixer.trigram)
    given = [
        np.exp(log_probs),
        (mixer.unigram.numpy() + 0.1) / (mixer.tokens + 0.1 * vocab),
        (mixer.bigram[previous].numpy() + 0.1) / (int(mixer.bigram_total[previous]) + 0.1 * vocab),
        (mixer.trigram[bucket].numpy() + 0.01) / (max(int(mixer.trigram_total[bucket]), 1) + 0.01 * vocab),
        np.full(vocab, math.exp(-entropy)),
    ]
    return np.log(mixer.log_weights.softmax(0).numpy() @ np.stack(given))


def boost_row(cache: BoostedCache, tokens: np.ndarray, target: int, log_probs: np.ndarray) -> np.ndarray:
    """(V,) logarithms of what #1014's two experts together give each symbol in the place of tokens[target]."""
    vocab = len(log_probs)
    mask, multiplier = np.uint64(cache.contexts.shape[1] - 1), np.uint64(BOOST_MULTIPLIER)
    primes = np.array(BOOST_PRIMES, dtype=np.uint64)
    symbols, boost = np.arange(vocab, dtype=np.uint64), np.zeros(vocab)
    with np.errstate(over="ignore"):
        for level, order in enumerate(BOOST_ORDERS):
            if order > target:
                break
            key = np.uint64(0)
            for k in range(order - 1):
                key = (key ^ (np.uint64(tokens[target - order + k]) * primes[k % 7])) * multiplier
            seen = int(cache.contexts[level, key & mask])
            hits = cache.fulls[level, ((key ^ (symbols * primes[(order - 1) % 7])) * multiplier) & mask].astype(np.float64)
            gain = np.log1p(hits) - np.log1p(np.maximum(seen - hits, 1))
            boost = np.maximum(boost, np.where((hits > 0) & (seen > 0), gain, 0.0))
    finite = log_probs[np.isfinite(log_probs)]
    entropy = -float((np.exp(finite) * finite).sum())
    alpha = 0.05 + 0.55 / (1 + math.exp(2 * (entropy - 4)))
    plain, boosted = cache.weights
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(plain) + log_probs, np.log(boosted) + log_probs + alpha * boost)
