"""n-gram orders interpolated over the neural distribution, the highest order last: normalised whatever was counted.

Jelinek-Mercer interpolation (1980), with weights tied by bucket: how often the context was seen, how many different
successors it had, and what the neural model thinks of the most frequent one.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.logit_stats import LogitStats
from pgolf.kernels.ngram import op  # noqa: F401  registers the operators
from pgolf.kernels.ngram.reference import (
    FIRST_WEIGHT,
    LEAST_WEIGHT,
    MOST_WEIGHT,
    N_CELLS,
    Q_CELLS,
    mix_dense_reference,
)
from pgolf.kernels.tensors import exact_dtype

if TYPE_CHECKING:
    from pgolf.kernels.ngram.stream import NgramBackoffStream

MOST_ORDER = 16
MOST_GRANULARITY = 1 << 20
FLOOR = 2e-3
FLOOR_FOR_TABLES = 5e-4


class Evidence(NamedTuple):
    """Counts at each of N tokens for each of K orders. Only `hits` depends on the token that came."""

    top: Tensor
    """(N, K) int32: the context's most frequent successor, -1 if the context is new; the candidates of `logit_stats`"""
    cell: Tensor
    """(N, K) uint8: the context's column in the weights' table, 0 if the context is new"""
    hits: Tensor
    """(N, K) int32: how often this token followed the context"""
    total: Tensor
    """(N, K) int32: how often any token did"""
    group_starts: Tensor
    """(N,) bool: a group of `granularity` tokens starts here, and everything before it is counted"""


class NgramBackoffScores(NamedTuple):
    """One row a token."""

    nll: Tensor
    """(N,) float64, float32 on a GPU: -log p of the token"""
    share: Tensor
    """(N,): the part of the token's probability that is the neural model's"""


class NgramBackoff:
    """The neural distribution and n-gram orders, mixed one after another into one distribution.

        backoff = NgramBackoff(local=(1, 2, 3, 4), table=table)
        evidence = backoff.evidence(tokens, documents)                                      # (N,) tokens
        scores = backoff.mix(logit_stats(logits, tokens, evidence.top), evidence)           # logits[t] predict tokens[t]

    P starts as the neural distribution. For each order whose context was seen, n > 0 times with u different successors:

        P(a) <- (1 - w) P(a) + w c(a) / n,     w = table[order, q, cell]

    q     the cell of log p_neural(s) among -9, -6, -4, -2.5, -1.5, -.8, -.35, -.1, with s the context's top successor
          (largest count; of equal ones the one first seen last)
    cell  n among 1, 2, 3-4, 5-8, 9-16, 17-64, 65-256, more; times u = 1, u <= n/4, u <= n/2, else; 0 for a new context

    No index of w depends on the token being scored, so each step mixes two distributions and P sums to one.

    Args:
        local: orders (0..16) whose counts are of the document at hand: documents are independent of one another.
        shared: orders whose counts are of all documents so far; contexts never reach over a document's beginning.
        granularity: G: a token is predicted from counts of the tokens before its group of G within the document.
        table: (K, 9, 33), or None for the first weight, .05, everywhere; the K orders are local, then shared, as given.
        floor: the least learning rate of `mix_and_learn`.
        device: where the table lives.

    The counts of a context of order o are how often each token followed those o tokens; order 0 counts every token of
    the document, its first one included. A document's first token is read in the context of the document before it,
    because no decoder could tell that it opens a document before it is decoded; then the counts start anew.
    """

    def __init__(
        self,
        local: tuple[int, ...] = (1, 2, 3, 4),
        shared: tuple[int, ...] = (),
        *,
        granularity: int = 1,
        table: Tensor | None = None,
        floor: float = FLOOR,
        device: torch.device | str = "cpu",
    ):
        self.local, self.shared, self.granularity, self.floor = tuple(local), tuple(shared), granularity, floor
        orders = self.local + self.shared
        if not 1 <= len(orders) <= 16 or not all(0 <= order <= MOST_ORDER for order in orders):
            raise ValueError(
                f"NgramBackoff: orders {self.local} and {self.shared}; 1 to 16 orders from 0 to {MOST_ORDER} are possible"
            )
        for rising in (self.local, self.shared):
            if list(rising) != sorted(set(rising)):
                raise ValueError(f"NgramBackoff: orders {rising} must rise; each mixes what the ones below it left")
        if not 1 <= granularity <= MOST_GRANULARITY:
            raise ValueError(f"NgramBackoff: granularity is {granularity}; it must lie in 1..{MOST_GRANULARITY}")
        shape = (len(orders), Q_CELLS, N_CELLS)
        if table is None:
            table = torch.full(shape, FIRST_WEIGHT, dtype=torch.float64)
        elif table.shape != shape:
            raise ValueError(f"NgramBackoff: the table is {tuple(table.shape)}, but {len(orders)} orders need {shape}")
        self.table = table.detach().to(device, exact_dtype(device), copy=True).contiguous()
        # state of online learning: visits of each cell, and the pending posteriors of the group at hand with their cells
        self.visits = torch.zeros(shape, dtype=torch.int32, device=device)
        self.places = torch.empty(granularity * len(orders), dtype=torch.int32, device=device)
        self.posteriors = torch.empty(granularity * len(orders), dtype=self.table.dtype, device=device)
        self.pending = torch.zeros(1, dtype=torch.int32, device=device)

    @property
    def num_orders(self) -> int:
        """K."""
        return len(self.local) + len(self.shared)

    @property
    def learning_state(self) -> tuple[Tensor, ...]:
        """What `mix_and_learn` changes: table and visits (K, 9, 33), places, posteriors, and how many of those are pending."""
        return self.table, self.visits, self.places, self.posteriors, self.pending

    def evidence(self, tokens: Tensor, documents: Tensor | None = None) -> Evidence:
        """Count through whole documents: on a CPU in parallel, on a GPU one group of lanes a document.

        Args:
            tokens: (N,), integer, non-negative.
            documents: (D + 1,) integer, 0 = documents[0] < ... < documents[D] = N; None for one document.

        On a CPU memory is 40 to 100 bytes per token and order of the longest document (of all where counts are
        shared); on a GPU 44 bytes per token and order, and about 60 bytes move for each.
        """
        if tokens.dim() != 1 or tokens.is_floating_point():
            raise ValueError(
                f"NgramBackoff.evidence: tokens are {tokens.dtype} {tuple(tokens.shape)}; they must be integers (N,)"
            )
        if documents is None:
            documents = torch.tensor([0, len(tokens)], device=tokens.device)
        if documents.dim() != 1 or len(documents) < 2 or documents.is_floating_point():
            raise ValueError(
                f"NgramBackoff.evidence: documents are {documents.dtype} {tuple(documents.shape)}, not integers (D + 1,)"
            )
        parts = [
            torch.ops.pgolf.ngram_evidence(tokens, documents, list(orders), self.granularity, shared)
            for orders, shared in ((self.local, False), (self.shared, True))
            if orders
        ]
        top, cell, hits, total = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        return Evidence(top, cell, hits, total, group_starts(document_starts(documents, len(tokens)), self.granularity))

    def mix(self, stats: LogitStats, evidence: Evidence) -> NgramBackoffScores:
        """NLL (N,) of each token, with the table as it is. `stats.candidates` (N, K) are those of `evidence.top`.

        Per token and order 17 bytes move on a CPU, 13 on a GPU, and about 12 FLOPs. Nothing is differentiable here.
        """
        target, candidates = self._rows(stats, evidence)
        scores = torch.ops.pgolf.ngram_mix(target, candidates, *evidence[1:4], self.table)
        return NgramBackoffScores(*(x.reshape(stats.target.shape) for x in scores))

    def mix_and_learn(self, stats: LogitStats, evidence: Evidence) -> NgramBackoffScores:
        """As `mix`, in order, learning the table: after y, each order's w moves by r (posterior - w), where

            posterior = w q / ((1 - w) P + w q),  q = c(y) / n,  r = max(floor, 1 / (visits + 20))

        and is kept within [1e-4, .9995]: a step of online EM on the mixture's likelihood. The steps of a group are applied
        when the next one starts. Call after call continues the stream.
        """
        target, candidates = (x.detach() for x in self._rows(stats, evidence))
        scores = torch.ops.pgolf.ngram_mix_online(target, candidates, *evidence[1:], *self.learning_state, self.floor)
        return NgramBackoffScores(*(x.reshape(stats.target.shape) for x in scores))

    def flush(self) -> None:
        """Apply the pending steps of the last group."""
        from pgolf.kernels.ngram import cpu

        if not self.pending[0]:
            return
        own = self.learning_state
        state = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in own]
        table, visits, *rest = (x.reshape(-1).numpy() for x in state)
        cpu.flush(table, visits, *rest, self.floor, LEAST_WEIGHT, MOST_WEIGHT)
        for mine, flushed in zip(own, state, strict=True):
            if flushed is not mine:
                mine.copy_(flushed)

    def distribution(self, log_probs: Tensor, tokens: Tensor, documents: Tensor | None, at: Tensor) -> Tensor:
        """The whole distribution (P, V) in float64 at positions `at` (P,), rising, of the stream, with the table as it is.

        log_probs (P, V) is the neural log-softmax there; z - lse, with lse of `logit_stats`, has the very bits
        that `mix` saw. For an audit: slow, on a CPU. `mix` reads one entry of each row.
        """
        tokens, at = tokens.cpu().int().contiguous(), at.cpu()
        starts = document_starts(torch.tensor([0]) if documents is None else documents.cpu(), len(tokens))
        log_probs = log_probs.detach().double().cpu()
        last = int(at[-1]) + 1
        evidence, counts = self.stream(vocab=log_probs.shape[1]).read_dense(tokens[:last], starts[:last], at)
        candidates = log_probs.gather(1, evidence.top[at].long().clamp_min(0))
        table = self.table.double().cpu()
        return mix_dense_reference(log_probs, candidates, evidence.cell[at], counts, evidence.total[at], table)

    def stream(self, vocab: int, *, learn: bool = False) -> "NgramBackoffStream":
        """The back-off for a decoder, on a CPU: predict a whole distribution, observe a token, and so on."""
        from pgolf.kernels.ngram.stream import NgramBackoffStream

        return NgramBackoffStream(self, vocab, learn)

    def _rows(self, stats: LogitStats, evidence: Evidence) -> tuple[Tensor, Tensor]:
        count = stats.target.numel()
        if evidence.cell.shape != (count, self.num_orders) or stats.candidates.numel() != count * self.num_orders:
            raise ValueError(
                f"NgramBackoff: {self.num_orders} orders want candidates and evidence for each of {count} tokens, not "
                f"{tuple(stats.candidates.shape)} and {tuple(evidence.cell.shape)}; pass evidence.top as candidates"
            )
        return stats.target.reshape(count), stats.candidates.reshape(count, self.num_orders)


def learn_table(
    backoff: NgramBackoff, samples: Iterable[tuple[LogitStats, Evidence]], floor: float = FLOOR_FOR_TABLES
) -> Tensor:
    """The table (K, 9, 33), float64 on the CPU, after one pass of learning over held-out streams: for an artifact to carry.

    samples  (stats, evidence) pairs with the back-off's orders. The back-off itself is left as it is; learning starts
    from its table, with no visits, and with smaller steps than online learning's.
    """
    learner = NgramBackoff(
        backoff.local,
        backoff.shared,
        granularity=backoff.granularity,
        table=backoff.table,
        floor=floor,
        device=backoff.table.device,
    )
    for stats, evidence in samples:
        learner.mix_and_learn(stats, evidence)
    learner.flush()
    return learner.table.double().cpu()


def document_starts(documents: Tensor, count: int) -> Tensor:
    """True where a document opens: (N,) bool."""
    starts = torch.zeros(count + 1, dtype=torch.bool, device=documents.device)
    return starts.index_fill(0, documents[:-1].long() if len(documents) > 1 else documents.long(), True)[:count]


def group_starts(starts: Tensor, granularity: int, position: int = 0, opened: bool = True) -> Tensor:
    """True where a token's group starts (N,): every G tokens of a document, and after the token that opened it.

    position  tokens the document at hand had before the first row; opened: whether the last of them opened it
    """
    rows = torch.arange(len(starts), device=starts.device)
    begun = torch.where(starts, rows, -1).cummax(0).values
    # the token that opens a document is still read in the one before
    before = torch.cat([begun.new_full((1,), -1), begun[:-1]])[: len(starts)]
    place = torch.where(before >= 0, rows - before, rows + position)
    after_start = torch.cat([starts.new_full((1,), opened), starts[:-1]])[: len(starts)]
    return (place % granularity == 0) | after_start
