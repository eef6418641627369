"""Whole runs against the submissions' loops written out: averages, teacher, burst. Only the network's loss is shared."""

import math
from collections import deque

import pytest
import torch
from torch.nn import functional as F

from pgolf.model import build_model
from pgolf.training.distillation import teacher_shape
from tests.training.test_muon import orthogonal
from tests.training.tiny import Stream, run, tiny

TABLES = ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight")


class Script:
    """What every submission's loop does in a step, in float64: clip, Muon for banks, AdamW for the rest."""

    def __init__(self, settings, model, *, adam_only=False, lr=None, decay=None, clip=None):
        self.options, self.model = settings.training, model.double()
        self.model.activation = torch.float64
        self.model.train()
        self.adam_only, self.lr, self.count = adam_only, lr, 0
        self.decay = self.options.adam_weight_decay if decay is None else decay
        self.clip = self.options.clip if clip is None else clip
        self.buffers = {name: torch.zeros_like(p) for name, p in self.weights()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.weights()}

    def weights(self):
        return list(self.model.named_parameters())

    def state(self):
        return {name: p.detach().clone() for name, p in self.weights()}

    def step(self, loss, multiplier, momentum):
        self.model.zero_grad()
        loss.backward()
        self.count += 1
        norm = math.sqrt(sum(float(p.grad.square().sum()) for _, p in self.weights() if p.grad is not None))
        shrink = min(1.0, self.clip / (norm + 1e-6))
        with torch.no_grad():
            for name, p in self.weights():
                if p.grad is None:
                    continue
                gradient = p.grad * shrink
                if name.endswith("_bank") and not self.adam_only:
                    self._muon(name, p, gradient, self.options.muon_lr * multiplier, momentum)
                else:
                    base = self.lr or (self.options.token_lr if name in TABLES else self.options.scalar_lr)
                    self._adamw(name, p, gradient, base * multiplier)

    def _muon(self, name, p, gradient, lr, momentum):
        self.buffers[name] = momentum * self.buffers[name] + gradient
        update = gradient + momentum * self.buffers[name]
        scale = max(1, p.shape[1] / p.shape[2]) ** 0.5
        p *= 1 - lr * self.options.muon_weight_decay
        for matrix, part in zip(p, update, strict=True):
            matrix -= lr * scale * orthogonal(part, self.options.muon_iterations)

    def _adamw(self, name, p, gradient, lr):
        first, second = self.options.adam_betas
        self.buffers[name] = first * self.buffers[name] + (1 - first) * gradient
        self.squares[name] = second * self.squares[name] + (1 - second) * gradient**2
        p *= 1 - lr * self.decay
        mean, square = self.buffers[name] / (1 - first**self.count), self.squares[name] / (1 - second**self.count)
        p -= lr * mean / (square.sqrt() + self.options.adam_eps)


def batch(stream, step, settings):
    parts = [stream.batch(step, micro) for micro in range(settings.training.micro_batches)]
    return (torch.cat(side) for side in zip(*parts, strict=True))


def ramp(settings, step):
    options = settings.training
    share = min(step / options.muon_momentum_steps, 1)
    return options.muon_momentum_start + share * (options.muon_momentum - options.muon_momentum_start)


def fall(step, steps, share):
    """The schedule of a run of so many steps whose last `share` falls to zero."""
    return min(1.0, (steps - step) / (share * steps))


def assert_near(found, expected):
    """A step's rounding is amplified by orthogonalising small gradients: compared is the distance to a float64 loop."""
    for name, value in expected.items():
        distance = (found[name].double() - value).norm() / (value.norm() + 1e-6)
        assert distance < 2e-3, (name, float(distance))


GENTLE = {"muon_lr": 0.005, "token_lr": 0.005, "scalar_lr": 0.005, "adam_eps": 1e-3, "clip": 0.3}


def test_swa_is_the_scripts(tmp_path):
    """A snapshot after every fifth step, counted from 1, taken once the multiplier is below 0.2; their plain mean."""
    settings = tiny(steps=30, export="swa", swa_every=2, swa_threshold=0.4, warmdown_share=1.0, **GENTLE)
    result, _ = run(settings, tmp_path)
    script, stream = Script(settings, build_model(settings.model, seed=settings.seed)), Stream(settings)
    total, count = None, 0
    for step in range(30):
        multiplier = fall(step, 30, 1.0)
        script.step(script.model.loss(*batch(stream, step, settings)), multiplier, ramp(settings, step))
        if multiplier < 0.4 and (step + 1) % 2 == 0:
            now = script.state()
            total = now if total is None else {name: total[name] + now[name] for name in now}
            count += 1
    assert count == 6 and result.weights == "swa"
    assert_near(result.exported, {name: value / count for name, value in total.items()})


def test_lawa_is_the_scripts(tmp_path):
    """A queue of the ten last snapshots, here three, one every hundred steps, here four; their plain mean."""
    settings = tiny(steps=22, export="lawa", lawa_every=4, lawa_length=3, **GENTLE)
    result, _ = run(settings, tmp_path)
    script, stream = Script(settings, build_model(settings.model, seed=settings.seed)), Stream(settings)
    queue = deque(maxlen=3)
    for step in range(22):
        script.step(script.model.loss(*batch(stream, step, settings)), fall(step, 22, 0.5), ramp(settings, step))
        if (step + 1) % 4 == 0:
            queue.append(script.state())
    assert result.weights == "lawa"
    assert_near(result.exported, {name: sum(state[name] for state in queue) / 3 for name in queue[0]})


def test_distillation_is_the_scripts(tmp_path):
    """Half of the run trains a teacher with two more layers by AdamW alone: rate 1e-3, decay 0.04, clip 1.0. Then the network
    starts, with T^2 / 2 times the divergence from the teacher at T = 2 on top of its own loss, averaged over tokens."""
    settings = tiny(steps=16, distillation_share=0.5, export="raw", **GENTLE)
    result, _ = run(settings, tmp_path)
    stream, half = Stream(settings), 8
    shape = teacher_shape(settings.model)
    assert shape.layers == settings.model.layers + 2
    teacher = Script(settings, build_model(shape, seed=settings.seed), adam_only=True, lr=1e-3, decay=0.04, clip=1.0)
    for step in range(half):
        teacher.step(teacher.model.loss(*batch(stream, step, settings)), fall(step, half, 0.5), 0.0)
    script = Script(settings, build_model(settings.model, seed=settings.seed))
    for step in range(half):
        tokens, targets = batch(stream, half + step, settings)
        with torch.no_grad():
            theirs = F.softmax(teacher.model.logits(tokens) / 2, -1)
        logits = script.model.logits(tokens).flatten(0, 1)
        divergence = F.kl_div(F.log_softmax(logits / 2, -1), theirs.flatten(0, 1), reduction="batchmean")
        loss = F.cross_entropy(logits, targets.flatten()) + 0.5 * 2**2 * divergence
        script.step(loss, fall(step, half, 0.5), ramp(settings, step))
    assert_near(result.exported, script.state())


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_burst_is_the_scripts(tmp_path, epochs):
    """The batches seen while the multiplier was below 0.2, at most a hundred, again in their order for two epochs, each at a
    tenth of the rates, while the EMA goes on. The original did so after its clock; here the schedule ends before."""
    settings = tiny(steps=24, warmdown_share=1.0, burst_epochs=epochs, ema_decay=0.9, **GENTLE)
    result, _ = run(settings, tmp_path)
    replayed = int(0.2 * 24)
    length = 24 - epochs * replayed
    script, stream = Script(settings, build_model(settings.model, seed=settings.seed)), Stream(settings)
    average, kept = script.state(), deque(maxlen=100)

    def step(number, age, multiplier):
        script.step(script.model.loss(*batch(stream, number, settings)), multiplier, ramp(settings, age))
        for name, value in script.state().items():
            average[name] = 0.9 * average[name] + 0.1 * value

    for number in range(length):
        multiplier = fall(number, length, 1.0)
        if multiplier < 0.2 + 1e-9:
            kept.append(number)
        step(number, number, multiplier)
    again = [number for _ in range(epochs) for number in list(range(length - replayed, length))]
    # the rounded length of the last fifth, where the script compares the multiplier of every step
    assert abs(len(kept) - replayed) <= 1 and set(kept) <= set(again)
    for age, number in enumerate(again, length):
        step(number, age, 0.1)
    assert result.weights == "ema"
    assert_near(result.exported, average)
