"""N-gram levels of decreasing order over the neural distribution: normalised whatever was counted."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from pgolf.kernels.hedge import reference
from pgolf.kernels.hedge.op import NeuralStatistics, exact_dtype

MOST_ORDER = 16
MOST_GRANULARITY = 1 << 20
FLOOR = 2e-3
FLOOR_FOR_TABLES = 5e-4
CUTS = np.array(reference.Q_CUTS)


class Evidence(NamedTuple):
    """What the counts say about each token, level by level (N, L). Only `hits` know which token came."""

    top: torch.Tensor
    """int32: the context's most frequent successor, -1 if the context is new: the candidate whose log-probability is needed"""
    cell: torch.Tensor
    """uint8: where the context's counts stand in the level's table, 0 if the context is new"""
    hits: torch.Tensor
    """int32: how often this token followed the context"""
    total: torch.Tensor
    """int32: how often anything did"""
    fresh: torch.Tensor
    """(N,) bool: here a group begins, and all that came before may be known"""


class NgramBackoffScores(NamedTuple):
    nll: torch.Tensor
    share: torch.Tensor
    """the part of the token's probability that came from the neural model"""


class NgramBackoff:
    """The neural distribution and n-gram levels, mixed one after another into one distribution.

        chain = NgramBackoff(local=(1, 2, 3, 4), table=table)
        evidence = chain.evidence(tokens, documents)
        scores = chain.mix(neural_statistics(logits, tokens, evidence.top), evidence)      # logits[t] predict tokens[t]

    P starts as the neural distribution. For each level whose context was seen, n > 0 times with u different successors:

        P(a) <- (1 - w) P(a) + w c(a) / n,     w = table[level, q, cell]

    q     the cell of log p_neural(s) among -9, -6, -4, -2.5, -1.5, -.8, -.35, -.1, with s the context's top successor
          (largest count; of equal ones the one first seen last)
    cell  n among 1, 2, 3-4, 5-8, 9-16, 17-64, 65-256, more; times u = 1, u <= n/4, u <= n/2, else; 0 for a new context

    No index of w depends on the token being scored, so each step mixes two distributions and P sums to one.

    local        orders (0..16) whose counts are of the document at hand: documents are independent of one another
    shared       orders whose counts are of all documents so far; contexts never reach over a document's beginning
    granularity  G: what is known about a token is counted from tokens before its group of G within the document
    table        (levels, 9, 33), or None for the first weight, .05, everywhere; levels are local, then shared, as given

    The counts of a context of order o are how often each token followed those o tokens; order 0 counts every token of
    the document, its first one included. A document's first token is read in the context of the document before it,
    because what a token will be is not known before it; then the counts start anew.
    """

    def __init__(
        self,
        local: tuple[int, ...] = (1, 2, 3, 4),
        shared: tuple[int, ...] = (),
        *,
        granularity: int = 1,
        table: torch.Tensor | None = None,
        floor: float = FLOOR,
        device="cpu",
    ):
        self.local, self.shared, self.granularity, self.floor = tuple(local), tuple(shared), granularity, floor
        levels = len(self.local) + len(self.shared)
        if not 1 <= levels <= 16 or not all(0 <= order <= MOST_ORDER for order in self.local + self.shared):
            raise ValueError(
                f"NgramBackoff: levels {self.local} and {self.shared}; 1 to 16 levels of order 0 to {MOST_ORDER} are possible"
            )
        for orders in (self.local, self.shared):
            if list(orders) != sorted(set(orders)):
                raise ValueError(f"NgramBackoff: orders {orders} must rise; each mixes what the ones below it left")
        if not 1 <= granularity <= MOST_GRANULARITY:
            raise ValueError(f"NgramBackoff: granularity is {granularity}; it must lie in 1..{MOST_GRANULARITY}")
        shape = (levels, reference.Q_CELLS, reference.N_CELLS)
        if table is None:
            table = torch.full(shape, reference.FIRST_WEIGHT, dtype=torch.float64)
        elif table.shape != shape:
            raise ValueError(f"NgramBackoff: the table is {tuple(table.shape)}, but {levels} levels need {shape}")
        self.table = table.detach().to(device, exact_dtype(device), copy=True).contiguous()
        # what online learning needs: visits of each cell, and the lessons of the group at hand
        self.visits = torch.zeros(shape, dtype=torch.int32, device=device)
        self.places = torch.empty(granularity * levels, dtype=torch.int32, device=device)
        self.posteriors = torch.empty(granularity * levels, dtype=self.table.dtype, device=device)
        self.waiting = torch.zeros(1, dtype=torch.int32, device=device)

    @property
    def levels(self) -> int:
        return len(self.local) + len(self.shared)

    def evidence(self, tokens: torch.Tensor, documents: torch.Tensor | None = None) -> Evidence:
        """Count through whole documents: on a CPU in parallel, on a GPU one lane group a document.

        tokens     (N,), integer, non-negative
        documents  (D + 1,) integer, 0 = documents[0] < ... < documents[D] = N; None for one document

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
        found = [
            torch.ops.pgolf.hedge_evidence(tokens, documents, list(orders), self.granularity, shared)
            for orders, shared in ((self.local, False), (self.shared, True))
            if orders
        ]
        top, cell, hits, total = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return Evidence(top, cell, hits, total, fresh_rows(starts_of(documents, len(tokens)), self.granularity))

    def mix(self, statistics: NeuralStatistics, evidence: Evidence) -> NgramBackoffScores:
        """NLL (N,) of each token, with the table as it is. `statistics.candidates` are those of `evidence.top`.

        A gradient flows to statistics.target: -share, the neural model's part of the probability. Per token and level
        17 bytes move on a CPU, 13 on a GPU, and about 12 FLOPs.
        """
        target, candidates = self._rows(statistics, evidence)
        found = torch.ops.pgolf.hedge_mix(target, candidates, *evidence[1:4], self.table)
        return NgramBackoffScores(*(x.reshape(statistics.target.shape) for x in found))

    def mix_and_learn(self, statistics: NeuralStatistics, evidence: Evidence) -> NgramBackoffScores:
        """As `mix`, in order, learning the table: after y, each level's w moves by r (posterior - w), where

            posterior = w q / ((1 - w) P + w q),  q = c(y) / n,  r = max(floor, 1 / (visits + 20))

        and is kept within [1e-4, .9995]. What a group teaches is applied when the next one begins. Call after call
        continues the stream. Nothing is differentiable here.
        """
        target, candidates = (x.detach() for x in self._rows(statistics, evidence))
        state = (self.table, self.visits, self.places, self.posteriors, self.waiting)
        found = torch.ops.pgolf.hedge_mix_online(target, candidates, *evidence[1:], *state, self.floor)
        return NgramBackoffScores(*(x.reshape(statistics.target.shape) for x in found))

    def settle(self) -> None:
        """Apply what the last group taught."""
        from pgolf.kernels.hedge import cpu

        if not self.waiting[0]:
            return
        own = (self.table, self.visits, self.places, self.posteriors, self.waiting)
        state = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in own]
        table, visits, *rest = (x.reshape(-1).numpy() for x in state)
        cpu.settle(table, visits, *rest, self.floor, reference.LEAST_WEIGHT, reference.MOST_WEIGHT)
        for mine, settled in zip(own, state, strict=True):
            if settled is not mine:
                mine.copy_(settled)

    def distribution(
        self, log_probs: torch.Tensor, tokens: torch.Tensor, documents: torch.Tensor | None, at: torch.Tensor
    ) -> torch.Tensor:
        """The whole distribution (P, V) in float64 at places `at` (P,), rising, of the stream, with the table as it is.

        log_probs (P, V) is the neural log-softmax there; z - lse, with lse of `neural_statistics`, has the very bits
        that `mix` saw. This is the audit's form: slow, on a CPU, and what `mix` reads one entry of.
        """
        tokens, at = tokens.cpu().int().contiguous(), at.cpu()
        starts = starts_of(torch.tensor([0]) if documents is None else documents.cpu(), len(tokens))
        log_probs = log_probs.detach().double().cpu()
        last = int(at[-1]) + 1
        stream = NgramBackoffStream(self, vocab=log_probs.shape[1])
        evidence, counts = stream.read_dense(tokens[:last], starts[:last], at)
        return self._dense(log_probs, evidence.top[at], evidence.cell[at], counts, evidence.total[at])

    def stream(self, vocab: int, *, learn: bool = False) -> "NgramBackoffStream":
        """A decoder's form of the n-gram back-off, on a CPU: predict a whole distribution, observe a token, and so on."""
        return NgramBackoffStream(self, vocab, learn)

    def _dense(self, log_probs, top, cell, counts, total):
        candidates = log_probs.gather(1, top.long().clamp_min(0))
        return reference.mix_dense_reference(log_probs, candidates, cell, counts, total, self.table.double().cpu())

    def _rows(self, statistics, evidence):
        count = statistics.target.numel()
        if evidence.cell.shape != (count, self.levels) or statistics.candidates.numel() != count * self.levels:
            raise ValueError(
                f"NgramBackoff: {self.levels} levels want candidates and evidence for each of {count} tokens, not "
                f"{tuple(statistics.candidates.shape)} and {tuple(evidence.cell.shape)}; pass evidence.top as candidates"
            )
        return statistics.target.reshape(count), statistics.candidates.reshape(count, self.levels)


class NgramBackoffStream:
    """One stream of documents through a back-off, in pieces of any size; `predict` and `observe` are a decoder's two steps.

        stream = chain.stream(vocab)
        probabilities = stream.predict(log_probs)      # (V,), before the token is known
        stream.observe(token, start=token == bos)

    gives the numbers that `evidence` and `mix` give for the whole stream at once. With `learn`, the n-gram back-off's table is
    learnt on the way, as `mix_and_learn` does.
    """

    def __init__(self, ngram_backoff: NgramBackoff, vocab: int, learn: bool = False):
        from pgolf.kernels.hedge.trie import Trie

        self.ngram_backoff, self.vocab, self.learn = ngram_backoff, vocab, learn
        pairs = ((ngram_backoff.local, False), (ngram_backoff.shared, True))
        self.tries = [Trie(orders, ngram_backoff.granularity, shared) for orders, shared in pairs if orders]
        # tokens of the document so far, and whether the last one opened it: before any, a group begins
        self.position, self.opened = 0, True
        self.log_probs: torch.Tensor | None = None

    def read(self, tokens: torch.Tensor, starts: torch.Tensor | None = None) -> Evidence:
        """Count a piece of the stream: tokens (n,), and starts (n,) bool, true where a token opens a document."""
        if starts is None:
            starts = torch.zeros(len(tokens), dtype=torch.bool)
        return self.read_dense(tokens.int().contiguous(), starts, torch.empty(0, dtype=torch.int64))[0]

    def read_dense(self, tokens, starts, at):
        """`read`, and the counts of every symbol (P, L, V) at the places `at` of this piece."""
        starts = starts.clone()
        if self.position == 0 and len(tokens):
            starts[0] = True
        found, counts = [], []
        for trie in self.tries:
            part = trie.new_evidence(len(tokens))
            counts.append(torch.from_numpy(trie.follow(tokens, starts, part, at.numpy(), self.vocab)))
            found.append(part)
        fresh = fresh_rows(starts, self.ngram_backoff.granularity, self.position, self.opened)
        for t in starts.nonzero()[-1:].flatten().tolist():
            self.position = -t
        self.position += len(tokens)
        self.opened = bool(starts[-1]) if len(tokens) else self.opened
        top, cell, hits, total = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return Evidence(top, cell, hits, total, fresh), torch.cat(counts, 1)

    def candidates(self) -> torch.Tensor:
        """The top symbol of each level's context (L,), -1 where it is new."""
        return torch.cat([trie.peek()[0][0] for trie in self.tries])

    def predict(self, log_probs: torch.Tensor) -> torch.Tensor:
        """The distribution (V,) of the next token, float64, from the neural log-softmax (V,)."""
        if log_probs.shape != (self.vocab,):
            raise ValueError(f"ChainStream.predict: log_probs are {tuple(log_probs.shape)}; they must be ({self.vocab},)")
        from pgolf.kernels.hedge import cpu

        if self.learn and self._begins_group():
            self.ngram_backoff.settle()
        self.log_probs = log_probs.detach().double().cpu()
        neural, table = self.log_probs.numpy(), self.ngram_backoff.table.double().cpu().numpy()
        mixed, level = np.exp(neural), 0
        for trie in self.tries:
            top, cell, total = (x.numpy()[0] for x in trie.peek())
            levels = table[level : level + len(cell)]
            cpu.mix_dense(neural, top, cell, trie.successors(self.vocab), total, levels, CUTS, mixed)
            level += len(cell)
        return torch.from_numpy(mixed)

    def observe(self, token: int, start: bool = False) -> None:
        """The token that came; `start` if it opens a document."""
        if self.learn and self.log_probs is None:
            raise ValueError("ChainStream.observe: a stream that learns must predict each token before it observes it")
        fresh = self._begins_group()
        tokens = torch.tensor([token], dtype=torch.int32)
        starts = torch.tensor([start or self.position == 0])
        parts = []
        for trie in self.tries:
            parts.append(trie.new_evidence(1))
            trie.follow(tokens, starts, parts[-1])
        self.opened = start or self.position == 0
        self.position = 1 if start else self.position + 1
        if self.learn:
            self._learn(token, fresh, *(np.concatenate([x.numpy() for x in part], 1) for part in zip(*parts, strict=True)))
            self.log_probs = None

    def _learn(self, token: int, fresh: bool, top, cell, hits, total) -> None:
        """One row of `NgramBackoff.mix_and_learn`, without a dispatcher on the way."""
        from pgolf.kernels.hedge import cpu

        assert self.log_probs is not None, "observe has refused a token that nobody predicted"
        ngram_backoff, neural = self.ngram_backoff, self.log_probs.numpy()
        state = (
            x.numpy()
            for x in (
                ngram_backoff.table,
                ngram_backoff.visits,
                ngram_backoff.places,
                ngram_backoff.posteriors,
                ngram_backoff.waiting,
            )
        )
        cpu.mix_online(
            neural[token : token + 1], neural[np.maximum(top, 0)], cell, hits, total, np.array([fresh]), *state, CUTS,
            ngram_backoff.floor, reference.LEAST_WEIGHT, reference.MOST_WEIGHT, np.empty(1), np.empty(1),
        )  # fmt: skip

    def _begins_group(self) -> bool:
        """Whether all that came before the next token may be known."""
        return self.opened or self.position % self.ngram_backoff.granularity == 0


def learn_table(
    ngram_backoff: NgramBackoff, samples: Iterable[tuple[NeuralStatistics, Evidence]], floor: float = FLOOR_FOR_TABLES
) -> torch.Tensor:
    """The table (levels, 9, 33), float64 on the CPU, that one pass over held-out streams teaches: for an artifact to carry.

    samples  (statistics, evidence) pairs with the back-off's levels. The back-off itself is left as it is; learning starts
    from its table, with no visits, and with smaller steps than online learning's.
    """
    learner = NgramBackoff(
        ngram_backoff.local,
        ngram_backoff.shared,
        granularity=ngram_backoff.granularity,
        table=ngram_backoff.table,
        floor=floor,
        device=ngram_backoff.table.device,
    )
    for statistics, evidence in samples:
        learner.mix_and_learn(statistics, evidence)
    learner.settle()
    return learner.table.double().cpu()


def starts_of(documents, count):
    """True where a document opens: (N,) bool."""
    starts = torch.zeros(count + 1, dtype=torch.bool, device=documents.device)
    return starts.index_fill(0, documents[:-1].long() if len(documents) > 1 else documents.long(), True)[:count]


def fresh_rows(starts, granularity, position=0, opened=True):
    """True where a token's group begins: every G tokens of a document, and after the token that opened it.

    position  tokens the document at hand had before the first row; opened: whether the last of them opened it
    """
    rows = torch.arange(len(starts), device=starts.device)
    begun = torch.where(starts, rows, -1).cummax(0).values
    # the token that opens a document is still read in the one before
    before = torch.cat([begun.new_full((1,), -1), begun[:-1]])[: len(starts)]
    place = torch.where(before >= 0, rows - before, rows + position)
    after_start = torch.cat([starts.new_full((1,), opened), starts[:-1]])[: len(starts)]
    return (place % granularity == 0) | after_start
