"""The attention and XSA kernels as numpy, forward and backward, against the reference in float64."""

import itertools

import pytest
import torch

from pgolf.kernels.attention import op, reference
from tests.kernels.compare import assert_close

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])


def inputs(batch, length, heads, kv_heads, dim, dtype, gate):
    q = torch.randn(batch, length, heads, dim).to(dtype)
    k = torch.randn(batch, length, kv_heads, dim).to(dtype)
    v = torch.randn(batch, length, kv_heads, dim).to(dtype)
    return q, k, v, torch.randn(batch, length, heads) if gate else None


def boundaries(*lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def triton(q, k, v, gate, grad, *, xsa=False, cu_seqlens=None, window=None, scale=0.125):
    start, end = (None, None) if cu_seqlens is None else op._bounds_triton(cu_seqlens, q.shape[1])
    inputs = q, k, v, gate, start, end
    options = window or 0, scale, xsa
    out, z, a, lse = op._forward_triton(*inputs, *options)
    found = out, *op._backward_triton(grad, *inputs, out if gate is None else z, a, lse, *options)
    return found if gate is not None else found[:4]


def expected(q, k, v, gate, grad, **options):
    wanted = [x.double().requires_grad_() for x in (q, k, v, gate) if x is not None]
    out = reference.attention(*wanted[:3], gate=wanted[3] if gate is not None else None, **{"scale": 0.125, **options})
    return out, *torch.autograd.grad(out, wanted, grad.double())


def compare(found, wanted, tolerance):
    assert len(found) == len(wanted)
    for name, one, other in zip(("out", "dq", "dk", "dv", "dgate"), found, wanted, strict=False):
        if other.abs().max() < 1e-9:  # what is zero by cancellation is compared with the size of the inputs, about one.
            other, one = other + 1, one + 1
        assert_close(one, other, tolerance, name)


OPTIONS = {
    "plain": {},
    "xsa": {"xsa": True},
    "gate": {"gate": True},
    "scale": {"scale": 0.3},
    "window": {"window": 50},
    "window-of-one-xsa": {"window": 1, "xsa": True},
    "documents": {"cu_seqlens": (32, 1, 0, 63, 2, 5)},
    "documents-xsa-gate-window-tail": {"cu_seqlens": (3, 70, 0, 0, 1, 8), "window": 33, "xsa": True, "gate": True},
    "tiles-beyond-the-documents-xsa": {"cu_seqlens": (7, 9), "xsa": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options = dict(OPTIONS[name])
    gate = options.pop("gate", False)
    if "cu_seqlens" in options:
        options["cu_seqlens"] = boundaries(*options["cu_seqlens"])
    q, k, v, gate = inputs(1, 103, 2, 1, 16, torch.float32, gate)
    grad = torch.randn_like(q)
    compare(triton(q, k, v, gate, grad, **options), expected(q, k, v, gate, grad, **options), 1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 2, 2), (1, 3, 1)], ids="b{0[0]}-h{0[1]}-kv{0[2]}".format)
def test_batches_and_groups(shape):
    batch, heads, kv_heads = shape
    q, k, v, gate = inputs(batch, 45, heads, kv_heads, 16, torch.float32, True)
    grad = torch.randn_like(q)
    compare(triton(q, k, v, gate, grad, xsa=True), expected(q, k, v, gate, grad, xsa=True), 1e-5)


def test_strided_inputs():
    q, k, v, gate = (x.mT.contiguous().mT for x in inputs(2, 40, 2, 1, 16, torch.float32, True))
    grad = torch.randn_like(q).mT.contiguous().mT
    compare(triton(q, k, v, gate, grad, xsa=True), expected(q, k, v, gate, grad, xsa=True), 1e-5)


@DTYPES
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_head_dims_and_dtypes(dtype, dim, ragged):
    """float16 has the large tiles: a length of three of them, and documents and a window wide enough to skip whole blocks."""
    length = 391 if dtype == torch.float16 else 75 if dim == 64 else 43
    q, k, v, gate = inputs(1, length, 2, 1, dim, dtype, True)
    options = {"xsa": True}
    if ragged:
        options |= {"cu_seqlens": boundaries(length - 25, 1, 10), "window": length // 2}
    grad = torch.randn_like(q)
    compare(triton(q, k, v, gate, grad, **options), expected(q, k, v, gate, grad, **options), TOLERANCE[dtype])


@pytest.mark.parametrize("length", [1, 32, 33])
def test_lengths_around_a_tile(length):
    q, k, v, gate = inputs(1, length, 2, 1, 32, torch.float32, True)
    grad = torch.randn_like(q)
    compare(triton(q, k, v, gate, grad, xsa=True), expected(q, k, v, gate, grad, xsa=True), 1e-5)


def test_first_tokens_keep_nothing_and_zero_values_are_harmless():
    """The first token of a document attends to itself alone: y = v, so XSA leaves nothing, and nothing flows back from it."""
    cu_seqlens = boundaries(1, 30, 1, 20)
    q, k, v, _ = inputs(1, 52, 2, 1, 32, torch.float32, False)
    v[:, 17] = 0
    grad = torch.randn_like(q)
    found = triton(q, k, v, None, grad, xsa=True, cu_seqlens=cu_seqlens)
    compare(found, expected(q, k, v, None, grad, xsa=True, cu_seqlens=cu_seqlens), 1e-5)
    first = cu_seqlens[:-1].long()
    assert found[0][:, first].abs().max() < 1e-5
    assert found[1][:, first].abs().max() < 1e-5


def test_large_scores_do_not_overflow():
    q, k, v, _ = inputs(1, 70, 1, 1, 32, torch.float32, False)
    q, grad = 300 * q, torch.randn_like(q)
    compare(triton(q, k, v, None, grad), expected(q, k, v, None, grad), 1e-4)


@pytest.mark.parametrize("lengths", [(5,), (600, 1, 0, 0, 500, 3), (0, 0, 2), (1,) * 37], ids=str)
def test_document_bounds(lengths):
    """Against the plain count, with tokens beyond the last document."""
    total = sum(lengths) + 4
    start, end = op._bounds_triton(boundaries(*lengths), total)
    first, wanted = 0, []
    for length in lengths:
        wanted += [(first, first + length)] * length
        first += length
    wanted += [(total, first)] * 4
    assert list(zip(start.tolist(), end.tolist(), strict=True)) == wanted


@DTYPES
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gate"])
@pytest.mark.parametrize("shape", [(2, 71, 4, 2, 64), (1, 130, 3, 1, 40), (1, 9, 2, 2, 128), (1, 1, 1, 1, 16)], ids=str)
def test_xsa_alone(dtype, gated, shape):
    batch, length, heads, kv_heads, dim = shape
    y, _, v, gate = inputs(*shape, dtype, gated)
    v[:, length // 2] = 0
    grad = torch.randn_like(y)
    z = op._xsa_triton(y, v, gate, reference.EPS)
    found = z, *op._xsa_backward_triton(grad, y, v, gate, reference.EPS)[: 3 if gated else 2]
    wanted = [x.double().requires_grad_() for x in (y, v, gate) if x is not None]
    out = reference.exclude(*wanted)
    for one, other in zip(found, (out, *torch.autograd.grad(out, wanted, grad.double())), strict=True):
        assert_close(one, other, TOLERANCE[dtype])


def test_xsa_with_a_floor_that_counts():
    """Values shorter than eps: the quotient is clamped and its denominator passes no gradient, alone and fused."""
    y, _, v, _ = inputs(1, 33, 2, 1, 32, torch.float32, False)
    v[:, ::2] *= 0.01
    grad = torch.randn_like(y)
    found = op._xsa_triton(y, v, None, 1.0), *op._xsa_backward_triton(grad, y, v, None, 1.0)[:2]
    wanted = [y.double().requires_grad_(), v.double().requires_grad_()]
    out = reference.exclude(*wanted, eps=1.0)
    for one, other in zip(found, (out, *torch.autograd.grad(out, wanted, grad.double())), strict=True):
        assert_close(one, other, 1e-5)


def test_fused_xsa_with_a_floor_that_counts(monkeypatch):
    monkeypatch.setattr(reference, "EPS", 1.0)
    monkeypatch.setattr(reference.exclude, "__defaults__", (None, 1.0))
    q, k, v, gate = inputs(1, 50, 2, 1, 32, torch.float32, True)
    v[:, ::2] *= 0.01
    grad = torch.randn_like(q)
    compare(triton(q, k, v, gate, grad, xsa=True), expected(q, k, v, gate, grad, xsa=True), 1e-5)


def test_every_core_agrees():
    cu_seqlens = boundaries(20, 1, 30)
    q, k, v, gate = inputs(1, 55, 2, 1, 32, torch.float32, True)
    options = {"xsa": True, "cu_seqlens": cu_seqlens, "window": 11, "scale": 0.2}
    found = triton(q, k, v, gate, torch.randn_like(q), **options)[0]
    for core in ("sdpa", "reference", "triton"):
        assert_close(op.attention(q, k, v, gate=gate, core=core, **options), found, 1e-5, core)


def test_two_runs_give_the_same_bits():
    q, k, v, gate = inputs(1, 80, 4, 2, 32, torch.float32, True)
    grad = torch.randn_like(q)
    for one, other in zip(*(triton(q, k, v, gate, grad, xsa=True, window=50) for _ in range(2)), strict=True):
        assert torch.equal(one, other)
