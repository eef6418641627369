"""The published mixtures in the pass against their transcription: losses, weights, tables; chunks, ranks, the tail."""

import numpy as np
import pytest
import torch

from pgolf.budget import Clock
from pgolf.evaluation.planner import Steady
from pgolf.evaluation.predictors.published import PublishedBoost, PublishedHedge, PublishedTail
from pgolf.evaluation.predictors.temperature import ByEntropy, Plain
from pgolf.evaluation.scoring_pass import ScoringPass
from pgolf.evaluation.windows import published_tail, sliding_windows
from tests.evaluation.toy import BOS, Toy, text
from tests.evaluation.transcription import boosted, five_experts

LENGTH, STRIDE, VOCAB = 64, 16, 24


def run(model, tokens, predictors, stride=STRIDE, **options):
    one = ScoringPass(model, tokens, predictors, bos=BOS, window=LENGTH, batch=8, **options)
    return one, one.run(Steady(Clock(), len(tokens) - 1, stride))


def compare(predictor, nats, losses):
    """First scorings are the pass's, further ones are in `repeated`; together they are what was published."""
    mine = {}
    for target, loss in enumerate(nats):
        mine.setdefault(target, []).append(loss)
    for start, found in predictor.repeated:
        for target, loss in enumerate(found, start):
            mine.setdefault(target, []).append(loss)
    assert mine.keys() == losses.keys()
    for target, found in losses.items():
        np.testing.assert_allclose(mine[target], found, rtol=1e-5, atol=1e-5, err_msg=f"target {target}")


# the third ends right at a window's end; the last leaves a chunk of two windows and a half
@pytest.mark.parametrize("count, ranks", [(13_931, 3), (13_003, 1), (64 + 32 * 400, 2), (3 * 4096 + 40, 2)])
def test_five_experts_over_chunks_with_the_tail(count, ranks):
    model, tokens = Toy(VOCAB), text(count)
    stride = 32
    windows = dict(targets=count, window=LENGTH, stride=stride, shortest=stride, batch=8, ranks=ranks)
    predictor = PublishedHedge(VOCAB, 0.1, **windows)
    heat = ByEntropy(0.9)
    one, nats = run(model, tokens, [Plain("sliding"), predictor], stride, temperature=heat, chunk_tokens=4096)
    losses, weights, tables = five_experts(
        model.logits, tokens, vocab=VOCAB, length=LENGTH, stride=stride, chunk=4096, ranks=ranks, batch=8, t0=0.9
    )
    compare(predictor, nats["published"], losses)
    assert max(map(len, losses.values())) > 1 and nats["published"].shape == (count,)
    for mine, theirs in zip(predictor.log_weights, weights[-1], strict=True):
        torch.testing.assert_close(mine.softmax(0), theirs, rtol=1e-5, atol=1e-5)
    # and on the way: the mean over ranks that the trace shows
    shown = torch.tensor([list(trace["published"].values()) for trace in one.traces], dtype=torch.float64)
    torch.testing.assert_close(shown, torch.stack([torch.stack(w).mean(0) for w in weights]), rtol=1e-5, atol=1e-5)
    mixer = predictor.mixer
    for mine, theirs in zip((mixer.unigram, mixer.bigram, mixer.trigram, mixer.trigram_total), tables, strict=True):
        assert torch.equal(mine, theirs.int())
    assert not torch.equal(predictor.log_weights[0], torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64))


@pytest.mark.parametrize("count, ranks, rate", [(1500, 1, 0.0), (1501, 2, 2.0), (64 + 16 * 40, 3, 2.0)])
def test_boost_and_bias_with_the_tail(count, ranks, rate):
    model, tokens = Toy(VOCAB), text(count)
    windows = dict(targets=count, window=LENGTH, stride=STRIDE, batch=8, ranks=ranks)
    predictor = PublishedBoost(VOCAB, 0.1, rate, buckets=1 << 12, **windows)
    _, nats = run(model, tokens, [Plain("sliding"), predictor])
    losses, states = boosted(
        model.logits, tokens, vocab=VOCAB, length=LENGTH, stride=STRIDE, ranks=ranks, batch=8, rate=rate, buckets=1 << 12
    )
    compare(predictor, nats["published"], losses)
    weights, bias, context, full = states[-1]
    np.testing.assert_allclose(predictor.cache.weights, weights, rtol=1e-5)
    torch.testing.assert_close(predictor.bias, bias, rtol=1e-5, atol=1e-6)
    assert rate == 0 or bias.abs().max() > 0.01
    for order in range(2, 11):
        for table, known in ((predictor.cache.contexts, context), (predictor.cache.fulls, full)):
            expected = np.zeros(1 << 12, np.int64)
            for key, count in known[order].items():
                expected[key] = count
            assert np.array_equal(table[order - 2], expected)


@pytest.mark.parametrize("count", [1500, 64 + 16 * 40, 50, 64, 65])
def test_the_tail_without_a_mixer(count):
    model, tokens = Toy(VOCAB), text(count)
    predictor = PublishedTail("sliding_published", VOCAB, targets=count, window=LENGTH, stride=STRIDE)
    _, nats = run(model, tokens, [Plain("sliding"), predictor])
    assert np.array_equal(nats["sliding_published"], nats["sliding"])
    losses = {target: [loss] for target, loss in enumerate(nats["sliding"])}
    last = sliding_windows(count, LENGTH, STRIDE)[-1]
    for window in published_tail(count, LENGTH, STRIDE)[1]:
        row = torch.from_numpy(tokens[window.start : count].astype(np.int64))
        log_probs = model.logits(row[None])[0].log_softmax(-1)
        for target in range(window.score_from, window.stop):
            if window.start > last.start or target < last.score_from:
                losses[target].append(-log_probs[target - window.start, int(tokens[target + 1])].item())
    compare(predictor, nats["sliding_published"], losses)


def test_without_the_tail_published_and_honest_score_the_same_targets():
    count = 1500
    predictor = PublishedHedge(VOCAB, 0.1, targets=count, window=LENGTH, stride=STRIDE, tail=False, batch=8, ranks=2)
    forwarded: list[int] = []
    model = Toy(VOCAB, on_forward=forwarded.append)
    _, nats = run(model, text(count), [Plain("sliding"), predictor], chunk_tokens=512)
    assert not predictor.repeated and sum(forwarded) == len(sliding_windows(count, LENGTH, STRIDE))
    # in the warm-up the neural model scores alone
    np.testing.assert_allclose(nats["published"], nats["sliding"], rtol=1e-6)
