"""Attention and XSA on the device itself: bfloat16 against float64, poisoned memory, the same bits twice, other cores."""

import itertools

import pytest
import torch

from pgolf.kernels.attention import attention, reference, xsa
from pgolf.kernels.attention import core as cores
from tests.kernels.compare import assert_close

pytestmark = pytest.mark.gpu

DTYPES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


def inputs(batch, length, heads, kv_heads, dim, dtype):
    def random(*shape, kind=dtype):
        return torch.randn(*shape, device="cuda").to(kind).requires_grad_()

    q, k, v = (random(batch, length, count, dim) for count in (heads, kv_heads, kv_heads))
    return q, k, v, random(batch, length, heads, kind=torch.float32)


def boundaries(*lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")


def with_gradients(function, leaves, weight):
    out = function(*leaves)
    return out, *torch.autograd.grad(out, leaves, weight.to(out.dtype))


def against_float64(function, oracle, leaves, tolerance):
    weight = torch.randn_like(leaves[0])
    exact = [x.detach().double().requires_grad_() for x in leaves]
    found, wanted = with_gradients(function, leaves, weight), with_gradients(oracle, exact, weight)
    for name, one, other in zip(("out", "first", "second", "third", "fourth"), found, wanted, strict=False):
        if other.abs().max() < 1e-9:  # zero by cancellation: compared with the size of the inputs, about one.
            one, other = one.double() + 1, other + 1
        assert_close(one, other, tolerance, name if name == "out" else f"gradient of the {name} input")


OPTIONS = {
    "plain": lambda length: {},
    "xsa": lambda length: {"xsa": True},
    "window": lambda length: {"xsa": True, "window": 200},
    "documents": lambda length: {"xsa": True, "cu_seqlens": boundaries(length // 2, 1, 0, length // 4, 7)},
    "all": lambda length: {"xsa": True, "scale": 0.2, "window": 90, "cu_seqlens": boundaries(1, 300, length - 340)},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention(dtype, dim, options):
    options = options(777)
    batch = 1 if "cu_seqlens" in options else 2

    def with_core(q, k, v, gate, core="triton"):
        return attention(q, k, v, gate=gate, core=core, **options)

    leaves = inputs(batch, 777, 4, 2, dim, dtype)
    against_float64(with_core, lambda *x: with_core(*x, core="reference"), leaves, DTYPES[dtype])


@pytest.mark.parametrize("length", [1, 63, 128, 129, 2048])
def test_lengths(length):
    leaves = inputs(1, length, 2, 1, 64, torch.bfloat16)[:3]
    fused = lambda *x: attention(*x, core="triton")
    against_float64(fused, lambda *x: attention(*x, core="reference"), leaves, 1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1000, 8, 4, 64), (1, 77, 3, 1, 96), (1, 1, 2, 2, 128)], ids=str)
def test_xsa(dtype, shape):
    q, _, v, gate = inputs(*shape, dtype)
    against_float64(xsa, reference.exclude, [q, v, gate], DTYPES[dtype])


def test_every_installed_core_agrees():
    q, k, v, gate = inputs(1, 600, 4, 2, 64, torch.bfloat16)
    for options in ({"xsa": True}, {"xsa": True, "window": 100, "cu_seqlens": boundaries(200, 3, 390)}):
        wanted = attention(q.double(), k.double(), v.double(), gate=gate.double(), core="reference", **options)
        for core in (None, *cores.installed_cores().split()):
            assert_close(attention(q, k, v, gate=gate, core=core, **options), wanted, 1e-2, str(core))


def test_two_runs_give_the_same_bits():
    leaves = inputs(1, 1500, 8, 4, 64, torch.bfloat16)
    weight = torch.randn_like(leaves[0])
    options = {"xsa": True, "cu_seqlens": boundaries(700, 100, 690), "core": "triton"}
    runs = [with_gradients(lambda q, k, v, g: attention(q, k, v, gate=g, **options), leaves, weight) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_a_compiled_step_is_one_graph():
    def step(q, k, v, gate):
        return attention(q * 1.5, k, v, xsa=True, gate=gate, core="triton").float().square().sum()

    leaves = inputs(2, 300, 4, 2, 64, torch.bfloat16)
    compiled = torch.compile(step, fullgraph=True)
    for one, other in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(step(*leaves), leaves), strict=True
    ):
        assert_close(one, other, 5e-3)


def test_the_fused_core_names_what_it_cannot_take():
    q, k, v, _ = inputs(1, 8, 2, 1, 96, torch.bfloat16)
    with pytest.raises(ValueError, match="head dims"):
        attention(q, k, v, core="triton")
