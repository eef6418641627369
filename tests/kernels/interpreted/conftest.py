"""Triton's interpreter runs each kernel as numpy, on a CPU. Triton decides at import, so these files run in a process of
their own (tests/kernels/test_interpreted.py starts them); bfloat16 is left out: the interpreter gets it wrong in silence."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass
