"""The mixer on a GPU: bfloat16 against float64, integers exactly, the same bits twice."""

import math

import pytest
import torch

from pgolf.kernels.hedge import HedgeMixer, NgramBackoff, learn_table, neural_statistics, op, reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def repeating_tokens(count, vocabulary):
    tokens = torch.randint(0, vocabulary, (count,))
    for source in range(0, count - 100, 97):
        tokens[source + 40 : source + 60] = tokens[source // 3 : source // 3 + 20].clone()
    return tokens


@pytest.mark.parametrize(
    "count, vocabulary, candidates", [(1000, 1024, 4), (777, 1000, 0), (65, 8192, 16), (9, 50_257, 3), (33, 256, 10)]
)
def test_statistics(count, vocabulary, candidates):
    logits = (torch.randn(count, vocabulary) * 4).bfloat16()
    targets, temperature = torch.randint(0, vocabulary, (count,)), torch.rand(count) + 0.5
    picked = torch.randint(-1, vocabulary, (count, candidates), dtype=torch.int32)
    exact = logits.double().requires_grad_(), temperature.double().requires_grad_()
    wanted = reference.statistics_reference(exact[0], targets, picked, exact[1])
    moved = logits.cuda().requires_grad_(), temperature.cuda().requires_grad_()
    found = neural_statistics(moved[0], targets.cuda(), picked.cuda(), moved[1])
    again = neural_statistics(moved[0], targets.cuda(), picked.cuda(), moved[1])
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


def test_five_experts_follow_the_cpu():
    vocabulary = 257
    host, device = (HedgeMixer(vocabulary, warmup=0, device=place) for place in ("cpu", "cuda"))
    stream = repeating_tokens(30_000, vocabulary)
    begins, lengths, scored = [0, 64, 128, 192], [512, 512, 512, 500], [512, 64, 64, 0]
    for begin in range(0, 20_000, 5000):
        for mixer in (host, device):
            mixer.count(stream[begin : begin + 5001].to(mixer.unigram.device))
        span = stream[begin : begin + 1000]
        targets = torch.stack([span[b + 1 : b + 513] for b in begins])
        logits = torch.randn(4, 512, vocabulary) * 3
        scores = []
        for mixer in (host, device):
            place = mixer.unigram.device
            statistics = neural_statistics(logits.to(place), targets.to(place))
            scores.append(mixer.score_windows(statistics, mixer.ngrams(span.to(place)), begins, lengths, scored))
            mixer.learn(scores[-1])
        assert_close(scores[1].nll, scores[0].nll, 1e-5)
        assert_close(scores[1].experts, scores[0].experts, 1e-5)
        assert_close(device.log_weights, host.log_weights, 1e-5)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(host.tables, device.tables, strict=True))


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


def test_ngram_backoff_follows_the_cpu():
    tokens, logits = repeating_tokens(3000, 300), torch.randn(3000, 300) * 3
    documents = torch.tensor([0, 700, 3000])
    table = torch.rand(3, 9, 33) * 0.9 + 0.05
    found = []
    for place in ("cpu", "cuda"):
        ngram_backoff = NgramBackoff((1, 2, 3), granularity=4, table=table, device=place)
        evidence = ngram_backoff.evidence(tokens.to(place), documents.to(place))
        # the same numbers on both, since a log-probability at a cut may round into another cell
        statistics = neural_statistics(logits, tokens, evidence.top.cpu())
        statistics = type(statistics)(*(x.float().to(place, ngram_backoff.table.dtype) for x in statistics))
        scores = ngram_backoff.mix(statistics, evidence)
        found.append(
            [*scores, learn_table(ngram_backoff, [(statistics, evidence)]), *ngram_backoff.mix_and_learn(statistics, evidence)]
        )
    for x, y in zip(*found, strict=True):
        assert_close(y, x, 1e-4)
    assert found[0][0].mean() < math.inf
