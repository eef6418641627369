"""The five-expert Hedge mixer of #688, #745 and #953 of openai/parameter-golf. Its scores are not code lengths."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.hedge import op
from pgolf.kernels.hedge.reference import ETA


class ChunkScores(NamedTuple):
    """Scores of a chunk's windows, and the weights on the way."""

    nll: Tensor
    """(S,): of the scored positions, window after window"""
    log_weights: Tensor
    """(R, batches + 1, 5) float64: of each rank before its first batch and after each; unfilled after its last one"""


class HedgeMixer:
    """Five experts, weighted by Hedge over batches: the published arithmetic, its flaws included.

        mixer = HedgeMixer(vocab)
        scores = mixer.score_chunk(log_prob, entropy, tokens, windows)   # in batches of windows
        mixer.log_weights = scores.log_weights[0, -1]
        mixer.count(chunk)                                    # after a chunk: its tokens, first target's predecessor included

    For target y after p1 after p2 (0 where the window begins), with counts of everything in `count` so far:

        0 neural   p(y)                                  3 trigram  (t[h, y] + .01) / (max(r[h], 1) + .01 V)
        1 unigram  (u[y] + .1) / (n + .1 V)              4 entropy  e^-H for every y
        2 bigram   (b[p1, y] + .1) / (b[p1] + .1 V)      h = (36313 p2 xor 27191 p1) mod buckets

    NLL = -log sum_k w_k p_k with w = softmax(log_weights). Hedge (Freund and Schapire, 1997) takes a batch as a
    round and subtracts eta times each expert's mean NLL over the valid positions from the log-weights. Before `warmup`
    tokens are counted the neural model scores alone and the weights rest. The entropy expert gives every token e^-H, so the
    mixture sums to far more than 1, and a trigram row that was never counted sums to 0.911: what comes out is no code
    length and must not be reported as a legal score.

    Args:
        vocab: V, the number of tokens.
        eta: learning rate of Hedge.
        buckets: rows of the hashed trigram table.
        warmup: tokens to count before the mixture is used.
        device: where the tables live.

    Counts are int32: exact and independent of order. Memory: 4 (V^2 + buckets V) bytes and little more.
    Per token, `score_chunk` moves about 200 bytes (five sectors of 32 among them), and 20 a position of the windows over it.
    """

    def __init__(
        self,
        vocab: int,
        *,
        eta: float = ETA,
        buckets: int = 65_536,
        warmup: int = 10_000,
        device: torch.device | str = "cpu",
    ):
        if vocab < 1 or buckets < 1:
            raise ValueError(f"HedgeMixer: vocab {vocab} and buckets {buckets} must be positive")
        make = lambda *shape: torch.zeros(shape, dtype=torch.int32, device=device)
        self.eta, self.warmup, self.tokens = eta, warmup, 0
        self.unigram, self.bigram, self.bigram_total = make(vocab), make(vocab, vocab), make(vocab)
        self.trigram, self.trigram_total = make(buckets, vocab), make(buckets)
        self.log_weights = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64, device=device)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """unigram (V,), bigram (V, V), bigram_total (V,), trigram (buckets, V), trigram_total (buckets,)."""
        return self.unigram, self.bigram, self.bigram_total, self.trigram, self.trigram_total

    def score_chunk(
        self,
        log_prob: Tensor,
        entropy: Tensor,
        tokens: Tensor,
        windows: Sequence[tuple[int, int, int]],
        *,
        batch: int = 32,
        shares: Sequence[int] | None = None,
        log_weights: Tensor | None = None,
    ) -> ChunkScores:
        """Score a chunk's windows, a step of Hedge after each batch of them, in one launch. The state is left as it is.

        Windows overlap, so a token stands in many of them (32 at a length of 2048 and a stride of 64), and its n-gram losses
        are the same in each: they are computed once.

        Args:
            log_prob: (W, T), the neural log-probability of each position's target, a window's positions first.
            entropy: (W, T), the neural entropy there.
            tokens: (n,), the stretch of the stream that the windows stand on.
            windows: W triples (begin, length, scored): the inputs are tokens begin .. begin + length - 1, the targets the
                tokens one further on, and the last `scored` of them are scored.
            batch: windows of one step of the weights.
            shares: R + 1 bounds of the ranks' contiguous shares of the windows, 0 first, W last; None for one rank.
            log_weights: (R, 5) float64, each rank's own; None for the mixer's.
        """
        shares = [0, len(windows)] if shares is None else list(shares)
        start = self.log_weights[None] if log_weights is None else log_weights
        shape = log_prob.shape
        if len(shape) != 2 or entropy.shape != shape or shape[0] != len(windows) or batch < 1 or len(windows) < 1:
            raise ValueError(
                f"HedgeMixer.score_chunk: log_prob {tuple(shape)} and entropy {tuple(entropy.shape)} must be (W, T) for "
                f"{len(windows)} windows, one or more, in batches of {batch}"
            )
        if shares != sorted(shares) or shares[0] != 0 or shares[-1] != len(windows) or len(start) != len(shares) - 1:
            raise ValueError(
                f"HedgeMixer.score_chunk: shares {shares} must rise from 0 to {len(windows)}, with weights for each of "
                f"{len(shares) - 1} ranks, not {len(start)}"
            )
        for begin, length, scored in windows:
            if not (0 <= begin and 1 <= length <= shape[1] and begin + length < len(tokens) and 0 <= scored <= length):
                raise ValueError(
                    f"HedgeMixer.score_chunk: a window of {length} inputs from {begin}, {scored} scored, does not fit "
                    f"{len(tokens)} tokens and {shape[1]} positions"
                )
        if self.tokens < self.warmup:
            rows = zip(log_prob, windows, strict=True)
            nll = -torch.cat([row[length - scored : length] for row, (_, length, scored) in rows])
            return ChunkScores(nll, start[:, None].expand(-1, op.most_batches(shares, batch) + 1, -1))
        flat = [number for window in windows for number in window]
        scores = torch.ops.pgolf.hedge_chunk(
            log_prob.detach(), entropy.detach(), tokens, flat, shares, batch, *self.tables, start, self.tokens, self.eta
        )
        return ChunkScores(*scores)

    def count(self, tokens: Tensor) -> None:
        """Add a chunk's tokens (C + 1,) to the tables: its C targets and the token before them.

        The token between two chunks is counted twice in the unigram, and the trigram across it is lost, as published.
        """
        torch.ops.pgolf.hedge_count(tokens.reshape(-1), *self.tables)
        self.tokens += tokens.numel()

    def mass(self, entropy: Tensor) -> Tensor:
        """The mixture's sum over the vocabulary where the neural entropy is `entropy` (...), trigram rows taken as counted:
        what it exceeds 1 by is where the published gain comes from."""
        weight = self.log_weights.softmax(0)[4].to(entropy.dtype)
        return 1 - weight + weight * torch.exp(math.log(len(self.unigram)) - entropy)
