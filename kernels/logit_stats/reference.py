"""Statistics of softmax(logits / temperature) in plain torch: the oracle of every test."""

import math

import torch
from torch import Tensor


def logit_stats_reference(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), entropy (N,), log p[target] (N,) and log p[candidates] (N, K) of p = softmax(z / temperature),
    with z the logits, or softcap * tanh(logits / softcap).

    logits (N, V); targets (N,); candidates (N, K), -1 for an absent one, whose log-probability is -inf; temperature (1,) or
    (N,). The entropy is Shannon's, -sum_v p_v log p_v, in nats.
    """
    z = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    z = z / temperature.reshape(-1, 1)
    lse = z.logsumexp(1)
    log_probs = z - lse[:, None]
    probs = log_probs.exp()
    entropy = -(probs * torch.where(probs > 0, log_probs, 0)).sum(1)
    target = log_probs.gather(1, targets.long()[:, None]).squeeze(1)
    picked = log_probs.gather(1, candidates.long().clamp_min(0))
    return lse, entropy, target, torch.where(candidates >= 0, picked, -math.inf)
