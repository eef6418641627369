"""The published mixtures of #688 and #1014 over a small fixed network, and what is honest in them.

Scale is kept where it matters: the mixer of #688 wakes after few tokens instead of 10,000, and #1014's tables are as full as
in the challenge, where 62 million tokens share 4 million buckets.
"""

import numpy as np
import torch

from pgolf.audit.interface import Claims, Scored, Stepwise
from pgolf.audit.published import boost_row, hedge_row
from pgolf.audit.violations.base import BOS, VOCAB, network
from pgolf.evaluation.predictors.ngrams import NgramsPredictor
from pgolf.evaluation.predictors.tilt import BoostPredictor
from pgolf.kernels.hedge import BoostedCache, HedgeMixer

BATCH, CHUNK, WARMUP, BUCKETS = 8, 64, 64, 32


# sharp: where #688's entropy expert pays. Flat: so that noise costs the network of #1014 little more than ln V
SHARP, FLAT = network(2.0), network(0.6)


class PublishedMixture:
    vocab = VOCAB
    claims = Claims(bos=BOS)
    network: np.ndarray

    def score(self, tokens, probes=(), total=None) -> Scored:
        tokens = np.array(tokens)
        self.start()
        nats, shown, events = np.empty(len(tokens) - 1), {}, []
        for start in range(0, len(tokens) - 1, CHUNK):
            stop = min(start + CHUNK, len(tokens) - 1)
            for first in range(start, stop, BATCH):
                last = min(first + BATCH, stop)
                rows = self.network[tokens[first:last]]
                for target in range(first, last):
                    if target in probes:
                        shown[target] = self.whole(tokens, first, target, rows[target - first])
                nats[first:last] = self.batch(tokens, first, last, rows)
            events += [("commit", start, stop), ("learn", start, stop)]
            self.count(tokens[start : stop + 1])
        return Scored(nats, shown, events)

    def start(self) -> None:
        raise NotImplementedError

    def whole(self, tokens, first: int, target: int, row: np.ndarray) -> np.ndarray:
        """What all symbols would get at a target of the batch that begins at `first`."""
        raise NotImplementedError

    def batch(self, tokens, first: int, last: int, rows: np.ndarray) -> np.ndarray:
        """The costs of a batch, and what it teaches the weights."""
        raise NotImplementedError

    def count(self, tokens) -> None:
        """After a chunk."""


class Hedge(PublishedMixture):
    """V3 as published: five experts, one of them e^-H for every symbol."""

    network = SHARP

    def start(self):
        self.mixer = HedgeMixer(VOCAB, buckets=256, warmup=WARMUP)

    def whole(self, tokens, first, target, row):
        # a window is a batch here, and knows nothing of what stands before it
        return hedge_row(self.mixer, row, int(tokens[target - 1]) if target > first else 0, int(tokens[target]))

    def batch(self, tokens, first, last, rows):
        target = torch.from_numpy(rows[np.arange(last - first), tokens[first + 1 : last + 1]])[None]
        entropy = torch.from_numpy(-(np.exp(rows) * rows).sum(1))[None]
        known = torch.from_numpy(tokens[first : last + 1]).int()
        scores = self.mixer.score_chunk(target, entropy, known, [(0, last - first, last - first)])
        self.mixer.log_weights = scores.log_weights[0, -1]
        return scores.nll.numpy()

    def count(self, tokens):
        self.mixer.count(torch.from_numpy(tokens).int())


class Boost(PublishedMixture):
    """V1 as published by #1014: the target is in the key of the hash, and what it gains nobody loses."""

    network = FLAT

    def start(self):
        self.cache = BoostedCache(buckets=BUCKETS)

    def whole(self, tokens, first, target, row):
        return boost_row(self.cache, tokens, target + 1, row)

    def batch(self, tokens, first, last, rows):
        log_prob = torch.from_numpy(rows[np.arange(last - first), tokens[first + 1 : last + 1]])
        entropy = torch.from_numpy(-(np.exp(rows) * rows).sum(1))
        nlls = self.cache.score(torch.from_numpy(tokens), first + 1, last + 1, log_prob, entropy)
        return nlls[:, 0].numpy()


class HonestPredictor:
    """A predictor over the same network, token by token."""

    def __init__(self, predictor, network: np.ndarray):
        self.predictor, self.network, self.previous = predictor, network, -1

    def predict(self):
        return self.predictor.predict(self.network[self.previous])

    def observe(self, token):
        if self.previous < 0:
            self.predictor.begin(token)
        else:
            self.predictor.observe(token, token == BOS)
        self.previous = token


def honest_hedge() -> Stepwise:
    return Stepwise(lambda: HonestPredictor(NgramsPredictor(VOCAB), SHARP), VOCAB, Claims(bos=BOS))


def honest_boost() -> Stepwise:
    return Stepwise(lambda: HonestPredictor(BoostPredictor(), FLAT), VOCAB, Claims(bos=BOS))
