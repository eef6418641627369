import pytest
import torch

from pgolf.kernels.packed import op
from tests.kernels.compare import assert_close
from tests.kernels.test_packed import BITS, random_packed

RATIO = {torch.float32: 1e-6, torch.float16: 2e-3}


def arguments(packed):
    return packed.planes, packed.scales, packed.bits, packed.cols


# below one unit, whole units, units and a rest
@pytest.mark.parametrize("cols", [31, 96, 129])
@pytest.mark.parametrize("bits", BITS)
def test_gemv(bits, cols):
    _, packed, dense = random_packed(bits, 37, cols)
    for dtype, ratio in RATIO.items():
        x = torch.randn(1, cols).to(dtype)
        assert_close(op.gemv_triton(x, *arguments(packed)), x.double() @ dense.T, ratio)


# every row of the table, and more units than one tile holds
@pytest.mark.parametrize("cols", [32 * 17, 32 * 36 + 1, 32 * 64, 32 * 130])
def test_gemv_of_wide_rows(cols):
    _, packed, dense = random_packed(5, 3, cols)
    x = torch.randn(1, cols)
    assert_close(op.gemv_triton(x, *arguments(packed)), x.double() @ dense.T, 1e-6)


@pytest.mark.parametrize("cols, splits", [(31, 1), (96, 3), (129, 1), (129, 2)])
@pytest.mark.parametrize("bits", BITS)
def test_matmul(bits, cols, splits):
    _, packed, dense = random_packed(bits, 70, cols)
    for dtype, ratio in RATIO.items():
        x = torch.randn(5, cols).to(dtype)
        assert_close(op.matmul_triton(x, *arguments(packed), splits), x.double() @ dense.T, ratio)


# every row of the table, and more than one tile of tokens; 21 units are two steps of each turn
@pytest.mark.parametrize("tokens", [16, 19, 40, 131])
def test_matmul_of_many_tokens(tokens):
    _, packed, dense = random_packed(6, 131, 675)
    x = torch.randn(tokens, 675)
    assert_close(op.matmul_triton(x, *arguments(packed), 2), x.double() @ dense.T, 1e-6)


@pytest.mark.parametrize("cols, splits", [(96, 1), (544, 2)])
@pytest.mark.parametrize("bits", BITS)
def test_backward(bits, cols, splits):
    _, packed, dense = random_packed(bits, 150, cols)
    for dtype, ratio in RATIO.items():
        grad = torch.randn(7, 150).to(dtype)
        assert_close(op.backward_triton(grad, *arguments(packed), splits), grad.double() @ dense, ratio)


@pytest.mark.parametrize("tokens", [17, 70])
def test_backward_of_many_tokens(tokens):
    _, packed, dense = random_packed(7, 65, 96)
    grad = torch.randn(tokens, 65)
    assert_close(op.backward_triton(grad, *arguments(packed)), grad.double() @ dense, 1e-6)


@pytest.mark.parametrize("bits, cols", [*((bits, cols) for bits in BITS for cols in (31, 96, 129)), (6, 1153), (5, 2176)])
def test_expand(bits, cols):
    codes, packed, _ = random_packed(bits, 35, cols)
    for dtype in RATIO:
        expected = (codes.float() * packed.scales[:, None]).to(dtype)
        assert torch.equal(op.expand_triton(*arguments(packed), dtype), expected)


def test_inputs_need_not_be_contiguous():
    _, packed, dense = random_packed(5, 20, 64)
    planes = torch.stack((packed.planes, packed.planes), -1)[..., 0]
    tail = (packed.scales, packed.bits, packed.cols)
    x, grad = torch.randn(64, 3).T, torch.randn(20, 3).T
    assert_close(op.matmul_triton(x, planes, *tail), x.double() @ dense.T, 1e-6)
    assert_close(op.gemv_triton(x[1:2], planes, *tail), x[1:2].double() @ dense.T, 1e-6)
    assert_close(op.backward_triton(grad, planes, *tail), grad.double() @ dense, 1e-6)
    assert_close(op.expand_triton(planes, *tail, torch.float32), dense, 1e-6)
