"""Training that is stopped, killed, resumed from damaged files, or that meets numbers that are none."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgolf.budget import Budget
from pgolf.model import build_model
from pgolf.training import checkpoint, loop, train_step
from pgolf.training.errors import CheckpointError, TrainingError
from pgolf.training.optimisers import Optimisers
from pgolf.training.step_results import STEPS_IN_FLIGHT
from tests.training.tiny import FakeTime, SlowStream, Stream, assert_same, losses, run, tiny

ROOT = Path(__file__).parents[2]


def test_resuming_a_missing_checkpoint_starts_afresh(tmp_path):
    plain, _ = run(tiny(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    fresh, events = run(tiny(), tmp_path / "b", resume=True)
    assert_same(plain.exported, fresh.exported)
    assert any(event["kind"] == "phase" and "no checkpoint" in event["name"] for event in events)


INTERRUPTED = {
    "ema": {},
    "parallel off": {"parallel_muon": False, "muon_projections": True},
    "swa": {"export": "swa", "swa_every": 1, "swa_threshold": 0.9},
    "lawa": {"export": "lawa", "lawa_every": 1, "lawa_length": 3},
    "qat": {"qat_threshold": 0.9, "qat_clip": 7, "qat_soft_round": True, "qat_banks": True, "crown_q": 1.0},
    "while the teacher learns": {"distillation_share": 0.8},
    "beside the teacher": {"distillation_share": 0.3},
    "burst": {"burst_epochs": 2, "warmdown_share": 1.0},
    "complement": {"complement_alpha": 0.9},
    "everything": {
        "distillation_share": 0.3,
        "burst_epochs": 2,
        "warmdown_share": 1.0,
        "complement_alpha": 0.9,
        "qat_threshold": 0.9,
        "qat_clip": 7,
        "qat_soft_to_hard": True,
        "qat_banks": True,
        "crown_q": 1.0,
    },
}


@pytest.mark.parametrize("options", INTERRUPTED.values(), ids=INTERRUPTED)
def test_a_terminated_run_continues_bit_for_bit(tmp_path, options):
    settings = tiny(steps=10, warmup_steps=1, **options)
    stream = Stream(settings)
    plain, events = run(settings, tmp_path / "a", stream)
    warm_up = len(stream.asked) - 10 * 4
    asked = False

    def ask(number, frame):
        nonlocal asked
        asked = True

    class Terminated(Stream):
        def batch(self, step, micro):
            if len(self.asked) == warm_up + 6 * 4 + 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, micro)

    previous = signal.signal(signal.SIGTERM, ask)
    try:
        half, before = run(settings, tmp_path / "b", Terminated(settings), stop=lambda: asked)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert half.interrupted and half.steps == 7 and before[-1]["interrupted"]
    spent = half.seconds["total"]
    rest, after = run(settings, tmp_path / "b", resume=True)
    assert not rest.interrupted and rest.steps == 10 and rest.tokens == plain.tokens
    assert losses(before) + losses(after) == losses(events)
    assert_same(plain.exported, rest.exported)
    assert_same(*(checkpoint.read(tmp_path / name / checkpoint.NAME)[0] for name in "ab"))
    begun = [event for event in before + after if event.get("name") == "quantisation-aware"]
    assert len(begun) == ("qat_threshold" in options)
    assert after[-1]["seconds"]["total"] > spent
    assert next(event for event in after if event["kind"] == "step")["elapsed"] > spent


def test_a_finished_run_resumes_to_its_end(tmp_path):
    plain, _ = run(tiny(), tmp_path)
    again, events = run(tiny(), tmp_path, resume=True)
    assert_same(plain.exported, again.exported)
    assert again.loss == plain.loss and losses(events) == []


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from tests.training.tiny import Stream, tiny\n"
        "from pgolf.training.loop import train\n"
        "settings = tiny(steps=60, checkpoint_seconds=0.0)\n"
        "train(settings, Stream(settings), folder=sys.argv[1], device='cpu',\n"
        "      log=lambda event: print(event['kind'], event.get('step'), flush=True))\n"
    )
    settings = tiny(steps=60, checkpoint_seconds=0.0)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "b")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    checkpoints = 0
    for line in child.stdout:
        checkpoints += line.startswith("checkpoint")
        if checkpoints == 5:
            child.kill()
    assert child.wait() == -signal.SIGKILL
    step = checkpoint.read(tmp_path / "b" / checkpoint.NAME)[1]["step"]
    assert 5 <= step < 60
    rest, events = run(settings, tmp_path / "b", resume=True)
    plain, whole = run(settings, tmp_path / "a")
    assert losses(events) == losses(whole)[step:]
    assert_same(plain.exported, rest.exported)
    assert_same(*(checkpoint.read(tmp_path / name / checkpoint.NAME)[0] for name in "ab"))


def test_checkpoints_come_at_their_interval(tmp_path):
    time = FakeTime()
    settings = tiny(steps=20, checkpoint_seconds=5.0)
    _, events = run(settings, tmp_path, SlowStream(settings, time, 0.25), budget=Budget(600, now=time))
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [5, 10, 15, 20]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tiny(steps=2), tmp_path)
    with pytest.raises(CheckpointError, match="training.muon_lr = 0.025, but this one has 0.5"):
        run(tiny(steps=2, muon_lr=0.5), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tiny(steps=2), tmp_path)
    path = tmp_path / checkpoint.NAME
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        run(tiny(steps=2), tmp_path, resume=True)


# ---- numbers that are none


class Poisoned(Stream):
    """From one step on, the network's weights are poisoned before the batch is read."""

    def __init__(self, settings, step):
        super().__init__(settings)
        self.step, self.model = step, None

    def batch(self, step, micro):
        if step == self.step:
            with torch.no_grad():
                self.model.tok_emb.weight[3, 4] = math.nan
        return super().batch(step, micro)


@pytest.fixture
def poisoned(monkeypatch):
    def make(settings, step):
        stream = Poisoned(settings, step)

        def build(*arguments, **options):
            stream.model = build_model(*arguments, **options)
            return stream.model

        monkeypatch.setattr(train_step, "build_model", build)
        return stream

    return make


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_checkpoint(tmp_path, poisoned):
    settings = tiny(steps=10, checkpoint_seconds=0.0)
    with pytest.raises(TrainingError, match=r"loss of step 6 is nan; the last good checkpoint is .*, of step 5") as error:
        run(settings, tmp_path, poisoned(settings, 5))
    path = tmp_path / checkpoint.NAME
    assert str(path) in str(error.value)
    tensors, facts = checkpoint.read(path)
    assert facts["step"] == 5
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_without_a_checkpoint_the_error_says_so(tmp_path, poisoned):
    settings = tiny(steps=10)
    with pytest.raises(TrainingError, match="step 1 is nan; there is no checkpoint yet"):
        run(settings, tmp_path, poisoned(settings, 0))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_a_step_has_spoilt_are_not_kept(tmp_path, monkeypatch):
    """The loss is of the weights before the step; those after it must be looked at too."""
    real = Optimisers.step

    def step(self, *arguments):
        norm = real(self, *arguments)
        step.count += 1
        if step.count == 4:
            self.by_name["muon"].parameters[0].data[0, 0, 0] = math.inf
        return norm

    step.count = 0
    monkeypatch.setattr(Optimisers, "step", step)
    with pytest.raises(TrainingError, match="not finite after step 4; the last good checkpoint is .*, of step 3"):
        run(tiny(steps=10, checkpoint_seconds=0.0), tmp_path)
    assert checkpoint.read(tmp_path / checkpoint.NAME)[1]["step"] == 3


def test_news_of_a_step_may_come_late(tmp_path, monkeypatch, poisoned):
    """As on CUDA, where the host runs ahead: the same numbers, and still no bad checkpoint."""
    plain, events = run(tiny(), tmp_path / "a")
    real = loop.StepResults.__init__

    def late(self, world):
        real(self, world)
        self.depth = STEPS_IN_FLIGHT

    monkeypatch.setattr(loop.StepResults, "__init__", late)
    again, same = run(tiny(), tmp_path / "b")
    assert losses(events) == losses(same)
    assert_same(plain.exported, again.exported)

    time = FakeTime()
    settings = tiny(steps=0, seconds=20.0)
    result, _ = run(settings, tmp_path / "c", SlowStream(settings, time, 0.25), budget=Budget(20.0, now=time))
    assert result.steps == 20 and result.seconds["total"] == pytest.approx(20)

    settings = tiny(steps=12, checkpoint_seconds=0.0)
    with pytest.raises(TrainingError, match=r"step 6 is nan; the last good checkpoint is .*, of step [1-5];"):
        run(settings, tmp_path / "d", poisoned(settings, 5))
    assert checkpoint.read(tmp_path / "d" / checkpoint.NAME)[1]["step"] <= 5

    settings = tiny(steps=9)
    stopped, _ = run(settings, tmp_path / "e", stop=lambda: True)
    assert stopped.interrupted and stopped.steps == 3
