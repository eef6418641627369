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
def test_logit_stats(count, vocabulary, candidates):
    logits = (torch.randn(count, vocabulary) * 4).bfloat16()
    targets, temperature = torch.randint(0, vocabulary, (count,)), torch.rand(count) + 0.5
    picked = torch.randint(-1, vocabulary, (count, candidates), dtype=torch.int32)
    exact = logits.double().requires_grad_(), temperature.double().requires_grad_()
    wanted = logit_stats_reference(exact[0], targets, picked, exact[1])
    moved = logits.cuda().requires_grad_(), temperature.cuda().requires_grad_()
    found = logit_stats(moved[0], targets.cuda(), picked.cuda(), moved[1])
    again = logit_stats(moved[0], targets.cuda(), picked.cuda(), moved[1])
    upstream = [torch.randn(x.shape) for x in wanted]
    upstream[3] = torch.where(picked >= 0, upstream[3], 0)
    for x, y, z in zip(found, wanted, again, strict=True):
        present = ~torch.isneginf(y)
        assert torch.equal(x, z) and torch.equal(present, ~torch.isneginf(x).cpu())
        if present.any():
            assert_close(x.cpu()[present], y[present], 1e-5)
    gradients = torch.autograd.grad(found, moved, [x.cuda() for x in upstream])
    expected = torch.autograd.grad(
        [torch.where(torch.isneginf(x), 0, x) for x in wanted], exact, [x.double() for x in upstream]
    )
    assert_close(gradients[0], expected[0], 1e-2)
    assert_close(gradients[1], expected[1], 1e-4)
