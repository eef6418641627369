"""The rotary kernels as numpy, forward and backward, against the reference in float64."""

import pytest
import torch

from pgolf.kernels.rotary import reference, rotary_table
from pgolf.kernels.rotary.op import _backward_triton, _forward_triton
from tests.kernels.compare import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def inputs(batch, length, heads, kv_heads, dim, dims, dtype):
    q = (3 * torch.randn(batch, length, heads, dim)).to(dtype)
    k = torch.randn(batch, length, kv_heads, dim).to(dtype)
    gain = 1.5 + torch.randn(heads)
    cos, sin = rotary_table(length, dims, 10_000.0)
    return q, k, gain, cos, sin


def expected(q, k, gain, cos, sin, eps, grad_q, grad_k):
    q, k, gain = (x.double().requires_grad_() for x in (q, k, gain))
    query, key = reference.rotary(q, k, gain, cos.double(), sin.double(), eps=eps)
    return query, key, *torch.autograd.grad([query, key], [q, k, gain], [grad_q.double(), grad_k.double()])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 37, 4, 2, 64, 16),
        (1, 65, 2, 1, 64, 64),
        (1, 33, 3, 3, 128, 32),
        (3, 21, 2, 2, 48, 20),
        (1, 9, 2, 1, 64, 0),
        (1, 1, 1, 1, 64, 16),
    ],
    ids=lambda s: "b{}-t{}-h{}-kv{}-d{}-r{}".format(*s),
)
def test_kernels(shape, dtype):
    arguments = inputs(*shape, dtype)
    q, k = arguments[:2]
    eps = torch.finfo(dtype).eps
    grad_q, grad_k = torch.randn_like(q), torch.randn_like(k)
    found = *_forward_triton(*arguments, eps, True), *_backward_triton(grad_q, grad_k, *arguments, eps, True)
    for name, one, other in zip(
        ("q'", "k'", "dq", "dk", "dgain"), found, expected(*arguments, eps, grad_q, grad_k), strict=True
    ):
        assert_close(one, other, TOLERANCE[dtype], name)


def test_eps_and_tables_in_float64_and_strided_inputs():
    q, k, gain, cos, sin = inputs(2, 19, 2, 1, 64, 16, torch.float32)
    q, k = q.transpose(0, 1).contiguous().transpose(0, 1), k.flip(-1).mT.contiguous().mT
    arguments = q, k, gain, cos.double(), sin.double()
    grad_q, grad_k = torch.randn_like(q), torch.randn_like(k)
    found = *_forward_triton(*arguments, 0.5, True), *_backward_triton(grad_q, grad_k, *arguments, 0.5, True)
    for one, other in zip(found, expected(*arguments, 0.5, grad_q, grad_k), strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize("norm, gained", [(False, False), (False, True), (True, False)])
def test_without_norm_or_gain(norm, gained):
    q, k, gain, cos, sin = inputs(2, 19, 4, 2, 64, 16, torch.float32)
    grad_q, grad_k = torch.randn_like(q), torch.randn_like(k)
    gain = gain if gained else None
    found = (
        *_forward_triton(q, k, gain, cos, sin, 1e-6, norm),
        *_backward_triton(grad_q, grad_k, q, k, gain, cos, sin, 1e-6, norm),
    )
    leaves = [x.double().requires_grad_() for x in (q, k, gain) if x is not None]
    exact_gain = leaves[2] if gained else None
    out = reference.rotary(*leaves[:2], exact_gain, cos.double(), sin.double(), eps=1e-6, norm=norm)
    wanted = *out, *torch.autograd.grad(out, leaves, [grad_q.double(), grad_k.double()])
    for one, other in zip(found, wanted, strict=False):
        assert_close(one, other, 1e-5)
