"""The steps that the bench times: what they compute, what they are said to cost, and that they compile to one graph."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.steps import (
    AdaptersStep,
    Stopwatch,
    TrainingStep,
    preset_for,
    scoring_rates,
    with_lora,
)
from pgolf.budget import Budget
from pgolf.flops import forward_flops, training_flops, utilisation
from pgolf.model import build_model


def shallow(preset):
    """A preset with two layers: what is asked here does not depend on their number."""
    settings = preset_for(preset, "cpu", tiny=True)
    model = dataclasses.replace(settings.model, layers=2, recurrence=(), value_embedding_layers=(1,), xsa_last=2)
    evaluation = dataclasses.replace(
        settings.evaluation,
        window=64,
        stride=32,
        batch=4,
        adaptation=dataclasses.replace(settings.evaluation.adaptation, chunk_tokens=256, batch_sequences=4),
        lora=dataclasses.replace(
            settings.evaluation.lora, batch_documents=2, context_tokens=64, chunk_tokens=32, minimum_tokens=32
        ),
    )
    training = dataclasses.replace(settings.training, precision="float32")
    return dataclasses.replace(settings, model=model, training=training, evaluation=evaluation)


@pytest.mark.parametrize("preset", ["pr745", "pr688"])
def test_flops_are_those_that_torch_counts(preset):
    settings = preset_for(preset, "cpu", tiny=True)
    model = build_model(settings.model, seed=0)
    model.operators = "reference"  # torch knows what its own products cost; theirs multiply every pair
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model.loss(tokens, tokens)
    assert forward_flops(settings.model, 32, pairs=32 * 32) == counted.get_total_flops()


def test_a_backward_pass_costs_two_forward_passes():
    settings = preset_for("pr549", "cpu", tiny=False)
    length = settings.training.sequence_length
    assert training_flops(settings, 3 * length) == 9 * forward_flops(settings.model, length)


def test_utilisation_is_of_the_data_sheet():
    assert utilisation(98.9e12, "NVIDIA H200") == pytest.approx(0.1) and utilisation(1e12, "x86_64 CPU") is None


@pytest.mark.parametrize("operators", ["kernels", "torch"])
def test_a_step_is_one_graph_and_learns(operators):
    """Traced by the compiler's front end alone: what comes behind it is tested with the network."""
    settings = shallow("pr745")
    step = TrainingStep(settings, "cpu", operators)
    step.loss = torch.compile(step.model.loss, fullgraph=True, dynamic=False, backend="eager")
    before = step().item()
    for _ in range(3):
        last = step().item()
    assert last < before
    assert step.tokens_per_step == settings.training.batch_tokens // 8


def test_both_operators_take_the_same_first_step():
    settings = shallow("pr688")
    losses = [TrainingStep(settings, "cpu", operators)().item() for operators in ("kernels", "torch")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_adapters_take_the_same_steps_and_compile():
    settings = shallow("quick")
    steps = [AdaptersStep(settings, "cpu", operators, documents=2, length=16, rank=4) for operators in ("kernels", "torch")]
    for step in steps:
        step.loss = torch.compile(step._loss, fullgraph=True, dynamic=False, backend="eager")
    losses = [[step().item() for _ in range(3)] for step in steps]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][2] < losses[0][0]


def test_a_stopwatch_leaves_the_first_span_out():
    watch = Stopwatch(Budget(1), stride=64, epochs=2)
    watch.scored(10, 640, 100.0, 50.0)
    watch.scored(10, 640, 1.0, 0.64)
    watch.scored(20, 1280, 2.0, 1.28)
    watch.learnt(1000, 2, 4.0)
    rates = watch.rates()
    assert rates == {"window": 0.1, "result": 0.001, "learning": 0.002, "adapted_target": 0.0}


@pytest.mark.parametrize("form", ["chunks", "lora"])
def test_scoring_gives_every_rate(form):
    settings = with_lora(shallow("pr549")) if form == "lora" else shallow("pr549")
    rates = scoring_rates(settings, "cpu", spans=2)
    found = {field.name for field in dataclasses.fields(rates) if getattr(rates, field.name) > 0}
    wanted = {"adapted_target"} if form == "lora" else {"window", "result", "learning"}
    assert wanted | {"loading", "warm_up"} <= found
    assert np.isfinite(list(dataclasses.astuple(rates))).all()
