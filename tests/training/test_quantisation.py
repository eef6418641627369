import math

import pytest
import torch

from pgolf.config import TrainingSettings
from pgolf.model import build_model, parameter_groups
from pgolf.model.rounding import FakeRounding, row_quantile
from pgolf.training.errors import TrainingError
from pgolf.training.quantisation import QuantisationTerms, crown_q
from tests.training.tiny import MODEL

CPU = torch.device("cpu")


def rounding(clip=31, quantile=1.0, form="hard", banks=True):
    return FakeRounding(clip, quantile=quantile, form=form, banks=banks)


def weights(rows=6, columns=37):
    """Rows of very different sizes, one of zeros."""
    w = torch.randn(rows, columns) * torch.logspace(-3, 1, rows)[:, None]
    w[2] = 0
    return w


# ---- fake rounding


@pytest.mark.parametrize(("clip", "quantile"), [(31, 1.0), (15, 1.0), (15, 0.9), (31, 0.9995)])
def test_hard_rounding_is_the_published_grid(clip, quantile):
    w = weights()
    expected = torch.zeros_like(w)
    for r, row in enumerate(w.tolist()):
        ordered = sorted(abs(value) for value in row)
        place = quantile * (len(row) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        top = low + (high - low) * (place - math.floor(place))
        scale = max(top / clip, 1 / clip)
        for c, value in enumerate(row):
            expected[r, c] = scale * min(clip, max(-clip - 1, round(value / scale)))
    torch.testing.assert_close(rounding(clip, quantile)(w, "bank"), expected)
    assert not torch.allclose(w, expected, atol=1e-3)


def test_the_largest_codes_are_asymmetric():
    w = torch.tensor([[-9.0, 9.0] + [1.0] * 98])
    out = rounding(15, 0.9)(w, "bank")
    assert out[0, 0] == pytest.approx(-16 / 15) and out[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("quantile", [0.0, 0.31, 0.5, 0.9995, 1.0])
@pytest.mark.parametrize("columns", [1, 2, 17, 512])
def test_row_quantiles(quantile, columns):
    magnitude = torch.rand(2, 3, columns)
    torch.testing.assert_close(row_quantile(magnitude, quantile), torch.quantile(magnitude, quantile, dim=-1, keepdim=True))


def test_hard_rounding_passes_the_gradient_unchanged():
    w = weights().requires_grad_()
    push = torch.randn(w.shape)
    (rounding(15, 0.9)(w, "bank") * push).sum().backward()
    assert torch.equal(w.grad, push)


def published_soft_round(weight, clip, quantile, sharpness):
    """#688's code again: nothing in it is detached, so the gradient reaches the row's scale too."""
    row = torch.quantile(weight.abs(), quantile, dim=1) if quantile < 1 else weight.abs().amax(1)
    scale = (row / clip).clamp_min(1 / clip)[:, None]
    y = (weight / scale).clamp(-clip - 1, clip)
    remainder = y - y.detach().floor() - 0.5
    return scale * (y.detach().floor() + 0.5 + 0.5 * torch.tanh(sharpness * remainder) / (math.tanh(sharpness / 2) + 1e-10))


@pytest.mark.parametrize(("clip", "quantile"), [(15, 0.9), (15, 0.9995), (31, 1.0)])
def test_soft_rounding_is_its_formula_and_its_gradient(clip, quantile):
    soft = rounding(clip, quantile, form="soft")
    soft.sharpness.fill_(4.0)
    w = weights()
    push = torch.randn(w.shape)
    results = []
    for form, leaf in (
        (lambda x: soft(x, "bank"), w.clone()),
        (lambda x: published_soft_round(x, clip, quantile, 4.0), w.double()),
    ):
        leaf.requires_grad_()
        out = form(leaf)
        (out * push).sum().backward()
        results.append((out.detach().double(), leaf.grad.double()))
    (found, gradient), (expected, slope) = results
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # at whole numbers the formula has a kink, which rounding may put to either side: the row's largest, of quantile 1
    scale = (torch.quantile(w.double().abs(), quantile, dim=1) / clip).clamp_min(1 / clip)[:, None]
    y = w.double() / scale
    smooth = ((y - y.round()).abs() > 1e-4).all(1, keepdim=True) if quantile == 1.0 else (y - y.round()).abs() > 1e-4
    smooth = smooth | (y == 0)
    assert smooth.sum() > 100 or quantile == 1.0
    torch.testing.assert_close(gradient * smooth, slope * smooth, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_soft_rounding_reaches_the_scale():
    """One row, clipped at its largest weight: the others' outputs depend on that weight through the scale."""
    soft = rounding(15, 1.0, form="soft")
    soft.sharpness.fill_(4.0)
    w = torch.tensor([[3.0, 1.13, -0.37]], requires_grad=True)
    soft(w, "bank")[0, 1].backward()
    scale = 3 / 15
    y = 1.13 / scale
    remainder = y - math.floor(y) - 0.5
    value = math.floor(y) + 0.5 + 0.5 * math.tanh(4 * remainder) / math.tanh(2)
    slope = 0.5 * 4 * (1 - math.tanh(4 * remainder) ** 2) / math.tanh(2)
    expected = (value - y * slope) / 15
    assert float(w.grad[0, 0]) == pytest.approx(expected, rel=1e-4) and abs(expected) > 1e-3


def test_soft_rounding_hardens_along_the_schedule():
    soft, hard = rounding(form="soft"), rounding()
    assert float(soft.sharpness) == 16
    w = weights()
    distances = []
    for multiplier in (0.5, 0.25, 0.0):
        soft.harden(multiplier, 0.5)
        distances.append(float((soft(w, "bank") - hard(w, "bank")).abs().sum()))
    assert float(soft.sharpness) == 16
    assert distances[0] > distances[1] > distances[2]
    soft.harden(0.7, 0.5)
    assert float(soft.sharpness) == 1


def test_soft_to_hard_rounds_hard_and_learns_softly():
    """Forward the published grid; backward a straight line, and late in the schedule the slope of tanh(5 r)."""
    form, push = rounding(15, 0.9, form="soft_to_hard"), torch.randn(6, 37)

    def gradient():
        w = weights().requires_grad_()
        out = form(w, "bank")
        assert torch.allclose(out, rounding(15, 0.9)(w, "bank"), atol=1e-6)
        (out * push).sum().backward()
        return w.detach(), w.grad

    torch.manual_seed(3)
    form.harden(0.02, 0.15)
    w, early = gradient()
    row = row_quantile(w.abs(), 0.9)
    y = w / (row / 15).clamp_min(1 / 15)
    inside = (y > -16) & (y < 15)
    assert not inside.all()
    torch.testing.assert_close(early, torch.where(inside, push, 0.0), rtol=1e-3, atol=1e-5)
    torch.manual_seed(3)
    form.harden(0.019, 0.15)
    _, late = gradient()
    slope = 2.5 * (1 - torch.tanh(5 * (y - y.floor() - 0.5)) ** 2) / math.tanh(2.5)
    torch.testing.assert_close(late, torch.where(inside, slope * push, 0.0), rtol=1e-3, atol=1e-5)


def test_which_weights_are_rounded():
    w = weights()
    assert torch.equal(rounding(banks=False)(w, "bank"), w)
    assert not torch.equal(rounding(banks=False)(w, "projection"), w)
    assert not torch.equal(rounding(banks=True)(w, "bank"), w)


# ---- in the network


def network_terms(**options):
    model = build_model(MODEL, seed=1)
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    settings = TrainingSettings(qat_threshold=0.5, qat_clip=7, **options)
    return model, QuantisationTerms(model, parameter_groups(model), settings, CPU)


def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(MODEL.vocab_size, (2, 2, 16), generator=generator)


@pytest.mark.parametrize("banks", [False, True])
def test_switching_on_acts_inside_a_compiled_graph(banks):
    """The published runs' compilers folded the switch away; here the same compiled function must follow it."""
    model, terms = network_terms(qat_banks=banks)
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend="aot_eager")
    x, y = tokens()
    before = compiled(x, y)
    terms.switch(True)
    switched = compiled(x, y)
    assert abs(float((switched - before).detach())) > 1e-4
    torch.testing.assert_close(switched, model.loss(x, y))
    switched.backward()
    bank = model.qo_bank.grad.clone()
    model.zero_grad()
    model.loss(x, y).backward()
    torch.testing.assert_close(bank, model.qo_bank.grad)
    terms.switch(False)
    assert torch.equal(compiled(x, y), before)


def test_sharpness_changes_without_a_new_compilation():
    model, terms = network_terms(qat_banks=True, qat_soft_round=True)
    compilations = []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False, backend=counting)
    x, y = tokens()
    values = []
    for multiplier in (0.49, 0.4, 0.2, 0.01):
        terms.reached(multiplier)
        values.append(compiled(x, y).item())
        assert values[-1] == pytest.approx(model.loss(x, y).item(), rel=1e-6)
    assert len(set(values)) == 4
    assert len(compilations) == 1


def test_terms_act_from_the_threshold_on_and_stay():
    model, terms = network_terms()
    assert [terms.reached(s) for s in (1.0, 0.5, 0.49, 0.4)] == [False, False, True, False]
    assert model.rounding is terms.rounding
    assert not terms.reached(0.9) and terms.active
    never = build_model(MODEL, seed=1)
    off = QuantisationTerms(never, parameter_groups(never), TrainingSettings(qat_threshold=0.0), CPU)
    assert not off.reached(0.0) and never.rounding is None


# ---- CROWN-Q


@pytest.mark.parametrize("form", ["sum", "mean"])
def test_crown_q_is_its_formula_and_its_gradient(form):
    matrices = [torch.randn(5, 8), torch.randn(3, 4, 6)]
    given = [matrix.clone().requires_grad_() for matrix in matrices]
    plain = [matrix.double().requires_grad_() for matrix in matrices]
    expected = 0
    for matrix in (plain[0], *plain[1]):
        rows = []
        for row in matrix:
            step = row.abs().max().clamp_min(1e-10) / 15
            step = step if form == "sum" else step.detach()
            rows.append((row * row).sum() / len(row) * step**2 / 12)
        expected = expected + (sum(rows) if form == "sum" else sum(rows) / len(rows))
    found = crown_q(given, form)
    torch.testing.assert_close(found.double(), expected)
    found.backward()
    expected.backward()
    for ours, theirs in zip(given, plain, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad)


def test_which_matrices_are_penalised_and_when():
    _, small = network_terms(crown_q=0.01)
    assert small.penalty() is None
    small.switch(True)
    groups = parameter_groups(small.model)
    assert small.penalty().item() == pytest.approx(0.01 * crown_q(groups["projection"], "sum").item())
    _, large = network_terms(crown_q=0.01, crown_q_form="mean", crown_q_banks=True)
    large.switch(True)
    groups = parameter_groups(large.model)
    everything = [*groups["projection"], *groups["matrix"]]
    assert large.penalty().item() == pytest.approx(0.01 * crown_q(everything, "mean").item())
    _, off = network_terms()
    off.switch(True)
    assert off.penalty() is None


def test_a_penalty_that_would_never_act_is_refused():
    model = build_model(MODEL, seed=1)
    with pytest.raises(TrainingError, match="qat_threshold"):
        QuantisationTerms(model, parameter_groups(model), TrainingSettings(crown_q=0.01), CPU)
