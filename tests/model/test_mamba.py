"""The state-space hybrid: its size, its function against a transcription in float64, causality, decoding, and all that
stores, adapts and rounds a network."""

import dataclasses
import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pgolf.artifact.calibration import hessians
from pgolf.artifact.pack import read_artifact, write_artifact
from pgolf.artifact.weights import round_weights
from pgolf.config import AdaptationSettings, Settings, SettingsError, at_scale, load_preset
from pgolf.evaluation.adaptation import ChunkAdapter
from pgolf.model import (
    Decoder,
    build_model,
    count_parameters,
    import_checkpoint,
    parameter_groups,
    submission_state,
    unbank,
    untie,
)
from pgolf.model.checkpoint import rebank
from tests import transcription
from tests.model.common import SMALL, error, facts, random_model, tokens

HYBRID = dataclasses.replace(
    SMALL, smear=False, bigram_buckets=0, value_embedding_layers=(), xsa_last=0, layer_scale=False, mlp_slope=0.0,
    rotary_dims=12, rope_reference_length=256, scan_layers=(0, 1, 3), scan_heads=3, scan_state=5, scan_conv=3,
)  # fmt: skip
BY_TOKEN = dataclasses.replace(HYBRID, scan_input_dt=True)
# with the parts that transformers may have too
RICH = dataclasses.replace(
    BY_TOKEN, smear=True, bigram_buckets=37, value_embedding_layers=(4,), xsa_last=2, layer_scale=True, gated_attention=True,
    hyper_layers=2, dtg=True, tied=False, scan_conv=1, scan_expansion=3,
)  # fmt: skip


# ---- against the transcription


@pytest.mark.parametrize("settings", [HYBRID, BY_TOKEN, "mamba", "mamba-10l"], ids=["constant", "by token", "12", "10"])
@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_are_the_transcription_s(settings, dtype, allowed):
    """Longer than a chunk of the scan, and no multiple of one."""
    preset = isinstance(settings, str)
    settings = at_scale(load_preset(settings), "tiny").model if preset else settings
    model = random_model(settings, dtype=dtype).eval()
    if preset:
        # fading as slowly as in training
        with torch.no_grad():
            for block in model.blocks:
                if hasattr(block, "mixer"):
                    block.mixer.dt_bias.sub_(4)
    given = tokens(2, 75, settings.vocab_size)
    eps = torch.finfo(dtype).eps
    with torch.no_grad():
        found = model.logits(given)
        model.operators = "reference"
        plainly = model.logits(given)
    state = submission_state(model)
    for row, once, again in zip(given.tolist(), found, plainly, strict=True):
        wanted = transcription.logits(state, row, facts(settings), eps)
        assert error(once, wanted) < allowed
        assert error(again, wanted) < allowed


# ---- size, names, start


def test_parameters():
    counts = {"mamba": 20_652_288, "mamba-10l": 17_885_904}
    for name, count in counts.items():
        model = build_model(load_preset(name).model, device="meta")
        assert count_parameters(model) == count
        groups = parameter_groups(model)
        shapes = {bank: tuple(getattr(model, bank).shape) for bank in vars(model)["_parameters"] if bank.endswith("_bank")}
        assert sum(map(math.prod, shapes.values())) == sum(p.numel() for p in groups["matrix"])
        assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    # the ten-layer one, by hand: eight mixers, two blocks of attention, embedding, skips
    small = 1024 * 4 + 1024 + 3 * 8 + 3 * 512
    mixers = 8 * (2048 * 512 + 512 * 1024 + 2 * 128 * 512 + small)
    assert 17_885_904 == mixers + 2 * (3 * 512 * 512 + 2 * 1024 * 512 + 4 * 512 + 8) + 1024 * 512 + 5 * 512


def test_the_submission_s_names():
    state = submission_state(build_model(load_preset("mamba").model, device="meta"))
    own = {name.removeprefix("blocks.8."): tuple(tensor.shape) for name, tensor in state.items() if ".8." in name}
    assert own == {
        "mixer_scale": (512,), "resid_mix": (2, 512), "mixer.dt_bias": (8,), "mixer.A_log": (8,), "mixer.D_param": (8,),
        "mixer.conv1d.weight": (1024, 1, 4), "mixer.conv1d.bias": (1024,), "mixer.in_proj.weight": (2048, 512),
        "mixer.B_proj.weight": (64, 512), "mixer.C_proj.weight": (64, 512), "mixer.out_proj.weight": (512, 1024),
    }  # fmt: skip
    assert state["blocks.9.attn.c_k.weight"].shape == (256, 512) and "blocks.9.mixer_scale" not in state
    assert state["skip_weights"].shape == (6, 512)


def test_start():
    model = build_model(load_preset("mamba").model, seed=3)
    mixer = model.blocks[0].mixer
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.001 <= dt.min() and dt.max() <= 0.1 and dt.unique().numel() == 8
    assert torch.equal(mixer.A_log, torch.arange(1, 9).log()) and mixer.D_param.eq(1).all()
    for part, bound in ((mixer.conv1d.weight, 0.5), (mixer.conv1d.bias, 0.5), (model.scan_in_bank, 512**-0.5)):
        assert 0.9 * bound < part.abs().max() <= bound and abs(part.mean()) < 0.1 * bound
    assert model.scan_out_bank.eq(0).all() and model.blocks[0].mixer_scale.eq(1).all()
    by_token = build_model(dataclasses.replace(BY_TOKEN, matrix_start="orthogonal"))
    assert by_token.blocks[0].mixer.dt_proj.weight.eq(0).all()
    square = by_token.scan_in_bank[0].T @ by_token.scan_in_bank[0]
    assert torch.allclose(square, torch.eye(48), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [dict(scan_input_dt=True), dict(scan_state=4), dict(scan_conv=2), dict(scan_expansion=1), dict(scan_heads=2)]
    + [dict(scan_layers=(0, 1)), dict(matrix_start="uniform")],
    ids=lambda change: next(iter(change)),
)
def test_every_switch_does_something(change):
    def said(settings):
        model = build_model(settings, seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in ("scan_out_bank", "qo_bank", "mlp_down_bank") or "dt_proj" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
            return model.logits(tokens(1, 20))

    assert error(said(dataclasses.replace(HYBRID, **change)), said(HYBRID)) > 1e-3


# ---- what comes before knows nothing of what comes after


@pytest.mark.parametrize("settings", [HYBRID, RICH], ids=["plain", "rich"])
def test_causality(settings):
    model = random_model(settings).eval()
    given = tokens(1, 150)
    with torch.no_grad():
        before = model.logits(given)
        for place in (0, 70, 149):
            changed = given.clone()
            changed[0, place] = (changed[0, place] + 1) % 61
            after = model.logits(changed)
            assert torch.equal(after[:, :place], before[:, :place])
            assert not torch.equal(after[:, place], before[:, place])


def test_one_graph():
    model = random_model(RICH).eval()
    counter = CompileCounterWithBackend("eager")
    given = tokens(2, 31)
    with torch.no_grad():
        compiled = torch.compile(model.loss, fullgraph=True, backend=counter)
        assert compiled(given[:, :-1], given[:, 1:]) == model.loss(given[:, :-1], given[:, 1:])
    assert counter.frame_count == 1


# ---- decoding


@pytest.mark.parametrize("settings", [HYBRID, BY_TOKEN, RICH], ids=["constant", "by token", "rich"])
def test_token_by_token_is_the_parallel_form(settings):
    model = random_model(settings).eval()
    given = tokens(2, 140)
    with torch.no_grad():
        wanted = model.logits(given)
    decoder = Decoder(model, 2, 140)
    steps = torch.stack([decoder.step(given[:, t]) for t in range(140)], 1)
    assert error(steps, wanted) < 1e-5
    alone = Decoder(model, 1, 140)
    for row in range(2):
        alone.reset()
        assert torch.equal(alone.prefill(given[row : row + 1, :71]), steps[row, 70][None])
        assert torch.equal(alone.step(given[row : row + 1, 71]), steps[row, 71][None])
        assert torch.equal(alone.prefill(given[row : row + 1, 72:]), steps[row, 139][None])


def digest():
    decoder = Decoder(random_model(RICH), 1, 90)
    given = tokens(1, 90)
    found = b"".join(decoder.step(given[:, t]).numpy().tobytes() for t in range(90))
    return hashlib.sha256(found).hexdigest()


def test_another_process_finds_the_same_bits():
    program = "from tests.model.test_mamba import digest; print(digest())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.split() == [digest()]


# ---- checkpoints, artifacts, adaptation


def test_checkpoints_there_and_back():
    source, settings = random_model(RICH, seed=1), RICH
    state = source.state_dict()
    layered = unbank(state)
    assert not [name for name in layered if name.endswith("_bank")]
    for layer, place in ((0, 0), (1, 1), (3, 2)):
        assert torch.equal(layered[f"blocks.{layer}.mixer.B_proj.weight"], state["scan_state_bank"][place])
        assert torch.equal(layered[f"blocks.{layer}.mixer.C_proj.weight"], state["scan_state_bank"][3 + place])
    assert torch.equal(layered["blocks.4.attn.c_v.weight"], state["kv_bank"][3])
    again = rebank(layered, settings)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    for form in (state, layered, submission_state(untie(source))):
        target = random_model(settings, seed=2)
        import_checkpoint(target, form)
        assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    damaged = dict(layered)
    del damaged["blocks.1.mixer.in_proj.weight"]
    with pytest.raises(ValueError, match="missing blocks.1.mixer.in_proj.weight"):
        import_checkpoint(random_model(settings), damaged)
    with pytest.raises(ValueError, match="unexpected scan_in_bank"):
        import_checkpoint(random_model(SMALL), {**random_model(SMALL).state_dict(), "scan_in_bank": state["scan_in_bank"]})


def test_packed_as_the_submission_did(tmp_path):
    """Eight bits a row with one high quantile as clip, what is small in float16, and the same function again."""
    settings = at_scale(load_preset("mamba"), "tiny")
    model = random_model(settings.model)
    state = submission_state(model)
    weights = round_weights(state, settings.artifact)
    name = "blocks.0.mixer.in_proj.weight"
    row = state[name][3].detach()
    scale = max(float(row.abs().quantile(0.9999984)) / 127, 1 / 127)
    assert float(weights.rounded[name].scales[3]) == pytest.approx(scale, rel=1e-3)
    assert torch.equal(weights.rounded[name].codes[3], (row / scale).clamp(-127, 127).round().to(torch.int8))
    assert "blocks.0.mixer.A_log" in weights.small
    write_artifact(tmp_path / "model.pgolf", state, settings, b"")
    again = read_artifact(tmp_path / "model.pgolf").build_model()
    given = tokens(1, 80, settings.model.vocab_size)
    with torch.no_grad():
        assert error(again.logits(given), model.eval().logits(given)) < 0.5
        wanted = weights.values({name: tensor.shape for name, tensor in state.items()})
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in submission_state(again).items())


def test_calibration_sees_every_matrix():
    model = random_model(HYBRID)
    found = hessians(model, [tokens(2, 30)])
    names = [name for name in submission_state(model) if name.endswith("proj.weight") or ".c_" in name or ".fc." in name]
    assert sorted(found) == sorted(names)
    own = "blocks.3.mixer."
    assert torch.equal(found[own + "C_proj.weight"], found[own + "in_proj.weight"])
    assert found[own + "out_proj.weight"].shape == (96, 96)


def test_chunks_teach_the_mixers():
    model = random_model(HYBRID).eval()
    before = {name: tensor.clone() for name, tensor in submission_state(model).items()}
    settings = AdaptationSettings(method="chunks", lr=0.01, batch_sequences=2, output_lr=3.0, freeze_first=1, untie=True)
    adapter = ChunkAdapter(model, settings, sequence_length=32)
    assert adapter.factors["blocks.1.mixer.out_proj.weight"] == 3.0 and adapter.factors["blocks.1.mixer.in_proj.weight"] == 1.0
    stream = tokens(1, 129)[0].numpy()
    losses = []
    for _ in range(3):
        with adapter.scoring_model() as scorer, torch.no_grad():
            rows = torch.from_numpy(stream[:128]).view(4, 32), torch.from_numpy(stream[1:]).view(4, 32)
            losses.append(float(scorer.loss(*rows)))
        adapter.learn(stream, 0, 1, epochs=2)
    assert losses[2] < losses[1] < losses[0]
    moved = {name for name, tensor in submission_state(adapter.model).items() if not torch.equal(tensor, before[name])}
    assert moved == set(adapter.factors)
    assert not [name for name in moved if name.startswith("blocks.0.")] and "blocks.3.mixer.A_log" in moved


# ---- what cannot work


@pytest.mark.parametrize(
    "change, line",
    [
        (dict(scan_layers=(0, 5)), "names layer 5"),
        (dict(scan_layers=(-1,)), "names layer -1"),
        (dict(scan_layers=(0, 0)), "twice"),
        (dict(scan_layers=(0, 1, 2, 3, 4)), "every layer"),
        (dict(scan_heads=5), "does not divide"),
        (dict(scan_state=0), "scan_state is 0"),
        (dict(scan_conv=0), "scan_conv is 0"),
        (dict(recurrence=(2,)), "recurrence needs attention in every layer"),
        (dict(value_residual=True), "value_residual needs attention in every layer"),
        (dict(value_embedding_layers=(3,)), "leaves no values"),
    ],
)
def test_what_is_refused(change, line):
    Settings(model=RICH).validate()
    with pytest.raises(SettingsError, match=line):
        Settings(model=dataclasses.replace(HYBRID, **change)).validate()


def test_adapters_are_refused():
    settings = load_preset("mamba")
    adaptation = dataclasses.replace(settings.evaluation.adaptation, method="lora")
    with pytest.raises(SettingsError, match="keys and values of earlier tokens.*none or chunks"):
        dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, adaptation=adaptation)).validate()
