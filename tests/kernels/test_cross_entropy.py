"""cross_entropy on a CPU: the mathematics, the gradient, what is refused, and how it meets torch.compile."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pgolf.kernels.cross_entropy import cpu, cross_entropy, launch, linear_cross_entropy
from pgolf.kernels.cross_entropy.reference import cross_entropy_reference, linear_cross_entropy_reference
from tests.kernels.compare import assert_close

OPTIONS = [
    {},
    {"softcap": 4.0},
    {"softcap": 30.0, "z_loss": 0.01},
    {"reduction": "sum", "z_loss": 0.1},
    {"reduction": "none", "softcap": 10.0},
    {"ignore_index": 5},
]
WEIGHTED = [(options, weighted) for options in OPTIONS for weighted in (False, True)]


def example(shape=(3, 7), vocabulary=37, dtype=torch.float64, ignore_index=-100):
    logits = (4 * torch.randn(*shape, vocabulary, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, shape)
    targets.view(-1)[2], targets.view(-1)[-1] = ignore_index, vocabulary - 1
    weights = torch.randint(0, 5, shape).to(dtype).requires_grad_()
    return logits, targets, weights


def test_reference_is_torchs_own_cross_entropy():
    logits, targets, weights = example()
    capped = 3.0 * torch.tanh(logits / 3.0)
    each = torch.nn.functional.cross_entropy(capped.view(-1, 37), targets.view(-1), reduction="none")
    kept = (targets.view(-1) != -100).double()
    lse = capped.exp().sum(-1).log().view(-1)
    total = ((each + 0.2 * lse**2 * kept) * weights.view(-1)).sum() / (weights.view(-1) * kept).sum()
    found = cross_entropy_reference(logits, targets, softcap=3.0, weights=weights, z_loss=0.2)
    assert_close(found, total, 1e-9)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    assert cross_entropy(torch.zeros(4, 256), torch.arange(4)).item() == pytest.approx(math.log(256), rel=1e-6)


@pytest.mark.parametrize("options, weighted", WEIGHTED)
def test_loss_and_gradients(options, weighted, monkeypatch):
    """In groups of three rows, the last one shorter."""
    monkeypatch.setattr(cpu, "CACHED_ELEMENTS", 4 * 37 - 1)
    logits, targets, weights = example(shape=(2, 10), ignore_index=options.get("ignore_index", -100))
    inputs = (logits, weights) if weighted else (logits,)
    extra = options | ({"weights": weights} if weighted else {})
    found, expected = cross_entropy(logits, targets, **extra), cross_entropy_reference(logits, targets, **extra)
    assert found.shape == expected.shape
    assert_close(found, expected, 1e-9, "loss")
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert_close(got, wanted, 1e-9, "gradient")


def test_gradient_by_differences():
    logits, targets, weights = example(shape=(5,), vocabulary=6)
    run = lambda logits, weights: cross_entropy(logits, targets, softcap=5.0, weights=weights + 1, z_loss=0.1)
    found = torch.autograd.grad(run(logits, weights), (logits, weights))
    with torch.no_grad():
        steps = [1e-4 * torch.randn_like(tensor) for tensor in (logits, weights)]
        ahead, behind = (run(logits + sign * steps[0], weights + sign * steps[1]) for sign in (1, -1))
    assert_close(sum((g * step).sum() for g, step in zip(found, steps, strict=True)), (ahead - behind) / 2, 1e-6)


@pytest.mark.parametrize("dtype, ratio", [(torch.float32, 1e-5), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_lower_precision(dtype, ratio):
    """Arithmetic is float32 whatever the logits are; only the gradient is rounded to their dtype."""
    logits, targets, _ = example(dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    loss, expected = cross_entropy(logits, targets, softcap=15.0), cross_entropy_reference(exact, targets, softcap=15.0)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, 1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, exact)
    assert gradient.dtype == dtype
    assert_close(gradient, wanted, ratio)


def test_without_a_gradient_none_is_made(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, shape: asked.append(shape) or torch.empty(shape))
    logits, targets, _ = example()
    with torch.no_grad():
        cross_entropy(logits, targets)
    assert asked == [(0, 0)]


def test_nothing_to_score_costs_nothing():
    logits, targets, _ = example(ignore_index=-100)
    loss = cross_entropy(logits, torch.full_like(targets, -100))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].eq(0).all()
    assert cross_entropy(torch.randn(0, 9), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_an_ignored_row_may_hold_anything():
    logits, targets, _ = example(shape=(4,))
    with torch.no_grad():
        logits[2] = float("nan")
    loss = cross_entropy(logits, targets)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0][2].eq(0).all()


def test_logits_are_left_alone():
    logits, targets, _ = example(dtype=torch.float32)
    before = logits.detach().clone()
    for softcap in (None, 3.0):
        cross_entropy(logits, targets, softcap=softcap).backward()
        assert torch.equal(logits, before)


def test_second_derivatives_are_refused():
    logits, targets, _ = example()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(cross_entropy(logits, targets), logits, create_graph=True)


def test_a_second_walk_is_refused():
    logits, targets, _ = example()
    loss = cross_entropy(logits, targets)
    torch.autograd.grad(loss, logits, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        torch.autograd.grad(loss, logits)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": torch.zeros(3, 6, dtype=torch.int64)}, "one target per row"),
        ({"targets": torch.zeros(3, 7)}, "convert them"),
        ({"logits": torch.zeros(3, 7, 37, dtype=torch.int64)}, "floating point"),
        ({"weights": torch.ones(7)}, "shape of targets"),
        ({"softcap": 0.0}, "must be positive"),
        ({"reduction": "max"}, "none of mean, sum, none"),
        ({"targets": torch.full((3, 7), 37)}, "neither in 0..36"),
        ({"targets": torch.full((3, 7), -1)}, "ignore index -100"),
    ],
)
def test_bad_arguments(change, message):
    logits, targets, _ = example()
    with pytest.raises(ValueError, match=message):
        cross_entropy(**{"logits": logits, "targets": targets, **change})


@pytest.mark.parametrize("want_gradient", [True, False])
def test_opcheck(want_gradient):
    logits, targets, weights = example(shape=(12,))
    for rows in (logits, logits.T.contiguous().T):
        rows = rows.detach().requires_grad_(want_gradient)
        torch.library.opcheck(torch.ops.pgolf.cross_entropy, (rows, targets, weights, 5.0, 0.1, -100, want_gradient))
    x, w = (torch.randn(size, 4, requires_grad=want_gradient) for size in (12, 37))
    options = (targets, weights.detach().float(), 5.0, 0.1, -100, want_gradient)
    torch.library.opcheck(torch.ops.pgolf.linear_cross_entropy, (x, w, *options))
    gradient = torch.randn(12, 37)
    torch.library.opcheck(torch.ops.pgolf.cross_entropy_rescale, (gradient, torch.rand(())[None].expand(12)))


def test_fullgraph_compile_with_a_dynamic_length():
    def step(logits, targets, weights, w):
        plain = cross_entropy(3 * logits, targets, softcap=5.0, weights=weights, z_loss=0.1)
        return plain + linear_cross_entropy(2 * logits, w, targets, softcap=5.0, weights=weights, z_loss=0.1)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=True)
    for length in (7, 11, 12):
        inputs = *example(shape=(2, length)), torch.randn(37, 37, dtype=torch.float64, requires_grad=True)
        differentiable = (inputs[0], inputs[2], inputs[3])
        found = torch.autograd.grad(compiled(*inputs) * 2, differentiable)
        for got, wanted in zip(found, torch.autograd.grad(step(*inputs) * 2, differentiable), strict=True):
            assert_close(got, wanted, 1e-9)
    assert counter.frame_count == 1


@pytest.mark.parametrize("options, weighted", [case for case in WEIGHTED if case[0].get("reduction") != "none"])
def test_linear(options, weighted):
    _, targets, weights = example(ignore_index=options.get("ignore_index", -100))
    x, w = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(37, 5, dtype=torch.float64)
    inputs = [x.requires_grad_(), w.requires_grad_(), *([weights] if weighted else [])]
    extra = options | ({"weights": weights} if weighted else {})
    found = linear_cross_entropy(x, w, targets, **extra)
    expected = linear_cross_entropy_reference(x, w, targets, **extra)
    assert_close(found, expected, 1e-9, "loss")
    for upstream in (1.0, -0.3):
        upstream = torch.tensor(upstream, dtype=torch.float64)
        gradients = torch.autograd.grad(found, inputs, upstream, retain_graph=True)
        wanted = torch.autograd.grad(expected, inputs, upstream, retain_graph=True)
        for got, exact in zip(gradients, wanted, strict=True):
            assert_close(got, exact, 1e-9, "gradient")


def test_linear_one_gradient_at_a_time_and_none():
    _, targets, _ = example()
    x, w = torch.randn(3, 7, 5), torch.randn(37, 5)
    exact = [tensor.double().requires_grad_() for tensor in (x, w)]
    expected = torch.autograd.grad(linear_cross_entropy_reference(*exact, targets), exact)
    for wanted in range(2):
        inputs = [tensor.clone().requires_grad_(i == wanted) for i, tensor in enumerate((x, w))]
        (found,) = torch.autograd.grad(linear_cross_entropy(*inputs, targets), inputs[wanted])
        assert found.dtype == torch.float32
        assert_close(found, expected[wanted], 1e-5)
    assert_close(linear_cross_entropy(x, w, targets), linear_cross_entropy_reference(*exact, targets), 1e-5)


def test_linear_in_bfloat16():
    _, targets, _ = example()
    x, w = (torch.randn(*shape).bfloat16().requires_grad_() for shape in ((3, 7, 5), (37, 5)))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, w)]
    loss, expected = linear_cross_entropy(x, w, targets), linear_cross_entropy_reference(*exact, targets)
    assert_close(loss, expected, 1e-2)
    found = torch.autograd.grad(loss * 3, (x, w))
    for got, wanted in zip(found, torch.autograd.grad(expected * 3, exact), strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got, wanted, 1.5e-2)


def test_linear_refuses():
    x, w, targets = torch.randn(4, 5, requires_grad=True), torch.randn(9, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="linear_cross_entropy has no second derivative"):
        torch.autograd.grad(linear_cross_entropy(x, w, targets), x, create_graph=True)
    with pytest.raises(ValueError, match="cast them to one dtype"):
        linear_cross_entropy(x, w.double(), targets)
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(x, w.T, targets)
    with pytest.raises(ValueError, match="none of mean, sum"):
        linear_cross_entropy(x, w, targets, reduction="none")


@pytest.mark.parametrize("vocabulary", [1, 127, 256, 257, 1000, 1024, 8192, 16_384, 16_385, 50_304, 65_536])
def test_launch(vocabulary):
    for element_size in (2, 4):
        forward = launch.launch_forward(vocabulary, element_size)
        width = forward.tiles["BV"]
        assert width & (width - 1) == 0 and forward.num_warps <= 32
        assert 4 <= width // (32 * forward.num_warps) and width * element_size <= 64 * 32 * forward.num_warps
        assert (width >= vocabulary) == (vocabulary <= launch.LONGEST_IN_REGISTERS)
    rescale = launch.launch_rescale(vocabulary)
    assert rescale.tiles["BR"] * rescale.tiles["BV"] <= 32 * 32 * rescale.num_warps
    assert rescale.tiles["BR"] == 1 or rescale.tiles["BR"] * vocabulary <= 16_384


def test_traffic():
    assert launch.traffic_forward(98_304, 1024, 2)[0] == 98_304 * (1024 * 2 * 2 + 20)
    assert launch.traffic_forward(10, 100, 2, want_gradient=False)[0] == 10 * (200 + 20)
    assert launch.traffic_rescale(10, 100, 4) == (10 * 804, 1000)
