"""The logits' statistics: Triton kernels under the interpreter, against the reference in float64."""

import math

import pytest
import torch

from pgolf.kernels.logit_stats.op import forward_triton
from pgolf.kernels.logit_stats.reference import logit_stats_reference
from tests.kernels.compare import assert_close

RATIO = {torch.float32: 1e-5, torch.float16: 2e-3}


def sweep_example(vocabulary, candidates, dtype, per_token, count=7):
    logits = (torch.randn(count, vocabulary) * 4).to(dtype)
    logits[1, 0] = -math.inf
    targets = torch.randint(1 if vocabulary > 1 else 0, vocabulary, (count,))
    picked = torch.randint(-1, vocabulary, (count, candidates), dtype=torch.int32)
    picked[1] = picked[1].clamp_min(min(1, vocabulary - 1))
    if candidates > 1:
        picked[2, :2] = targets[2]
    temperature = torch.rand(count if per_token else 1) + 0.5
    return logits, targets, picked, temperature


# widths that fill a tile, leave a remainder, need several sweeps, and hold next to nothing
@pytest.mark.parametrize(
    "vocabulary, candidates, dtype, per_token",
    [
        (1000, 4, torch.float32, False),
        (128, 16, torch.float32, True),
        (3, 1, torch.float32, True),
        (4096, 0, torch.float32, False),
        (9001, 5, torch.float32, True),
        (1000, 4, torch.float16, False),
    ],
)
@pytest.mark.parametrize("softcap", [0.0, 5.0], ids=["plain", "softcap"])
def test_logit_stats(vocabulary, candidates, dtype, per_token, softcap):
    arguments = sweep_example(vocabulary, candidates, dtype, per_token)
    found = forward_triton(*arguments, softcap)
    logits, targets, picked, temperature = arguments
    expected = logit_stats_reference(logits.double(), targets, picked, temperature.double(), softcap or None)
    for name, x, wanted in zip(("lse", "entropy", "target", "candidates"), found, expected, strict=True):
        assert x.dtype == torch.float32
        absent = torch.isneginf(wanted)
        assert torch.equal(absent, torch.isneginf(x)), name
        if wanted.numel():
            assert_close(x[~absent], wanted[~absent], RATIO[dtype], name)


def test_ids_outside_the_vocabulary_become_nan():
    logits = torch.randn(2, 5)
    _, _, target, picked = forward_triton(
        logits, torch.tensor([5, -1]), torch.tensor([[-1, 4, 5], [-2, 0, 1]]), torch.ones(1), 0.0
    )
    assert target.isnan().all()
    assert picked.isnan().tolist() == [[False, False, True], [True, False, False]] and picked[0, 0] == -math.inf
