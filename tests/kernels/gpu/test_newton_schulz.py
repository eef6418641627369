"""newton_schulz on a GPU: the symmetric kernel against float64, every element written, the same bits twice."""

import pytest
import torch

from pgolf.kernels.newton_schulz import newton_schulz, op
from pgolf.kernels.newton_schulz.reference import newton_schulz_reference
from tests.kernels.compare import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


@pytest.mark.parametrize("batch, m, k", [(22, 512, 512), (5, 296, 704), (3, 136, 72)])
@pytest.mark.parametrize("dtype, ratio", [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=["bf16", "fp16"])
def test_symmetric_products(batch, m, k, dtype, ratio):
    x = (torch.randn(batch, m, k) / k**0.5).to("cuda", dtype)
    gram = op.symmetric_triton(x, None, 1.0)
    assert torch.equal(gram, gram.mT)
    exact = x.double() @ x.double().mT
    assert_close(gram, exact, ratio)
    exact = gram.double()
    assert_close(op.symmetric_triton(gram, -4.775, 2.0315), -4.775 * exact + 2.0315 * exact @ exact, ratio)


@pytest.mark.parametrize("shape", [(22, 512, 2048), (256, 512), (3, 704, 296), (2, 100, 60)])
@pytest.mark.parametrize("coefficients", ["classic", "polar_express"])
def test_iteration(shape, coefficients):
    """bfloat16 rounds at every step: what counts is that the result is as orthogonal as plain torch makes it."""
    g = torch.randn(shape, device="cuda")
    expected = newton_schulz_reference(g.double(), op.coefficient_table(coefficients, 5))
    found = newton_schulz(g, 5, coefficients)
    assert found.dtype == torch.float32
    assert_close(found, expected, 5e-2)
    assert_close(newton_schulz(g, 5, coefficients, dtype=torch.float64), expected, 1e-6)
    assert torch.equal(found, newton_schulz(g, 5, coefficients))


def test_zeros_give_zeros():
    assert newton_schulz(torch.zeros(2, 256, 512, device="cuda")).eq(0).all()
