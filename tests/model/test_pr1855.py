"""The network of PR #1855 at full size: its parameters, its names, its start, and its logits by its formulas."""

import dataclasses
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pgolf.config import Settings, SettingsError, load_preset
from pgolf.model import (
    Adapters,
    Decoder,
    KVCachedNetwork,
    build_model,
    count_parameters,
    import_checkpoint,
    parameter_groups,
    submission_state,
    unbank,
    untie,
)
from pgolf.model.documents import document_bounds
from pgolf.model.parts import softcapped
from tests import transcription
from tests.model.common import LANES, error, facts, random_model, randomise, tokens
from tests.model.test_adapters import filled

LAYER = {
    "attn_scale": (512,), "mlp_scale": (512,), "resid_mix": (2, 512), "attn.q_gain": (8,), "attn.attn_gate_w": (8, 12),
}  # fmt: skip
NAMES = {
    "tok_emb.weight": (8192, 512), "qo_bank": (22, 512, 512), "kv_bank": (22, 256, 512), "mlp_up_bank": (11, 2048, 512),
    "mlp_down_bank": (11, 512, 2048), "skip_weights": (8, 512), "skip_gates": (8, 512), "parallel_post_lambdas": (11, 2, 2),
    "parallel_resid_lambdas": (11, 2), "smear_gate.weight": (1, 12), "smear_lambda": (1,),
    **{f"blocks.{layer}.{name}": shape for layer in range(11) for name, shape in LAYER.items()},
}  # fmt: skip
LOOPED = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
# written down from the record, not read from the preset
FACTS = {
    "order": LOOPED, "xsa_from": 0, "value_layers": (), "reference_length": 1_000_000, "loops": True, "lanes_from": 8,
    "gate_scale": 0.5, "document_bos": 1,
}  # fmt: skip


def network():
    return load_preset("pr1855").model


def test_parameters():
    model = build_model(network(), device="meta")
    assert count_parameters(model) == 35_945_671
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == NAMES
    groups = parameter_groups(model)
    assert len(groups["matrix"]) == 4 and len(groups["token"]) == 1 and len(groups["scalar"]) == 6 + 5 * 11


@torch.no_grad()
def test_logits_of_a_checkpoint():
    """Looped and unlooped; documents begin inside the row."""
    model = build_model(network(), seed=0).eval()
    given = tokens(1, 65, 8192)
    assert abs(model.loss(given[:, :-1], given[:, 1:]).item() - math.log(8192)) < 0.02
    given[0, 0] = given[0, 30] = given[0, 31] = 1
    state = {name: torch.empty(shape) for name, shape in NAMES.items()}
    randomise(state.items())
    import_checkpoint(model, state)
    row = given[0].tolist()
    wanted = transcription.logits(state, row, FACTS)
    assert error(model.logits(given)[0], wanted) < 1e-5
    layered = build_model(network(), seed=1).eval()
    import_checkpoint(layered, unbank(state))
    assert torch.equal(layered.logits(given), model.logits(given))
    model.looped = False
    once = transcription.logits(state, row, FACTS | {"order": list(range(11))})
    assert error(model.logits(given)[0], once) < 1e-5 and error(once, wanted) > 1e-2


def test_start():
    model = build_model(network(), seed=3)
    constant = {
        "skip_weights": 1, "skip_gates": 0, "parallel_post_lambdas": 1, "parallel_resid_lambdas": 1.1, "smear_gate.weight": 0,
        "smear_lambda": 0, "mlp_down_bank": 0, "blocks.7.attn.q_gain": 5, "blocks.7.attn.attn_gate_w": 0,
    }  # fmt: skip
    state = model.state_dict()
    for name, value in constant.items():
        assert torch.equal(state[name], torch.full_like(state[name], value)), name


# ---- the same mechanisms, small


def test_every_parameter_learns():
    model = random_model(LANES, dtype=torch.float64)
    given = tokens(4, 40)
    model.loss(given[:, :-1], given[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        learns = parameter.grad != 0
        if name.startswith("parallel_"):
            assert learns.flatten(1).all(1).tolist() == [False] * 4 + [True] * 2, name
        else:
            assert learns.any() if name == "tok_emb.weight" else learns.all(), name


def test_two_graphs():
    """Switching the loop on compiles one further graph, and back none."""
    model = random_model(LANES)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend=counter)
    given = tokens(2, 21)
    for looped, graphs in ((False, 1), (True, 2), (False, 2), (True, 2)):
        model.looped = looped
        assert compiled(given[:, :-1], given[:, 1:]) == model.loss(given[:, :-1], given[:, 1:])
        assert counter.frame_count == graphs


@torch.no_grad()
def test_in_pieces_of_layers_and_positions():
    """Keys and values of every executed layer are kept apart, whatever the number of blocks; a row is one document."""
    model = random_model(dataclasses.replace(LANES, document_bos=-1), dtype=torch.float64).eval()
    given = tokens(2, 30)
    given[:, 17] = 1
    cached = KVCachedNetwork(model, 30)
    past, parts = {}, []
    for first, last in ((0, 11), (11, 18), (18, 30)):
        lead = min(1, first)
        stream, own = cached.embed(given[:, first - lead : last], lead), {}
        for layers in (cached.layers[:3], cached.layers[3:8], cached.layers[8:]):
            stream, more = cached.run_layers(
                stream, given[:, first:last], layers, rotary=cached.rotary(first, last), past=past
            )
            own |= more
        past = own
        parts.append(cached.logits(stream.leaving()))
    logits = softcapped(torch.cat(parts, 1), model.settings.softcap)
    torch.testing.assert_close(logits, model.logits(given), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("operators", ["kernels", "reference"])
def test_a_document_knows_nothing_of_the_one_before(operators):
    """What comes before it in the row does not matter, nor whether anything does."""
    model = random_model(dataclasses.replace(LANES, rope_reference_length=40), dtype=torch.float64).eval()
    model.operators = operators
    given = tokens(3, 40)
    given[:, 25] = 1
    other = given.clone()
    other[:, 3:25] = (given[:, 3:25] + 7) % 61
    found, changed = model.logits(given), model.logits(other)
    torch.testing.assert_close(found[:, 25:], changed[:, 25:], rtol=1e-12, atol=1e-12)
    assert (found[:, 3:25] - changed[:, 3:25]).abs().amax() > 1e-2
    alone = model.logits(given[1:2, 25:])
    torch.testing.assert_close(found[1:2, 25:], alone, rtol=1e-10, atol=1e-10)


def test_bounds_of_documents():
    given = torch.tensor([[5, 1, 1, 7], [1, 5, 6, 1]])
    assert document_bounds(given, 1).tolist() == [0, 1, 2, 4, 7, 8, 8, 8, 8]
    assert document_bounds(torch.full((2, 3), 1), 1).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_the_decoder_gives_the_same_bits_however_tokens_arrive():
    model = random_model(LANES)
    given = tokens(2, 70)
    given[:, 35], given[:, 60] = 1, 1
    stepped, whole = Decoder(model, 2, 70), Decoder(model, 1, 70)
    steps = [stepped.step(given[:, t]) for t in range(70)]
    assert torch.equal(whole.prefill(given[1:]), steps[-1][1:])
    whole.reset()
    assert torch.equal(whole.prefill(given[:1, :40]), steps[39][:1])


def test_checkpoints_there_and_back():
    source, target = random_model(LANES, seed=1), random_model(LANES, seed=2)
    import_checkpoint(target, submission_state(source))
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())
    with pytest.raises(ValueError, match="a loop shares all of a layer's parameters"):
        untie(source)


@pytest.mark.parametrize(
    "change, line",
    [
        (dict(loop_layers=(3, 2)), r"model.loop_layers \[3, 2\] must be neighbouring layers in order, from 0 to 5"),
        (dict(loop_layers=(1, 3)), "must be neighbouring layers"),
        (dict(loop_layers=(5, 6)), "must be neighbouring layers"),
        (dict(loop_passes=0), "model.loop_passes is 0"),
        (dict(recurrence=(2,)), "two ways to repeat layers; choose one"),
        (dict(gated_attention=True), "two gates for the same heads; choose one"),
        (dict(gate_inputs=49), "model.gate_inputs 49 is more than model.dim, 48"),
        (dict(smear_inputs=49), "model.smear_inputs 49 is more than"),
        (dict(lanes_from=6), "model.lanes_from 6 is no layer: there are 0 to 5"),
        (dict(lanes_from=2), "model.lanes_from 2 is in the first half of the layers"),
        (dict(dtg=True), "two; choose one"),
    ],
)
def test_what_is_refused(change, line):
    Settings(model=LANES).validate()
    with pytest.raises(SettingsError, match=line):
        Settings(model=dataclasses.replace(LANES, **change)).validate()


def test_facts_are_those_of_the_small_tests():
    assert facts(network()) | FACTS | {"base": 10_000.0} == facts(network())


def test_the_decoder_goes_through_adapters_beside_sublayers():
    """A set of its own for each row, and none for one."""
    model = random_model(LANES).eval()
    given = tokens(3, 66)
    sites = ("q", "v", "attn_side", "mlp_side", "head")
    adapters = filled(Adapters.create(LANES, 3, 3, sites, alpha=6.0))
    with torch.no_grad():
        wanted = model.logits(given, adapters=adapters)
        plain = model.logits(given)
    decoder = Decoder(model, 3, 66, rank=3)
    for row, document in enumerate((2, 1)):
        decoder.adapt(row, adapters, document)
    found = decoder.prefill(given[torch.tensor([2, 1, 0])])
    assert error(found[0], wanted[2, -1]) < 1e-5 and error(found[1], wanted[1, -1]) < 1e-5
    assert error(found[2], plain[0, -1]) < 1e-5 and error(wanted[0, -1], plain[0, -1]) > 1e-3
