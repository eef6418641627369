"""The MLP on a GPU: half precision against float64, every element written, the same bits twice."""

import pytest
import torch

from pgolf.kernels.mlp import mlp, op
from pgolf.kernels.mlp.reference import mlp_reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def example(rows, d, hidden, out, dtype):
    shapes = ((rows, d), 1.0), ((hidden, d), d**-0.5), ((out, hidden), hidden**-0.5)
    return [(scale * torch.randn(shape)).to("cuda", dtype).requires_grad_() for shape, scale in shapes]


def check(inputs, slope, ratio):
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = mlp(*inputs, slope), mlp_reference(*exact, slope)
    assert_close(y, expected, ratio, "y")
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for name, got, exactly in zip(("dx", "dw_up", "dw_down"), found, wanted, strict=True):
        assert_close(got, exactly, ratio, name)


# the last but one has sizes that no descriptor takes; the last is large enough for the kernels to do every product
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize(
    "rows, d, hidden, out", [(300, 512, 2048, 512), (4099, 520, 1544, 264), (64, 36, 100, 20), (33_001, 256, 1024, 256)]
)
@pytest.mark.parametrize("dtype, ratio", [(torch.bfloat16, 1e-2), (torch.float16, 3e-3)], ids=["bf16", "fp16"])
def test_output_and_gradients(rows, d, hidden, out, slope, dtype, ratio):
    check(example(rows, d, hidden, out, dtype), slope, ratio)


def test_every_product_by_kernel(monkeypatch):
    monkeypatch.setattr(op, "magnitude_product", lambda rows, hidden, slope: "kernel")
    check(example(1100, 136, 264, 72, torch.bfloat16), 0.5, 1e-2)


def test_float32():
    check(example(300, 64, 128, 32, torch.float32), 0.5, 1e-5)


def test_same_bits_twice(monkeypatch):
    monkeypatch.setattr(op, "magnitude_product", lambda rows, hidden, slope: "kernel")
    inputs = example(5000, 256, 1024, 256, torch.bfloat16)
    runs = []
    for _ in range(2):
        y = mlp(*inputs)
        runs.append((y, *torch.autograd.grad(y, inputs, torch.ones_like(y))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
