"""The LoRA kernels against the reference in float64, run by Triton's interpreter."""

import pytest
import torch

from pgolf.kernels.lora import op, update
from pgolf.kernels.lora.reference import adam_reference, lora_backward_reference, lora_reference
from tests.kernels.compare import assert_close
from tests.kernels.test_lora import adapters, training

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def check(x, weight, a, b, bounds, route=None, input_gradient=True):
    limit = TOLERANCE[x.dtype]
    exact = [v if v is None else v.double() for v in (x, weight, a, b)]
    y, t = op.forward_triton(x, weight, a, b, 0.7, bounds, route)
    expected_y, expected_t = lora_reference(*exact, 0.7, bounds)
    assert (y.dtype, t.dtype) == (x.dtype, x.dtype)
    assert_close(y, expected_y, limit, "y")
    assert_close(t, expected_t, limit, "t")
    dy = torch.randn_like(y)
    found = op.backward_triton(dy, x, t, weight, a, b, 0.7, bounds, input_gradient, route)
    expected = lora_backward_reference(dy.double(), exact[0], t.double(), *exact[1:], 0.7, bounds, input_gradient)
    for name, one, other in zip(("dx", "da", "db"), found, expected, strict=True):
        if one.numel():
            assert_close(one, other, limit, name)
    assert found[0].shape == (x.shape if input_gradient else (0,))
    assert (found[1].dtype, found[2].dtype) == (a.dtype, b.dtype)


@pytest.mark.parametrize("route", ["whole", "split", "around"])
@pytest.mark.parametrize("lengths", [None, [130, 0, 1, 40]], ids=["dense", "ragged"])
def test_every_route(route, lengths):
    check(*adapters(docs=2, n=67, width=72, out=136, rank=5, lengths=lengths, dtype=torch.float32), route)


@pytest.mark.parametrize("route", ["whole", "split", "around"])
def test_half_precision(route):
    check(*adapters(docs=2, n=33, width=64, out=48, rank=8, dtype=torch.float16), route)


@pytest.mark.parametrize("rank", [1, 16, 33, 80, 96, 128])
def test_every_padding_of_the_rank(rank):
    check(*adapters(docs=2, n=20, width=40, out=24, rank=rank, dtype=torch.float32), "split")


def test_wide_tiles():
    check(*adapters(docs=1, n=130, width=24, out=2050, rank=3, dtype=torch.float16), "whole")


@pytest.mark.parametrize("lengths", [None, [9, 0, 30]], ids=["dense", "ragged"])
def test_adapters_alone(lengths):
    check(*adapters(docs=2, n=9, width=24, out=20, rank=8, base=False, lengths=lengths, dtype=torch.float32))


def test_float32_adapters_under_half_precision():
    x, weight, a, b, bounds = adapters(docs=2, n=20, width=32, out=48, rank=6, dtype=torch.float16)
    for route in ("whole", "split", "around"):
        check(x, weight, a.float(), b.float(), bounds, route)


def test_no_input_gradient():
    check(*adapters(docs=2, n=20, width=32, out=48, rank=6, dtype=torch.float32), input_gradient=False)


@pytest.mark.parametrize("lengths", [None, [70, 0, 16, 33]], ids=["dense", "ragged"])
def test_long_documents_are_summed_from_parts(lengths, monkeypatch):
    monkeypatch.setattr(op, "CHUNK", 32)
    check(*adapters(docs=2, n=70, width=24, out=20, rank=40, lengths=lengths, dtype=torch.float32))


def test_many_ragged_documents():
    """More documents than the search for a tile's document looks at in one step."""
    x, weight, a, b, bounds = adapters(width=8, out=8, rank=2, lengths=[i % 3 for i in range(130)], dtype=torch.float32)
    y, _ = op.forward_triton(x, weight, a, b, 1.0, bounds)
    assert_close(y, lora_reference(*(v.double() for v in (x, weight, a, b)), 1.0, bounds)[0], 1e-5)


def test_nothing_to_do():
    x, weight, a, b, _ = adapters(docs=2, n=0, width=8, out=6, rank=2, dtype=torch.float32)
    y, t = op.forward_triton(x, weight, a, b, 1.0, None)
    dx, da, db = op.backward_triton(y, x, t, weight, a, b, 1.0, None, True)
    assert (y.shape, dx.shape) == ((2, 0, 6), (2, 0, 8))
    assert not da.any() and not db.any()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_tail_ignores_a_broken_adapter():
    """Rows behind the last document get the base product even if the last adapter holds infinities."""
    x, weight, a, b, bounds = adapters(width=8, out=8, rank=2, lengths=[3, 4], dtype=torch.float32)
    a[1, 0, 0] = b[1, 0, 0] = float("inf")
    for route in ("whole", "split", "around"):
        y, t = op.forward_triton(x, weight, a, b, 1.0, bounds, route)
        assert_close(y[7:], x[7:].double() @ weight.double().T, 1e-5, route)
        assert not t[7:].any()


def step_of_every_document(parameters, gradients, first, second, steps, rates, betas, active):
    """What the reference makes of active documents; the others as they were."""
    rows = torch.ones(len(steps), dtype=torch.bool) if active is None else active
    for i, (p, g, v) in enumerate(zip(parameters, gradients, second, strict=True)):
        m = first[i] if betas[0] else None
        made = adam_reference(p, g, m, v, steps + 1, rates.double(), betas, 1e-8, 0.1)
        yield [old if new is None else torch.where(rows.view(-1, *[1] * (p.dim() - 1)), new, old.double())
               for old, new in zip((p, first[i], v), made, strict=True)]  # fmt: skip


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.999)], ids=["two moments", "one moment"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all"])
@pytest.mark.parametrize("width", [1040, 33], ids=["aligned", "odd"])
def test_adam(betas, masked, width):
    parameters, first, second, steps, generator = training()
    if width == 1040:
        parameters, first, second = ([torch.zeros(4, 1040), torch.zeros(4, 2, 16)] for _ in range(3))
    active = torch.tensor([True, False, True, True]) if masked else None
    rates = torch.tensor([0.1, 0.01, 0.05, 0.02]) if masked else torch.full((4,), 0.03)
    for _ in range(2):
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        expected = list(step_of_every_document(parameters, gradients, first, second, steps, rates, betas, active))
        arguments = (rates if masked else None, 0.0 if masked else 0.03, *betas, 1e-8, 0.1, active)
        moments = first if betas[0] else []
        update._adam_triton(parameters, gradients, moments, second, steps, *arguments)
        for i, (p, m, v) in enumerate(expected):
            assert_close(parameters[i], p, 1e-6, "parameter")
            assert_close(second[i], v, 1e-6, "second moment")
            assert_close(first[i], m, 1e-6, "first moment")
    assert steps.tolist() == ([2, 0, 2, 2] if masked else [2] * 4)
    assert betas[0] or not any(m.any() for m in first)
    assert all(written._version == 2 for written in (*parameters, *(first if betas[0] else ()), *second))


def test_adam_in_half_precision():
    parameters, first, second, steps, generator = training(dtype=torch.float16, moments=torch.float32)
    gradients = [torch.randn(p.shape, generator=generator).half() for p in parameters]
    rates = torch.full((4,), 0.03)
    expected = list(step_of_every_document(parameters, gradients, first, second, steps, rates, (0.9, 0.95), None))
    update._adam_triton(parameters, gradients, first, second, steps, None, 0.03, 0.9, 0.95, 1e-8, 0.1, None)
    for i, (p, m, v) in enumerate(expected):
        assert_close(parameters[i], p, 2e-3, "parameter")
        assert_close(second[i], v, 1e-6, "second moment")
        assert_close(first[i], m, 1e-6, "first moment")


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "all"])
def test_reset(masked):
    """Aligned and odd sizes, and types of two widths, in one launch."""
    a = [torch.randn(4, 8, 264), torch.randn(4, 3, 5).half()]
    cleared = [torch.randn(4, 7, 3), torch.randn(4, 32), torch.tensor([4, 5, 6, 7], dtype=torch.int32)]
    initial = [torch.randn(8, 264), torch.randn(3, 5).half()]
    chosen = torch.tensor([False, True, True, False]) if masked else None
    expected = [tensor.clone() for tensor in (*a, *cleared)]
    update._reset_cpu(expected[:2], initial, expected[2:], chosen)
    update._reset_triton(a, initial, cleared, chosen)
    for found, wanted in zip((*a, *cleared), expected, strict=True):
        assert torch.equal(found, wanted) and found._version == 1
