import math

import pytest
import torch

from pgolf.distributed import World
from pgolf.training.muon import ParallelMuon, RoundRobinMuon

SHAPES = [(5, 8, 20), (3, 24, 7), (4, 6, 6), (10, 4)]
LAYOUTS = {"parallel": ParallelMuon, "round robin": RoundRobinMuon}


def orthogonal(matrix, iterations, row_norm=False):
    """A transcription for one matrix, in float64."""
    x = matrix.double()
    if row_norm:
        x = torch.stack([row / math.sqrt((row * row).sum()) for row in x])
    x = x / (math.sqrt((x * x).sum()) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(iterations):
        a = x.mm(x.t())
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a.mm(a)).mm(x)
    return x.t() if tall else x


def transcription(matrix, gradients, lrs, momenta, weight_decay, iterations=5, row_norm=False):
    p, buffer = matrix.double(), torch.zeros_like(matrix).double()
    for gradient, lr, mu in zip(gradients, lrs, momenta, strict=True):
        buffer = mu * buffer + gradient.double()
        update = orthogonal(gradient.double() + mu * buffer, iterations, row_norm)
        p = p * (1 - lr * weight_decay) - lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * update
    return p


@pytest.mark.parametrize("row_norm", [False, True], ids=["plain", "rows of norm 1"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_muon(layout, row_norm):
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    starts = [p.detach().clone() for p in parameters]
    gradients = [[torch.randn(shape) for shape in SHAPES] for _ in range(4)]
    lrs, momenta = [0.1, 0.2, 0.05, 0.1], [0.8, 0.85, 0.9, 0.95]
    muon = LAYOUTS[layout](
        parameters, weight_decay=0.3, iterations=5, coefficients="classic", world=World(), row_norm=row_norm
    )
    for step in range(4):
        for p, gradient in zip(parameters, gradients[step], strict=True):
            p.grad = gradient.clone()
        muon.start()
        muon.step(lrs[step], momenta[step])
    for index, (p, start) in enumerate(zip(parameters, starts, strict=True)):
        matrices = start if start.dim() == 3 else start[None]
        banks = [g[index].reshape(matrices.shape) for g in gradients]
        for i, matrix in enumerate(matrices):
            expected = transcription(matrix, [bank[i] for bank in banks], lrs, momenta, 0.3, row_norm=row_norm)
            torch.testing.assert_close(p.detach().reshape(matrices.shape)[i].double(), expected, rtol=1e-4, atol=1e-4)


def test_iterations_and_coefficients_are_used():
    def stepped(**options):
        p = torch.nn.Parameter(torch.ones(2, 5, 9))
        muon = ParallelMuon([p], weight_decay=0.0, world=World(), **options)
        p.grad = torch.linspace(-1, 2, 90).sin().view(2, 5, 9)
        muon.start()
        muon.step(1.0, 0.9)
        return p.detach()

    usual = stepped(iterations=5, coefficients="classic")
    assert not torch.allclose(usual, stepped(iterations=2, coefficients="classic"), atol=1e-2)
    polar = stepped(iterations=6, coefficients="polar_express") - 1
    singular = torch.linalg.svdvals(polar)
    assert not torch.allclose(usual - 1, polar, atol=1e-2)
    assert singular.max() < 1.1


class Member(World):
    """One rank of many that never talks: for what a rank owns."""

    def sum(self, tensor):
        return tensor


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_matrix_has_one_owner_and_momentum_survives_a_change_of_ranks(layout, size):
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    options = {"weight_decay": 0.0, "iterations": 5, "coefficients": "classic"}
    whole = [torch.randn(shape) for shape in SHAPES]
    gathered = [torch.zeros(shape) for shape in SHAPES]
    for rank in range(size):
        muon = LAYOUTS[layout](parameters, world=Member(rank, size), **options)
        muon.restore([{"momentum": bank} for bank in whole])
        for total, part in zip(gathered, muon.state(), strict=True):
            total += part["momentum"]
    for total, expected in zip(gathered, whole, strict=True):
        assert torch.equal(total, expected)
