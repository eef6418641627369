"""Statistics of softmax(logits / temperature) and their gradient in plain torch: the oracle of every test."""

import math

import torch
from torch import Tensor


def logit_stats_reference(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse (N,), entropy (N,), log p[target] (N,) and log p[candidates] (N, K) of p = softmax(logits / temperature).

    logits (N, V); targets (N,); candidates (N, K), -1 for an absent one, whose log-probability is -inf; temperature (1,) or
    (N,). The entropy is Shannon's, -sum_v p_v log p_v, in nats.
    """
    z = logits / temperature.reshape(-1, 1)
    lse = z.logsumexp(1)
    log_probs = z - lse[:, None]
    probs = log_probs.exp()
    entropy = -(probs * torch.where(probs > 0, log_probs, 0)).sum(1)
    target = log_probs.gather(1, targets.long()[:, None]).squeeze(1)
    picked = log_probs.gather(1, candidates.long().clamp_min(0))
    return lse, entropy, target, torch.where(candidates >= 0, picked, -math.inf)


def logit_stats_backward_reference(
    logits: Tensor,
    targets: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    lse: Tensor,
    entropy: Tensor,
    d_lse: Tensor,
    d_entropy: Tensor,
    d_target: Tensor,
    d_candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (N, V) and of each row's temperature (N,)."""
    inverse = 1 / temperature.reshape(-1, 1).to(lse.dtype)
    raw = logits.to(lse.dtype)
    log_probs = raw * inverse - lse[:, None]
    probs = log_probs.exp()
    # d entropy / d z_v = -p_v (log p_v + entropy)
    spread = torch.where(probs > 0, probs * (log_probs + entropy[:, None]), 0)
    d_picked = torch.where(candidates >= 0, d_candidates, 0)
    d_z = probs * (d_lse - d_target - d_picked.sum(1))[:, None] - spread * d_entropy[:, None]
    d_z.scatter_add_(1, targets.long()[:, None], d_target[:, None])
    d_z.scatter_add_(1, candidates.long().clamp_min(0), d_picked)
    d_logits = d_z * inverse
    d_rows = -(d_logits * raw * inverse).nan_to_num(nan=0.0).sum(1)
    return d_logits.to(logits.dtype), d_rows
