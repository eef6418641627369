"""Rule set `published`: the five-expert Hedge mixer as #688, #745 and #953 ran it. Its scores are not code lengths."""

import math
from typing import NamedTuple

import torch

from pgolf.kernels.hedge import reference
from pgolf.kernels.hedge.op import NeuralStatistics


class FiveScores(NamedTuple):
    """What scoring a batch of windows (B, T) found; `learn` takes its step from `sums`, nothing is computed twice."""

    nll: torch.Tensor
    """(B, T): of the mixture, or of the neural model alone during the warm-up"""
    experts: torch.Tensor | None
    """(5, B, T): NLL of the neural, unigram, bigram, trigram and entropy expert; None during the warm-up"""
    sums: torch.Tensor | None
    """(5): the experts' NLLs summed over the valid positions"""
    valid: torch.Tensor | int
    """how many positions are valid"""


class NGrams(NamedTuple):
    """The n-gram experts' view of a stretch of the stream: probabilities (3, n) and running sums of their NLLs (3, n + 1)."""

    tokens: torch.Tensor
    probabilities: torch.Tensor
    cumulative: torch.Tensor
    counted: int


class HedgeMixer:
    """Five experts, weighted by Hedge over batches: the published arithmetic, its flaws included.

        mixer = HedgeMixer(vocab)
        scores = mixer.score(neural_statistics(logits, targets), inputs, targets); mixer.learn(scores)   # a batch of windows
        mixer.count(chunk)                                    # after a chunk: its tokens, first target's predecessor included

    For target y after p1 after p2 (0 where the window begins), with counts of everything in `count` so far:

        0 neural   p(y)                                  3 trigram  (t[h, y] + .01) / (max(r[h], 1) + .01 V)
        1 unigram  (u[y] + .1) / (n + .1 V)              4 entropy  e^-H for every y
        2 bigram   (b[p1, y] + .1) / (b[p1] + .1 V)      h = (36313 p2 xor 27191 p1) mod buckets

    NLL = -log sum_k w_k p_k with w = softmax(log_weights); `learn` subtracts eta times the mean NLL of each expert over
    the valid positions from the log-weights. Before 10,000 tokens are counted the neural model scores alone and the
    weights rest. The entropy expert gives every token e^-H, so the mixture sums to far more than 1, and a trigram row
    that was never counted sums to 0.911: what comes out is no code length and must not be reported as a legal score.

    Counts are int32: exact and independent of order. Memory: 4 (V^2 + buckets V) bytes and little more.
    Per token, score moves about 130 bytes (three random sectors among them) and computes about 150 FLOPs.
    """

    def __init__(self, vocab: int, *, eta: float = reference.ETA, buckets: int = 65_536, warmup: int = 10_000, device="cpu"):
        if vocab < 1 or buckets < 1:
            raise ValueError(f"HedgeMixer: vocab {vocab} and buckets {buckets} must be positive")
        make = lambda *shape: torch.zeros(shape, dtype=torch.int32, device=device)
        self.eta, self.warmup, self.tokens = eta, warmup, 0
        self.unigram, self.bigram, self.bigram_total = make(vocab), make(vocab, vocab), make(vocab)
        self.trigram, self.trigram_total = make(buckets, vocab), make(buckets)
        self.log_weights = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64, device=device)

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        return self.unigram, self.bigram, self.bigram_total, self.trigram, self.trigram_total

    def score(
        self, statistics: NeuralStatistics, inputs: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor | None = None
    ) -> FiveScores:
        """Score windows of `inputs` (B, T) with their `targets` (B, T); `valid` (B, T) bool tells real positions from padding.

        Every position is scored; the caller reads those that count. The state is left as it is.
        """
        for name, x in (("targets", targets), ("statistics", statistics.target), ("valid", valid)):
            if x is not None and (x.shape != inputs.shape or inputs.dim() != 2):
                raise ValueError(
                    f"HedgeMixer.score: inputs {tuple(inputs.shape)} must be (B, T), and {name} {tuple(x.shape)} likewise"
                )
        if valid is None:
            valid = torch.ones(inputs.shape, dtype=torch.bool, device=inputs.device)
        if self.tokens < self.warmup:
            return FiveScores(-statistics.target, None, None, valid.sum())
        nll, experts, sums = torch.ops.pgolf.hedge_five(
            statistics.target.detach(),
            statistics.entropy.detach(),
            inputs,
            targets,
            valid,
            *self.tables,
            self.log_weights,
            self.tokens,
        )
        return FiveScores(nll, experts, sums, valid.sum())

    def ngrams(self, tokens: torch.Tensor) -> NGrams:
        """What the counts say about each token (n,) of a stretch of the stream, once for all windows over it.

        Windows overlap, so a token stands in many of them (32 at a length of 2048 and a stride of 64), and its n-gram
        losses are the same in each. Good until the next `count`.
        """
        probabilities, cumulative = torch.ops.pgolf.hedge_five_ngrams(tokens, *self.tables, self.tokens)
        return NGrams(tokens, probabilities, cumulative, self.tokens)

    def score_windows(
        self, statistics: NeuralStatistics, ngrams: NGrams, begins: list[int], lengths: list[int], scored: list[int]
    ) -> FiveScores:
        """`score`, for windows over one stretch of the stream, at a fraction of the cost: only what counts is mixed.

        Window b has as inputs the tokens begins[b] .. begins[b] + lengths[b] - 1 of `ngrams.tokens` and as targets the
        tokens one further on; statistics (B, T) hold its positions first. The last scored[b] of them are scored.
        returns nll (S,) and experts (5, S) of the scored positions, window after window, S = sum(scored), and the sums
        over all positions that `learn` needs.
        """
        batch = statistics.target.shape
        if len(batch) != 2 or not len(begins) == len(lengths) == len(scored) == batch[0]:
            raise ValueError(
                f"HedgeMixer.score_windows: statistics {tuple(batch)} must be (B, T), with B begins, lengths and scored"
            )
        for begin, length, kept in zip(begins, lengths, scored, strict=True):
            if not (0 <= begin and 1 <= length <= batch[1] and begin + length < len(ngrams.tokens) and 0 <= kept <= length):
                raise ValueError(
                    f"HedgeMixer.score_windows: a window of {length} inputs from {begin}, {kept} scored, does not fit "
                    f"{len(ngrams.tokens)} tokens and {batch[1]} positions"
                )
        if ngrams.counted != self.tokens:
            raise ValueError("HedgeMixer.score_windows: these n-grams are from before the last count; ask for new ones")
        if self.tokens < self.warmup:
            rows = zip(statistics.target, lengths, scored, strict=True)
            return FiveScores(
                -torch.cat([row[length - kept : length] for row, length, kept in rows]), None, None, sum(lengths)
            )
        nll, experts, sums = torch.ops.pgolf.hedge_five_windows(
            statistics.target.detach(), statistics.entropy.detach(), ngrams.tokens, begins, lengths, scored,
            ngrams.probabilities, ngrams.cumulative, *self.tables, self.log_weights, self.tokens,
        )  # fmt: skip
        return FiveScores(nll, experts, sums, sum(lengths))

    def learn(self, scores: FiveScores) -> None:
        """One Hedge step from a batch that `score` returned. Nothing happens in the warm-up."""
        if scores.sums is not None:
            self.log_weights = self.log_weights - self.eta * scores.sums / scores.valid

    def count(self, tokens: torch.Tensor) -> None:
        """Add a chunk's C + 1 tokens to the tables: its C targets and the token before them.

        The token between two chunks is counted twice in the unigram, and the trigram across it is lost, as published.
        """
        torch.ops.pgolf.hedge_five_count(tokens.reshape(-1), *self.tables)
        self.tokens += tokens.numel()

    def mass(self, entropy: torch.Tensor) -> torch.Tensor:
        """What the mixture sums to over the vocabulary, empty trigram rows aside: the free mass that makes its gain."""
        weight = self.log_weights.softmax(0)[4].to(entropy.dtype)
        return 1 - weight + weight * torch.exp(math.log(len(self.unigram)) - entropy)
