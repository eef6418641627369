"""What sinks are given, and what the real ones have written down. tests/test_run.py has a run that feeds one."""

import json
import sqlite3
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pgolf import sinks as module
from pgolf.config import Settings, TrainingSettings
from pgolf.run import main
from pgolf.sinks import SinkError, Sinks, figures_of_event, figures_of_summary, run_name
from pgolf.summary import Summary
from tests import summaries

STEPS = [{"kind": "step", "step": n, "loss": 5.0 - n, "multiplier": 1.0} for n in (1, 2, 3)]
EVENTS = [{"kind": "start", "parameters": 7}, *STEPS, {"kind": "validation", "step": 3, "weights": "ema", "loss": 2.5}]
SUMMARY = Summary(
    train=summaries.train(steps=3), artifact=summaries.artifact(), score={"sliding": summaries.score()}, main="sliding"
)


def settings(*names):
    return replace(Settings(), training=TrainingSettings(sinks=names))


def fed(name, folder):
    said = []
    with Sinks(settings(name), folder, said.append) as sinks:
        for event in EVENTS:
            sinks.event(event)
        sinks.summary(SUMMARY)
    assert said == []


def test_the_figures_of_events_and_of_the_summary():
    assert [figures_of_event(event) for event in (EVENTS[0], EVENTS[1], EVENTS[-1])] == [
        {}, {"train/loss": 4.0, "train/multiplier": 1.0}, {"validation/loss": 2.5},
    ]  # fmt: skip
    found = figures_of_summary(SUMMARY)
    assert found == {"score/sliding": 1.2, "score/main": 1.2, "artifact/total_bytes": 5300.0, "train/seconds": 10.0}


def test_tensorboard_has_it(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fed("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in read.Scalars("train/loss")] == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [one.value for one in read.Scalars("score/main")] == [pytest.approx(1.2)]


def test_trackio_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    pytest.importorskip("trackio")
    fed("trackio", tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "pgolf.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {run_name(tmp_path)}
    found = [(step, json.loads(figures)) for _, step, figures in rows]
    assert [(step, one["train/loss"]) for step, one in found if "train/loss" in one] == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [one["score/main"] for _, one in found if "score/main" in one] == [1.2]


def test_wandb_is_called_as_it_documents(tmp_path, monkeypatch):
    """A module of that name which writes down its calls; its arguments are those of wandb.init and Run.log."""
    calls = []
    run = SimpleNamespace(log=lambda figures, step: calls.append((step, figures)), finish=lambda: calls.append("finish"))
    init = lambda **known: calls.append(known) or run
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=object()))
    fed("wandb", tmp_path)
    first, *logged, last = calls
    assert first["project"] == "pgolf" and first["resume"] == "allow" and first["id"] == run_name(tmp_path)
    assert first["config"]["training"]["sinks"] == ("wandb",)
    assert [step for step, _ in logged] == [1, 2, 3, 3, 3] and logged[-1][1]["score/main"] == 1.2 and last == "finish"


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(tmp_path, monkeypatch):
    got, said = [], []

    def full(figures, step):
        raise OSError("no room\nleft")

    good = SimpleNamespace(log=lambda figures, step: got.append(step), close=lambda: got.append("closed"))
    monkeypatch.setattr(module, "check_sinks", lambda settings: None)
    monkeypatch.setattr(module, "SINKS", {"tensorboard": lambda *_: SimpleNamespace(log=full), "wandb": lambda *_: good})
    with Sinks(settings("tensorboard", "wandb"), tmp_path, said.append) as sinks:
        for event in EVENTS:
            sinks.event(event)
    assert said == ["the sink tensorboard gets nothing more: OSError: no room left"]
    assert got == [1, 2, 3, 3, "closed"]


def test_one_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def locked(*_):
        raise ValueError("no key;\nlog in first")

    monkeypatch.setattr(module, "check_sinks", lambda settings: None)
    monkeypatch.setitem(module.SINKS, "wandb", locked)
    with pytest.raises(SinkError, match="the sink wandb cannot be opened: ValueError: no key; log in first; mend it"):
        Sinks(settings("wandb"), tmp_path, print)
    assert Sinks(settings("wandb"), tmp_path, print, active=False).open == {}


def test_a_package_that_is_missing_stops_a_run_before_it_has_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    words = ["train", "--scale", "tiny", "--steps", "2", "--out", str(tmp_path / "run"), "--training.sinks", "trackio"]
    assert main(words) == 1
    assert capsys.readouterr().err == "pgolf: training.sinks names trackio, which is not installed: pip install trackio\n"
    assert not (tmp_path / "run").exists()
