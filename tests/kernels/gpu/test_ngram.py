"""The n-gram back-off on a GPU: counts exactly as on a CPU, figures closely, the same bits twice."""

import math

import pytest
import torch

from pgolf.kernels.logit_stats import LogitStats, logit_stats
from pgolf.kernels.ngram import NgramBackoff, learn_table, op
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize("local, shared, granularity", [((1, 2, 3, 4, 5, 6), (), 1), ((0, 3), (), 8), ((2,), (1, 3), 5)])
def test_evidence_is_exact(local, shared, granularity):
    tokens = repeating_tokens(20_000, 300)
    documents = torch.cat([torch.tensor([0, 1, 2]), torch.arange(300, 20_000, 731), torch.tensor([20_000])])
    host, device = (NgramBackoff(local, shared, granularity=granularity, device=place) for place in ("cpu", "cuda"))
    wanted = host.evidence(tokens, documents)
    for _ in range(2):
        found = device.evidence(tokens.cuda(), documents.cuda())
        for name, x, y in zip(found._fields, found, wanted, strict=True):
            assert torch.equal(x.cpu(), y), name


def test_colliding_keys_are_told_apart():
    tokens, documents = repeating_tokens(400, 30).cuda(), torch.tensor([0, 400]).cuda()
    plain, colliding = (op.evidence_triton(tokens, documents, [1, 2], 1, False, m) for m in (op.MULTIPLIER, 0))
    assert all(torch.equal(a, b) for a, b in zip(plain, colliding, strict=True))


def test_backoff_follows_the_cpu():
    tokens, logits = repeating_tokens(3000, 300), torch.randn(3000, 300) * 3
    documents = torch.tensor([0, 700, 3000])
    table = torch.rand(3, 9, 33) * 0.9 + 0.05
    found = []
    for place in ("cpu", "cuda"):
        backoff = NgramBackoff((1, 2, 3), granularity=4, table=table, device=place)
        evidence = backoff.evidence(tokens.to(place), documents.to(place))
        # the same numbers on both, since a log-probability at a cut may round into another cell
        stats = logit_stats(logits, tokens, evidence.top.cpu())
        stats = LogitStats(*(x.float().to(place, backoff.table.dtype) for x in stats))
        scores = backoff.mix(stats, evidence)
        found.append([*scores, learn_table(backoff, [(stats, evidence)]), *backoff.mix_and_learn(stats, evidence)])
    for x, y in zip(*found, strict=True):
        assert_close(y, x, 1e-4)
    assert found[0][0].mean() < math.inf
