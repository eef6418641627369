"""Launch choices are pure functions of shape and capability: tested on any machine, without a GPU."""

import contextlib

import numpy as np
import pytest
import torch

from pgolf.kernels.launch import nearest, on_device_of_arguments
from pgolf.kernels.tensors import require_tensors

TABLE = {80: "Ampere", 90: "Hopper", 100: "Blackwell"}


@pytest.mark.parametrize(
    "capability, entry",
    [(75, "Ampere"), (80, "Ampere"), (86, "Ampere"), (89, "Ampere"), (90, "Hopper"), (103, "Blackwell"), (120, "Blackwell")],
)
def test_a_card_without_an_entry_takes_the_nearest_lower_one(capability, entry):
    assert nearest(TABLE, capability) == entry


def test_a_cuda_form_runs_on_the_device_of_its_tensors(monkeypatch):
    """Tensors on the second GPU while the first is current; torch's fake tensors stand for both."""
    from torch._subclasses import FakeTensorMode

    current = [0]

    @contextlib.contextmanager
    def change(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", change)
    form = on_device_of_arguments(lambda *arguments, scale=1: current[0])
    with FakeTensorMode():
        here, there = (torch.empty(2, device=f"cuda:{i}") for i in (0, 1))
    assert form(here, 3) == 0 and form(there, scale=2) == 1 and form([there], [], here) == 1 and form(None, there) == 1
    assert current == [0]


def test_what_is_no_tensor_is_named():
    x = torch.zeros(2)
    require_tensors("f", {"x": x}, {"gate": None})
    for value, message in (
        (np.zeros(2), r"f: x must be a torch.Tensor, not numpy's ndarray; torch.from_numpy\(x\) makes one"),
        (torch.nn.Linear(2, 2), r"not torch's Linear; pass its weight \(x.weight\)"),
        ([1.0], r"not list; torch.tensor\(x\) makes one"),
        (None, "f: x must be a torch.Tensor, not NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            require_tensors("f", {"x": value})
    with pytest.raises(TypeError, match="gate must be"):
        require_tensors("f", {"x": x}, {"gate": "open"})
