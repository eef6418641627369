"""Initial weights, what the network promises its callers, and compilation."""

import copy
import dataclasses
import math
import shutil

import pytest
import torch
from torch.nn import functional as F

from pgolf.config import Settings, SettingsError, load_preset
from pgolf.model import build_model, count_parameters, parameter_groups, untie
from tests.model.common import EVERYTHING, SHALLOW, SMALL, error, random_model, tokens

TOTALS = {"pr549": 26_928_220, "pr688": 33_317_980, "pr745": 27_051_758, "pr953": 33_317_980, "pr1014": 26_993_756}


@pytest.mark.parametrize("preset", TOTALS)
def test_parameter_totals(preset):
    model = build_model(load_preset(preset).model, device="meta")
    assert count_parameters(model) == TOTALS[preset]
    if preset == "pr745":
        assert count_parameters(untie(model)) == 31_770_350


def test_quick_starts_at_the_vocabulary():
    settings = load_preset("quick").model
    given = tokens(2, 101, settings.vocab_size)
    loss = build_model(settings, seed=3).loss(given[:, :-1], given[:, 1:])
    assert abs(loss.item() - math.log(settings.vocab_size)) < 0.02


def test_a_seed_means_the_same_weights():
    first, again, other = (build_model(SMALL, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["tok_emb.weight"], other["tok_emb.weight"])
    exact = build_model(SMALL, seed=5, dtype=torch.float64).state_dict()
    assert all(torch.equal(first[name].double(), exact[name]) for name in first)
    torch.manual_seed(1)
    drawn = build_model(SMALL).state_dict()["qo_bank"]
    torch.manual_seed(1)
    assert torch.equal(drawn, build_model(SMALL).state_dict()["qo_bank"])


def test_initial_weights(poisoned_memory):
    settings = dataclasses.replace(
        EVERYTHING, embedding_projection_gain=0.3, value_residual_init=(0.2, 0.8), gate_bias=3.0, q_gain=1.2, mtp_heads=1
    )
    model = build_model(settings, seed=0)
    state = model.state_dict()
    n = settings.layers

    def orthogonal(matrix, gain=1.0):
        small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        return torch.allclose(small, gain**2 * torch.eye(len(small)), atol=1e-5)

    for matrix in (*state["qo_bank"][:n], *state["kv_bank"], *state["mlp_up_bank"]):
        assert orthogonal(matrix)
    assert orthogonal(state["bigram.proj.weight"], 0.3) and orthogonal(state["ve_shared.proj.weight"], 0.3)
    constant = {
        "smear.gate": 0, "skip_weights": 1, "bigram.scale": 0.05, "bigram.embed.weight": 0, "ve_shared.scale": 0.1,
        "ve_layer_scales.0": 1, "ve_layer_scales.1": 1, "mlp_down_bank": 0, "lm_head.weight": 0, "mtp_heads.0.weight": 0,
    }  # fmt: skip
    for layer in range(7):
        constant |= {f"blocks.{layer}.attn_scale": 1, f"blocks.{layer}.mlp_scale": 1, f"blocks.{layer}.attn.q_gain": 1.2}
        constant |= {f"blocks.{layer}.attn.attn_gate.weight": 0, f"blocks.{layer}.attn.attn_gate.bias": 3}
        constant |= {f"blocks.{layer}.dtg_gate.weight": 0, f"blocks.{layer}.dtg_gate.bias": 2}
        assert torch.equal(state[f"blocks.{layer}.resid_mix"], torch.tensor([[1.0], [0.0]]).expand(2, settings.dim))
        assert state[f"blocks.{layer}.attn.vr_lambda"].tolist() == pytest.approx([0.2, 0.8])
    for name, value in constant.items():
        assert torch.equal(state[name], torch.full_like(state[name], value)), name
    assert (state["qo_bank"][n:] == 0).all()
    assert state["blocks.6.hyper"].tolist() == pytest.approx([1.0, 0.0, 0.3]) and "blocks.4.hyper" not in state
    assert state["tok_emb.weight"].std().item() == pytest.approx(0.005, rel=0.1)
    assert state["ve_shared.embed.weight"].std().item() == pytest.approx(0.01, rel=0.1)


IMPOSSIBLE = {
    "no heads": (dict(heads=0), "model.heads is 0; it must be at least 1"),
    "no layers": (dict(layers=0), "model.layers is 0"),
    "negative xsa": (dict(xsa_last=-1), "model.xsa_last is -1; it must be at least 0"),
    "one bucket": (dict(bigram_buckets=1), r"model.bigram_buckets is 1; it must be 0 \(none\) or at least 2"),
    "bigram without width": (dict(bigram_dim=0), "model.bigram_dim is 0"),
    "value embedding without width": (dict(value_embedding_dim=0), "model.value_embedding_dim is 0"),
    "no softcap": (dict(softcap=0.0), "model.softcap is 0.0; it must be above 0"),
    "steep slope": (dict(mlp_slope=1.5), "model.mlp_slope is 1.5; it must be from 0 to 1"),
    "negative layer": (dict(recurrence=(-1,)), "model.recurrence names layer -1"),
    "layer twice": (dict(value_embedding_layers=(3, 3)), "model.value_embedding_layers names a layer twice"),
}


@pytest.mark.parametrize("flaw", IMPOSSIBLE)
def test_impossible_networks_are_refused(flaw):
    change, line = IMPOSSIBLE[flaw]
    Settings(model=SMALL).validate()
    with pytest.raises(SettingsError, match=line):
        Settings(model=dataclasses.replace(SMALL, **change)).validate()


def test_precisions():
    """bfloat16's error is that of rounding; and fresh embeddings, far below its epsilon, still come out normed."""
    given = tokens(2, 17)
    fresh = build_model(dataclasses.replace(SMALL, smear=False), dtype=torch.bfloat16)
    assert fresh.hidden(given).float().square().mean().item() == pytest.approx(1, rel=0.02)
    assert fresh.embed(given).x.float().square().mean().item() == pytest.approx(1, rel=0.02)
    exact = random_model(SMALL, dtype=torch.float64)
    mixed = random_model(SMALL, dtype=torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in mixed.named_parameters()}
    tables = {"tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"}
    assert {name for name, kind in kinds.items() if kind == torch.bfloat16} == tables
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}
    assert mixed.hidden(given).dtype == torch.bfloat16
    found, wanted = mixed.logits(given), exact.logits(given)
    assert found.dtype == torch.float32 and 1e-4 < (found - wanted).norm() / wanted.norm() < 0.05
    loss, wanted = (model.loss(given[:, :-1], given[:, 1:]) for model in (mixed, exact))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wanted.item(), rel=0.03)


@pytest.mark.parametrize("settings", [SMALL, EVERYTHING], ids=["small", "everything"])
def test_causality(settings):
    model = random_model(settings, dtype=torch.float64)
    given = tokens(1, 20)
    changed = given.clone()
    changed[0, 11] = (changed[0, 11] + 1) % settings.vocab_size
    before, after = model.logits(given), model.logits(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert ((before - after).abs().amax(-1)[0, 11:] > 1e-9).all()


def test_every_parameter_learns():
    model = random_model(dataclasses.replace(EVERYTHING, mtp_heads=2, tied=True), dtype=torch.float64)
    given = tokens(4, 40)
    model.loss(given[:, :-1], given[:, 1:]).backward()
    # the first layer has nothing to mix its values with, as in the submissions
    idle = {"blocks.0.attn.vr_lambda"}
    for name, parameter in model.named_parameters():
        if name in idle:
            assert parameter.grad is None
        elif name.endswith("hyper"):
            assert (parameter.grad != 0).tolist() == [True, False, True], name
        elif name.endswith("embed.weight") or name == "tok_emb.weight":
            assert (parameter.grad != 0).any(), name
        else:
            assert (parameter.grad != 0).all(), name


def test_parameter_groups():
    settings = dataclasses.replace(EVERYTHING, mtp_heads=2)
    model = build_model(settings, device="meta")
    groups = parameter_groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group: [names[id(parameter)] for parameter in members] for group, members in groups.items()}
    assert found["matrix"] == ["qo_bank", "kv_bank", "mlp_up_bank", "mlp_down_bank"]
    assert found["projection"] == ["bigram.proj.weight", "ve_shared.proj.weight"]
    assert found["token"] == ["tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"]
    assert sorted(found["head"]) == ["lm_head.weight", "mtp_heads.0.weight", "mtp_heads.1.weight"]
    assert {"blocks.0.attn.attn_gate.weight", "smear.gate", "skip_weights", "ve_layer_scales.1"} <= set(found["scalar"])
    assert sorted(name for members in found.values() for name in members) == sorted(names.values())
    assert [tuple(bank.shape) for bank in groups["matrix"]] == [(10, 48, 48), (10, 24, 48), (5, 80, 48), (5, 48, 80)]


def test_positions():
    model = random_model(SMALL)
    given = tokens(3, 15)
    full = model.logits(given)
    torch.testing.assert_close(model.logits(given, positions=slice(-4, None)), full[:, -4:])
    chosen = torch.tensor([[0, 14], [7, 7], [3, 1]])
    rows = torch.stack([full[row, places] for row, places in enumerate(chosen)])
    torch.testing.assert_close(model.logits(given, positions=chosen), rows)
    torch.testing.assert_close(model.head(model.hidden(given)[1, 3:5]), full[1, 3:5])


def test_loss():
    model = random_model(SMALL, dtype=torch.float64)
    given = tokens(3, 16)
    inputs, targets = given[:, :-1], given[:, 1:].clone()
    wanted = F.cross_entropy(model.logits(inputs).flatten(0, 1), targets.flatten(), reduction="none").view(3, 15)
    weights = torch.rand(3, 15, dtype=torch.float64)
    close = torch.testing.assert_close
    close(model.loss(inputs, targets), wanted.mean())
    close(model(inputs, targets), wanted.mean())
    close(model.loss(inputs, targets, weights=weights), (weights * wanted).sum() / weights.sum())
    targets[1, 4] = -100
    wanted[1, 4] = 0
    close(model.loss(inputs, targets), wanted.sum() / 44)


def test_further_heads_count_in_training_only():
    model = random_model(dataclasses.replace(SMALL, mtp_heads=2, mtp_weight=0.3), dtype=torch.float64)
    given = tokens(2, 12)
    inputs, targets = given[:, :-1], given[:, 1:]
    hidden = model.hidden(inputs)
    main = model.eval().loss(inputs, targets)
    torch.testing.assert_close(main, F.cross_entropy(model.logits(inputs).flatten(0, 1), targets.flatten()))
    further = []
    for ahead, head in enumerate(model.mtp_heads, 1):
        raw = hidden[:, :-ahead] @ head.weight.T
        capped = SMALL.softcap * torch.tanh(raw / SMALL.softcap)
        further.append(F.cross_entropy(capped.flatten(0, 1), targets[:, ahead:].flatten()))
    model.train()
    torch.testing.assert_close(model.loss(inputs, targets), main + 0.3 * (further[0] + further[1]) / 2)
    # two tokens leave the second head without a target
    short = model.loss(inputs[:, :2], targets[:, :2])
    capped = SMALL.softcap * torch.tanh(model.hidden(inputs[:, :2])[:, :1] @ model.mtp_heads[0].weight.T / SMALL.softcap)
    main = model.eval().loss(inputs[:, :2], targets[:, :2])
    torch.testing.assert_close(short, main + 0.3 * F.cross_entropy(capped.flatten(0, 1), targets[:, 1]))
    ones = torch.ones(2, 11, dtype=torch.float64)
    model.train()
    torch.testing.assert_close(model.loss(inputs, targets, weights=ones), model.loss(inputs, targets))


def halve(weight, role):
    return weight * (0.5 if role == "bank" else 0.25)


def test_rounding_reaches_its_matrices_in_training_only():
    model = random_model(EVERYTHING, dtype=torch.float64)
    given = tokens(2, 13)
    plain = model.logits(given)
    seen = []

    def note(weight, role):
        seen.append((tuple(weight.shape), role))
        return halve(weight, role)

    model.rounding = note
    assert torch.equal(model.eval().logits(given), plain) and not seen
    rounded = model.train().logits(given)
    dim, kv, hidden, n = 48, 24, 80, 5
    banked = [(dim, dim)] * 2 * n + [(kv, dim)] * 2 * n + [(hidden, dim)] * n + [(dim, hidden)] * n
    assert sorted(seen) == sorted([(s, "bank") for s in banked] + [((48, 10), "projection"), ((24, 14), "projection")])
    with torch.no_grad():
        for group, factor in (("matrix", 0.5), ("projection", 0.25)):
            for parameter in parameter_groups(model)[group]:
                parameter.mul_(factor)
    torch.testing.assert_close(model.eval().logits(given), rounded)


def test_watching_changes_nothing_and_sees_every_product():
    model = random_model(EVERYTHING, dtype=torch.float64).eval()
    given = tokens(2, 13)
    plain = model.logits(given)
    seen = {}

    def watch(site, layer, x):
        assert (site, layer) not in seen
        seen[site, layer] = x

    model.input_hook = watch
    torch.testing.assert_close(model.logits(given), plain)
    each = {(site, layer) for site in ("q", "k", "v", "o", "up", "down") for layer in range(7)}
    assert seen.keys() == each | {("head", 0), ("bigram", 0), ("values", 0)}
    hidden = F.leaky_relu(seen["up", 5] @ model.mlp_up_bank[model.layers[5].physical].T, EVERYTHING.mlp_slope).square()
    torch.testing.assert_close(seen["down", 5], hidden)
    model.input_hook = None
    torch.testing.assert_close(seen["head", 0], model.hidden(given))


def test_copies_are_whole():
    model = random_model(EVERYTHING)
    given = tokens(2, 13)
    with torch.inference_mode():
        wanted = model.logits(given).clone()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.qo_bank.zero_()
    assert torch.equal(twin.logits(given), wanted)
    twin.loss(given[:, :-1], given[:, 1:]).backward()
    assert model.qo_bank.grad is None and (twin.qo_bank.grad != 0).any()


def test_full_graph_with_rounding_switched_on_later():
    model = random_model(dataclasses.replace(SHALLOW, mtp_heads=1))
    given = tokens(2, 20)
    inputs, targets = given[:, :-1], given[:, 1:]
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")

    def both():
        results = []
        for run in (compiled, model):
            model.zero_grad()
            loss = run(inputs, targets)
            loss.backward()
            results.append([loss.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None])
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        return results[0][0]

    plain = both()
    model.rounding = halve
    rounded = both()
    assert abs(plain - rounded) > 1e-3
    model.rounding = lambda weight, role: weight * 0.9
    assert abs(both() - rounded) > 1e-3
    model.rounding = None
    torch.testing.assert_close(both(), plain)
    model.eval()
    assert abs(both() - plain) > 1e-3  # without the further head


def test_full_graph_of_the_logits():
    model = random_model(SHALLOW).eval()
    given = tokens(2, 20)
    run = torch.compile(model.logits, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(run(given), model.logits(given))
    torch.testing.assert_close(run(given, positions=slice(-3, None)), model.logits(given)[:, -3:])


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_inductor():
    model = random_model(dataclasses.replace(SMALL, layers=2, value_embedding_layers=(1,), gated_attention=True))
    given = tokens(2, 20)
    run = torch.compile(model.loss, fullgraph=True, dynamic=False, backend="inductor")
    losses, gradients = [], []
    for function in (run, model.loss):
        model.zero_grad()
        losses.append(function(given[:, :-1], given[:, 1:]))
        losses[-1].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*losses)
    assert error(*gradients) < 1e-5
