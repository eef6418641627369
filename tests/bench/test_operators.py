"""Every operator of kernels/ has a caller, docs/operators.md names it, and on CUDA what it is called from is one graph."""

import pytest
import torch

from bench.fake_cuda import Recorder, fake_cuda
from bench.operators import PAGE, captured, everything, operators, read_page

# between them they reach all that any preset does
PRESETS = ("pr745", "pr1855", "mamba")


@pytest.fixture(scope="module")
def found():
    return everything(PRESETS)


def test_every_operator_is_reached(found):
    assert set(operators()) == set().union(*found.values())


def test_the_page_says_what_is_reached(found):
    written = read_page(PAGE.read_text())
    assert {key: written[key] for key in found} == found, "run python -m bench.operators"


@pytest.mark.parametrize(
    "preset, stage",
    [
        ("pr745", "training"),
        ("pr1855", "training"),
        ("mamba", "scoring"),
        ("pr745", "test-time training"),
        ("pr1855", "test-time training"),
    ],
)
def test_it_is_captured_whole(preset, stage):
    """torch.compile refuses a graph that breaks, and a number that is read on the way."""
    graphs = captured(preset, stage)
    assert graphs.graphs and {"attention", "rotary", "mlp"} <= graphs.seen


def test_a_copy_to_the_host_is_refused():
    with fake_cuda(capture=False), Recorder():
        x = torch.ones(4, device="cuda")
        with pytest.raises(AssertionError, match="moves a tensor to the host"):
            x.cpu()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            x.sum().item()


def test_gradients_of_fakes_are_those_of_tensors():
    def loss(x, w):
        y = torch.tanh(x[:, None] @ w) * x.mean() + w[0].unbind()[1]
        return y.float().square().sum()

    def leaves(device):
        return [torch.ones(3, 4, device=device, requires_grad=True), torch.ones(4, 5, device=device, requires_grad=True)]

    real = leaves("cpu")
    loss(*real).backward()
    with fake_cuda(capture=False):
        fakes = leaves("cuda")
        loss(*fakes).backward()
        assert [(leaf.grad.shape, leaf.grad.dtype) for leaf in fakes] == [(leaf.grad.shape, leaf.grad.dtype) for leaf in real]
