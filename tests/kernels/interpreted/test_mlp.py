"""Every kernel of the MLP, by descriptor and by pointer, with both tile sizes, against the float64 reference."""

import pytest
import torch

from pgolf.kernels.mlp import op
from pgolf.kernels.mlp.reference import mlp_reference
from tests.kernels.compare import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


@pytest.fixture(params=["descriptors", "pointers"])
def narrow_tiles(request, monkeypatch):
    """Two programs only, so that each walks over several tiles."""
    monkeypatch.setattr(op, "capability_of", lambda device: 90 if request.param == "descriptors" else 80)
    monkeypatch.setattr(op, "multiprocessors", lambda device: 2)


@pytest.fixture
def wide_tiles(narrow_tiles, monkeypatch):
    monkeypatch.setattr(op, "MULTIPROCESSORS", {80: 1, 90: 1})


@pytest.fixture
def kernels_only(monkeypatch):
    monkeypatch.setattr(op, "magnitude_product", lambda rows, hidden, slope: "kernel")


def example(rows, d, hidden, out, dtype, slope):
    x, w_up = torch.randn(rows, d).to(dtype), (torch.randn(hidden, d) / d**0.5).to(dtype)
    w_down, dy = (torch.randn(out, hidden) / hidden**0.5).to(dtype), torch.randn(rows, out).to(dtype)
    exact = [tensor.double().requires_grad_() for tensor in (x, w_up, w_down)]
    y = mlp_reference(*exact, slope)
    return (x, w_up, w_down), dy, y.detach(), torch.autograd.grad(y, exact, dy.double())


def check(rows, d, hidden, out, dtype, slope):
    inputs, dy, expected, expected_gradients = example(rows, d, hidden, out, dtype, slope)
    y, s = op.forward_triton(*inputs, slope)
    assert s.dtype == y.dtype == dtype
    assert_close(y, expected, TOLERANCE[dtype], "y")
    gradients = op.backward_triton(dy, *inputs, s, slope, True, True, True)
    for name, found, wanted in zip(("dx", "dw_up", "dw_down"), gradients, expected_gradients, strict=True):
        assert found.dtype == dtype and found.is_contiguous()
        assert_close(found, wanted, TOLERANCE[dtype], name)


# no size is a multiple of its tile; fp16 needs multiples of 8, fp32 of 4
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_narrow(narrow_tiles, kernels_only, dtype):
    check(301, 72, 136, 40, dtype, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_wide(wide_tiles, kernels_only, dtype):
    check(1100, 40, 264, 272, dtype, 0.25)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_ends_of_the_slope(narrow_tiles, kernels_only, slope):
    check(70, 40, 136, 24, torch.float32, slope)


def test_rows_in_parts(wide_tiles, kernels_only, monkeypatch):
    """The sum over rows for dw_down, cut in three; the last part is shorter."""
    monkeypatch.setattr(op, "multiprocessors", lambda device: 3)
    assert op.parts_of_rows(3100, 40, 24, op.launch_w_down(90), 3)[0] == 3
    check(3100, 24, 40, 24, torch.float32, 0.5)


@pytest.mark.parametrize("slope, way", [(0.0, "plain"), (0.5, "copy")])
def test_products_left_to_the_library(narrow_tiles, slope, way):
    assert op.magnitude_product(70, 136, slope) == way
    check(70, 40, 136, 24, torch.float32, slope)


def test_signs_survive(narrow_tiles):
    x = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0], [0.0, 0, 0, 0]])
    s = op.up_triton(x, torch.eye(4), 0.5)
    assert s[:, 0].tolist() == [9.0, -2.25, 0.0] and s[:, 1:].eq(0).all()


def test_only_what_is_wanted(narrow_tiles):
    inputs, dy, _, expected = example(70, 40, 136, 24, torch.float32, 0.5)
    _, s = op.forward_triton(*inputs, 0.5)
    for wanted in ([True, False, False], [False, True, False], [False, False, True]):
        found = op.backward_triton(dy, *inputs, s, 0.5, *wanted)
        for gradient, exact, want in zip(found, expected, wanted, strict=True):
            if want:
                assert_close(gradient, exact, 1e-5)
            else:
                assert gradient.numel() == 0


def test_no_rows(narrow_tiles):
    inputs = torch.randn(0, 8), torch.randn(16, 8), torch.randn(8, 16)
    y, s = op.forward_triton(*inputs, 0.5)
    assert y.shape == (0, 8) and s.shape == (0, 16)
    dx, d_up, d_down = op.backward_triton(y, *inputs, s, 0.5, True, True, True)
    assert dx.shape == (0, 8) and d_up.eq(0).all() and d_down.eq(0).all()
    assert d_up.shape == (16, 8) and d_down.shape == (8, 16)


def test_inputs_that_start_anywhere(narrow_tiles):
    """Views that are transposed or begin off a 16-byte boundary."""
    (x, w_up, w_down), dy, expected, gradients = example(70, 40, 136, 24, torch.float32, 0.5)
    x, w_up = x.T.contiguous().T, torch.cat([torch.zeros(1), w_up.flatten()])[1:].view(136, 40)
    y, s = op.forward_triton(x, w_up, w_down, 0.5)
    assert_close(y, expected, 1e-5)
    found = op.backward_triton(dy.T.contiguous().T, x, w_up, w_down, s, 0.5, True, True, True)
    for gradient, exact in zip(found, gradients, strict=True):
        assert_close(gradient, exact, 1e-5)
