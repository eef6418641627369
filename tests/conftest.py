"""What every test gets: fixed seeds, memory that shows when it was not written, and GPU tests skipped with a reason."""

import os
import signal
import sys

# as pgolf.process does, which has to come before torch as well
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# what tests compute is too small to share between threads, and other tests run beside them
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# a shell lets its background jobs ignore Ctrl-C, and children would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
# torch remembers which constructors a device's context governs: it must meet the real ones before a test poisons them
with torch.device("cpu"):
    torch.empty(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(42)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compiled graphs are counted per function: what one test compiles must not use up the next one's share."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _poisoned(make):
    def allocate(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if not torch.is_tensor(tensor) or tensor.device.type == "meta" or type(tensor) is not torch.Tensor:
            return tensor
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(float("nan"))
        return tensor.fill_(True) if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

    return allocate


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Uninitialised memory holds NaN (or the largest integer), so an element that a kernel forgets is loud."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))
