import math

import pytest
import torch

from pgolf.config import TrainingSettings
from pgolf.distributed import World
from pgolf.training.optimisers import OPTIMISERS, Assigned, Optimisers, assignment
from tests.training.test_muon import transcription

SHAPES = {
    "matrix": [(3, 6, 10), (2, 9, 4)],
    "projection": [(8, 5)],
    "token": [(11, 6), (7, 5)],
    "head": [(11, 6)],
    "scalar": [(6,), (), (2, 6)],
}


def network():
    groups = {group: [torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for group, shapes in SHAPES.items()}
    names = {p: f"{group}.{i}" for group, parameters in groups.items() for i, p in enumerate(parameters)}
    return groups, names


def give_gradients(names, size=1.0):
    generator = torch.Generator().manual_seed(5)
    for p in names:
        p.grad = size * torch.randn(p.shape, generator=generator)


def norm_of(names):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in names))


def adamw(p, gradients, lrs, weight_decay, betas, eps):
    p, m, v = p.double(), 0.0, 0.0
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        g = g.double()
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p * (1 - lr * weight_decay)
        p = p - lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
    return p


@pytest.mark.parametrize("projections_by_muon", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_group_has_its_optimiser_and_rate(projections_by_muon, parallel, scope):
    settings = TrainingSettings(
        muon_lr=0.3, token_lr=0.2, scalar_lr=0.1, muon_weight_decay=0.2, adam_weight_decay=0.5, adam_betas=(0.8, 0.9),
        adam_eps=1e-3, muon_projections=projections_by_muon, parallel_muon=parallel, clip=4.0, clip_scope=scope,
    )  # fmt: skip
    groups, names = network()
    starts = {p: p.detach().clone() for p in names}
    optimisers = Optimisers(groups, names, settings, World())
    multipliers, momenta, seen = [1.0, 0.5, 0.25], [0.8, 0.9, 0.95], {p: [] for p in names}
    for step, size in enumerate((1.0, 0.01, 3.0)):
        give_gradients(names, size)
        norm = norm_of(names)
        factor = min(1.0, 4.0 / (norm + 1e-6))
        assert (factor < 1) == (size != 0.01)
        for p in names:
            seen[p].append(p.grad * factor)
        found = optimisers.step(multipliers[step], momenta[step])
        assert float(found) == pytest.approx(norm, rel=1e-5)
        optimisers.zero_grad()
        assert all(p.grad is None for p in names)
    for group, parameters in groups.items():
        by_muon = group == "matrix" or (group == "projection" and projections_by_muon)
        base = 0.3 if by_muon else 0.2 if group in ("token", "head") else 0.1
        lrs = [base * s for s in multipliers]
        for p in parameters:
            if by_muon:
                banks = [start.reshape(-1, *p.shape[-2:]) for start in (starts[p], *seen[p])]
                expected = torch.stack(
                    [transcription(banks[0][i], [b[i] for b in banks[1:]], lrs, momenta, 0.2) for i in range(len(banks[0]))]
                ).reshape(p.shape)
            else:
                expected = adamw(starts[p], seen[p], lrs, 0.5, (0.8, 0.9), 1e-3)
            torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-4, msg=names[p])


def test_no_clip_leaves_the_gradient_alone():
    def stepped(clip):
        torch.manual_seed(3)
        groups, names = network()
        optimisers = Optimisers(groups, names, TrainingSettings(clip=clip, adam_eps=1.0, clip_scope="global"), World())
        give_gradients(names)
        norm = optimisers.step(1.0, 0.9)
        return float(norm), [p.detach() for p in names]

    free, clipped, loose = stepped(0.0), stepped(0.3), stepped(1e6)
    assert free[0] == clipped[0]
    assert all(torch.equal(a, b) for a, b in zip(free[1], loose[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(free[1], clipped[1], strict=True))


def test_a_parameter_without_a_gradient_stays():
    groups, names = network()
    optimisers = Optimisers(groups, names, TrainingSettings(), World())
    give_gradients(names)
    unused = groups["scalar"][0]
    unused.grad = None
    before = unused.detach().clone()
    optimisers.step(1.0, 0.9)
    assert torch.equal(before, unused)


@pytest.mark.parametrize("parallel", [False, True])
def test_state_is_all_that_the_next_step_depends_on(parallel):
    settings = TrainingSettings(parallel_muon=parallel)

    def steps(optimisers, names, number):
        for _ in range(number):
            give_gradients(names)
            optimisers.step(0.7, 0.9)

    groups, names = network()
    optimisers = Optimisers(groups, names, settings, World())
    steps(optimisers, names, 2)
    kept = {name: tensor.clone() for name, tensor in optimisers.state().items()}
    weights = [p.detach().clone() for p in names]
    steps(optimisers, names, 2)
    expected = [p.detach().clone() for p in names]

    other = Optimisers(groups, names, settings, World())
    for p, value in zip(names, weights, strict=True):
        p.data.copy_(value)
    other.restore(kept)
    steps(other, names, 2)
    assert all(torch.equal(p, value) for p, value in zip(names, expected, strict=True))

    other.reset()
    assert not any(tensor.any() for tensor in other.state().values())


class Sgd:
    """An optimiser that the package does not have."""

    sharded = False

    def __init__(self, parameters, assigned, settings, world, precision=None):
        self.parameters, self.rates, self.steps = parameters, [one.lr for one in assigned], torch.zeros(())

    def start(self):
        pass

    def averaged(self):
        return [parameter.grad for parameter in self.parameters]

    @torch.no_grad()
    def step(self, multiplier, momentum):
        self.steps += 1
        for parameter, rate in zip(self.parameters, self.rates, strict=True):
            parameter -= rate * multiplier * parameter.grad

    def reset(self):
        self.steps.zero_()

    def state(self):
        return [{"steps": self.steps} for _ in self.parameters]

    def restore(self, state):
        self.steps.copy_(state[0]["steps"])


def test_tables_can_decay_on_their_own():
    settings = TrainingSettings(token_lr=0.1, scalar_lr=0.1, adam_weight_decay=0.5, token_weight_decay=0.25, clip=0.0)
    groups, names = network()
    before = {p: p.detach().clone() for p in names}
    optimisers = Optimisers(groups, names, settings, World())
    for p in names:
        p.grad = torch.zeros_like(p)
    optimisers.step(1.0, 0.9)
    for group, decay in (("token", 0.25), ("head", 0.25), ("scalar", 0.5)):
        for p in groups[group]:
            torch.testing.assert_close(p.detach(), before[p] * (1 - 0.1 * decay))


def test_an_optimiser_is_its_class_and_a_line_of_the_table(monkeypatch):
    monkeypatch.setitem(OPTIMISERS, "sgd", Sgd)
    settings = TrainingSettings(clip=0.0)
    groups, names = network()
    assigned = assignment(settings) | {"token": Assigned("sgd", 0.5)}
    found = Optimisers(groups, names, settings, World(), assigned=assigned)
    assert found.rates() == {
        "matrix (muon)": 0.025, "token (sgd)": 0.5, "head (adamw)": 0.035, "scalar (adamw)": 0.025, "projection (adamw)": 0.025
    }  # fmt: skip
    before = [p.detach().clone() for p in groups["token"]]
    give_gradients(names)
    gradients = [p.grad.clone() for p in groups["token"]]
    found.step(0.5, 0.9)
    for p, start, gradient in zip(groups["token"], before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.25 * gradient)
    kept = {name: tensor.clone() for name, tensor in found.state().items()}
    assert float(kept["sgd.token.0.steps"]) == 1 and "muon.matrix.0.momentum" in kept and "adamw.scalar.0.exp_avg" in kept
    found.reset()
    found.restore(kept)
    assert float(found.by_name["sgd"].steps) == 1
