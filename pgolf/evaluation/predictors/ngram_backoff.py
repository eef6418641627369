"""The n-gram back-off below the network's distribution, and the weights it has learnt, as bytes."""

from typing import NamedTuple

import numpy as np
import torch
import zstandard

from pgolf.errors import PgolfError
from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.statistics import Statistics
from pgolf.kernels.logit_stats import LogitStats
from pgolf.kernels.ngram import FLOOR_FOR_TABLES, Evidence, NgramBackoff

# weights travel as log(w / (1 - w)), in steps of 1/8 between -10 and 8
LOGIT_STEP, LOGIT_LEAST, LOGIT_MOST = 8, -10, 8
# numbers of visits as log2(n + 1), in steps of 1/2 up to 31
VISIT_STEP, VISIT_MOST = 2, 62


class Learnt(NamedTuple):
    """What an n-gram back-off has learnt, level by level (levels, 9, 33)."""

    table: torch.Tensor
    """float64: the weights"""
    visits: torch.Tensor
    """int32: how often each was learnt from, which decides how fast learning goes on"""


class TableError(PgolfError):
    """A table of the n-gram back-off's weights that cannot be read, in one line."""


class NgramBackoffPredictor(Predictor):
    """Levels of order 1 to `orders` (or as many as the table has) on the counts of the document at hand, each mixed into
    the distribution of the levels below: p_n = (1 - w) p_(n-1) + w (counts / total), p_0 the network's
    (pgolf.kernels.ngram.NgramBackoff).

    learnt  what it begins with; None for the same small weight everywhere
    online  learn the weights on the way
    """

    name = "ngram_backoff"

    def __init__(self, vocab: int, orders: int, granularity: int, learnt: Learnt | None = None, online: bool = True):
        self.num_candidates, self.online = len(learnt.table) if learnt else orders, online
        # counts are of the document, but weights that are learnt on the way go on from one to the next
        self.document_local = not online
        local, table = tuple(range(1, self.num_candidates + 1)), learnt.table if learnt else None
        self.ngram_backoff = NgramBackoff(local=local, granularity=granularity, table=table, floor=FLOOR_FOR_TABLES)
        if learnt:
            self.ngram_backoff.visits.copy_(learnt.visits)
        self.stream = self.ngram_backoff.stream(vocab, learn=online)
        self._evidence: Evidence

    @classmethod
    def create(cls, vocab, mixer, ngram_table=None):
        return cls(vocab, mixer.orders, mixer.granularity, ngram_table, mixer.online_weights)

    def begin(self, token: int) -> None:
        self.stream.read(torch.tensor([token], dtype=torch.int32), torch.tensor([True]))

    def candidates(self, span: Span) -> np.ndarray:
        self._evidence = self.stream.read(as_tensor(span.targets), torch.from_numpy(np.ascontiguousarray(span.starts)))
        return self._evidence.top.numpy()

    def candidates_of(self, texts, sizes, device):
        bounds = np.cumsum([0, *map(len, texts)])
        tokens = as_tensor(np.concatenate(texts)).to(device)
        top = self.ngram_backoff.evidence(tokens, torch.from_numpy(bounds).to(device)).top
        return torch.cat([top[end - size : end] for end, size in zip(bounds[1:].tolist(), sizes, strict=True)])

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        mix = self.ngram_backoff.mix_and_learn if self.online else self.ngram_backoff.mix
        return mix(as_neural(statistics), self._evidence).nll.numpy()

    def predict(self, log_probs):
        return np.log(self.stream.predict(torch.from_numpy(log_probs)).numpy())

    def observe(self, token, start=False):
        self.stream.observe(token, start)

    def learnt(self) -> Learnt:
        self.ngram_backoff.flush()
        return Learnt(self.ngram_backoff.table.clone(), self.ngram_backoff.visits.clone())

    def trace(self):
        """The mean weight of the cells that were visited, level by level (of all, where none was)."""
        seen = (
            self.ngram_backoff.visits
            if self.online and self.ngram_backoff.visits.any()
            else torch.ones_like(self.ngram_backoff.visits)
        )
        means = (self.ngram_backoff.table * seen).sum((1, 2)) / seen.sum((1, 2)).clamp_min(1)
        return {f"order {order}": float(weight) for order, weight in zip(self.ngram_backoff.local, means, strict=True)}


def as_tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int32))


def as_neural(statistics: Statistics) -> LogitStats:
    target = torch.from_numpy(np.ascontiguousarray(statistics.target))
    candidates = torch.from_numpy(np.ascontiguousarray(statistics.candidate_log_probs))
    return LogitStats(target, torch.from_numpy(statistics.entropy), target, candidates)


# ---- as bytes


def learnt_to_bytes(learnt: Learnt) -> bytes:
    """A byte a weight and one for its visits, compressed: cells that were never visited cost nearly nothing."""
    logit = torch.logit(learnt.table.double().cpu()).clamp(LOGIT_LEAST, LOGIT_MOST)
    codes = [(logit - LOGIT_LEAST) * LOGIT_STEP, torch.log2(learnt.visits.double().cpu() + 1) * VISIT_STEP]
    plain = torch.stack(codes).round().to(torch.uint8).numpy().tobytes()
    return bytes([len(learnt.table)]) + zstandard.ZstdCompressor(level=19).compress(plain)


def learnt_from_bytes(data: bytes, where: str = "the n-gram back-off's table") -> Learnt:
    """The inverse of `learnt_to_bytes`; the bytes are checked, for the file may be damaged or made up."""
    levels = data[0] if data else 0
    size = 2 * levels * 9 * 33
    try:
        if not 1 <= levels <= 16 or zstandard.frame_content_size(data[1:]) != size:
            raise TableError(f"{where} is damaged: it holds no weights for 1 to 16 levels")
        codes = zstandard.ZstdDecompressor().decompress(data[1:], max_output_size=size)
    except zstandard.ZstdError as error:
        raise TableError(f"{where} is damaged: {error}") from None
    weights, visits = torch.frombuffer(bytearray(codes), dtype=torch.uint8).double().reshape(2, levels, 9, 33)
    if visits.max() > VISIT_MOST:
        raise TableError(f"{where} is damaged: it counts more visits than there can be")
    table = torch.sigmoid(weights / LOGIT_STEP + LOGIT_LEAST)
    return Learnt(table, (torch.exp2(visits / VISIT_STEP) - 1).round().to(torch.int32))
