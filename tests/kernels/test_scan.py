"""The scan on a CPU: the mathematics, its gradients, its step, its launch choices, and how it meets torch.compile."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pgolf.kernels.scan import cpu, launch, op, scan, scan_step
from pgolf.kernels.scan.reference import scan_chunked, scan_reference
from tests.kernels.compare import assert_close

NAMES = ("v", "b", "c", "dt", "log_decay")


def example(batch=2, length=11, heads=4, groups=2, width=5, size=3, dtype=torch.float64, constant=False):
    """Decays from almost none to almost all."""
    v = torch.randn(batch, length, heads, width)
    b, c = torch.randn(batch, length, groups, size), torch.randn(batch, length, groups, size)
    shape = (heads,) if constant else (batch, length, heads)
    dt, log_decay = 0.1 + torch.rand(shape), -3 * torch.rand(shape) ** 3
    exact = torch.promote_types(dtype, torch.float32)
    kinds = (dtype, dtype, dtype, exact, exact)
    return [x.to(kind).requires_grad_() for x, kind in zip((v, b, c, dt, log_decay), kinds, strict=True)]


def by_hand(v, b, c, dt, log_decay):
    """y_t = sum over j <= t of exp(sum of log_decay from j + 1 to t) dt_j (c_t . b_j) v_j, for one batch row and head."""
    rows = []
    for t in range(len(v)):
        row = torch.zeros_like(v[0])
        for j in range(t + 1):
            row = row + math.exp(log_decay[j + 1 : t + 1].sum()) * dt[j] * (c[t] @ b[j]) * v[j]
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("form", [scan_reference, scan_chunked, scan])
def test_by_hand(form):
    v, b, c, dt, log_decay = (x.detach() for x in example())
    y = form(v, b, c, dt, log_decay)
    for i in range(2):
        for head in range(4):
            g = head // 2
            wanted = by_hand(v[i, :, head], b[i, :, g], c[i, :, g], dt[i, :, head], log_decay[i, :, head])
            assert_close(y[i, :, head], wanted, 1e-12)


# lengths on both sides of a chunk's end; a head for each group, and one group for all
@pytest.mark.parametrize("form", [scan_chunked, scan])
@pytest.mark.parametrize("length, groups, constant", [(1, 4, False), (64, 4, True), (65, 1, False), (200, 2, False)])
def test_output_and_gradients(form, length, groups, constant):
    inputs = example(length=length, groups=groups, constant=constant)
    found, expected = form(*inputs), scan_reference(*inputs)
    assert_close(found, expected, 1e-11)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, upstream)
    for name, got, wanted in zip(NAMES, gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert_close(got, wanted, 1e-11, f"gradient of {name}")


def test_gradcheck(monkeypatch):
    for module in (cpu, op):
        monkeypatch.setattr(module, "CHUNK", 4)
    assert torch.autograd.gradcheck(scan, example(batch=1, length=9, heads=2, groups=1, width=3, size=2))


@pytest.mark.parametrize("wanted", range(5))
def test_one_gradient_at_a_time(wanted):
    inputs = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(example())]
    upstream = torch.randn(2, 11, 4, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(scan(*inputs), inputs[wanted], upstream)
    (expected,) = torch.autograd.grad(scan_reference(*inputs), inputs[wanted], upstream)
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize("dtype, ratio", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("form", [scan_chunked, scan])
def test_lower_precision(form, dtype, ratio):
    inputs = example(length=150, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = form(*inputs), scan_reference(*exact)
    assert y.dtype == dtype
    assert_close(y, expected, ratio)
    upstream = torch.randn(y.shape).to(dtype)
    gradients = torch.autograd.grad(y, inputs, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert_close(got, wanted, ratio)


def test_decays_too_strong_for_a_float():
    """A chunk's end is e^-6400 of its start, and e^+6400 the other way round."""
    v, b, c, dt, _ = example(length=100, dtype=torch.float32)
    strong = torch.full((4,), -100.0)
    for form in (scan_chunked, scan):
        y = form(v, b, c, dt, strong)
        alone = dt[..., None] * (b * c).sum(-1).repeat_interleave(2, 2)[..., None] * v
        assert_close(y, alone, 1e-6)
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (v, b, c, dt)))


@pytest.mark.parametrize("constant", [False, True])
def test_step_by_step(constant):
    v, b, c, dt, log_decay = (x.detach() for x in example(length=150, dtype=torch.float32, constant=constant))
    state = torch.zeros(2, 4, 3, 5)
    rates = (dt, log_decay)
    rows = [scan_step(state, v[:, t], b[:, t], c[:, t], *(x if constant else x[:, t] for x in rates)) for t in range(150)]
    assert_close(torch.stack(rows, 1), scan(v, b, c, dt, log_decay), 1e-6)
    assert_close(torch.stack(rows, 1), scan_chunked(v, b, c, dt, log_decay), 1e-6)


def test_nothing_to_do():
    for length, batch in ((0, 2), (7, 0)):
        inputs = example(batch=batch, length=length)
        y = scan(*inputs)
        assert y.shape == (batch, length, 4, 5)
        assert all(g.shape == x.shape for g, x in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"v": torch.zeros(2, 11, 4, 5)}, "one floating-point dtype"),
        ({"v": torch.zeros(2, 11, 3, 5, dtype=torch.float64)}, "multiple of G"),
        ({"b": torch.zeros(2, 11, 2, 4, dtype=torch.float64)}, "multiple of G"),
        ({"c": torch.zeros(2, 10, 2, 3, dtype=torch.float64)}, "multiple of G"),
        ({"dt": torch.zeros(2, 11, 3)}, "dt must be"),
        ({"log_decay": torch.zeros(2, 4)}, "log_decay must be"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        scan(**{**dict(zip(NAMES, example(), strict=True)), **change})


def test_an_array_is_named():
    v, *rest = example(dtype=torch.float32)
    with pytest.raises(TypeError, match="scan: v must be a torch.Tensor, not numpy's ndarray"):
        scan(v.detach().numpy(), *rest)


def test_bad_state():
    v, b, c, dt, log_decay = (x.detach()[:, 0] for x in example())
    with pytest.raises(ValueError, match=r"state is \(2, 4, 5, 3\); .* \(2, 4, 3, 5\) expected"):
        scan_step(torch.zeros(2, 4, 5, 3), v, b, c, dt, log_decay)


def test_opcheck():
    inputs = example(length=70)
    sideways = inputs[0].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for values in (inputs[0], sideways):
        torch.library.opcheck(torch.ops.pgolf.scan, (values, *inputs[1:]))
    with torch.no_grad():
        y, states = torch.ops.pgolf.scan(*inputs)
        torch.library.opcheck(torch.ops.pgolf.scan_backward, (torch.randn_like(y), *(x.detach() for x in inputs), states))


def test_fullgraph_compile_with_a_dynamic_length():
    def layer(v, b, c, dt, log_decay):
        return v + scan(2 * v, b, c, dt, log_decay)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for length in (70, 130, 200):
        inputs = example(length=length)
        upstream = torch.randn(2, length, 4, 5, dtype=torch.float64)
        found = torch.autograd.grad(compiled(*inputs), inputs, upstream)
        for got, wanted in zip(found, torch.autograd.grad(layer(*inputs), inputs, upstream), strict=True):
            assert_close(got, wanted, 1e-9)
    assert counter.frame_count == 1


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_launches(capability):
    for choose in (launch.launch_forward, launch.launch_states, launch.launch_chunks):
        small, large = choose(8, capability), choose(17, capability)
        assert (small.tiles["BT"], small.tiles["BS"], large.tiles["BS"]) == (launch.CHUNK, 16, 32)
        # no part of a head is left over
        assert 64 % small.tiles["BP"] == 0


def test_choices():
    assert [launch.padded(size) for size in (1, 8, 16, 17, 32)] == [16, 16, 16, 32, 32]
    assert launch.uses_kernels(128, 8, torch.bfloat16, 90)
    assert launch.uses_kernels(64, 32, torch.float16, 100)
    assert launch.uses_kernels(64, 16, torch.bfloat16, 80) and not launch.uses_kernels(64, 17, torch.bfloat16, 80)
    assert not launch.uses_kernels(128, 33, torch.bfloat16, 90)
    assert not launch.uses_kernels(32, 8, torch.bfloat16, 90)
    assert not launch.uses_kernels(128, 8, torch.float32, 90)
    assert not launch.uses_kernels(128, 8, torch.bfloat16, 75)
    assert all(launch.uses_kernels(128, 8, torch.bfloat16, newer) for newer in (86, 89, 103, 120))


def test_traffic():
    """The figures of a training step of the hybrid's: 98,304 tokens, eight heads of 128, states of 8."""
    assert launch.traffic_forward(98_304, 8, 8, 128, 8) == (
        98_304 * (2 * 1024 * 2 + 2 * 64 * 2 + 512 + 64), 98_304 * 8 * (2 * 64 * 144 + 4 * 16 * 128),
    )  # fmt: skip
    moved, work = launch.traffic_states(98_304, 8, 8, 128, 8)
    more_moved, more_work = launch.traffic_chunks(98_304, 8, 8, 128, 8)
    assert moved + more_moved == 98_304 * 8 * (4 * 128 * 2 + 5 * 8 * 2 + 12 * 8 * 128 // 64 + 20)
    assert work + more_work == 98_304 * 8 * (2 * 64 * (3 * 16 + 2 * 128) + 8 * 16 * 128)
