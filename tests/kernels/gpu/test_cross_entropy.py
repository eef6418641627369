"""cross_entropy on a GPU: bfloat16 logits against float64, every element written, the same bits twice."""

import pytest
import torch

from pgolf.kernels.cross_entropy import cross_entropy, linear_cross_entropy
from pgolf.kernels.cross_entropy.reference import cross_entropy_reference, linear_cross_entropy_reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]

OPTIONS = [{}, {"softcap": 30.0}, {"softcap": 15.0, "z_loss": 0.01, "reduction": "sum"}, {"reduction": "none"}]


def example(count, vocabulary, dtype=torch.bfloat16):
    logits = (4 * torch.randn(count, vocabulary)).to("cuda", dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (count,), device="cuda")
    targets[count // 3] = -100
    weights = torch.randint(0, 6, (count,), device="cuda").float()
    return logits, targets, weights


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("count, vocabulary", [(1000, 256), (777, 1000), (4096, 1024), (301, 8192), (65, 50_257)])
def test_loss_and_gradient(count, vocabulary, options):
    logits, targets, weights = example(count, vocabulary)
    exact = logits.detach().double().requires_grad_()
    found = cross_entropy(logits, targets, weights=weights, **options)
    expected = cross_entropy_reference(exact, targets, weights=weights.double(), **options)
    # the softcap of 16-bit logits takes the hardware's tanh, whose largest relative error is 2^-11
    assert_close(found, expected, 2e-4 if "softcap" in options else 1e-5, "loss")
    for upstream in (torch.ones_like(found), torch.randn_like(found)):
        loss = cross_entropy(logits, targets, weights=weights, **options)
        (gradient,) = torch.autograd.grad(loss, logits, upstream)
        (wanted,) = torch.autograd.grad(expected, exact, upstream.double(), retain_graph=True)
        assert_close(gradient, wanted, 5e-3, "gradient")


@pytest.mark.parametrize("vocabulary", [1024, 50_257])
def test_head(vocabulary):
    """Also that no warp overwrites a logit that another has still to read."""
    _, targets, weights = example(515, vocabulary)
    x, w = (torch.randn(*shape).to("cuda", torch.bfloat16).requires_grad_() for shape in ((515, 64), (vocabulary, 64)))
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, w)]
    options = {"softcap": 30.0, "weights": weights}
    loss = linear_cross_entropy(x, w, targets, **options)
    expected = linear_cross_entropy_reference(*exact, targets, **options)
    assert_close(loss, expected, 5e-3)
    found = torch.autograd.grad(2 * loss, (x, w))
    for got, wanted in zip(found, torch.autograd.grad(2 * expected, exact), strict=True):
        assert_close(got, wanted, 1e-2)
    for _ in range(3):
        again = torch.autograd.grad(2 * linear_cross_entropy(x, w, targets, **options), (x, w))
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("vocabulary", [1024, 50_257])
def test_same_bits_twice(vocabulary):
    logits, targets, weights = example(999, vocabulary)
    runs = []
    for _ in range(2):
        loss = cross_entropy(logits, targets, weights=weights, softcap=30.0)
        runs.append((loss, *torch.autograd.grad(loss, logits, torch.tensor(0.5, device="cuda"))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_target_outside_the_vocabulary_is_loud():
    logits, targets, _ = example(10, 1000)
    targets[0] = 1000
    losses = cross_entropy(logits, targets, reduction="none")
    assert losses[0].isnan() and losses[1:].isfinite().all()
