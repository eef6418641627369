import pytest

from pgolf.cli import DataOptions, StageOptions, UsageError, parse, run_path, settings_from
from pgolf.config import SettingsError, load_preset


def settings(*words, environment=None):
    return settings_from(list(words), cuda=False, environment=environment or {})


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
        (["--model.layrs", "3"], "no option --model.layrs; did you mean '--model.layers'"),
        (["--sed=3"], "no option --sed; did you mean '--seed'"),
        (["--model.layers", "x"], "--model.layers"),
        (["--data.loader", "random"], "sequential"),
        (["--preset"], "--preset needs a value"),
        (["quick"], "quick"),
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
    assert parse(StageOptions, ["runs/x", "--device", "cpu"], positional="run") == StageOptions("runs/x", "cpu")
    assert parse(DataOptions, ["--out", "d", "--text", "a", "b"]).text == ("a", "b")
    with pytest.raises(UsageError):
        parse(DataOptions, ["--text", "a"])


def test_where_a_run_goes():
    _, options = settings()
    assert run_path(options, {}) is None
    assert str(run_path(options, {"RUN_ID": "x"})) == "runs/x"
    _, options = settings("--out", "y")
    assert str(run_path(options, {"RUN_ID": "x"})) == "y"
