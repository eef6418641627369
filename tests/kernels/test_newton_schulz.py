"""newton_schulz on a CPU: what it does to singular values, its coefficient tables, and how it meets torch.compile."""

import pytest
import torch

from pgolf.kernels.newton_schulz import newton_schulz, op
from pgolf.kernels.newton_schulz.launch import launch_symmetric, traffic_symmetric, triangle, uses_kernel
from pgolf.kernels.newton_schulz.reference import newton_schulz_reference
from tests.kernels.compare import assert_close


def by_singular_values(g, table):
    """The same polynomials applied to the singular values, one number at a time."""
    u, values, vt = torch.linalg.svd(g, full_matrices=False)
    values = values / (values.square().sum(-1, keepdim=True).sqrt() + 1e-7)
    for a, b, c in table:
        values = a * values + b * values**3 + c * values**5
    return u * values[..., None, :] @ vt


@pytest.mark.parametrize("name", ["classic", "polar_express"])
@pytest.mark.parametrize("shape", [(2, 3, 12, 17), (17, 12), (9, 9)])
def test_reference_is_a_polynomial_of_the_singular_values(shape, name):
    g = torch.randn(shape, dtype=torch.float64)
    table = op.coefficient_table(name, 5)
    assert_close(newton_schulz_reference(g, table), by_singular_values(g, table), 1e-9)


@pytest.mark.parametrize("coefficients", ["classic", "polar_express", [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0)]])
@pytest.mark.parametrize("shape", [(2, 3, 12, 17), (17, 12), (9, 9), (1, 5), (4, 5, 1)])
def test_operator(shape, coefficients):
    g = 100 * torch.randn(shape, dtype=torch.float64)
    expected = newton_schulz_reference(g, op.coefficient_table(coefficients, 4))
    found = newton_schulz(g, 4, coefficients, dtype=torch.float64)
    assert found.shape == g.shape and found.is_contiguous()
    assert_close(found, expected, 1e-9)


def test_precision_of_the_iterations():
    """float32 is the default on a CPU; the result has the dtype that came in."""
    g = torch.randn(3, 20, 30)
    exact = newton_schulz_reference(g.double(), op.coefficient_table("classic", 5))
    assert_close(newton_schulz(g), exact, 1e-5)
    assert torch.equal(newton_schulz(g), newton_schulz(g, dtype=torch.float32))
    rough = newton_schulz(g, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32 and not torch.equal(rough, newton_schulz(g))
    assert_close(rough, exact, 5e-2)
    assert newton_schulz(g.bfloat16()).dtype == torch.bfloat16


def test_classic_brings_singular_values_near_one():
    values = torch.linalg.svdvals(newton_schulz(torch.randn(4, 40, 90, dtype=torch.float64), dtype=torch.float64))
    assert values.min() > 0.65 and values.max() < 1.25


def test_polar_express_orthogonalises():
    """Singular values from 1e-3 to 1, the range it was made for: within 0.2 % of 1 after eight steps."""
    u, _ = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(60, 24, dtype=torch.float64))
    g = u * torch.logspace(-2.5, 0, 24, dtype=torch.float64) @ v.T
    found = newton_schulz(g, 8, "polar_express", dtype=torch.float64)
    assert_close(found, u @ v.T, 2e-3)
    classic = newton_schulz(g, 8, "classic", dtype=torch.float64)
    assert (classic - u @ v.T).norm() > 20 * (found - u @ v.T).norm()


def test_zeros_give_zeros():
    g = torch.stack([torch.zeros(4, 6), torch.randn(4, 6)])
    found = newton_schulz(g)
    assert found[0].eq(0).all() and found[1].abs().max() > 0.1
    assert newton_schulz(torch.zeros(0, 4, 6)).shape == (0, 4, 6)


def test_no_gradient():
    assert not newton_schulz(torch.randn(3, 4, requires_grad=True)).requires_grad


def test_tables():
    assert op.coefficient_table("classic", 3) == [(3.4445, -4.7750, 2.0315)] * 3
    table = op.coefficient_table("polar_express", 10)
    assert table[7:] == [(1.875, -1.25, 0.375)] * 3
    assert table[0][0] == pytest.approx(8.2052, abs=1e-4) and table[6][0] == pytest.approx(1.8564, abs=1e-4)
    assert op.coefficient_table(iter([(1, 2, 3), [4, 5, 6]]), 3) == [(1, 2, 3), (4, 5, 6), (4, 5, 6)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"g": torch.zeros(5)}, "rows, columns"),
        ({"g": torch.zeros(5, 5, dtype=torch.int64)}, "floating point"),
        ({"steps": 0}, "at least 1"),
        ({"coefficients": "jordan"}, "classic, polar_express"),
        ({"coefficients": []}, "one or more triples"),
        ({"coefficients": [(1.0, 2.0)]}, "one or more triples"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz(**{"g": torch.randn(3, 4), **arguments})


def test_opcheck():
    for g in (torch.randn(2, 5, 9), torch.randn(9, 5, 2).permute(2, 1, 0)):
        torch.library.opcheck(torch.ops.pgolf.newton_schulz, (g, [3.0, -4.0, 2.0, 2.0, -1.5, 0.5], torch.float32))


def test_fullgraph_compile():
    compiled = torch.compile(lambda g: 2 * newton_schulz(g, 3), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 7):
        g = torch.randn(2, rows, 9)
        assert_close(compiled(g), 2 * newton_schulz(g, 3), 1e-6)


def test_launch():
    for capability in (80, 86, 89, 90, 100, 103, 120):
        launch = launch_symmetric(capability)
        assert launch.tiles["BM"] == 128 and launch.num_warps == 8
        assert uses_kernel(256, 512, torch.bfloat16, capability)
        assert not uses_kernel(128, 512, torch.bfloat16, capability), "one tile has no triangle"
        assert not uses_kernel(256, 500, torch.bfloat16, capability)
        assert not uses_kernel(256, 512, torch.float32, capability)
    assert not uses_kernel(256, 512, torch.bfloat16, 75)
    assert [triangle(m, 128) for m in (1, 128, 129, 512)] == [1, 1, 3, 10]


def test_traffic():
    """A symmetric 512 x 512 product does 10 of its 16 tiles."""
    moved, flops = traffic_symmetric(22, 512, 2048, 128, linear=False)
    assert moved == 22 * 2 * (512 * 2048 + 512 * 512) and flops == 22 * 2 * 512 * 512 * 2048 * 10 // 16
