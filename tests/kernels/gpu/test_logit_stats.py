"""The logits' statistics on a GPU: bfloat16 against float64, the same bits twice."""

import pytest
import torch

from pgolf.kernels.logit_stats import logit_stats
from pgolf.kernels.logit_stats.reference import logit_stats_reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize(
    "count, vocabulary, candidates", [(1000, 1024, 4), (777, 1000, 0), (65, 8192, 16), (9, 50_257, 3), (33, 256, 10)]
)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logit_stats(count, vocabulary, candidates, softcap):
    logits = (torch.randn(count, vocabulary) * 4).bfloat16()
    targets, temperature = torch.randint(0, vocabulary, (count,)), torch.rand(count) + 0.5
    picked = torch.randint(-1, vocabulary, (count, candidates), dtype=torch.int32)
    expected = logit_stats_reference(logits.double(), targets, picked, temperature.double(), softcap)
    arguments = (logits.cuda(), targets.cuda(), picked.cuda(), temperature.cuda(), softcap)
    found, again = logit_stats(*arguments), logit_stats(*arguments)
    for x, y, z in zip(found, expected, again, strict=True):
        present = ~torch.isneginf(y)
        assert torch.equal(x, z) and torch.equal(present, ~torch.isneginf(x).cpu())
        if present.any():
            assert_close(x.cpu()[present], y[present], 1e-6)
