"""The kernels of the scan as numpy, forward and backward, against the definition in float64."""

import pytest
import torch

from pgolf.kernels.scan import launch, op
from pgolf.kernels.scan.reference import scan_reference
from tests.kernels.compare import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}


def check(batch, length, heads, groups, width, size, dtype, strength=1.0, ratio=None):
    ratio = ratio or TOLERANCE[dtype]
    v, dy = torch.randn(2, batch, length, heads, width).to(dtype)
    b, c = torch.randn(2, batch, length, groups, size).to(dtype)
    dt, log_decay = 0.1 + torch.rand(batch, length, heads), -strength * torch.rand(batch, length, heads) ** 3
    inputs = v, b, c, dt, log_decay
    exact = [x.double().requires_grad_() for x in inputs]
    expected = scan_reference(*exact)
    y, states = op.forward_triton(*inputs)
    assert y.dtype == dtype and states.shape == (batch, heads, -(-length // launch.CHUNK), size, width)
    assert_close(y, expected, ratio, "y")
    found = op.backward_triton(dy, *inputs, states)
    wanted = torch.autograd.grad(expected, exact, dy.double())
    for name, got, exactly, given in zip(("v", "b", "c", "dt", "log_decay"), found, wanted, inputs, strict=True):
        assert got.dtype == given.dtype
        assert_close(got, exactly, ratio, f"gradient of {name}")


# the last chunk part-filled, sizes that no tile fits, several parts of a head, heads that share a group
@pytest.mark.parametrize("heads, groups, width, size", [(2, 2, 128, 8), (4, 2, 64, 5), (3, 1, 64, 20)])
def test_kernels(heads, groups, width, size):
    check(1, 150, heads, groups, width, size, torch.float32)


def test_half_precision():
    check(2, 70, 2, 1, 128, 8, torch.float16)


@pytest.mark.parametrize("length", [1, 64, 65])
def test_ends_of_chunks(length):
    check(1, length, 2, 1, 64, 16, torch.float32)


def test_strong_decays():
    """Exponents that would overflow, were the future not masked before the exponential. The sums along a chunk reach
    thousands, and their differences keep fewer digits."""
    check(1, 100, 1, 1, 64, 8, torch.float32, strength=300.0, ratio=1e-4)


@pytest.mark.parametrize("capability", [80, 100])
def test_other_launches(capability, monkeypatch):
    monkeypatch.setattr(op, "capability_of", lambda device: capability)
    check(1, 70, 1, 1, 128, 8, torch.float32)


def test_nothing_to_do():
    v, b = torch.zeros(1, 0, 2, 64), torch.zeros(1, 0, 2, 8)
    rates = torch.zeros(1, 0, 2), torch.zeros(1, 0, 2)
    y, states = op.forward_triton(v, b, b, *rates)
    assert y.shape == v.shape and states.shape[2] == 0
    assert [g.shape for g in op.backward_triton(y, v, b, b, *rates, states)] == [x.shape for x in (v, b, b, *rates)]
