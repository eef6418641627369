"""The n-gram back-off token by token, for a decoder."""

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.ngram.backoff import Evidence, NgramBackoff, group_starts
from pgolf.kernels.ngram.reference import LEAST_WEIGHT, MOST_WEIGHT, Q_CUTS

CUTS = np.array(Q_CUTS)


class NgramBackoffStream:
    """One stream of documents through a back-off, in pieces of any size; `predict` and `observe` are a decoder's two steps.

        stream = backoff.stream(vocab)
        probabilities = stream.predict(log_probs)      # (V,), before the token is known
        stream.observe(token, start=token == bos)

    gives the numbers that `evidence` and `mix` give for the whole stream at once. With `learn`, the back-off's table is
    learnt on the way, as `mix_and_learn` does.
    """

    def __init__(self, backoff: NgramBackoff, vocab: int, learn: bool = False):
        from pgolf.kernels.ngram.trie import Trie

        self.backoff, self.vocab, self.learn = backoff, vocab, learn
        pairs = ((backoff.local, False), (backoff.shared, True))
        self.tries = [Trie(orders, backoff.granularity, shared) for orders, shared in pairs if orders]
        # tokens of the document so far, and whether the last one opened it: before any, a group starts
        self.position, self.opened = 0, True
        self.log_probs: np.ndarray | None = None

    def read(self, tokens: Tensor, starts: Tensor | None = None) -> Evidence:
        """Count a piece of the stream: tokens (n,), and starts (n,) bool, true where a token opens a document."""
        if starts is None:
            starts = torch.zeros(len(tokens), dtype=torch.bool)
        return self.read_dense(tokens.int().contiguous(), starts, torch.empty(0, dtype=torch.int64))[0]

    def read_dense(self, tokens: Tensor, starts: Tensor, at: Tensor) -> tuple[Evidence, Tensor]:
        """`read`, and the counts of every symbol (P, K, V) at positions `at` (P,) of this piece."""
        starts = starts.clone()
        if self.position == 0 and len(tokens):
            starts[0] = True
        parts, counts = [], []
        for trie in self.tries:
            evidence = trie.new_evidence(len(tokens))
            counts.append(torch.from_numpy(trie.follow(tokens.numpy(), starts.numpy(), evidence, at.numpy(), self.vocab)))
            parts.append([torch.from_numpy(column) for column in evidence])
        groups = group_starts(starts, self.backoff.granularity, self.position, self.opened)
        for t in starts.nonzero()[-1:].flatten().tolist():
            self.position = -t
        self.position += len(tokens)
        self.opened = bool(starts[-1]) if len(tokens) else self.opened
        top, cell, hits, total = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
        return Evidence(top, cell, hits, total, groups), torch.cat(counts, 1)

    def candidates(self) -> Tensor:
        """The top symbol of each order's context (K,), -1 where it is new."""
        return torch.from_numpy(np.concatenate([trie.peek()[0][0] for trie in self.tries]))

    def predict(self, log_probs: Tensor) -> Tensor:
        """The distribution (V,) of the next token, float64, from the neural log-softmax (V,)."""
        if log_probs.shape != (self.vocab,):
            raise ValueError(
                f"NgramBackoffStream.predict: log_probs are {tuple(log_probs.shape)}; they must be ({self.vocab},)"
            )
        from pgolf.kernels.ngram import cpu

        if self.learn and self._starts_group():
            self._flush()
        self.log_probs = neural = log_probs.detach().double().cpu().numpy()
        table = self.backoff.table.double().cpu().numpy()
        mixed, first = np.exp(neural), 0
        for trie in self.tries:
            top, cell, total = (x[0] for x in trie.peek())
            own = table[first : first + len(cell)]
            cpu.mix_dense(neural, top, cell, trie.successors(self.vocab), total, own, CUTS, mixed)
            first += len(cell)
        return torch.from_numpy(mixed)

    def observe(self, token: int, start: bool = False) -> None:
        """The token that came; `start` if it opens a document."""
        if self.learn and self.log_probs is None:
            raise ValueError("NgramBackoffStream.observe: a stream that learns must predict each token before it observes it")
        group_start = self._starts_group()
        tokens = np.array([token], dtype=np.int32)
        starts = np.array([start or self.position == 0])
        parts = []
        for trie in self.tries:
            parts.append(trie.new_evidence(1))
            trie.follow(tokens, starts, parts[-1])
        self.opened = start or self.position == 0
        self.position = 1 if start else self.position + 1
        if self.learn:
            self._learn(token, group_start, *(np.concatenate(columns, 1) for columns in zip(*parts, strict=True)))
            self.log_probs = None

    def _learn(self, token: int, group_start: bool, top: np.ndarray, *counts: np.ndarray) -> None:
        """One row of `NgramBackoff.mix_and_learn`, without a dispatcher on the way."""
        from pgolf.kernels.ngram import cpu

        assert self.log_probs is not None, "observe refuses a token without a prediction"
        neural = self.log_probs
        cpu.mix_online(
            neural[token : token + 1], neural[np.maximum(top, 0)], *counts, np.array([group_start]), *self._state(), CUTS,
            self.backoff.floor, LEAST_WEIGHT, MOST_WEIGHT, np.empty(1), np.empty(1),
        )  # fmt: skip

    def _flush(self) -> None:
        """`NgramBackoff.flush`, without a dispatcher on the way."""
        from pgolf.kernels.ngram import cpu

        state = self._state()
        if state[-1][0]:
            cpu.flush(*(x.reshape(-1) for x in state), self.backoff.floor, LEAST_WEIGHT, MOST_WEIGHT)

    def _state(self) -> list[np.ndarray]:
        """What learning changes, in the memory of the back-off."""
        return [x.numpy() for x in self.backoff.learning_state]

    def _starts_group(self) -> bool:
        """Whether everything before the next token may be counted."""
        return self.opened or self.position % self.backoff.granularity == 0
