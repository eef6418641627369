"""Matrices to small integers and a scale for each row."""

import torch
from torch import Tensor

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
EMBEDDING_QUANTILE = 0.9999984


def largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def row_scale(clip: Tensor, codes: int, floor: bool) -> Tensor:
    """Step of each row. The submissions never let a row's clip fall below 1.0, which bounds the levels of quiet rows."""
    return (clip / codes).clamp_min(1.0 / codes if floor else 1e-7)


def by_percentile(weight: Tensor, bits: int, *, floor: bool) -> tuple[Tensor, Tensor]:
    """Codes (int8) and row scales (float16): of five row percentiles, the one with the least squared error over the matrix."""
    codes = largest_code(bits)
    weight = weight.float()
    best, least = None, float("inf")
    for percentile in PERCENTILES:
        clip = row_clip(weight, percentile)
        scale = row_scale(clip, codes, floor).half()
        rounded = round_to(weight, scale.float(), codes)
        error = (weight - rounded * scale.float()[:, None]).square().mean().item()
        if error < least:
            best, least = (rounded.to(torch.int8), scale), error
    assert best is not None
    return best


def by_quantile(weight: Tensor, bits: int, *, floor: bool) -> tuple[Tensor, Tensor]:
    """Codes and row scales of an embedding table: rows clipped at one high quantile."""
    codes = largest_code(bits)
    weight = weight.float()
    clip = row_clip(weight, EMBEDDING_QUANTILE)
    scale = row_scale(clip, codes, floor)
    clipped = weight.clamp(-clip[:, None], clip[:, None])
    return round_to(clipped, scale, codes).to(torch.int8), scale.half()


def row_clip(weight: Tensor, quantile: float) -> Tensor:
    magnitude = weight.abs()
    return magnitude.amax(1) if quantile >= 1.0 else torch.quantile(magnitude, quantile, dim=1)


def round_to(weight: Tensor, scale: Tensor, codes: int) -> Tensor:
    return (weight / scale[:, None]).round().clamp(-codes, codes)
