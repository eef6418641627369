"""A teacher first, then the network beside it."""

import math

import pytest
import torch

from pgolf.budget import Budget
from pgolf.model import build_model
from pgolf.training import checkpoint
from pgolf.training.distillation import distilled_loss
from tests.training.test_loop import FakeTime, SlowStream
from tests.training.tiny import MODEL, Stream, assert_same, losses, run, tiny


def nets():
    network, teacher = build_model(MODEL, seed=1), build_model(MODEL, seed=2)
    with torch.no_grad():
        for parameter in (*network.parameters(), *teacher.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.double().train(), teacher.double().train()


def test_the_loss_is_its_formula():
    network, teacher = nets()
    network.activation = teacher.activation = torch.float64
    tokens, targets = Stream(tiny()).batch(0, 0)
    found = distilled_loss(network, teacher)(tokens, targets)
    found.backward()
    gradient = network.qo_bank.grad.clone()
    network.zero_grad()

    with torch.no_grad():
        theirs = torch.softmax(teacher.logits(tokens) / 2, -1)
    logits = network.logits(tokens)
    own = -torch.log_softmax(logits, -1).gather(-1, targets[..., None]).mean()
    divergence = (theirs * (theirs.log() - torch.log_softmax(logits / 2, -1))).sum() / targets.numel()
    expected = own + 0.5 * 4 * divergence
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, network.qo_bank.grad)
    assert float(divergence.detach()) > 1e-3
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_network_that_is_its_own_teacher_has_nothing_to_learn_from_it():
    network, _ = nets()
    network.activation = torch.float64
    tokens, targets = Stream(tiny()).batch(0, 0)
    torch.testing.assert_close(distilled_loss(network, network)(tokens, targets), network.loss(tokens, targets))


def test_weights_of_tokens_reach_the_networks_own_loss():
    network, teacher = nets()
    network.activation = teacher.activation = torch.float64
    tokens, targets = Stream(tiny()).batch(0, 0)
    weights = torch.rand(targets.shape, dtype=torch.float64)
    loss = distilled_loss(network, teacher)
    found = loss(tokens, targets, weights=weights) - loss(tokens, targets)
    torch.testing.assert_close(found, network.loss(tokens, targets, weights=weights) - network.loss(tokens, targets))


def test_the_loss_is_one_graph_for_a_compiler():
    network, teacher = build_model(MODEL, seed=1).train(), build_model(MODEL, seed=2).train()
    loss = distilled_loss(network, teacher)
    tokens, targets = Stream(tiny()).batch(0, 0)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, targets), loss(tokens, targets))


def test_the_teacher_is_deeper_learns_and_is_not_exported(tmp_path):
    settings = tiny(steps=40, distillation_share=0.75, warmup_steps=1)
    stream = Stream(settings)
    result, events = run(settings, tmp_path, stream)
    curve = losses(events)
    assert result.steps == 40 and result.tokens == 40 * 128
    # the teacher has learnt; then the network starts anew
    assert curve[0] == pytest.approx(math.log(60), abs=0.1) and curve[29] < curve[0] - 0.15
    assert curve[30] > curve[29] + 0.15
    phases = [(event["step"], event["name"]) for event in events if event["kind"] == "phase"]
    assert phases == [(0, "warm-up"), (30, "the teacher is trained"), (31, "averaging (ema)")]
    assert result.exported.keys() == build_model(settings.model).state_dict().keys()
    # untimed warm-up reads the first step's text once for each; then nothing is read twice
    read = [step for step, micro in stream.asked if micro == 0]
    assert read == [0, 0, *range(40)]
    tensors, facts = checkpoint.read(tmp_path / checkpoint.NAME)
    assert tensors["teacher.model.mlp_up_bank"].shape[0] == settings.model.layers + 2
    assert not any(name.startswith("teacher.optimiser") for name in tensors)
    assert [(part["name"], part["step"]) for part in facts["phases"]] == [("teacher", 0), ("network", 30)]


def test_the_network_learns_from_the_teachers_opinion(tmp_path):
    """With the same steps of its own, it comes closer to what the teacher says than it does alone."""
    from pgolf.training import distillation

    settings = tiny(steps=60, distillation_share=0.5, export="raw")
    taught, _ = run(settings, tmp_path / "a")
    teacher = build_model(distillation.teacher_shape(settings.model))
    tensors, _ = checkpoint.read(tmp_path / "a" / checkpoint.NAME)
    teacher.load_state_dict({n[len("teacher.model.") :]: t for n, t in tensors.items() if n.startswith("teacher.model.")})

    class Later(Stream):
        def batch(self, step, micro):
            return super().batch(step + 30, micro)

    alone, _ = run(tiny(steps=30, export="raw"), tmp_path / "b", Later(settings))

    def distance(weights):
        model = build_model(settings.model)
        model.load_state_dict(weights)
        tokens, _ = Stream(settings).batch(999, 0)
        with torch.no_grad():
            ours, theirs = (torch.log_softmax(net.logits(tokens), -1) for net in (model, teacher))
        return float((theirs.exp() * (theirs - ours)).sum(-1).mean())

    assert distance(taught.exported) < 0.8 * distance(alone.exported)


def test_one_clock_holds_both(tmp_path):
    time = FakeTime()
    settings = tiny(steps=0, seconds=20.0, reserve=4.0, warmdown_share=0.5, distillation_share=0.5)
    budget = Budget(20.0, 4.0, now=time)
    result, events = run(settings, tmp_path, SlowStream(settings, time, 0.25), budget=budget)
    assert result.steps == 16 and result.seconds["total"] == pytest.approx(16)
    assert result.seconds["parts"]["teacher"] == pytest.approx(8)
    assert result.seconds["parts"]["steps"] == pytest.approx(8)
    rates = [event["multiplier"] for event in events if event["kind"] == "step"]
    assert rates == pytest.approx([min(1, (8 - n) / 4) for n in range(8)] * 2)


def test_warm_up_leaves_no_trace_of_either(tmp_path):
    options = {"steps": 9, "distillation_share": 0.5, "complement_alpha": 0.9, "qat_threshold": 0.9, "qat_clip": 7}
    plain, events = run(tiny(**options), tmp_path / "a")
    warm, same = run(tiny(warmup_steps=2, **options), tmp_path / "b")
    assert losses(events) == losses(same)
    assert_same(plain.exported, warm.exported)
    assert_same(*(checkpoint.read(tmp_path / name / checkpoint.NAME)[0] for name in "ab"))
