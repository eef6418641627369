"""The scan on a GPU: half precision against float64, every element written, the same bits twice."""

import pytest
import torch

from pgolf.kernels.scan import scan, scan_step
from pgolf.kernels.scan.reference import scan_chunked, scan_reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def example(batch, length, heads, groups, width, size, dtype):
    def random(*shape):
        return torch.randn(shape).to("cuda", dtype).requires_grad_()

    dt = (0.1 + torch.rand(batch, length, heads)).cuda().requires_grad_()
    log_decay = (-(torch.rand(batch, length, heads) ** 3)).cuda().requires_grad_()
    sizes = (batch, length, groups, size)
    return random(batch, length, heads, width), random(*sizes), random(*sizes), dt, log_decay


# the last two are served by plain torch: a head of 32, and float32
@pytest.mark.parametrize(
    "batch, length, heads, groups, width, size",
    [(3, 300, 8, 8, 128, 8), (1, 1000, 4, 2, 64, 16), (2, 65, 3, 1, 64, 5), (2, 100, 4, 4, 32, 8)],
)
@pytest.mark.parametrize(
    "dtype, ratio", [(torch.bfloat16, 1e-2), (torch.float16, 3e-3), (torch.float32, 1e-5)], ids=["bf16", "fp16", "fp32"]
)
def test_output_and_gradients(batch, length, heads, groups, width, size, dtype, ratio):
    inputs = example(batch, length, heads, groups, width, size, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = scan(*inputs), scan_chunked(*exact)
    assert_close(y, expected, ratio, "y")
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, upstream)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for name, got, exactly in zip(("v", "b", "c", "dt", "log_decay"), found, wanted, strict=True):
        assert_close(got, exactly, ratio, f"gradient of {name}")


def test_decay_of_time_alone():
    v, b, c, *_ = example(2, 500, 8, 8, 128, 8, torch.bfloat16)
    dt, log_decay = (x.cuda().requires_grad_() for x in (0.01 + 0.1 * torch.rand(8), -0.5 * torch.rand(8)))
    exact = [x.detach().double().requires_grad_() for x in (v, b, c, dt, log_decay)]
    y, expected = scan(v, b, c, dt, log_decay), scan_chunked(*exact)
    assert_close(y, expected, 1e-2, "y")
    found, wanted = torch.autograd.grad(y.sum(), (dt, log_decay)), torch.autograd.grad(expected.sum(), exact[3:])
    for name, got, exactly in zip(("dt", "log_decay"), found, wanted, strict=True):
        assert_close(got, exactly, 1e-2, f"gradient of {name}")


def test_step_by_step():
    v, b, c, dt, log_decay = (x.detach() for x in example(2, 100, 8, 8, 128, 8, torch.bfloat16))
    state = torch.zeros(2, 8, 8, 128, device="cuda")
    rows = [scan_step(state, *(x[:, t] for x in (v, b, c, dt, log_decay))) for t in range(100)]
    assert_close(torch.stack(rows, 1), scan_reference(*(x.double() for x in (v, b, c, dt, log_decay))), 1e-2)


def test_same_bits_twice():
    inputs = example(4, 700, 8, 4, 128, 8, torch.bfloat16)
    runs = []
    for _ in range(2):
        y = scan(*inputs)
        runs.append((y, *torch.autograd.grad(y, inputs, torch.ones_like(y))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
