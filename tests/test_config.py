import dataclasses
import math

import pytest

from pgolf.config import (
    ENVIRONMENT,
    Settings,
    SettingsError,
    at_scale,
    from_environment,
    from_table,
    load_preset,
    preset_names,
    read_toml,
    to_toml,
)


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("cuda", [False, True], ids=["cpu", "cuda"])
def test_every_preset_is_sound_and_survives_its_file(name, scale, cuda, tmp_path):
    settings = at_scale(load_preset(name, cuda=cuda), scale)
    settings.validate()
    path = tmp_path / "config.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert read_toml(path) == settings
    assert settings.description


@pytest.mark.parametrize("name", preset_names())
def test_what_a_branch_tried_goes_with_every_preset(name):
    settings = at_scale(load_preset(name), "tiny")
    switches = {
        "steps": 100,
        "distillation_share": 0.5,
        "burst_epochs": 2,
        "complement_alpha": 0.5,
        "qat_threshold": 0.15,
        "qat_banks": True,
        "qat_soft_round": False,
        "qat_soft_to_hard": True,
    }
    dataclasses.replace(settings, training=dataclasses.replace(settings.training, **switches)).validate()


def test_presets_differ_where_the_submissions_do():
    pr549, pr688, pr745, pr953 = (load_preset(name) for name in ("pr549", "pr688", "pr745", "pr953"))
    assert (pr549.model.kv_heads, pr688.model.kv_heads) == (4, 8)
    assert pr745.model.virtual_layers == (0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10)
    assert pr745.model.value_residual and pr745.model.gated_attention and not pr549.model.value_residual
    assert (pr688.evaluation.stride, pr953.evaluation.stride) == (32, 64)
    assert (pr688.training.reserve, pr688.artifact.rounding) == (18.0, "gptq-published")
    assert (pr688.evaluation.adaptation.train_last, pr953.evaluation.adaptation.train_last) == (2, 1)
    pr687 = load_preset("pr687")
    assert (pr687.model.mlp_slope, pr687.training.qat_soft_to_hard, pr687.training.qat_threshold) == (0.0, False, 0.15)
    assert pr687.model.embedding_projection_gain == pr688.model.embedding_projection_gain == 1 / math.sqrt(2 * 11)
    tables = {name: load_preset(name).training.export_tables for name in preset_names()}
    assert {name for name, dtype in tables.items() if dtype == "bfloat16"} == {
        "pr549", "pr687", "pr688", "pr745", "pr953", "pr1014", "pr1855"
    }  # fmt: skip


def test_a_cuda_machine_gets_the_larger_quick():
    assert load_preset("quick", cuda=True).model.dim > load_preset("quick").model.dim


def test_tiny_keeps_every_mechanism():
    full, tiny = load_preset("pr745"), at_scale(load_preset("pr745"), "tiny")
    assert tiny.model.dim < full.model.dim and tiny.training.seconds < full.training.seconds
    for name in ("layers", "recurrence", "xsa_last", "value_residual", "gated_attention", "value_embedding_layers"):
        assert getattr(tiny.model, name) == getattr(full.model, name)
    kept = dataclasses.replace(tiny.evaluation.adaptation, chunk_tokens=full.evaluation.adaptation.chunk_tokens)
    assert dataclasses.replace(kept, batch_sequences=full.evaluation.adaptation.batch_sequences) == full.evaluation.adaptation


@pytest.mark.parametrize(
    "table, complaint",
    [
        ({"modl": {}}, "no setting 'modl'; did you mean 'model'?"),
        ({"model": {"layrs": 3}}, r"\[model\]: no setting 'layrs'; did you mean 'layers'\?"),
        ({"model": {"layers": "3"}}, "layers is '3', but a whole number is wanted"),
        ({"model": {"layers": 3.0}}, "a whole number is wanted"),
        ({"model": {"smear": 1}}, "true or false is wanted"),
        ({"model": 3}, "model is a section"),
        ({"data": {"loader": "seqential"}}, "did you mean 'sequential'"),
        ({"model": {"recurrence": 4}}, "a list is wanted"),
        ({"model": {"value_residual_init": [0.5]}}, "has 1 entries, but 2 are wanted"),
    ],
)
def test_wrong_tables_get_one_line(table, complaint):
    with pytest.raises(SettingsError, match=complaint) as raised:
        from_table(table, Settings(), "here")
    assert "\n" not in str(raised.value)


def test_whole_numbers_pass_as_numbers():
    assert from_table({"training": {"seconds": 60}}, Settings(), "here").training.seconds == 60.0


def test_unknown_presets_and_scales():
    with pytest.raises(SettingsError, match="no preset 'pr54'; did you mean 'pr549'"):
        load_preset("pr54")
    with pytest.raises(SettingsError, match="no scale 'tny'"):
        at_scale(Settings(), "tny")


@pytest.mark.parametrize(
    "section, change, complaint",
    [
        ("model", {"dim": 500}, "no multiple of model.heads"),
        ("model", {"kv_heads": 3}, "no multiple of model.kv_heads"),
        ("model", {"rotary_dims": 15}, "must be even"),
        ("model", {"recurrence": (11,)}, "names layer 11"),
        ("model", {"value_embedding_layers": (11,)}, "names layer 11"),
        ("model", {"vocab_size": 70_000}, "16-bit"),
        ("training", {"batch_tokens": 1000}, "no multiple of micro_batches"),
        ("training", {"reserve": 600.0}, "leaves nothing"),
        ("training", {"distillation_share": 1.0}, "must be from 0 to below 1"),
        ("training", {"distillation_share": 0.01, "steps": 9}, "leaves the teacher 0 and the network 9"),
        ("training", {"burst_epochs": 5}, "must be from 0 to 4"),
        ("training", {"complement_alpha": 1.5}, "no share from 0 to 1"),
        ("training", {"qat_soft_to_hard": True}, "only below training.qat_threshold"),
        ("training", {"qat_soft_to_hard": True, "qat_soft_round": True, "qat_threshold": 0.1}, "choose one"),
        ("evaluation", {"stride": 4096}, "from 1 to the window"),
        ("artifact", {"matrix_bits": 9}, "outside 2 to 8"),
    ],
)
def test_combinations_that_cannot_work(section, change, complaint):
    settings = Settings()
    broken = dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **change)})
    with pytest.raises(SettingsError, match=complaint):
        broken.validate()


def test_the_challenges_environment_names():
    said = {"SEED": "5", "NUM_LAYERS": "9", "TTT_LR": "0.01", "GATED_ATTENTION": "1"}
    settings = from_environment(load_preset("pr549"), said)
    assert (settings.seed, settings.model.layers, settings.evaluation.adaptation.lr) == (5, 9, 0.01)
    assert settings.model.gated_attention
    with pytest.raises(SettingsError, match="environment variable NUM_LAYERS is 'many', but a whole number is wanted"):
        from_environment(Settings(), {"NUM_LAYERS": "many"})
    with pytest.raises(SettingsError, match="0 or 1 is wanted"):
        from_environment(Settings(), {"GATED_ATTENTION": "maybe"})


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_environment_name_reaches_a_setting(name):
    current = Settings()
    for part in ENVIRONMENT[name].split("."):
        current = getattr(current, part)
    text = {bool: "1", int: "7", float: "0.25", str: "x"}[type(current)]
    assert from_environment(Settings(), {name: text}) != Settings() or type(current) is bool and current
