"""The symmetric product, and the whole iteration built on it, against the float64 reference."""

import pytest
import torch

from pgolf.kernels.newton_schulz import op
from pgolf.kernels.newton_schulz.reference import newton_schulz_reference
from tests.kernels.compare import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.fixture(params=[80, 90], autouse=True)
def tiles(request, monkeypatch):
    monkeypatch.setattr(op, "capability_of", lambda device: request.param)


def assert_mirrored(found, tolerance):
    """What lies above the diagonal's tiles is a copy of what lies below; within them, numpy's product is symmetric as far as
    its library rounds alike."""
    tile = op.launch_symmetric(op.capability_of(found.device)).tiles["BM"]
    place = torch.arange(found.shape[-1]) // tile
    apart = place[:, None] != place
    assert torch.equal(found[..., apart], found.mT[..., apart])
    assert_close(found, found.mT, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("batch, m, k", [(2, 300, 70), (3, 40, 129), (1, 513, 33)])
def test_gram(batch, m, k, dtype):
    x = (torch.randn(batch, m, k) / k**0.5).to(dtype)
    gram = op.symmetric_triton(x, None, 0.5)
    assert_close(gram, 0.5 * x.double() @ x.double().mT, TOLERANCE[dtype])
    assert_mirrored(gram, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("batch, m", [(2, 300), (1, 20)])
def test_polynomial(batch, m, dtype):
    x = torch.randn(batch, m, m)
    x = ((x + x.mT) / m**0.5).to(dtype)
    found = op.symmetric_triton(x, -4.775, 2.0315)
    exact = x.double()
    assert_close(found, -4.775 * exact + 2.0315 * exact @ exact, TOLERANCE[dtype])
    assert_mirrored(found, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(2, 140, 200), (200, 140)])
def test_iteration(shape):
    g = torch.randn(shape)
    table = op.coefficient_table("polar_express", 3)
    found = op.iterate_triton(g.reshape(-1, *shape[-2:]), [v for triple in table for v in triple], torch.float32)
    assert_close(found.reshape(shape), newton_schulz_reference(g.double(), table), 1e-5)


def test_zeros_and_nothing():
    assert op.iterate_triton(torch.zeros(2, 130, 140), [3.0, -4.0, 2.0], torch.float32).eq(0).all()
    assert op.iterate_triton(torch.zeros(0, 130, 140), [3.0, -4.0, 2.0], torch.float32).shape == (0, 130, 140)
