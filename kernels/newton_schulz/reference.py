"""Newton-Schulz orthogonalisation in plain torch, in whatever precision it is given."""

from collections.abc import Iterable

import torch
from torch import Tensor


def newton_schulz_reference(g: Tensor, coefficients: Iterable[tuple[float, float, float]]) -> Tensor:
    """X = g / (|g|_F + 1e-7), then X <- a X + (b A + c A A) X with A = X X^T for each triple; see `newton_schulz`."""
    x = g / (torch.linalg.vector_norm(g, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = g.shape[-2] > g.shape[-1]
    x = x.mT if tall else x
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
