"""The budgets as gates: what a preset's whole job would take on eight devices like this one, against 600 s each."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from bench.budgets import STEPS, TrainingRates, scoring_bill, training_bill
from bench.results import Line
from bench.steps import TrainingStep, preset_for, scoring_rates
from bench.timing import Spread
from pgolf.artifact.calibration import hessians
from pgolf.artifact.container import join_sections
from pgolf.artifact.pack import read_artifact, sections_of
from pgolf.artifact.rounding import FORMS
from pgolf.artifact.weights import round_weights
from pgolf.model import build_model, submission_state

PRESETS = [pytest.param(name, marks=pytest.mark.gpu) for name in STEPS]


@pytest.mark.parametrize("preset", PRESETS)
def test_training_fits(bench, preset):
    settings = preset_for(preset, bench.device, tiny=bench.tiny)
    step = TrainingStep(settings, bench.device)
    begun = time.perf_counter()
    step()
    step()
    wait(bench)
    warm_up = time.perf_counter() - begun
    seconds = bench.seconds_of(step)
    if step.trained.terms:
        step.trained.terms.switch(True)
    quantised, parameters = bench.seconds_of(step), step.parameters
    del step
    packing = Packing(settings, bench)
    rates = TrainingRates(
        step=seconds,
        quantised_step=quantised,
        parameters=parameters,
        calibration=packing.calibration,
        rounding=packing.rounding,
        coding=packing.coding,
        warm_up=warm_up,
    )
    keep(bench, f"600 s of training, {preset}", seconds, training_bill(settings, rates, steps=STEPS[preset]))


@pytest.mark.parametrize("preset", PRESETS)
def test_scoring_fits(bench, preset, tmp_path):
    settings = preset_for(preset, bench.device, tiny=bench.tiny)
    rates = scoring_rates(settings, bench.device)
    packing = Packing(settings, bench, calibrate=False)
    rates = dataclasses.replace(rates, loading=rates.loading + packing.loading(tmp_path, bench.device))
    keep(bench, f"600 s of scoring, {preset}", rates.window, scoring_bill(settings, rates))


def keep(bench, name: str, seconds: float, bill) -> None:
    gate = bench.bill(bill)
    if not bench.tiny:
        figures = {part.name: f"{part.seconds:.1f} s, {part.how}" for part in bill.parts}
        bench.keep(Line(name, Spread.of([seconds]), figures=figures, gates=[gate]))


def wait(bench) -> None:
    if bench.device == "cuda":
        torch.cuda.synchronize()


class Packing:
    """Seconds of calibrating, rounding and coding a network of random weights, in full: one device does it alone."""

    def __init__(self, settings, bench, calibrate: bool = True):
        self.settings, self.calibration = settings, 0.0
        model = build_model(settings.model, device=bench.device, dtype=torch.float32, seed=settings.seed)
        with torch.no_grad():  # training leaves no matrix at zero
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        moments = None
        options, length = settings.artifact, settings.training.sequence_length
        if FORMS[options.rounding].needs_hessians:
            sequences = options.calibration_sequences if calibrate else 2
            tokens = torch.randint(settings.model.vocab_size, (sequences, length))
            batch = max(1, (32_768 if bench.device == "cuda" else 4096) // length)
            begun = time.perf_counter()
            moments = hessians(model, tokens.split(batch), head=options.gptq_embedding)
            wait(bench)
            self.calibration = time.perf_counter() - begun
        begun = time.perf_counter()
        weights = round_weights(submission_state(model), options, moments)
        wait(bench)
        self.rounding = time.perf_counter() - begun
        begun = time.perf_counter()
        self.sections = sections_of(weights, settings, b"")
        self.coding = time.perf_counter() - begun

    def loading(self, folder: Path, device: str) -> float:
        path = folder / "model.pgolf"
        path.write_bytes(join_sections(self.sections))
        begun = time.perf_counter()
        read_artifact(path).build_model(device)
        return time.perf_counter() - begun
