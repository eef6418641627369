"""The five-expert mixer: Triton kernels under the interpreter, against the reference in float64."""

import pytest
import torch

from pgolf.kernels.hedge import HedgeMixer, op
from pgolf.kernels.hedge.reference import count_reference
from pgolf.kernels.launch import Launch
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens


def mixer_example(vocabulary=37, buckets=64):
    mixer = HedgeMixer(vocabulary, buckets=buckets, warmup=0)
    mixer.count(repeating_tokens(600, vocabulary))
    mixer.log_weights = torch.tensor([2.0, 0.3, -1.0, 0.5, -0.2], dtype=torch.float64)
    return mixer


# a rank without windows, a batch that is not full, windows of several blocks and of a part of one
@pytest.mark.parametrize("block", [16, 128])
def test_chunk(block, monkeypatch):
    """In float32 as on a CPU in float64, to 1e-6."""
    monkeypatch.setattr(op, "launch_chunk", lambda: Launch({"BN": block}))
    mixer = mixer_example()
    tokens, width = repeating_tokens(220, 37), 111
    windows = [(0, 111, 111), (10, 111, 9), (20, 70, 70), (60, 89, 0), (100, 111, 16), (130, 40, 7), (140, 79, 79)]
    shares, weights = [0, 3, 3, 7], torch.randn(3, 5, dtype=torch.float64) - torch.tensor([0.0, 3000, 0, 1, 2])[:3, None]
    neural, entropy = -torch.rand(7, width) * 5, torch.rand(7, width) * 3
    neural[0, 3] = -200
    flat = [number for window in windows for number in window]
    arguments = (neural, entropy, tokens, flat, shares, 2, *mixer.tables, weights, mixer.tokens, 0.1)
    nll, history = op.chunk_triton(*arguments)
    expected, weights_after = op.chunk_cpu(*(x.double() if x is neural or x is entropy else x for x in arguments))
    assert_close(nll, expected, 1e-6)
    for rank, batches in enumerate((2, 0, 2)):
        assert_close(history[rank, : batches + 1], weights_after[rank, : batches + 1], 1e-6)
        moved, expected_move = (x[rank, batches] - weights[rank] for x in (history, weights_after))
        assert torch.allclose(moved, expected_move, rtol=2e-6) and bool(moved.any()) == bool(batches)
    assert torch.equal(history[:, 0], weights)


def test_count():
    found = mixer_example()
    expected = [table.clone() for table in found.tables]
    tokens = repeating_tokens(301, 37)
    op.count_triton(tokens, *found.tables)
    count_reference(tokens, *expected)
    assert all(torch.equal(a, b) for a, b in zip(found.tables, expected, strict=True))
