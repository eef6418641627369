"""Two published mixers in plain torch and plain Python: slow, exact, the oracle of every test."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# ---- five experts, weighted by Hedge over batches (#688, #745, #953 of openai/parameter-golf)

ETA = 0.1
SMOOTHING = 0.1
TRIGRAM_SMOOTHING = 0.01


def trigram_bucket(before: Tensor, previous: Tensor, buckets: int) -> Tensor:
    """The row of the hashed trigram table for a context of two tokens."""
    return ((36_313 * before.long()) ^ (27_191 * previous.long())) % buckets


def shifted(inputs: Tensor) -> Tensor:
    """The token before each input of windows (B, T), 0 where a window begins."""
    before = torch.zeros_like(inputs)
    before[:, 1:] = inputs[:, :-1]
    return before


def score_reference(
    neural: Tensor,
    entropy: Tensor,
    inputs: Tensor,
    targets: Tensor,
    valid: Tensor,
    unigram: Tensor,
    bigram: Tensor,
    bigram_total: Tensor,
    trigram: Tensor,
    trigram_total: Tensor,
    log_weights: Tensor,
    tokens: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixture NLL (B, T), the five experts' NLLs (B, T, 5) and their sums over the valid positions (5).

    neural (B, T) log p(target) and entropy (B, T), in whose dtype everything is computed; inputs, targets (B, T), valid
    (B, T) bool; the tables of `HedgeMixer` that hold counts of `tokens` tokens; log_weights (5,).
    """
    vocabulary, buckets = bigram.shape[0], trigram.shape[0]
    exact = neural.dtype
    previous, target = inputs.long(), targets.long()
    bucket = trigram_bucket(shifted(inputs), inputs, buckets)
    unigram_p = (unigram[target].to(exact) + SMOOTHING) / (tokens + SMOOTHING * vocabulary)
    bigram_p = (bigram[previous, target].to(exact) + SMOOTHING) / (bigram_total[previous].to(exact) + SMOOTHING * vocabulary)
    row = trigram_total[bucket].clamp_min(1).to(exact)
    trigram_p = (trigram[bucket, target].to(exact) + TRIGRAM_SMOOTHING) / (row + TRIGRAM_SMOOTHING * vocabulary)
    experts = torch.stack([-neural, -unigram_p.log(), -bigram_p.log(), -trigram_p.log(), entropy], -1)
    weights = log_weights.to(exact).log_softmax(0)
    nll = -(weights - experts).logsumexp(-1)
    sums = torch.where(valid[..., None], experts, 0).sum((0, 1))
    return nll, experts, sums.to(log_weights.dtype)


def hedge_step_reference(log_weights: Tensor, sums: Tensor, valid: int | Tensor, eta: float = ETA) -> Tensor:
    """Hedge (Freund and Schapire, 1997), a batch of `valid` positions as one round: w_k <- w_k e^(-eta loss_k), in logs."""
    return log_weights - eta * sums / valid


def count_reference(
    tokens: Tensor, unigram: Tensor, bigram: Tensor, bigram_total: Tensor, trigram: Tensor, trigram_total: Tensor
) -> None:
    """Add one chunk's tokens (C + 1,) to the tables, in place."""
    tokens = tokens.long()
    previous, following = tokens[:-1], tokens[1:]
    bucket = trigram_bucket(tokens[:-2], tokens[1:-1], trigram.shape[0])
    for table, index in (
        (unigram, (tokens,)),
        (bigram, (previous, following)),
        (bigram_total, (previous,)),
        (trigram, (bucket, tokens[2:])),
        (trigram_total, (bucket,)),
    ):
        table.index_put_(index, torch.ones((), dtype=table.dtype, device=table.device), accumulate=True)


# ---- hashed counts that raise the target's log-probability, two experts (#1014)

BOOST_ORDERS = tuple(range(2, 11))
BOOST_PRIMES = (36_313, 27_191, 51_647, 81_929, 131_071, 175_447, 209_591)
BOOST_MULTIPLIER = 2_654_435_761
WORD = (1 << 64) - 1
# the published floor of the neural probability
LEAST_LOG_PROB = math.log(1e-12)


def boost_buckets_reference(tokens: Sequence[int] | Tensor, target: int, order: int, buckets: int) -> tuple[int, int]:
    """Context and full bucket of one order for the target at one index of the stream. The context stops one token short."""
    h = 0
    for k in range(order - 1):
        h ^= int(tokens[target - order + k]) * BOOST_PRIMES[k % 7]
        h = h * BOOST_MULTIPLIER & WORD
    full = (h ^ int(tokens[target]) * BOOST_PRIMES[(order - 1) % 7]) * BOOST_MULTIPLIER & WORD
    return h & (buckets - 1), full & (buckets - 1)


def boost_window_reference(
    tokens: Sequence[int] | Tensor,
    begin: int,
    end: int,
    scored: int,
    neural: Tensor,
    entropy: Tensor,
    contexts: Tensor,
    fulls: Tensor,
    weights: Tensor,
) -> Tensor:
    """NLLs (scored, 3) of mixture, neural model and boosted model for the last `scored` targets of tokens[begin:end].

    Changes the tables contexts, fulls (orders, buckets) and the weights (2,) as the window does.
    """
    buckets = contexts.shape[1]
    nlls = []
    for offset, target in enumerate(range(end - scored, end)):
        boost = 0.0
        for k, order in enumerate(BOOST_ORDERS):
            if target < order:
                continue
            context, full = boost_buckets_reference(tokens, target, order, buckets)
            seen, hits = int(contexts[k, context]), int(fulls[k, full])
            if hits and seen:
                # unsigned: where hits exceed seen, the difference wraps to 2^64 and the order's boost is lost
                boost = max(boost, math.log(1 + hits) - math.log(1 + max((seen - hits) & WORD, 1)))
        alpha = (0.05 + 0.55 / (1 + math.exp(2 * (float(entropy[offset]) - 4)))) if boost > 0 else 0.0
        plain = max(float(neural[offset]), LEAST_LOG_PROB)
        boosted = plain + alpha * boost
        peak = max(plain, boosted)
        mixed = float(weights[0]) * math.exp(plain - peak) + float(weights[1]) * math.exp(boosted - peak)
        # the floor of 1e-30 is added to the mixture after the shift by its peak
        nlls.append((-(peak + math.log(mixed + 1e-30)), -plain, -boosted))
    losses = torch.tensor(nlls, dtype=torch.float64).reshape(-1, 3)
    if scored:
        weights.mul_(torch.exp(-ETA * losses[:, 1:].mean(0)))
        weights.div_(weights.sum())
    for target in range(begin, end):
        for k, order in enumerate(BOOST_ORDERS):
            if target >= order:
                context, full = boost_buckets_reference(tokens, target, order, buckets)
                contexts[k, context] += 1
                fulls[k, full] += 1
    return losses
