"""Weights under the submissions' names, there and back; and networks untied."""

import dataclasses

import pytest
import torch

from pgolf.model import build_model, count_parameters, import_checkpoint, rebank, submission_state, unbank, untie
from tests.model.common import EVERYTHING, SMALL, random_model, tokens


def test_unbank_and_rebank():
    state = random_model(EVERYTHING).state_dict()
    layered = unbank(state)
    n = EVERYTHING.layers
    for layer in range(n):
        assert torch.equal(layered[f"blocks.{layer}.attn.c_q.weight"], state["qo_bank"][layer])
        assert torch.equal(layered[f"blocks.{layer}.attn.proj.weight"], state["qo_bank"][n + layer])
        assert torch.equal(layered[f"blocks.{layer}.attn.c_k.weight"], state["kv_bank"][layer])
        assert torch.equal(layered[f"blocks.{layer}.attn.c_v.weight"], state["kv_bank"][n + layer])
        assert torch.equal(layered[f"blocks.{layer}.mlp.fc.weight"], state["mlp_up_bank"][layer])
        assert torch.equal(layered[f"blocks.{layer}.mlp.proj.weight"], state["mlp_down_bank"][layer])
    assert "blocks.5.attn.c_q.weight" not in layered and "blocks.6.attn_scale" in layered
    again = rebank(layered, EVERYTHING)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    del layered["blocks.3.mlp.fc.weight"]
    with pytest.raises(ValueError, match="the weights lack blocks.3.mlp.fc.weight"):
        rebank(layered, EVERYTHING)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("form", [dict, unbank], ids=["banked", "layered"])
def test_import(prefix, form):
    source, target = random_model(EVERYTHING, seed=1), random_model(EVERYTHING, seed=2)
    import_checkpoint(target, {prefix + name: tensor.double() for name, tensor in form(source.state_dict()).items()})
    given = tokens(2, 9)
    assert torch.equal(target.logits(given), source.logits(given))
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in target.parameters())


def test_submission_state_is_what_import_takes():
    settings = dataclasses.replace(SMALL, mtp_heads=2)
    source, target = random_model(settings, seed=1), random_model(SMALL, seed=2)
    state = submission_state(source)
    assert not [name for name in state if "bank" in name or "mtp" in name]
    import_checkpoint(target, state)
    given = tokens(2, 9)
    assert torch.equal(target.logits(given), source.logits(given))
    shapes = submission_state(build_model(SMALL, device="meta"))
    assert [(name, t.shape) for name, t in shapes.items()] == [(name, t.shape) for name, t in state.items()]


def test_further_heads_may_be_there_or_not():
    settings = dataclasses.replace(SMALL, mtp_heads=1)
    rich, poor = random_model(settings, seed=1), random_model(SMALL, seed=2)
    import_checkpoint(poor, rich.state_dict())
    assert torch.equal(poor.qo_bank, rich.qo_bank)
    other = random_model(settings, seed=3)
    kept = other.mtp_heads[0].weight.clone()
    import_checkpoint(other, poor.state_dict())
    assert torch.equal(other.mtp_heads[0].weight, kept) and torch.equal(other.qo_bank, rich.qo_bank)
    import_checkpoint(other, rich.state_dict())
    assert torch.equal(other.mtp_heads[0].weight, rich.mtp_heads[0].weight)


def damaged(change):
    state = unbank(random_model(SMALL, seed=1).state_dict())
    change(state)
    return state


DAMAGE = {
    "missing": (lambda s: s.pop("smear.gate"), "missing smear.gate"),
    "unexpected": (lambda s: s.update({"blocks.5.attn_scale": torch.ones(48)}), "unexpected blocks.5.attn_scale"),
    "shape": (lambda s: s.update({"bigram.scale": torch.ones(1)}), r"wrong shape bigram.scale \(1,\) instead of \(\)"),
    "no tensor": (lambda s: s.update({"smear.gate": "x"}), "smear.gate is str, not a tensor"),
    "scalar bank": (lambda s: s.update({"qo_bank": torch.ones(())}), "unexpected qo_bank"),
    "many": (
        lambda s: [s.pop(f"blocks.{i}.attn.{name}.weight") for i in range(2) for name in ("c_q", "c_k", "c_v")],
        r"missing blocks.0.attn.c_q.weight, blocks.1.attn.c_q.weight, blocks.0.attn.c_k.weight, .* and 2 more",
    ),
    "all at once": (
        lambda s: (s.pop("smear.gate"), s.update(more=torch.ones(1), skip_weights=torch.ones(3, 48))),
        r"missing smear.gate; unexpected more; wrong shape skip_weights \(3, 48\) instead of \(2, 48\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_does_not_fit_changes_nothing(damage):
    change, line = DAMAGE[damage]
    model = random_model(SMALL, seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=line) as caught:
        import_checkpoint(model, damaged(change))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("recurrence", [(2, 3), (0,), (1, 3, 1), (4,)])
def test_untied_networks_compute_the_same_and_learn_apart(recurrence):
    settings = dataclasses.replace(EVERYTHING, recurrence=recurrence)
    model = random_model(settings, dtype=torch.float64).eval()
    free = untie(model)
    given = tokens(2, 21)
    assert torch.equal(free.logits(given), model.logits(given))
    assert free.settings.recurrence == () and free.settings.layers == 5 + len(recurrence) and not free.training
    matrices = 4 * 48 * 48 - 2 * 24 * 48 + 2 * 48 * 80
    assert count_parameters(free) == count_parameters(model) + matrices * len(recurrence)
    again = max(recurrence) + 1
    assert torch.equal(free.mlp_up_bank[again], free.mlp_up_bank[recurrence[0]])
    before = model.logits(given)
    with torch.no_grad():
        free.mlp_up_bank[again] *= 2
    assert torch.equal(model.logits(given), before)
    assert not torch.allclose(free.logits(given), before)
    free.train().loss(given[:, :-1], given[:, 1:]).backward()
    assert (free.mlp_up_bank.grad != 0).any((1, 2)).all()


def test_untying_nothing_copies():
    model = random_model(SMALL)
    with torch.no_grad():
        for parameter in untie(model).parameters():
            parameter.zero_()
    assert all((parameter != 0).any() for parameter in model.parameters())
