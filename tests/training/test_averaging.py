import pytest
import torch

from pgolf.config import TrainingSettings
from pgolf.training.averaging import averaging
from pgolf.training.errors import TrainingError

SHAPES = {"a": (3, 5), "b": (7,), "c": ()}


def history(steps):
    """The initial weights and those after each step; one tensor in bfloat16."""
    states = [{name: torch.randn(shape) for name, shape in SHAPES.items()} for _ in range(steps + 1)]
    for state in states:
        state["b"] = state["b"].bfloat16()
    return states


def follow(settings, states, multipliers, average=None, first=0):
    average = average or averaging(states[0], settings)
    took = [
        average.update(state, step, s)
        for step, (state, s) in enumerate(zip(states[1:], multipliers, strict=True), 1)
        if step > first
    ]
    return average, took


def check(exported, expected):
    for name in SHAPES:
        assert exported[name].dtype == torch.float32
        torch.testing.assert_close(exported[name], expected[name].float(), rtol=1e-5, atol=1e-6)


def test_ema_starts_from_the_initial_weights_and_is_not_corrected():
    states = history(6)
    average, took = follow(TrainingSettings(ema_decay=0.9, export="ema"), states, [1.0] * 6)
    expected = {name: states[0][name].float() for name in SHAPES}
    for state in states[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * state[name].float() for name in SHAPES}
    kind, exported = average.export(states[-1], 6)
    assert kind == "ema" and took == [True] + [False] * 5
    check(exported, expected)


def test_a_run_too_short_for_the_ema_exports_its_last_weights():
    states = history(6)
    average, _ = follow(TrainingSettings(ema_decay=0.9, ema_minimum_steps=6, export="ema"), states, [1.0] * 6)
    kind, exported = average.export(states[-1], 5)
    assert kind == "raw"
    check(exported, states[-1])
    assert average.export(states[-1], 6)[0] == "ema"


def test_swa_is_the_mean_of_snapshots_late_in_the_schedule():
    states = history(8)
    multipliers = [1.0, 0.9, 0.5, 0.3, 0.15, 0.15, 0.1, 0.05]
    average, took = follow(TrainingSettings(swa_every=2, swa_threshold=0.4, export="swa"), states, multipliers)
    kind, exported = average.export(states[-1], 8)
    taken = [states[4], states[6], states[8]]
    assert kind == "swa" and took == [False, False, False, True] + [False] * 4
    check(exported, {name: sum(s[name].float() for s in taken) / 3 for name in SHAPES})


def test_swa_without_snapshots_exports_the_last_weights():
    states = history(3)
    average, _ = follow(TrainingSettings(swa_every=2, swa_threshold=0.2, export="swa"), states, [1.0] * 3)
    kind, exported = average.export(states[-1], 3)
    assert kind == "raw"
    check(exported, states[-1])


def test_lawa_is_the_mean_of_the_latest_snapshots():
    states = history(9)
    average, took = follow(TrainingSettings(lawa_every=2, lawa_length=3, export="lawa"), states, [1.0] * 9)
    kind, exported = average.export(states[-1], 9)
    taken = [states[4], states[6], states[8]]
    assert kind == "lawa" and took[1] and sum(took) == 1
    check(exported, {name: sum(s[name].float() for s in taken) / 3 for name in SHAPES})


def test_raw_weights_are_copied():
    states = history(1)
    average, _ = follow(TrainingSettings(export="raw"), states, [1.0])
    kind, exported = average.export(states[-1], 1)
    states[-1]["a"].zero_()
    assert kind == "raw" and exported["a"].abs().sum() > 0


@pytest.mark.parametrize(
    "settings",
    [
        TrainingSettings(export="ema", ema_decay=0.9),
        TrainingSettings(export="swa", swa_every=2, swa_threshold=2.0),
        TrainingSettings(export="lawa", lawa_every=2, lawa_length=2),
    ],
    ids=lambda settings: settings.export,
)
def test_an_average_goes_on_from_its_state(settings):
    states = history(7)
    undisturbed, _ = follow(settings, states, [1.0] * 7)
    half, _ = follow(settings, states[:5], [1.0] * 4)
    kept = {name: tensor.clone() for name, tensor in half.state().items()}
    second = averaging(states[5], settings)
    second.restore(kept)
    follow(settings, states, [1.0] * 7, second, first=4)
    expected = undisturbed.export(states[-1], 7)[1]
    for name, tensor in second.export(states[-1], 7)[1].items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (TrainingSettings(export="ema", ema_decay=0), "ema_decay"),
        (TrainingSettings(export="swa", swa_every=0), "swa_every"),
        (TrainingSettings(export="lawa", lawa_every=0), "lawa_every"),
    ],
)
def test_an_average_that_is_switched_off_cannot_be_exported(settings, missing):
    with pytest.raises(TrainingError, match=missing):
        averaging(history(0)[0], settings)
