"""The network against an independent float64 transcription of the submissions' formulas."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from pgolf.config import load_preset
from pgolf.model import build_model, import_checkpoint, unbank
from pgolf.model.parts import bigram_bucket
from tests import transcription
from tests.model.common import EVERYTHING, LANES, SMALL, error, facts, random_model, randomise, tokens


def submission_shapes(executed, kv, hidden, buckets, skips, banked, gated):
    """Names and shapes in a submission's checkpoint, 11 physical layers of width 512."""
    shapes = {
        "tok_emb.weight": (1024, 512), "skip_weights": (skips, 512), "smear.gate": (512,),
        "bigram.scale": (), "bigram.embed.weight": (buckets, 128), "bigram.proj.weight": (512, 128),
        "ve_shared.scale": (), "ve_shared.embed.weight": (1024, 128), "ve_shared.proj.weight": (kv, 128),
        "ve_layer_scales.0": (1,), "ve_layer_scales.1": (1,),
    }  # fmt: skip
    for i in range(executed):
        small = {"attn_scale": (512,), "mlp_scale": (512,), "resid_mix": (2, 512), "attn.q_gain": (8,)}
        if gated:
            small |= {"attn.vr_lambda": (2,), "attn.attn_gate.weight": (8, 512), "attn.attn_gate.bias": (8,)}
        if not banked:
            small |= {"attn.c_q.weight": (512, 512), "attn.c_k.weight": (kv, 512), "attn.c_v.weight": (kv, 512)}
            small |= {"attn.proj.weight": (512, 512), "mlp.fc.weight": (hidden, 512), "mlp.proj.weight": (512, hidden)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in small.items()}
    if banked:
        shapes |= {"qo_bank": (22, 512, 512), "kv_bank": (22, kv, 512)}
        shapes |= {"mlp_up_bank": (11, hidden, 512), "mlp_down_bank": (11, 512, hidden)}
    return shapes


SUBMISSIONS = {
    "pr549": (dict(executed=11, kv=256, hidden=1536, buckets=1536, skips=5, banked=True, gated=False), dict(xsa_from=7)),
    "pr688": (
        dict(executed=11, kv=512, hidden=1792, buckets=6144, skips=5, banked=False, gated=False),
        dict(kv_heads=8, xsa_from=0),
    ),
    "pr745": (
        dict(executed=13, kv=256, hidden=1536, buckets=2048, skips=6, banked=True, gated=True),
        dict(xsa_from=2, order=[0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]),
    ),
    "pr1014": (dict(executed=11, kv=256, hidden=1536, buckets=2048, skips=5, banked=True, gated=False), dict(xsa_from=7)),
}


@pytest.mark.parametrize("preset", SUBMISSIONS)
def test_submission_at_full_size(preset):
    """Starts at ln(vocabulary), loads a checkpoint with the submission's names, and then computes its function."""
    shapes, what = SUBMISSIONS[preset]
    model = build_model(load_preset(preset).model, seed=0)
    given = tokens(1, 97, 1024)
    with torch.no_grad():
        assert abs(model.loss(given[:, :-1], given[:, 1:]).item() - math.log(1024)) < 0.02
        state = {name: torch.empty(shape) for name, shape in submission_shapes(**shapes).items()}
        randomise(state.items())
        import_checkpoint(model, state)
        found = model.logits(given[:, :96])[0]
    assert error(found, transcription.logits(state, given[0, :96].tolist(), what)) < 1e-5


def test_953_is_the_network_of_688():
    assert load_preset("pr953").model == load_preset("pr688").model


@torch.no_grad()
def check(settings, length=19, batch=2):
    """Both precisions of the network against the transcription; returns the float64 logits of the first row."""
    given = tokens(batch, length)
    given[:, length // 2] = settings.smear_bos % settings.vocab_size
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        model = random_model(settings, dtype=dtype).eval()
        assert {p.dtype for p in model.parameters()} == {dtype}
        state = model.state_dict() if dtype == torch.float32 else unbank(model.state_dict())
        found = model.logits(given)
        assert found.dtype == dtype and found.shape == (batch, length, settings.vocab_size)
        for row in range(batch):
            wanted = transcription.logits(state, given[row].tolist(), facts(settings), torch.finfo(dtype).eps)
            assert error(found[row], wanted) < limit
    return found[0]


SWITCHES = {
    "kv_heads": dict(kv_heads=4),
    "one kv head": dict(kv_heads=1),
    "mlp_hidden": dict(mlp_hidden=33),
    "mlp_slope": dict(mlp_slope=0.1),
    "rotary_dims": dict(rotary_dims=12),
    "two rotary_dims": dict(rotary_dims=2),
    "no rotary_dims": dict(rotary_dims=0),
    "rope_base": dict(rope_base=100.0),
    "rope_reference_length": dict(rope_reference_length=8),
    "softcap": dict(softcap=2.0),
    "untied": dict(tied=False),
    "no smear": dict(smear=False),
    "no bigram": dict(bigram_buckets=0),
    "bigram_buckets": dict(bigram_buckets=11),
    "bigram_dim": dict(bigram_dim=3),
    "value_embedding_layers": dict(value_embedding_layers=(0, 2)),
    "no value embedding": dict(value_embedding_layers=()),
    "value_embedding_dim": dict(value_embedding_dim=5),
    "xsa everywhere": dict(xsa_last=5),
    "xsa beyond": dict(xsa_last=9),
    "no xsa": dict(xsa_last=0),
    "value_residual": dict(value_residual=True),
    "value_residual after a value embedding": dict(value_residual=True, value_embedding_layers=(0,)),
    "gated_attention": dict(gated_attention=True),
    "no skips": dict(unet_skips=False),
    "no resid_mix": dict(resid_mix=False),
    "no layer_scale": dict(layer_scale=False),
    "recurrence": dict(recurrence=(1, 2)),
    "recurrence at the end": dict(recurrence=(4,)),
    "uneven recurrence": dict(recurrence=(0, 3, 3)),
    "hyper_layers": dict(hyper_layers=3),
    "hyper_layers everywhere": dict(hyper_layers=5),
    "hyper without resid_mix": dict(hyper_layers=2, resid_mix=False),
    "dtg": dict(dtg=True),
    "six layers": dict(layers=6),
    "loop": dict(loop_layers=(1, 2), loop_passes=3),
    "loop at the end": dict(loop_layers=(3, 4), loop_passes=2, hyper_layers=2),
    "loop of one, with value residuals": dict(loop_layers=(2,), loop_passes=4, value_residual=True),
    "skip_gates": dict(skip_gates=True),
    "lanes": dict(lanes_from=3),
    "lanes in the last layer": dict(lanes_from=4, value_residual=True),
    "gate_inputs": dict(gate_inputs=7),
    "gate_scale": dict(gate_inputs=5, gate_scale=0.5),
    "smear_inputs": dict(smear_inputs=7),
    "documents apart": dict(document_bos=1),
    "smear without a mask": dict(smear_inputs=7, smear_bos=-1, smear=False),
    "one layer": dict(layers=1, value_embedding_layers=(0,)),
}


@pytest.fixture(scope="module")
def plain():
    return check(SMALL)


@pytest.mark.parametrize("change", SWITCHES)
def test_switch(change, plain):
    """Each part alone changes the function, into the one that the formulas give."""
    changed = check(dataclasses.replace(SMALL, **SWITCHES[change]))
    if change != "xsa beyond":
        assert error(changed, plain) > 1e-3


def test_everything_at_once():
    check(EVERYTHING, length=50)


def test_lanes_loops_and_gates_at_once():
    check(LANES, length=50)
    check(dataclasses.replace(LANES, value_residual=True, hyper_layers=2, bigram_buckets=37, tied=False, smear=True))


@torch.no_grad()
def test_a_loop_that_is_off():
    """Once through every layer, over the same weights; the rows of skips count from the first of the second half."""
    model = random_model(LANES, dtype=torch.float64).eval()
    given = tokens(1, 30)
    looped, model.looped = model.logits(given)[0], False
    off = facts(LANES) | {"order": list(range(6)), "eps": torch.finfo(torch.float64).eps}
    wanted = transcription.logits(model.state_dict(), given[0].tolist(), off, off["eps"])
    assert error(model.logits(given)[0], wanted) < 1e-11
    assert error(looped, wanted) > 1e-3


def test_gradients():
    """What flows back to each parameter is what flows through the formulas, the token gate's stop included."""
    model = random_model(EVERYTHING, dtype=torch.float64)
    state = {name: tensor.clone().requires_grad_() for name, tensor in model.state_dict().items()}
    given = tokens(1, 24)
    model.loss(given[:, :-1], given[:, 1:]).backward()
    found = transcription.logits(state, given[0, :-1].tolist(), facts(EVERYTHING), torch.finfo(torch.float64).eps)
    F.cross_entropy(found, given[0, 1:]).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert state[name].grad is None, name
        else:
            assert error(parameter.grad, state[name].grad) < 1e-9, name


@torch.no_grad()
def test_long_sequence_raises_the_base():
    settings = dataclasses.replace(SMALL, layers=2, value_embedding_layers=(1,), rope_reference_length=1024)
    given = tokens(1, 1100)
    model = random_model(settings, dtype=torch.float64)
    found = model.logits(given)[0]
    what, eps = facts(settings), torch.finfo(torch.float64).eps
    assert error(found, transcription.logits(model.state_dict(), given[0].tolist(), what, eps)) < 1e-11
    unraised = transcription.logits(model.state_dict(), given[0].tolist(), what | {"reference_length": 10**9}, eps)
    assert error(found, unraised) > 1e-3


@pytest.mark.parametrize("settings", [SMALL, EVERYTHING], ids=["small", "everything"])
def test_reference_operators_compute_the_same(settings):
    settings = dataclasses.replace(settings, mtp_heads=2)
    given = tokens(2, 24)
    results = {}
    for operators in ("kernels", "reference"):
        model = random_model(settings, dtype=torch.float64)
        model.operators = operators
        loss = model.loss(given[:, :-1], given[:, 1:])
        loss.backward()
        results[operators] = [loss] + [p.grad for p in model.parameters() if p.grad is not None]
    assert len(results["kernels"]) == len(results["reference"])
    for found, wanted in zip(*results.values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_unknown_operators_are_refused():
    model = random_model(SMALL)
    model.operators = "fast"
    with pytest.raises(ValueError, match="'fast'; it can be kernels or reference"):
        model.logits(tokens(1, 3))


def test_hash_wraps_like_int32():
    pairs = torch.tensor([[0, 0], [1023, 1022], [65535, 65535], [65535, 0], [40000, 60000], [59139, 78], [1, 65535]])
    wanted = [
        (transcription.wrap32(36313 * now) ^ transcription.wrap32(27191 * before)) % 6143 for now, before in pairs.tolist()
    ]
    assert bigram_bucket(pairs[:, 0], pairs[:, 1], 6144).tolist() == wanted
    now, before = pairs.int().T
    assert ((36313 * now ^ 27191 * before) % 6143).tolist() == wanted
