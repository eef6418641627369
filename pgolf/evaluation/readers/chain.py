"""The document-local chain: n-gram levels that back off to the neural distribution; and its table of weights as bytes."""

import numpy as np
import torch
import zstandard

from pgolf.errors import PgolfError
from pgolf.evaluation.readers.base import Reader, Span
from pgolf.evaluation.statistics import Statistics
from pgolf.kernels.hedge import Chain, Evidence, NeuralStatistics
from pgolf.kernels.hedge.chain import FLOOR

# weights travel as log(w / (1 - w)), in steps of 1/8 between -10 and 8
LOGIT_STEP, LOGIT_LEAST, LOGIT_MOST = 8, -10, 8


class TableError(PgolfError):
    """A table of the chain's weights that cannot be read, in one line."""


class ChainReader(Reader):
    """Levels of order 1 to `orders` (or as many as the table has) on the counts of the document at hand, each mixed into
    what the ones below left.

    table   the weights to begin with, (orders, 9, 33); None for the same small weight everywhere
    online  learn the weights on the way
    floor   least step of that learning
    """

    name = "chain"

    def __init__(
        self,
        vocab: int,
        orders: int,
        granularity: int,
        table: torch.Tensor | None = None,
        online: bool = True,
        floor: float = FLOOR,
    ):
        self.levels, self.online = orders if table is None else len(table), online
        local = tuple(range(1, self.levels + 1))
        self.chain = Chain(local=local, granularity=granularity, table=table, floor=floor)
        self.stream = self.chain.stream(vocab, learn=online)
        self._evidence: Evidence

    def begin(self, token: int) -> None:
        self.stream.read(torch.tensor([token], dtype=torch.int32), torch.tensor([True]))

    def look(self, span: Span) -> np.ndarray:
        self._evidence = self.stream.read(as_tensor(span.targets), torch.from_numpy(np.ascontiguousarray(span.starts)))
        return self._evidence.top.numpy()

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        mix = self.chain.mix_and_learn if self.online else self.chain.mix
        return mix(as_neural(statistics), self._evidence).nll.numpy()

    def predict(self, log_probs):
        return np.log(self.stream.predict(torch.from_numpy(log_probs)).numpy())

    def observe(self, token, start=False):
        self.stream.observe(token, start)

    def trace(self):
        """The mean weight of the cells that were visited, level by level (of all, where none was)."""
        seen = self.chain.visits if self.online and self.chain.visits.any() else torch.ones_like(self.chain.visits)
        means = (self.chain.table * seen).sum((1, 2)) / seen.sum((1, 2)).clamp_min(1)
        return {f"order {order}": float(weight) for order, weight in zip(self.chain.local, means, strict=True)}


def as_tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int32))


def as_neural(statistics: Statistics) -> NeuralStatistics:
    target = torch.from_numpy(np.ascontiguousarray(statistics.target))
    candidates = torch.from_numpy(np.ascontiguousarray(statistics.candidates))
    return NeuralStatistics(target, torch.from_numpy(statistics.entropy), target, candidates)


# ---- the table


def table_to_bytes(table: torch.Tensor) -> bytes:
    """One byte a weight, compressed: a few hundred bytes for cells that were mostly never visited."""
    logit = torch.logit(table.double().cpu()).clamp(LOGIT_LEAST, LOGIT_MOST)
    codes = ((logit - LOGIT_LEAST) * LOGIT_STEP).round().to(torch.uint8)
    return bytes([table.shape[0]]) + zstandard.ZstdCompressor(level=19).compress(codes.numpy().tobytes())


def table_from_bytes(data: bytes, where: str = "the table of weights") -> torch.Tensor:
    """(levels, 9, 33), float64. Checked as a stranger's bytes."""
    levels = data[0] if data else 0
    size = levels * 9 * 33
    try:
        if not 1 <= levels <= 16 or zstandard.frame_content_size(data[1:]) != size:
            raise TableError(f"{where} is damaged: it holds no weights for 1 to 16 levels")
        codes = zstandard.ZstdDecompressor().decompress(data[1:], max_output_size=size)
    except zstandard.ZstdError as error:
        raise TableError(f"{where} is damaged: {error}") from None
    logit = torch.frombuffer(bytearray(codes), dtype=torch.uint8).double() / LOGIT_STEP + LOGIT_LEAST
    return torch.sigmoid(logit).reshape(levels, 9, 33)
