"""The 600-second gates: what is counted, and that the verdict flips exactly at the limit."""

import dataclasses
import math

import pytest

from bench.budgets import (
    DEVICES,
    EXCHANGE,
    STEPS,
    TARGETS,
    Bill,
    Part,
    ScoringRates,
    TrainingRates,
    bills_of_run,
    quantised_steps,
    scoring_bill,
    training_bill,
)
from pgolf.config import load_preset, preset_names
from pgolf.summary import Summary
from tests import summaries

# times that floating point adds without rounding
STEP_COUNT, EXACT = 4096, 2.0**-7


def test_training_flips_exactly_at_600_seconds():
    settings = load_preset("pr549")
    others = TrainingRates(step=0.0, parameters=0, calibration=44.0, rounding=32.0, coding=12.0, warm_up=1000.0)
    step = (600 - 88) / STEP_COUNT
    assert math.frexp(step)[0] == 0.5
    exact = training_bill(settings, dataclasses.replace(others, step=step), steps=STEP_COUNT)
    assert exact.total == 600 and exact.fits
    longer = training_bill(settings, dataclasses.replace(others, step=math.nextafter(step, 1)), steps=STEP_COUNT)
    assert longer.total > 600 and not longer.fits
    assert "fits" in exact.text() and "DOES NOT FIT" in longer.text()


def test_scoring_flips_exactly_at_600_seconds():
    settings = load_preset("pr688")
    window = settings.evaluation.window
    stride, targets = settings.evaluation.stride, 1 << 20
    windows = targets // window + targets // stride
    others = ScoringRates(window=0.0, result=2.0**-14, loading=8.0, warm_up=16.0)
    left = 600 - 24 - targets * 2.0**-14
    rate = left * DEVICES / windows
    bill = lambda rate: scoring_bill(settings, dataclasses.replace(others, window=rate), targets=targets)
    low, high = rate * (1 - 1e-9), rate * (1 + 1e-9)
    assert bill(low).fits and not bill(high).fits
    while math.nextafter(low, high) < high:
        middle = (low + high) / 2
        low, high = (middle, high) if bill(middle).fits else (low, middle)
    assert bill(low).total <= 600 < bill(high).total and bill(low).total == pytest.approx(600, abs=1e-9)


def test_the_whole_job_is_counted():
    settings = load_preset("pr688")
    rates = ScoringRates(window=1e-3, result=1e-8, learning=1e-6, loading=5, warm_up=30, writing=1e-8)
    parts = {part.name: part.seconds for part in scoring_bill(settings, rates).parts}
    evaluation = settings.evaluation
    assert parts["sliding windows"] == pytest.approx(TARGETS / evaluation.stride * 1e-3 / 8, rel=1e-6)
    assert parts["first pass"] == pytest.approx(TARGETS / evaluation.window * 1e-3 / 8, rel=1e-4)
    assert parts["adaptation"] == pytest.approx(TARGETS * evaluation.adaptation.epochs * 1e-6 / 8)
    assert parts["predictors"] == pytest.approx(TARGETS * 1e-8)
    assert parts["loading"] == 5 and parts["warm-up"] == 30
    assert all(part.counted for part in scoring_bill(settings, rates).parts)


def test_training_counts_quantising_but_not_its_warm_up():
    settings = load_preset("pr688")
    rates = TrainingRates(step=0.09, parameters=33_000_000, calibration=2, rounding=5, coding=3, warm_up=100)
    bill = training_bill(settings, rates, steps=1000)
    off_the_clock = [part.name for part in bill.parts if not part.counted]
    assert off_the_clock == ["warm-up"]
    exchanged = 1000 * 2 * 7 / 8 * 4 * 33_000_000 / EXCHANGE
    assert bill.total == pytest.approx(1000 * 0.09 + exchanged + 10)


def test_steps_with_quantisation_aware_terms_cost_what_they_cost():
    settings = load_preset("pr688")
    assert quantised_steps(settings, 6000) == 1750  # below half of a fall over 3,500 steps
    plain = TrainingRates(step=0.1, parameters=0)
    slower = dataclasses.replace(plain, quantised_step=0.15)
    gain = training_bill(settings, slower, steps=6000).total - training_bill(settings, plain, steps=6000).total
    assert gain == pytest.approx(1750 * 0.05)


def test_text_the_model_writes_itself_is_no_training_data():
    settings = load_preset("pr688")
    generated = dataclasses.replace(settings, artifact=dataclasses.replace(settings.artifact, calibration="generated"))
    rates = TrainingRates(step=0.0, parameters=0, calibration=7)
    assert training_bill(settings, rates, steps=1).total == 7
    assert training_bill(generated, rates, steps=1).total == 0


def test_every_preset_but_the_quick_one_has_its_steps():
    assert set(STEPS) == {name for name in preset_names() if name.startswith("pr")}


def test_a_finished_run_is_held_to_its_own_clocks():
    train = summaries.train(parts={"steps": 59.0, "other": 1.0}, limit=60.0)
    summary = Summary(train=train, scoring=summaries.scoring(parts={"steps": 119.5, "other": 1.0}, limit=120.0))
    training, scoring = bills_of_run(summary, "quick")
    assert training.fits and training.total == 60 and not scoring.fits


def test_a_bill_says_what_is_not_on_the_clock():
    bill = Bill("x", (Part("steps", 599.0, "a"), Part("warm-up", 50.0, "b", counted=False)))
    assert bill.fits and "not on the clock" in bill.text() and "599.0 s of 600 s" in bill.text()
