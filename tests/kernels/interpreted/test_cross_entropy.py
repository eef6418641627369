"""Every kernel of cross_entropy against the float64 reference, with rows, widths and options chosen to hit every edge."""

import pytest
import torch

from pgolf.kernels.cross_entropy.op import forward_triton, launch_forward, linear_forward, rescale_triton
from pgolf.kernels.cross_entropy.reference import cross_entropy_reference
from tests.kernels.compare import assert_close

IGNORED = -7
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def example(count, vocabulary, dtype, softcap, z_loss):
    logits = (3 * torch.randn(count, vocabulary)).to(dtype)
    targets = torch.randint(0, vocabulary, (count,))
    targets[0], targets[-1] = vocabulary - 1, 0
    targets[count // 2] = IGNORED
    scale = torch.rand(count) + 0.1
    exact = logits.double().requires_grad_()
    expected = cross_entropy_reference(
        exact, targets, softcap=softcap, weights=scale.double(), z_loss=z_loss, ignore_index=IGNORED, reduction="none"
    )
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    return logits, targets, scale, expected.detach(), gradient


# 200 and 1000: masked tails; 256 and 1024: none; 5000: one row a program; 20,000: two sweeps and a tail
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "count, vocabulary, softcap, z_loss",
    [
        (13, 200, 4.0, 0.0),
        (16, 256, None, 0.1),
        (7, 1000, 30.0, 0.01),
        (5, 1024, None, 0.0),
        (3, 5000, 15.0, 0.0),
        (3, 20_000, 5.0, 0.01),
        (3, 16_385, None, 0.0),
    ],
)
def test_loss_and_gradient(count, vocabulary, softcap, z_loss, dtype):
    logits, targets, scale, expected, expected_gradient = example(count, vocabulary, dtype, softcap, z_loss)
    arguments = (logits, targets, scale, softcap or 0.0, z_loss, IGNORED)
    losses, unscaled, gradient = forward_triton(*arguments, True)
    assert gradient.dtype == dtype and losses.dtype == torch.float32
    assert_close(losses, expected, TOLERANCE[dtype], "losses")
    assert_close(unscaled * scale, expected, TOLERANCE[dtype], "unscaled losses")
    assert_close(gradient, expected_gradient, TOLERANCE[dtype], "gradient")
    assert gradient[count // 2].eq(0).all() and losses[count // 2] == 0

    over = logits.clone()
    again = forward_triton(over, *arguments[1:], True, over)
    assert again[2] is over and torch.equal(over, gradient) and torch.equal(again[0], losses)

    only, _, nothing = forward_triton(*arguments, False)
    assert nothing.numel() == 0 and torch.equal(only, losses)


@pytest.mark.parametrize("vocabulary", [130, 17_000])
def test_the_approximate_tanh_changes_no_loss_that_matters(vocabulary):
    """16-bit logits take the hardware's tanh, whose largest relative error, 2^-11, is emulated here: the mean loss moves by
    less than 1e-4 of itself, and the gradient by less than it is rounded by."""
    logits = (8 * torch.randn(16, vocabulary)).half()
    targets, scale = torch.randint(0, vocabulary, (16,)), torch.full((16,), 1 / 16)
    approximate = forward_triton(logits, targets, scale, 15.0, 0.0, IGNORED, True)
    exact = forward_triton(logits.float(), targets, scale, 15.0, 0.0, IGNORED, True)
    assert not torch.equal(approximate[0], exact[0])
    assert_close(approximate[0].sum(), exact[0].sum(), 1e-4, "mean loss")
    assert_close(approximate[2], exact[2], 2**-9, "gradient")


@pytest.mark.parametrize("vocabulary", [130, 17_000])
def test_awkward_rows(vocabulary):
    """Infinite and enormous logits, an ignored row of NaN, and a target that is no token."""
    inside = launch_forward(vocabulary).tiles["BV"]
    logits = torch.randn(5, vocabulary)
    logits[0, : min(inside, vocabulary - 2)] = -float("inf")
    logits[1, 3] = 80_000.0
    logits[2] = float("nan")
    targets = torch.tensor([vocabulary - 1, 3, IGNORED, vocabulary, -1])
    losses, _, gradient = forward_triton(logits, targets, torch.ones(5), 0.0, 0.0, IGNORED, True)
    exact = logits[:2].double().requires_grad_()
    expected = cross_entropy_reference(exact, targets[:2], reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
    assert_close(losses[:2], expected, 1e-5, "losses")
    assert_close(gradient[:2], expected_gradient, 1e-5, "gradient")
    assert losses[2] == 0 and gradient[2].eq(0).all()
    assert losses[3:].isnan().all() and gradient[3:].isnan().all()


@pytest.mark.parametrize("count, vocabulary", [(70, 200), (37, 1000), (5, 5000)])
def test_rescale(count, vocabulary):
    gradient = torch.randn(count, vocabulary)
    upstream = torch.ones(count)
    upstream[-2:] = torch.tensor([0.0, -3.0])
    expected = gradient.double() * upstream.double()[:, None]
    rescale_triton(gradient, upstream)
    assert_close(gradient, expected, 1e-6)


def test_rescale_by_an_expanded_scalar():
    gradient = torch.randn(70, 130)
    expected = gradient.double() * 0.25
    rescale_triton(gradient, torch.tensor(0.25).expand(70))
    assert_close(gradient, expected, 1e-6)


def test_rescale_by_one_touches_nothing():
    """A signalling NaN turns quiet, which changes its bits, as soon as anything is computed with it."""
    gradient = torch.randn(70, 130, dtype=torch.float16)
    gradient.view(torch.int16)[3, 5] = 0x7C01
    before = gradient.view(torch.int16).clone()
    rescale_triton(gradient, torch.ones(()).expand(70))
    assert torch.equal(gradient.view(torch.int16), before)


def test_no_rows():
    empty = (torch.randn(0, 300), torch.zeros(0, dtype=torch.int64), torch.ones(0))
    losses, _, gradient = forward_triton(*empty, 0.0, 0.0, -100, True)
    assert losses.shape == (0,) and gradient.shape == (0, 300)
    rescale_triton(gradient, torch.ones(0))


def test_head():
    """The head's forward around the kernel: the gradient lands on the logits it made."""
    x, w = torch.randn(9, 12), torch.randn(150, 12)
    targets, scale = torch.randint(0, 150, (9,)), torch.rand(9)
    exact = (x.double() @ w.double().T).requires_grad_()
    expected = cross_entropy_reference(exact, targets, softcap=5.0, weights=scale.double(), reduction="sum")
    loss, unscaled, gradient = linear_forward(forward_triton)(x, w, targets, scale, 5.0, 0.0, -100, True)
    assert loss.dim() == 0
    assert_close(loss, expected, 1e-5)
    assert_close((unscaled * scale).sum(), expected, 1e-5)
    assert_close(gradient, torch.autograd.grad(expected, exact)[0], 1e-5)
    only, _, nothing = linear_forward(forward_triton)(x, w, targets, scale, 5.0, 0.0, -100, False)
    assert torch.equal(only, loss) and nothing.numel() == 0
