"""Rotary on the device itself: bfloat16 against float64, poisoned memory, the same bits twice."""

import pytest
import torch

from pgolf.kernels.rotary import reference, rotary, rotary_table
from tests.kernels.compare import assert_close

pytestmark = pytest.mark.gpu

DTYPES = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


def inputs(batch, length, heads, kv_heads, dim, dims, dtype):
    q = torch.randn(batch, length, heads, dim, device="cuda").to(dtype).requires_grad_()
    k = torch.randn(batch, length, kv_heads, dim, device="cuda").to(dtype).requires_grad_()
    gain = (1.5 + torch.randn(heads, device="cuda")).requires_grad_()
    return q, k, gain, *rotary_table(length, dims, 10_000.0, device="cuda")


def with_gradients(function, q, k, gain, cos, sin, weights, eps):
    out = function(q, k, gain, cos, sin, eps=eps)
    return *out, *torch.autograd.grad(out, (q, k, gain), [w.to(out[0].dtype) for w in weights])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 1000, 8, 4, 64, 16), (1, 333, 4, 1, 128, 128), (3, 65, 2, 2, 96, 20), (1, 7, 1, 1, 64, 0)], ids=str
)
def test_against_float64_and_twice_the_same_bits(shape, dtype):
    q, k, gain, cos, sin = inputs(*shape, dtype)
    eps, weights = torch.finfo(dtype).eps, (torch.randn_like(q), torch.randn_like(k))
    exact = (x.detach().double().requires_grad_() for x in (q, k, gain))
    wanted = with_gradients(reference.rotary, *exact, cos.double(), sin.double(), weights, eps)
    first, second = (with_gradients(rotary, q, k, gain, cos, sin, weights, eps) for _ in range(2))
    for name, one, again, other in zip(("q'", "k'", "dq", "dk", "dgain"), first, second, wanted, strict=True):
        assert_close(one, other, DTYPES[dtype], name)
        assert torch.equal(one, again), name
