"""What numba compiles gives the same bits in every process, whoever compiled it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import pgolf.kernels
from pgolf.kernels.compile import OPERATORS

COMPILED = [
    importlib.import_module(f"pgolf.kernels.{name}.cpu")
    for name in OPERATORS
    if (Path(pgolf.kernels.__path__[0]) / name / "cpu.py").exists()
]
WORK = """
import hashlib, torch
from pgolf.kernels.cross_entropy import cross_entropy
from pgolf.kernels.logit_stats import logit_stats
from pgolf.kernels.rotary import rotary, rotary_table

def say(*tensors):
    print(*(hashlib.sha256(x.detach().numpy().tobytes()).hexdigest() for x in tensors))

torch.set_num_threads(1)
random = torch.Generator().manual_seed(7)
logits = 4 * torch.randn(37, 301, generator=random)
targets = torch.randint(301, (37,), generator=random)
mine = logits.clone().requires_grad_()
loss = cross_entropy(mine, targets, softcap=30.0, z_loss=1e-3)
loss.sum().backward()
say(loss, mine.grad)
inputs = [torch.randn(*shape, generator=random).requires_grad_() for shape in ((2, 19, 4, 22), (2, 19, 2, 22), (4,))]
results = rotary(*inputs, *rotary_table(19, 14, 10_000.0))
sum(x.square().sum() for x in results).backward()
say(*results, *(x.grad for x in inputs))
say(*logit_stats(logits, targets, candidates=targets[:, None]))
"""


def said(folder):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_process_that_compiles_and_one_that_loads_agree(tmp_path):
    first = said(tmp_path)
    assert len(first.split()) == 11
    assert said(tmp_path) == first


def own_functions(module):
    return {name: f for name, f in vars(module).items() if isinstance(f, Dispatcher)}


def rounded_freely(module):
    return {name for name, f in own_functions(module).items() if f.targetoptions.get("fastmath")}


@pytest.mark.parametrize(
    "module", [m for m in COMPILED if rounded_freely(m)], ids=lambda module: module.__name__.split(".")[-2]
)
def test_what_may_be_rounded_freely_is_inlined_where_it_is_called(module):
    """Otherwise its caller carries a copy that was optimised once more, and what is linked first decides which one runs."""
    own, free = own_functions(module), rounded_freely(module)
    called = {name for f in own.values() for name in f.py_func.__code__.co_names}
    assert free and not {name for name in free & called if not own[name].targetoptions.get("forceinline")}
