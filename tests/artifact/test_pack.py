import copy
import dataclasses
import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from pgolf.artifact import compression, gptq, rounding
from pgolf.artifact.container import join_sections, read_container
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.pack import read_artifact, read_codes, sections_of, size_of, write_artifact
from pgolf.artifact.weights import role_of, round_weights, steps_of
from pgolf.config import at_scale, load_preset, preset_names
from pgolf.model import build_model, import_checkpoint, submission_state
from tests.artifact.conftest import TOKENIZER, settings_with
from tests.model.common import EVERYTHING, random_model

COMPRESSORS = ("zstd", "lzma", "entropy")


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("matrix_bits", [2, 5, 8])
def test_what_is_read_is_what_was_rounded(tmp_path, state, compressor, matrix_bits):
    settings = settings_with(compressor=compressor, matrix_bits=matrix_bits, embedding_bits=6, lqer_rank=2)
    size = write_artifact(tmp_path / "m", state, settings, TOKENIZER, extra={"ngram_backoff": b"table"})
    artifact = read_artifact(tmp_path / "m")
    weights = round_weights(state, settings.artifact)
    expected = weights.values({name: tensor.shape for name, tensor in state.items()})
    assert list(artifact.state) == list(state)
    for name in state:
        assert torch.equal(artifact.state[name], expected[name]), name
    assert artifact.tokenizer == TOKENIZER and artifact.sections == {"ngram_backoff": b"table"}
    assert artifact.model_settings == settings.model
    built = submission_state(artifact.build_model())
    assert all(torch.equal(built[name], expected[name]) for name in state)
    assert size.model_bytes + size.tokenizer_bytes == (tmp_path / "m").stat().st_size == sum(size.parts.values())


def test_an_odd_network_with_every_part_comes_back(tmp_path):
    state = submission_state(random_model(EVERYTHING))
    settings = dataclasses.replace(settings_with(compressor="entropy"), model=EVERYTHING)
    write_artifact(tmp_path / "m", state, settings, TOKENIZER)
    for name, tensor in read_artifact(tmp_path / "m").state.items():
        assert (tensor - state[name]).abs().max() < 0.12 * state[name].abs().max(), name


def test_codes_are_read_in_place_of_banks_for_as_long_as_they_are_their_values(state, monkeypatch):
    settings = settings_with(matrix_bits=5, lqer_rank=0)
    weights = round_weights(state, settings.artifact)
    model = build_model(settings.model).eval()
    import_checkpoint(model, weights.values({name: tensor.shape for name, tensor in state.items()}))
    plain = model.matrices()
    read_codes(model, weights)
    assert set(model.packed) == {"qo_bank", "kv_bank", "mlp_up_bank", "mlp_down_bank"}
    monkeypatch.setattr(model, "_cast", None)
    for one, other in zip(model.matrices(), plain, strict=True):
        assert all(torch.equal(one[site], other[site]) for site in other)
    model.activation = torch.bfloat16
    for one, other in zip(model.matrices(), plain, strict=True):
        assert all(torch.equal(one[site], other[site].bfloat16()) for site in other)
    # not of a copy, and not once a weight has moved
    monkeypatch.undo()
    copied = copy.deepcopy(model)
    for network in (copied, model):
        with torch.no_grad():
            network.qo_bank.add_(1)
        assert torch.equal(network.matrices()[0]["q"], network.qo_bank[0].bfloat16())


def test_roles_and_their_steps():
    chosen = settings_with(matrix_bits=5, embedding_bits=7).artifact
    assert role_of("blocks.3.mlp.fc.weight", 500, chosen) == "small"
    assert role_of("blocks.3.mlp.fc.weight", 501, chosen) == "matrix"
    assert role_of("bigram.proj.weight", 501, chosen) == "matrix"
    assert role_of("bigram.embed.weight", 501, chosen) == "embedding"
    assert steps_of("matrix", chosen).largest == 15 and steps_of("embedding", chosen).largest == 63


@pytest.fixture(scope="module")
def moments(state):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in state.items():
        if tensor.dim() == 2 and (".attn.c" in name or ".proj." in name or ".mlp." in name or name == "tok_emb.weight"):
            x = torch.randn(300, tensor.shape[1], generator=generator)
            x = x @ torch.randn(tensor.shape[1], tensor.shape[1], generator=generator)
            found[name] = x.T @ x / 300
    return found


@pytest.mark.parametrize("form", ["percentile", "sdclip", "gptq-published", "gptq", "gptq-sdclip"])
def test_each_rounding_does_what_it_says(state, moments, form):
    chosen = settings_with(rounding=form, sdclip_sigmas=5.0, sdclip_embedding_sigmas=7.0).artifact
    found = round_weights(state, chosen, moments).rounded
    matrix, table = "blocks.1.mlp.fc.weight", "bigram.embed.weight"
    if role_of(table, state[table].numel(), chosen) == "small":
        table = "tok_emb.weight"
        moments = {name: moment for name, moment in moments.items() if name != table}
        found = round_weights(state, chosen, moments).rounded
    steps, wide = steps_of("matrix", chosen), steps_of("embedding", chosen)
    assert (steps.sigmas, wide.sigmas) == ((5.0, 7.0) if "sdclip" in form else (0.0, 0.0))
    expected = {
        "percentile": lambda w, h: rounding.by_percentile(w, steps),
        "sdclip": lambda w, h: rounding.by_sigma(w, steps),
        "gptq-published": lambda w, h: gptq.published(w, h, steps),
        "gptq": lambda w, h: gptq.standard(w, h, steps),
        "gptq-sdclip": lambda w, h: gptq.standard(w, h, steps),
    }[form](state[matrix][None], moments[matrix][None])
    assert torch.equal(found[matrix].codes, expected.codes.reshape(found[matrix].codes.shape))
    embedded = rounding.by_sigma(state[table], wide) if "sdclip" in form else rounding.by_quantile(state[table], wide)
    assert torch.equal(found[table].codes, embedded.codes)


def test_the_output_matrix_is_calibrated_where_it_has_inputs(state, moments):
    chosen = settings_with(rounding="gptq").artifact
    with_inputs = round_weights(state, chosen, moments).rounded["tok_emb.weight"]
    plain = rounding.by_quantile(state["tok_emb.weight"], steps_of("embedding", chosen))
    moment = moments["tok_emb.weight"]
    lost = [gptq.output_error(state["tok_emb.weight"], one.values(), moment) for one in (with_inputs, plain)]
    assert lost[0] < 0.7 * lost[1]


def test_steps_and_damping_follow_the_settings(state, moments):
    name = "blocks.1.mlp.fc.weight"
    few = round_weights(state, settings_with(scale_steps=4).artifact).rounded[name]
    logs = few.scales.double().log2() * 4
    assert (logs - logs.round()).abs().max() < 0.01
    floored = round_weights(state, settings_with(scale_floor=True).artifact).rounded[name]
    assert (floored.scales >= torch.tensor(1 / 31).half()).all() and (few.scales < 1 / 31).any()
    weak, strong = (
        round_weights(state, settings_with(rounding="gptq-sdclip", damping=damping).artifact, moments).rounded[name]
        for damping in (0.01, 1e6)
    )
    plain = round_weights(state, settings_with(rounding="sdclip").artifact).rounded[name]
    assert torch.equal(strong.codes, plain.codes) and not torch.equal(weak.codes, plain.codes)


def test_pruning_settings_reach_the_codes(state):
    plain = round_weights(state, settings_with().artifact).rounded
    half = round_weights(state, settings_with(prune=0.5).artifact).rounded
    lone = round_weights(state, settings_with(prune_ones=1.0).artifact).rounded
    for name in plain:
        assert float((half[name].codes == 0).float().mean()) >= 0.49 > float((plain[name].codes == 0).float().mean())
        assert (lone[name].codes.abs() != 1).all()
        keep = plain[name].codes.abs() != 1
        assert torch.equal(lone[name].codes[keep], plain[name].codes[keep])


def test_corrections_go_to_the_worst_tensors_and_help(state):
    shapes = {name: tensor.shape for name, tensor in state.items()}
    chosen = settings_with(matrix_bits=3, embedding_bits=3, lqer_rank=4, lqer_tensors=2).artifact
    corrected = round_weights(state, chosen)
    plain = round_weights(state, dataclasses.replace(chosen, lqer_rank=0))
    errors = {name: float((state[name] - value).norm()) for name, value in plain.values(shapes).items()}
    assert sorted(corrected.corrections) == sorted(sorted(errors, key=errors.get)[-2:])
    for name, value in corrected.values(shapes).items():
        better = float((state[name] - value).norm())
        assert better < 0.99 * errors[name] if name in corrected.corrections else better == errors[name]


def test_nothing_is_written_beyond_the_limit(tmp_path, state):
    weights = settings_with().artifact
    size = size_of(sections_of(round_weights(state, weights), settings_with(), TOKENIZER), 0, 0).model_bytes
    write_artifact(tmp_path / "fits", state, settings_with(limit=size + 700), TOKENIZER, code_bytes=650)
    with pytest.raises(ArtifactError, match="above the limit"):
        write_artifact(tmp_path / "larger", state, settings_with(limit=size + 600), TOKENIZER, code_bytes=650)
    assert not (tmp_path / "larger").exists()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_packs_at_the_tiny_scale(tmp_path, preset):
    settings = at_scale(load_preset(preset), "tiny")
    model = build_model(settings.model, seed=0)
    state = submission_state(model)
    moments = {
        name: torch.eye(tensor.shape[1]) + 0.5
        for name, tensor in state.items()
        if tensor.dim() == 2 and role_of(name, tensor.numel(), settings.artifact) == "matrix"
    }
    write_artifact(tmp_path / "m", state, settings, TOKENIZER, hessians=moments)
    artifact = read_artifact(tmp_path / "m")
    back, corrected = artifact.state, artifact.meta["corrections"]
    rounded = [name for name, tensor in state.items() if role_of(name, tensor.numel(), settings.artifact) == "matrix"]
    # a low-rank correction gives a matrix more values than its codes have
    assert len(corrected) == min(settings.artifact.lqer_rank, 1) * settings.artifact.lqer_tensors
    assert rounded and all(len(back[name].unique()) < back[name].numel() for name in rounded if name not in corrected)


# ---- what a stranger may send, with a checksum that is right


def repacked(path, **changes):
    """The same file with other sections, signed anew; a change that is a function edits the description."""
    sections = read_container(path)
    for name, change in changes.items():
        if callable(change):
            meta = json.loads(zlib.decompress(sections["meta"]))
            change(meta)
            sections["meta"] = zlib.compress(json.dumps(meta).encode())
        elif change is None:
            del sections[name]
        else:
            sections[name] = change
    path.write_bytes(join_sections(sections))


def model_with(**values):
    return lambda meta: meta["model"].update(values)


def artifact_with(**values):
    return lambda meta: meta["artifact"].update(values)


HOSTILE = {
    "a huge vocabulary": {"meta": model_with(vocab_size=65536, dim=1_000_000)},
    "a huge network": {"meta": model_with(dim=900_000, mlp_hidden=900_000)},
    "very many layers": {"meta": model_with(layers=10**9)},
    "many repeats": {"meta": model_with(recurrence=[0] * 20_000)},
    "huge training heads": {"meta": model_with(mtp_heads=250, vocab_size=60_000)},
    "negative sizes": {"meta": model_with(mlp_hidden=-5)},
    "no heads": {"meta": model_with(heads=0)},
    "no layers": {"meta": model_with(layers=0)},
    "an infinite cap": {"meta": model_with(softcap=float("inf"))},
    "a base that is no number": {"meta": model_with(rope_base=float("nan"))},
    "a word for a number": {"meta": model_with(dim="512")},
    "an unknown setting": {"meta": model_with(colour=1)},
    "other bits": {"meta": artifact_with(matrix_bits=9)},
    "fewer bits": {"meta": artifact_with(matrix_bits=3)},
    "another compressor": {"meta": artifact_with(compressor="entropy")},
    "an unknown compressor": {"meta": artifact_with(compressor="pickle")},
    "other small tensors": {"meta": artifact_with(small_tensor=5000)},
    "a correction without a matrix": {"meta": lambda meta: meta.update(corrections={"none": 1})},
    "a correction of huge rank": {"meta": lambda meta: meta.update(corrections={"tok_emb.weight": 10**9})},
    "a correction that is missing": {"meta": lambda meta: meta.update(corrections={"tok_emb.weight": 1})},
    "corrections in a list": {"meta": lambda meta: meta.update(corrections=["tok_emb.weight"])},
    "no model": {"meta": lambda meta: meta.pop("model")},
    "no JSON": {"meta": zlib.compress(b"{")},
    "deep JSON": {"meta": zlib.compress(b"[" * 90_000)},
    "a bomb for a description": {"meta": zlib.compress(b" " * 50_000_000)},
    "a bomb for a tokenizer": {"tokenizer": zlib.compress(b" " * 50_000_000)},
    "a bomb for codes": {"codes": compression.pack_halves(np.zeros(50_000_000, np.float16), "zstd")},
    "codes of no kind": {"codes": b"nothing"},
    "too few scales": {"scales": compression.pack_halves(np.zeros(5, np.float16), "zstd")},
    "small tensors that are not finite": {"small": "nan"},
    "no codes": {"codes": None},
    "no tokenizer": {"tokenizer": None},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_strangers_file_costs_one_line_and_little_memory(tmp_path, state, change):
    path = tmp_path / "m"
    write_artifact(path, state, settings_with(), TOKENIZER)
    if change.get("small") == "nan":
        count = sum(tensor.numel() for tensor in state.values() if tensor.numel() <= 500)
        change = {"small": compression.pack_halves(np.full(count, np.nan, np.float16), "zstd")}
    repacked(path, **change)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as error:
            read_artifact(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressor", ["lzma", "entropy"])
@pytest.mark.parametrize("section", ["codes", "scales", "small"])
def test_damaged_numbers_of_every_compressor_are_refused_or_finite(tmp_path, state, compressor, section):
    path = tmp_path / "m"
    for turn in range(6):
        write_artifact(path, state, settings_with(compressor=compressor), TOKENIZER)
        content = bytearray(read_container(path)[section])
        content[(turn * 7919) % len(content)] ^= 1 << turn % 8
        if turn == 5:
            content = content[:-1]
        repacked(path, **{section: bytes(content)})
        try:
            assert all(tensor.isfinite().all() for tensor in read_artifact(path).state.values())
        except ArtifactError as error:
            assert "\n" not in str(error)
        else:
            assert turn < 5


@pytest.mark.gpu
def test_a_gpu_rounds_and_loads_the_same_integers(tmp_path, state):
    settings = settings_with(compressor="entropy", lqer_rank=2)
    plain = round_weights(state, settings.artifact)
    there = round_weights({name: tensor.cuda() for name, tensor in state.items()}, settings.artifact)
    for name, matrix in plain.rounded.items():
        assert torch.equal(matrix.codes, there.rounded[name].codes) and torch.equal(matrix.scales, there.rounded[name].scales)
    write_artifact(tmp_path / "m", state, settings, TOKENIZER)
    artifact = read_artifact(tmp_path / "m")
    for name, tensor in submission_state(artifact.build_model("cuda")).items():
        assert torch.equal(tensor.float().cpu(), artifact.state[name].to(tensor.dtype).float()), name
