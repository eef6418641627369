"""The table of parameters and the description of layers: every tensor has its line, and whoever classifies agrees with it."""

import dataclasses

import pytest

from pgolf.config import load_preset, preset_names
from pgolf.flops import matrix_weights
from pgolf.model import build_model, submission_state, unbank
from pgolf.model.layers import executed_layers
from pgolf.model.parameters import ADAPTED, BANKS, TABLE, adapter_shapes, moment_names, parameter, slice_names
from tests.model.common import EVERYTHING, LANES, SMALL
from tests.model.test_mamba import RICH

NETWORKS = {"everything": dataclasses.replace(EVERYTHING, mtp_heads=2), "rich": RICH, "lanes": LANES}


@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_every_tensor_has_a_line(settings):
    model = build_model(settings, device="meta")
    for name, tensor in model.named_parameters():
        row = parameter(name)
        assert (row.group == "matrix") == (name in BANKS)
        assert row.packed == (not name.startswith("mtp_heads."))
        if name in BANKS:
            assert row.bank == name and tensor.dim() == 3
    for name, tensor in submission_state(model).items():
        assert tensor.dim() == 2 or not parameter(name).site


def test_every_line_is_a_tensor_of_some_network():
    models = [build_model(settings, device="meta") for settings in NETWORKS.values()]
    found = {parameter(name).name for model in models for name in unbank(model.state_dict())}
    assert {row.name for row in TABLE} <= found


@pytest.mark.parametrize("preset", preset_names())
def test_what_has_no_line_is_small(preset):
    """At full size; a matrix without a line would be trained and rounded as a gain."""
    model = build_model(load_preset(preset).model, device="meta")
    lines = {row.name for row in TABLE}
    layered = unbank(model.state_dict())
    assert all(tensor.numel() <= 65_536 for name, tensor in layered.items() if parameter(name).name not in lines)
    assert {name for names in slice_names(model.settings).values() for name in names} <= layered.keys()


@pytest.mark.parametrize("settings", [EVERYTHING, LANES, SMALL], ids=["everything", "lanes", "small"])
def test_the_report_counts_the_same_products(settings):
    """`pgolf.flops` knows no tensors: the report needs no torch. Here they are counted one by one."""
    model = build_model(settings, device="meta")
    count = 0
    for name, tensor in submission_state(model).items():
        row = parameter(name)
        if name.startswith("blocks.") and (row.site or row.name in ("attn.attn_gate.weight", "attn.attn_gate_w")):
            number = int(name.split(".")[1])
            count += tensor.numel() * [layer.physical if row.bank else layer.block for layer in model.layers].count(number)
        elif row.site and not (row.name == "tok_emb.weight" and not settings.tied):
            count += tensor.numel()
    assert matrix_weights(settings) == count


def test_small_tensors_are_scalars():
    row = parameter("blocks.3.attn.some_gate")
    assert (row.name, row.group, row.role, row.bank, row.site, row.packed) == (
        "attn.some_gate",
        "scalar",
        "matrix",
        "",
        "",
        True,
    )
    assert parameter("some_mix").role == "embedding" and parameter("blocks.11.some_mix").name == "some_mix"
    assert parameter("blocks.3.mixer.conv1d.weight").group == "convolution" and parameter("mtp_heads.3.weight").group == "head"


def test_sites():
    assert adapter_shapes(SMALL) == {
        "q": (48, 48), "k": (24, 48), "v": (24, 48), "o": (48, 48), "up": (80, 48), "down": (48, 80), "head": (61, 48),
        "attn_side": (48, 48), "mlp_side": (48, 48),
    }  # fmt: skip
    assert tuple(adapter_shapes(SMALL)) == ADAPTED
    assert moment_names("q", 3, tied=True) == [f"blocks.3.attn.{name}.weight" for name in ("c_q", "c_k", "c_v")]
    assert moment_names("k", 3, tied=True) == []
    assert moment_names("head", 0, tied=True) == ["tok_emb.weight"]
    assert moment_names("head", 0, tied=False) == ["lm_head.weight"]
    assert moment_names("bigram", 0, tied=True) == ["bigram.proj.weight"]


def test_layers_of_a_recurrent_network():
    layers = executed_layers(load_preset("pr745").model)
    assert [layer.physical for layer in layers] == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert [layer.block for layer in layers] == list(range(13)) and [layer.index for layer in layers] == list(range(13))
    assert [layer.pushes for layer in layers] == [True] * 6 + [False] * 7
    assert [layer.source for layer in layers] == [None] * 6 + [5, 4, 3, 2, 1, 0, None]
    assert [layer.skip for layer in layers] == [None] * 6 + [0, 1, 2, 3, 4, 5, None]
    assert [layer.xsa for layer in layers] == [False] * 2 + [True] * 11
    assert [layer.value_embedding for layer in layers] == [None] * 9 + [0, 1] + [None] * 2
    assert layers[3].scale == 0.5 and not any(layer.mamba or layer.hyper for layer in layers)


def test_layers_of_a_loop():
    on, off = (executed_layers(LANES, looped=looped) for looped in (True, False))
    assert [layer.physical for layer in on] == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5] and [layer.physical for layer in off] == list(
        range(6)
    )
    assert all(layer.block == layer.physical for layer in (*on, *off))
    assert [layer.lanes for layer in on] == [False] * 8 + [True] * 2 and [layer.lanes for layer in off] == [False] * 4 + [
        True
    ] * 2
    assert [layer.source for layer in on] == [None] * 5 + [4, 3, 2, 1, 0] and [layer.skip for layer in off][3:] == [0, 1, 2]
    assert [layer.scale for layer in on][4] == 3**-0.5 and all(layer.xsa for layer in on)


def test_layers_of_a_hybrid():
    layers = executed_layers(RICH)
    assert [(layer.mamba, layer.slot) for layer in layers] == [(True, 0), (True, 1), (False, 0), (True, 2), (False, 1)]
    assert [layer.hyper for layer in layers] == [False] * 3 + [True] * 2
