"""Training on chunks against a transcription of the submissions, and what freezing, averages and ranks promise."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.config import AdaptationSettings, ModelSettings, load_preset
from pgolf.evaluation.adaptation import ChunkAdapter
from pgolf.evaluation.adaptation.chunks import learning_rate, learns, rate_factor, steps_of
from pgolf.model import PerLayerNetwork, build_model, submission_state, untie
from pgolf.model.rounding import FakeRounding
from tests.evaluation import transcription_ttt as transcription
from tests.model.common import facts, random_model

VOCABULARY = 47
LENGTH = 20
TINY = ModelSettings(
    vocab_size=VOCABULARY,
    layers=4,
    dim=32,
    heads=4,
    kv_heads=2,
    mlp_hidden=56,
    rotary_dims=6,
    rope_reference_length=16,
    bigram_buckets=29,
    bigram_dim=12,
    value_embedding_layers=(2, 3),
    value_embedding_dim=10,
    xsa_last=2,
)
PARTS = {"pr745": {"value_residual": True, "gated_attention": True, "recurrence": (1, 2), "xsa_last": 4}}


class Bytes:
    """Tokens are one to four bytes long, one more behind an even one; token 0 has none."""

    def count(self, before, after):
        before, after = np.asarray(before), np.asarray(after)
        return np.where(after == 0, 0, 1 + after % 4 + (before % 2 == 0))


def one_count(before, after):
    return 0 if after == 0 else 1 + after % 4 + (before % 2 == 0)


def chunk(number, targets=5 * LENGTH + 7):
    """Chunks of one stream: each begins with the last token of the one before."""
    stream = np.random.default_rng(3).integers(0, VOCABULARY, 100 * targets).astype(np.uint16)
    return stream[number * targets : (number + 1) * targets + 1]


def adapter_of(model, settings, **options):
    return ChunkAdapter(model, settings, sequence_length=LENGTH, byte_table=Bytes(), **options)


def weights_of(model):
    return {name: tensor.clone() for name, tensor in submission_state(model).items()}


def full_size(preset):
    """The network that a preset adapts, in shapes alone, and the names and sizes of its weights."""
    settings = load_preset(preset)
    model = build_model(settings.model, device="meta")
    network = PerLayerNetwork(untie(model) if settings.evaluation.adaptation.untie else model)
    sizes = {name: weight.numel() for name, weight in network.named_weights().items()}
    return settings.evaluation.adaptation, network.network.layers, sizes


# ---- against the transcription


@pytest.mark.parametrize("preset, batch", [("pr549", 256), ("pr688", 3), ("pr745", 256), ("pr953", 256), ("pr1014", 3)])
def test_three_chunks_give_the_weights_of_the_transcription(preset, batch):
    settings = load_preset(preset).evaluation.adaptation
    settings = dataclasses.replace(settings, batch_sequences=batch)
    model = random_model(dataclasses.replace(TINY, **PARTS.get(preset, {}), mtp_heads=1))
    model.rounding = FakeRounding(31, quantile=1.0, form="hard", banks=False)
    before = weights_of(model)
    adapter = adapter_of(model, settings)
    steps = [adapter.learn(chunk(i), i, 7, settings.epochs) for i in range(3)]
    assert steps == [settings.epochs * -(-5 // batch)] * 3

    own = facts(model.settings)
    given = {name: tensor for name, tensor in before.items() if not name.startswith("mtp_heads.")}
    if settings.untie:
        given, own["order"] = transcription.untied(given, own["order"]), list(range(len(own["order"])))
    if settings.training_mode:
        own["project"] = transcription.six_bits
    chunks = [[int(token) for token in chunk(i)] for i in range(3)]
    wanted, averaged = transcription.adapt(given, chunks, preset, own, length=LENGTH, total=7, nbytes=one_count, batch=batch)
    found = weights_of(adapter.model)
    assert found.keys() == wanted.keys()
    moved = 0
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5, msg=name)
        moved += bool((wanted[name] - given[name]).abs().max() > 1e-4)
    assert moved >= 10
    own.pop("project", None)
    tokens = torch.from_numpy(chunk(3)[:LENGTH].astype(np.int64))[None]
    with adapter.scoring_model() as scoring, torch.inference_mode():
        assert not scoring.training
        wanted_logits = transcription.forward(averaged or wanted, tokens, own)
        torch.testing.assert_close(scoring.logits(tokens), wanted_logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in submission_state(model).items())


@pytest.mark.parametrize(
    "preset, count", [("pr549", 26_928_220), ("pr688", 5_780_500), ("pr745", 31_770_350), ("pr953", 2_895_884)]
)
def test_as_many_weights_learn_as_the_submissions_logged(preset, count):
    settings, layers, sizes = full_size(preset)
    assert sum(size for name, size in sizes.items() if learns(name, settings, layers)) == count


def test_the_groups_of_953_have_their_logged_sizes():
    settings, layers, sizes = full_size("pr953")
    groups = {}
    for name, size in sizes.items():
        if learns(name, settings, layers):
            groups[rate_factor(name, settings)] = groups.get(rate_factor(name, settings), 0) + size
    assert groups == {3.0: 1_179_648, 0.5: 917_504, 1.0: 798_732}


def test_the_groups_of_1014_hold_two_tables():
    settings, order, sizes = full_size("pr1014")
    halved = {name for name in sizes if rate_factor(name, settings) == 0.5}
    assert halved == {"bigram.embed.weight", "ve_shared.embed.weight"}
    assert {rate_factor(name, settings) for name in sizes} == {0.5, 1.0}


def test_the_learning_rate_follows_cosine_and_ramp():
    settings = AdaptationSettings(lr=1.0, cosine=True, ramp=2.0)
    rates = [learning_rate(settings, i, 11) for i in range(11)]
    assert rates[0] == 1 and rates[10] == pytest.approx(0) and rates[5] == pytest.approx(0.5 * 3)
    assert rates[1] == pytest.approx(0.5 * (1 + np.cos(np.pi / 10)) * (1 + 2 / 3.3))
    assert learning_rate(dataclasses.replace(settings, cosine=False, ramp=0.0), 9, 11) == 1.0
    assert learning_rate(settings, 0, 1) == 1.0


# ---- what is frozen


def trained(**options):
    """Weights before and after one chunk of a network that runs two layers twice."""
    model = random_model(dataclasses.replace(TINY, recurrence=(1, 2)))
    adapter = adapter_of(model, AdaptationSettings(lr=0.05, **options))
    adapter.learn(chunk(0), 0, 5, 1)
    return weights_of(model), weights_of(adapter.model)


def test_freezing_the_first_blocks_leaves_every_slice_of_them_as_it_was():
    before, after = trained(freeze_first=2)
    for name in before:
        # executed 0 1 2 1 2 3: layer 1 runs as block 1, which is frozen, and again as block 3, so it is frozen too
        frozen = name.startswith(("blocks.0.", "blocks.1."))
        assert torch.equal(before[name], after[name]) == frozen, name


def test_training_the_last_blocks_moves_them_and_every_scale():
    before, after = trained(train_last=3)
    for name in before:
        matrix = name.endswith(tuple(transcription.SUFFIXES))
        # blocks 3, 4 and 5 run layers 1, 2 and 3, of which 1 and 2 serve earlier blocks as well
        last = name.startswith("blocks.3.") if matrix else name.startswith(("blocks.3.", "blocks.4.", "blocks.5."))
        assert torch.equal(before[name], after[name]) == (not last and "scale" not in name), name


def test_untied_layers_learn_apart():
    _, after = trained(untie=True)
    for suffix in transcription.SUFFIXES:
        assert not torch.equal(after[f"blocks.1.{suffix}"], after[f"blocks.3.{suffix}"])
        assert after[f"blocks.1.{suffix}"].shape == after[f"blocks.3.{suffix}"].shape


def test_frozen_slices_do_not_enter_the_norm_of_the_gradient():
    model = random_model(TINY)
    adapter = adapter_of(model, AdaptationSettings(lr=1.0, momentum=0.0, train_last=1, clip=1e-3, cosine=False))
    adapter.learn(chunk(0), 0, 5, 1)
    before, after = weights_of(model), weights_of(adapter.model)
    moved = sum(float((after[name] - before[name]).square().sum()) for name in before) ** 0.5
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_adamw_does_not_touch_frozen_slices_either():
    model = random_model(TINY)
    adapter = adapter_of(model, AdaptationSettings(optimiser="adamw", lr=0.01, train_last=1))
    for i in range(2):
        adapter.learn(chunk(i), i, 5, 2)
    before, after = weights_of(model), weights_of(adapter.model)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert sorted(still) == sorted(name for name in before if name not in adapter.factors)
    assert "blocks.2.mlp.fc.weight" in still and "blocks.3.mlp.fc.weight" not in still


# ---- clip, modes, batches


def test_without_a_clip_steps_are_as_long_as_the_gradient():
    model = random_model(TINY)
    lengths = []
    for clip in (0.0, 1e6, 1e-3):
        adapter = adapter_of(model, AdaptationSettings(lr=0.01, momentum=0.0, clip=clip))
        adapter.learn(chunk(0), 0, 5, 1)
        before, after = weights_of(model), weights_of(adapter.model)
        lengths.append(sum(float((after[n] - before[n]).double().square().sum()) for n in before) ** 0.5)
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-6) and lengths[0] > 100 * lengths[2]
    assert lengths[2] == pytest.approx(1e-5, rel=1e-2)


def test_rounding_acts_in_training_mode_alone():
    model = random_model(TINY)
    found = []
    for training_mode in (True, False):
        for rounding in (None, FakeRounding(3, quantile=1.0, form="hard", banks=True)):
            model.rounding = rounding
            adapter = adapter_of(model, AdaptationSettings(training_mode=training_mode))
            adapter.learn(chunk(0), 0, 5, 1)
            found.append(weights_of(adapter.model))
            assert not adapter.model.training
    differs = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in (found[:2], found[2:], (found[0], found[2]))]
    assert differs == [True, False, False]


def test_activations_in_bfloat16_learn_nearly_the_same():
    moved = []
    for kind in (torch.float32, torch.bfloat16):
        model = random_model(TINY, dtype=kind)
        adapter = adapter_of(model, AdaptationSettings(lr=0.05, momentum=0.0, polyak=0.5))
        adapter.learn(chunk(0), 0, 5, 1)
        assert adapter.model.activation == kind
        before, after = weights_of(model), weights_of(adapter.model)
        assert after["tok_emb.weight"].dtype == kind and after["blocks.1.mlp.fc.weight"].dtype == torch.float32
        moved.append(torch.cat([(after[name] - before[name]).flatten() for name in before if name.startswith("blocks.")]))
    assert torch.cosine_similarity(*moved, dim=0) > 0.99


def test_what_is_too_short_for_a_sequence_is_not_learnt_from():
    model = random_model(TINY)
    adapter = adapter_of(model, AdaptationSettings())
    assert adapter.learn(chunk(0, LENGTH - 1), 0, 5, 3) == 0
    assert all(torch.equal(a, b) for a, b in zip(weights_of(model).values(), weights_of(adapter.model).values(), strict=True))
    assert adapter.learn(chunk(0, LENGTH), 0, 5, 3) == 3


def test_a_replay_gives_the_same_bits():
    model = random_model(TINY)
    runs = []
    for _ in range(2):
        adapter = adapter_of(model, AdaptationSettings(polyak=0.9, byte_weighted=True, optimiser="adamw"))
        for i, epochs in enumerate((2, 1, 3)):
            adapter.learn(chunk(i), i, 5, epochs)
        with adapter.scoring_model() as scoring:
            runs.append({**weights_of(adapter.model), **{f"average {n}": t for n, t in weights_of(scoring).items()}})
        assert adapter.seconds_per_epoch > 0
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_byte_weights_need_a_table():
    with pytest.raises(ValueError, match="byte table"):
        ChunkAdapter(random_model(TINY), AdaptationSettings(byte_weighted=True), sequence_length=LENGTH)


# ---- ranks


def test_every_sequence_is_in_one_step_of_one_rank():
    for sequences, ranks, batch in [(16, 8, 256), (64, 8, 256), (7, 3, 6), (5, 8, 4), (1, 2, 2), (100, 3, 21), (0, 2, 4)]:
        steps = steps_of(sequences, ranks, batch)
        owned = [[i for step in steps for i in range(*step[rank])] for rank in range(ranks)]
        assert sum(owned, []) == list(range(sequences))
        assert all(stop - start <= max(1, batch // ranks) for step in steps for start, stop in step)
        assert all(any(stop > start for start, stop in step) for step in steps)
    assert steps_of(16, 8, 256) == [[(2 * rank, 2 * rank + 2) for rank in range(8)]]
