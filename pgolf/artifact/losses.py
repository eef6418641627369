"""What rounding did to each matrix, in a few numbers for the report."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.artifact.grid import row_sigma
from pgolf.artifact.weights import Weights, role_of, steps_of
from pgolf.config import ArtifactSettings


def rounding_losses(state: Mapping[str, Tensor], weights: Weights, settings: ArtifactSettings) -> list[dict]:
    """For each rounded matrix, in the file's order:

    error      root of the squared error over that of the weights, the correction included
    entropy    bits a code needs if codes are drawn one by one from this matrix's own histogram
    clip       where rows are clipped, in their standard deviations, on average
    outliers   share of weights beyond the last code; and the farthest weight, in its row's standard deviations
    """
    rows = []
    for name, matrix in weights.rounded.items():
        codes, scales = matrix.codes, matrix.scales.float()
        weight = state[name].detach().float().cpu().reshape(codes.shape)
        value = matrix.values()
        correction = weights.corrections.get(name)
        if correction:
            value = value + correction.values()
        role = role_of(name, codes.numel(), settings)
        steps = steps_of(role, settings)
        sigma = row_sigma(weight)
        # rows of zeros, as of a table's entries that never came, have no deviation
        alive = sigma > 0
        edge = scales * (steps.largest + 0.5)
        shares = torch.bincount(codes.flatten().int() + 128).double() / codes.numel()
        shares = shares[shares > 0]
        rows.append(
            {
                "name": name,
                "role": role,
                "shape": list(codes.shape),
                "bits": steps.bits,
                "entropy": float(-(shares * shares.log2()).sum()),
                "error": float((weight - value).norm() / weight.norm().clamp_min(1e-30)),
                "clip": float((scales * steps.largest / sigma)[alive].mean()) if alive.any() else 0.0,
                "outliers": float((weight.abs() > edge[:, None]).float().mean()),
                "farthest": float((weight.abs().amax(1) / sigma)[alive].max()) if alive.any() else 0.0,
                "zeros": float((codes == 0).float().mean()),
                "correction": len(correction.left.codes) if correction else 0,
            }
        )
    return rows
