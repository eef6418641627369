import pytest
import torch

from pgolf.kernels.packed import expand, packed_matmul
from tests.kernels.compare import assert_close
from tests.kernels.test_packed import BITS, random_packed

pytestmark = pytest.mark.gpu


def run(tokens, packed, dtype, seed=0):
    draw = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(tokens, packed.cols, device="cuda", generator=draw).to(dtype).requires_grad_()
    upstream = torch.randn(tokens, packed.rows, device="cuda", generator=draw).to(dtype)
    y = packed_matmul(x, packed)
    y.backward(upstream)
    return x.detach(), upstream, y.detach(), x.grad


# one row, split sums, both sides of each tile and of the crossover
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 63, 100, 129, 256, 257])
@pytest.mark.parametrize("shape", [(512, 512), (2048, 512), (768, 8192), (111, 1000)], ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_against_float64(bits, shape, tokens, poisoned_memory):
    _, packed, dense = random_packed(bits, *shape, device="cuda")
    for dtype in (torch.bfloat16, torch.float16):
        x, upstream, y, grad = run(tokens, packed, dtype)
        assert_close(y, x.double() @ dense.T, 5e-3)
        assert_close(grad, upstream.double() @ dense, 5e-3, "gradient")


@pytest.mark.parametrize("tokens", [1, 9])
def test_float32(tokens, poisoned_memory):
    _, packed, dense = random_packed(5, 96, 8192, device="cuda")
    x, upstream, y, grad = run(tokens, packed, torch.float32)
    assert_close(y, x.double() @ dense.T, 1e-5)
    assert_close(grad, upstream.double() @ dense, 1e-5, "gradient")


@pytest.mark.parametrize("tokens", [1, 16, 100, 300])
def test_two_runs_give_the_same_bits(tokens):
    _, packed, _ = random_packed(6, 512, 2048, device="cuda")
    first, second = run(tokens, packed, torch.bfloat16), run(tokens, packed, torch.bfloat16)
    assert torch.equal(first[2], second[2]) and torch.equal(first[3], second[3])


@pytest.mark.parametrize("cols", [31, 512, 1000, 8192])
@pytest.mark.parametrize("bits", BITS)
def test_expand(bits, cols, poisoned_memory):
    codes, packed, _ = random_packed(bits, 130, cols, device="cuda")
    assert torch.equal(packed.unpack().long(), codes)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(expand(packed, dtype), (codes.float() * packed.scales[:, None]).to(dtype))
