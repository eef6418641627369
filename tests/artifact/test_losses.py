"""What rounding did to each matrix: the figures for the report."""

import dataclasses

import pytest
import torch

from pgolf.artifact.losses import rounding_losses
from pgolf.artifact.weights import round_weights
from pgolf.config import ArtifactSettings

SETTINGS = ArtifactSettings(small_tensor=10, rounding="sdclip", sdclip_sigmas=1.5, scale_floor=False, matrix_bits=4)


def state():
    torch.manual_seed(3)
    found = {"blocks.0.attn.c_q.weight": torch.randn(6, 50), "tok_emb.weight": torch.randn(9, 7), "scale": torch.ones(3)}
    found["tok_emb.weight"][4] = 0
    return found


def test_the_figures_follow_from_the_codes():
    weights = state()
    rounded = round_weights(weights, SETTINGS)
    first, second = rounding_losses(weights, rounded, SETTINGS)
    assert [first["name"], first["role"], first["bits"]] == ["blocks.0.attn.c_q.weight", "matrix", 4]
    assert [second["shape"], second["role"], second["bits"]] == [[9, 7], "embedding", 8]
    matrix, weight = rounded.rounded[first["name"]], weights[first["name"]]
    assert first["error"] == pytest.approx(float((weight - matrix.values()).norm() / weight.norm()))
    assert first["clip"] == pytest.approx(1.5, rel=1e-3)
    beyond = weight.abs() > 7.5 * matrix.scales.float()[:, None]
    assert first["outliers"] == pytest.approx(float(beyond.float().mean())) and beyond.any()
    assert first["farthest"] == pytest.approx(float((weight.abs().amax(1) / weight.std(1)).max()), rel=1e-5)
    counts = [int((matrix.codes == code).sum()) for code in range(-8, 8)]
    shares = torch.tensor([count / 300 for count in counts if count])
    assert first["entropy"] == pytest.approx(float(-(shares * shares.log2()).sum()), rel=1e-5)
    assert first["zeros"] == pytest.approx(counts[8] / 300)
    # a row of zeros has no deviation, and spoils nobody's
    assert second["clip"] == pytest.approx(20.0, rel=0.01) and second["zeros"] > 7 / 63 - 1e-6


def test_a_correction_counts_towards_the_error():
    weights = state()
    settings = dataclasses.replace(SETTINGS, lqer_rank=4, lqer_tensors=1)
    corrected = rounding_losses(weights, round_weights(weights, settings), settings)[0]
    plain = rounding_losses(weights, round_weights(weights, SETTINGS), SETTINGS)[0]
    assert corrected["correction"] == 4 and plain["correction"] == 0 and corrected["error"] < 0.9 * plain["error"]
