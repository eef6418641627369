"""Ranges for profilers: there when they were asked for, in eager and in compiled code, and nothing at all otherwise."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pgolf.budget import Budget
from pgolf.kernels import launch, mlp

PROGRAM = """
import json, torch
from torch.profiler import ProfilerActivity, profile
from pgolf.budget import Budget
from pgolf.config import at_scale, load_preset
from pgolf.kernels import logit_stats, lora, newton_schulz
from pgolf.model import build_model

settings = at_scale(load_preset("pr745"), "tiny")
model = build_model(settings.model, seed=0)
tokens = torch.randint(0, 1024, (2, 64))
budget = Budget(600)
compiled = torch.compile(lambda g: newton_schulz(g) + 1, fullgraph=True, backend="aot_eager")
with profile(activities=[ProfilerActivity.CPU]) as watched:
    with budget.part("steps"):
        model.loss(tokens, tokens).backward()
    with budget.outside("validation"):
        logit_stats(torch.randn(4, 32), torch.zeros(4, dtype=torch.int64))
        lora(torch.randn(2, 3, 8), None, torch.randn(2, 4, 8), torch.randn(2, 8, 4))
        compiled(torch.randn(1, 8, 8))
print(json.dumps(sorted({event.name for event in watched.events() if event.is_user_annotation})))
"""


def test_every_operator_and_phase_has_one_in_a_trace():
    environment = {**os.environ, "PGOLF_NVTX": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout.splitlines()[-1]))
    operators = ["attention by sdpa", "xsa", "xsa_backward", "rotary", "rotary_backward", "mlp", "mlp_backward"]
    operators += ["linear_cross_entropy", "logit_stats", "lora"]
    wanted = {f"pgolf.{name}" for name in operators} | {"phase: steps", "phase: validation"}
    wanted |= {"pgolf.newton_schulz"}  # within a compiled graph
    assert wanted <= found


@pytest.mark.skipif(launch.RANGES, reason="started with PGOLF_NVTX=1")
def test_there_are_none_unless_asked_for():
    x = torch.randn(2, 8)
    with profile(activities=[ProfilerActivity.CPU]) as watched, Budget(1).part("steps"):
        mlp(x, x, x.T)
    names = {event.name for event in watched.events()}
    assert "pgolf::mlp" in names
    assert not [name for name in names if name.startswith(("pgolf.", "phase"))]


def test_no_operator_is_registered_past_them():
    """An operator that registers its forms itself would have no range."""
    source = [path.read_text() for path in Path(launch.__file__).parent.rglob("*.py") if path.name != "launch.py"]
    assert len(source) > 30
    assert not [text for text in source if "torch.library.impl(" in text]


def test_nsight_sees_the_same_ranges_and_they_end_after_an_error(monkeypatch):
    said = []
    nvtx = types.SimpleNamespace(range_push=lambda name: said.append(name), range_pop=lambda: said.append("end"))
    monkeypatch.setattr(torch.cuda, "nvtx", nvtx)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    work = launch.within_span("outer", lambda: launch.within_span("inner", lambda: 1 / 0)())
    try:
        work()
    except ZeroDivisionError:
        said.append("raised")
    assert said == ["outer", "inner", "end", "end", "raised"]


def test_without_ranges_the_form_itself_is_registered(monkeypatch):
    registered = []
    monkeypatch.setattr(torch.library, "impl", lambda operator, device, form: registered.append(form))
    form = lambda x: x
    launch.implement("pgolf::nothing", "CPU", form, ranges=False)
    launch.implement("pgolf::nothing", "CPU", form, ranges=True)
    assert registered[0] is form and registered[1] is not form
