import dataclasses
import importlib

import pytest

from pgolf.cli.compress import Options as CodecOptions
from pgolf.cli.data import Options as DataOptions
from pgolf.cli.flags import resumed, run_path, settings_from
from pgolf.cli.parse import DeviceOptions, FolderOptions, parse
from pgolf.config import SettingsError, load_preset
from pgolf.errors import UsageError
from pgolf.run import STAGES, main


def settings(*words, environment=None):
    return settings_from(list(words), "run", cuda=False, environment=environment or {})


def test_preset_then_environment_then_flags():
    chosen, _ = settings("--preset", "pr549", environment={"NUM_LAYERS": "12", "SEED": "5"})
    assert (chosen.model.layers, chosen.seed, chosen.preset) == (12, 5, "pr549")
    words = "--preset=pr549 --model.layers 13 --seed 6"
    chosen, _ = settings(*words.split(), environment={"NUM_LAYERS": "12", "SEED": "5"})
    assert (chosen.model.layers, chosen.seed) == (13, 6)


def test_nothing_said_is_the_quick_preset():
    assert settings()[0] == load_preset("quick")


def test_steps_scale_lists_and_switches():
    words = "--preset pr745 --scale tiny --steps 12 --model.recurrence 2 3 --model.no-smear"
    chosen, _ = settings(*words.split())
    assert (chosen.training.steps, chosen.model.recurrence, chosen.model.smear) == (12, (2, 3), False)
    assert chosen.model.dim < 512


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--model.layrs", "3"], "run has no option --model.layrs; did you mean '--model.layers'"),
        (["--sed=3"], "no option --sed; did you mean '--seed'"),
        (["--model.layers", "x"], "--model.layers is 'x', but a whole number is wanted"),
        (["--steps", "ten"], "--steps is 'ten', but a whole number is wanted"),
        (["--model.softcap", "x"], "--model.softcap is 'x', but a number is wanted"),
        (["--data.loader", "random"], "sequential"),
        (["--preset"], "Missing value for argument '--preset'"),
        (["quick"], "'quick' is a word too many"),
    ],
)
def test_wrong_words_get_one_line(words, complaint):
    with pytest.raises(UsageError, match=complaint) as raised:
        settings(*words)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_unknown_preset():
    with pytest.raises(SettingsError, match="did you mean 'pr1014'"):
        settings("--preset", "pr104")


def test_flags_are_checked_together():
    with pytest.raises(SettingsError, match="no multiple"):
        settings("--model.dim", "100")


def test_stages_and_data():
    assert parse(DeviceOptions, ["runs/x", "--device", "cpu"], "pack") == DeviceOptions("runs/x", "cpu")
    assert parse(DataOptions, ["--out", "d", "--text", "a", "b"], "data").text == ("a", "b")
    with pytest.raises(UsageError, match="compress needs --artifact STR, --out STR; see: pgolf compress --help"):
        parse(CodecOptions, ["a"], "compress")
    with pytest.raises(UsageError, match="pack needs RUN; see: pgolf pack --help"):
        parse(DeviceOptions, [], "pack")


@pytest.mark.parametrize("flag", ["--steps", "--device", "--training.seconds"])
def test_a_flag_that_a_stage_ignores_is_an_error(flag):
    with pytest.raises(UsageError, match=f"show has no option {flag}"):
        parse(FolderOptions, ["runs/x", flag, "3"], "show")


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--model.layers 9", "--model.layers 9 disagrees with the run that --resume continues, which has 11"),
        ("--steps 5", "--training.steps 5 disagrees .* has 7"),
        ("--seed 2", "--seed 2 disagrees .* has 1337"),
        ("--preset quick", "--preset quick disagrees .* has pr549"),
        ("--scale full", "--scale full disagrees .* has tiny"),
        ("--evaluation.adaptation.lr 0.5", "--evaluation.adaptation.lr 0.5 disagrees .* has 0.002"),
    ],
)
def test_a_flag_with_resume_that_disagrees_names_both_values(words, complaint):
    kept, _ = settings("--preset", "pr549", "--scale", "tiny", "--steps", "7")
    resumed("--resume --preset pr549 --scale tiny --steps 7 --model.layers 11 --device cpu".split(), "run", kept)
    with pytest.raises(UsageError, match=complaint):
        resumed(["--resume", *words.split()], "run", kept)


def test_help_is_short_and_all_of_it_is_there(capsys):
    for words in (["--help"], ["run", "--help"], ["train", "-h"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        text = capsys.readouterr().out
        assert not done.value.code and "--preset" in text and "--model.layers" not in text
        assert len(text.splitlines()) <= 40
    with pytest.raises(SystemExit):
        main(["run", "--help-all"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("--model.layers", "--evaluation.adaptation.lr", "--preset"))


def test_every_stage_has_a_module_with_options_and_main():
    for name in STAGES:
        module = importlib.import_module(f"pgolf.cli.{name}")
        assert dataclasses.is_dataclass(module.Options) and callable(module.main)


def test_completion_knows_stages_and_their_flags(capsys):
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "bash"])
    text = capsys.readouterr().out
    assert "decompress" in text and "--evaluation.adaptation.lr" in text


def test_where_a_run_goes():
    _, options = settings()
    assert run_path(options, {}) is None
    assert str(run_path(options, {"RUN_ID": "x"})) == "runs/x"
    _, options = settings("--out", "y")
    assert str(run_path(options, {"RUN_ID": "x"})) == "y"
