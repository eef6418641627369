"""Softcapped, weighted cross-entropy in plain torch: differentiable, and exact in float64."""

from typing import Any

import torch
from torch import Tensor


def cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """loss_t = w_t (lse_t - z_t[y_t] + z_loss lse_t^2), z = softcap tanh(logits / softcap); see `cross_entropy`."""
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    z = logits.to(exact)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    kept = targets != ignore_index
    z_target = z.gather(-1, torch.where(kept, targets, 0).unsqueeze(-1)).squeeze(-1)
    lse = torch.logsumexp(z, -1)
    weights = torch.ones_like(lse) if weights is None else weights.to(exact)
    weights = torch.where(kept, weights, 0)
    losses = torch.where(kept, weights * (lse - z_target + z_loss * lse.square()), 0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    total = weights.sum()
    return losses.sum() / torch.where(total == 0, 1, total)


def linear_cross_entropy_reference(x: Tensor, w: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """`cross_entropy_reference` of the logits x w^T; see `linear_cross_entropy`."""
    return cross_entropy_reference(x @ w.T, targets, **options)
