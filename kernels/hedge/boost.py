"""The mixer of #1014 of openai/parameter-golf: hashed n-gram boost, two experts, online bias. No code length is scored."""

import numpy as np
import torch

from pgolf.kernels.hedge import reference


class BoostedCache:
    """Hashed counts of nine orders that raise the target's log-probability, mixed with the neural model by Hedge.

        cache = BoostedCache()
        nll = cache.score(tokens, begin, end, stats.target, stats.entropy)      # a window, then it is counted

    For target index g and order n = 2..10 the context is tokens g-n .. g-2 (the token before the target is not in it),
    hashed in 64 bits; a second table counts context and target together. Where both were seen,
    beta_n = ln(1 + full) - ln(1 + max(context - full, 1)), b = max(0, max_n beta_n), and expert 1 scores
    log p + alpha(H) b with alpha(H) = .05 + .55 / (1 + e^(2 (H - 4))). As in the compiled code that ran, counts are
    unsigned: where contexts share a bucket and full > context, the difference wraps to 2^64 and beta_n is lost. p is at
    least 1e-12. The target is in the hash key and nothing is
    renormalised, so expert 1 is never the worse one and its mass exceeds 1: no code length, no legal score.

    State, on the CPU (tensors from a GPU are copied): two uint32 tables of 9 x `buckets` (a power of two; 302 MB at
    2^22), and the two weights. Per window of T targets: 18 T random reads and writes.
    """

    def __init__(self, *, buckets: int = 1 << 22, eta: float = reference.ETA):
        if buckets < 2 or buckets & (buckets - 1):
            raise ValueError(f"BoostedCache: buckets is {buckets}; it must be a power of two, because hashes are masked")
        shape = (len(reference.BOOST_ORDERS), buckets)
        self.contexts, self.fulls = np.zeros(shape, np.uint32), np.zeros(shape, np.uint32)
        self.weights = np.array([0.5, 0.5])
        self.eta = eta

    def score(self, tokens: torch.Tensor, begin: int, end: int, log_prob: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        """Score the last S targets of the window whose targets are tokens[begin:end], then learn from the window.

        tokens    (n,), integer: the stream, or as much of it as reaches back 10 tokens before `begin`, at its own indices
        log_prob  (S,): the neural log-probability of each scored target; entropy (S,): the neural entropy there
        returns   (S, 3) float64: NLL of the mixture, of the neural model, of the boosted one

        In this order: scores, one step of the weights by the mean NLLs of the scored targets, then all targets of the
        window are counted (a target is counted again in every window that holds it, as published).
        """
        from pgolf.kernels.hedge import cpu

        scored = log_prob.numel()
        if not (1 <= begin < end <= len(tokens)) or scored > end - begin or entropy.numel() != scored:
            raise ValueError(
                f"BoostedCache.score: {scored} log-probabilities and {entropy.numel()} entropies do not fit "
                f"the targets {begin}..{end - 1} of {len(tokens)} tokens"
            )
        back = min(begin, reference.BOOST_ORDERS[-1])
        span = tokens[begin - back : end].long().cpu().numpy()
        log_prob = log_prob.detach().double().clamp_min(reference.LEAST_LOG_PROB)
        numbers = [x.detach().double().reshape(-1).cpu().contiguous().numpy() for x in (log_prob, entropy)]
        losses = np.empty((scored, 3))
        primes = np.array(reference.BOOST_PRIMES, dtype=np.uint64)
        cpu.boost_window(
            span, back, len(span), scored, *numbers, self.contexts, self.fulls, primes, reference.BOOST_MULTIPLIER, losses
        )
        cpu.boost_mix(losses, self.weights, self.eta)
        return torch.from_numpy(losses)


class OnlineBias:
    """A vector added to the logits, moved after each batch by rate * (target frequency - mean predicted probability).

        bias = OnlineBias(vocab)
        logits = bias.apply(raw)      # score with these, then:
        bias.learn(logits, targets)

    Both means run over every position of the batch, context and padding included, and nothing is ever reset, as
    published; `reset()` between documents makes it document-local.
    """

    def __init__(self, vocab: int, *, rate: float = 1e-3, device: torch.device | str = "cpu"):
        self.rate = rate
        self.bias = torch.zeros(vocab, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.bias

    def learn(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """`logits` (..., V) as they were scored, the bias in them; `targets` (...)."""
        rows, targets = logits.detach().reshape(-1, len(self.bias)), targets.reshape(-1)
        if len(rows) != len(targets) or not len(rows):
            raise ValueError(f"OnlineBias.learn: {len(rows)} rows of logits for {len(targets)} targets")
        predicted = torch.zeros_like(self.bias)
        for group in rows.split(max(1, (1 << 22) // len(self.bias))):
            predicted += group.float().softmax(1).sum(0)
        frequency = torch.zeros_like(self.bias).scatter_add_(
            0, targets.long(), torch.ones_like(targets, dtype=self.bias.dtype)
        )
        self.bias = self.bias + self.rate * (frequency - predicted) / len(rows)

    def reset(self) -> None:
        self.bias = torch.zeros_like(self.bias)
