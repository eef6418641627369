"""Tokens that pairs predict well weigh less."""

from collections import Counter

import pytest
import torch

from pgolf.distributed import World
from pgolf.training.complement import Complement
from tests.training.tiny import VOCABULARY, Stream, assert_same, losses, run, tiny


def batches(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, (steps, 2, 3, 12), generator=generator)
    return text[..., :-1], text[..., 1:]


def test_weights_are_their_formula_over_the_steps_before():
    complement = Complement(0.8, 7, World())
    pairs, firsts = Counter(), Counter()
    for xs, ys in zip(*batches(4), strict=True):
        for x, y in zip(xs, ys, strict=True):
            found = complement.weights(x, y)
            assert found.shape == y.shape
            for a, b, weight in zip(x.flatten().tolist(), y.flatten().tolist(), found.flatten().tolist(), strict=True):
                assert weight == pytest.approx(max(0.1, 1 - 0.8 * pairs[a, b] / (firsts[a] + 1)))
        complement.count()
        for a, b in zip(xs.flatten().tolist(), ys.flatten().tolist(), strict=True):
            pairs[a, b] += 1
            firsts[a] += 1
    assert min(found.flatten().tolist()) < 0.9
    assert complement.pairs.sum() == 4 * 2 * 3 * 11


def test_a_certain_successor_keeps_a_tenth():
    complement = Complement(1.0, 7, World())
    x, y = torch.full((1, 1000), 3), torch.full((1, 1000), 4)
    assert complement.weights(x, y).eq(1).all()
    complement.count()
    assert complement.weights(x, y).eq(torch.tensor(0.1)).all()
    assert complement.weights(x, x).eq(1).all()


def test_counts_go_on_from_their_pairs():
    first, second = Complement(0.5, 7, World()), Complement(0.5, 7, World())
    x, y = (part[0, 0] for part in batches(1))
    first.weights(x, y)
    first.count()
    second.restore(first.pairs)
    assert torch.equal(first.weights(y, x), second.weights(y, x)) and torch.equal(first.firsts, second.firsts)


def test_the_loss_is_the_weighted_mean(tmp_path):
    """The second step of a run against its arithmetic."""
    settings = tiny(steps=2, complement_alpha=0.9)
    _, events = run(settings, tmp_path)
    _, plain = run(tiny(steps=2), tmp_path)
    first, second = losses(events)
    assert first == losses(plain)[0] and second != losses(plain)[1]

    from pgolf.model import build_model, parameter_groups
    from pgolf.training.optimisers import Optimisers

    model = build_model(settings.model, seed=settings.seed)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimisers = Optimisers(parameter_groups(model), names, settings.training, World())
    stream, counts = Stream(settings), torch.zeros(VOCABULARY, VOCABULARY)
    for micro in range(4):
        x, y = stream.batch(0, micro)
        (model.loss(x, y) / 4).backward()
        counts.index_put_((x.flatten(), y.flatten()), torch.ones(x.numel()), accumulate=True)
    optimisers.step(1.0, 0.92)
    total = 0.0
    for micro in range(4):
        x, y = stream.batch(1, micro)
        weights = (1 - 0.9 * counts[x, y] / (counts.sum(1)[x] + 1)).clamp_min(0.1)
        nats = -torch.log_softmax(model.logits(x), -1).gather(-1, y[..., None])[..., 0]
        total += float((weights * nats).sum().detach() / weights.sum()) / 4
    assert second == pytest.approx(total, rel=1e-5)


def test_a_burst_does_not_count_its_text_again(tmp_path):
    from pgolf.training import checkpoint

    run(tiny(steps=20, warmdown_share=1.0, burst_epochs=2, complement_alpha=0.5), tmp_path)
    tensors, _ = checkpoint.read(tmp_path / checkpoint.NAME)
    assert tensors["complement"].sum() == 12 * 128


def test_the_smallest_share_is_close_to_none(tmp_path):
    some, _ = run(tiny(complement_alpha=1e-12), tmp_path)
    none, _ = run(tiny(), tmp_path)
    assert_same(some.exported, none.exported)
