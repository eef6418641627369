"""The MLP operator on a CPU: the mathematics, its gradients, its launch choices, and how it meets torch.compile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pgolf.kernels.mlp import launch, mlp
from pgolf.kernels.mlp.reference import mlp_reference
from tests.kernels.compare import assert_close


def example(shape=(3, 5), d=6, hidden=10, out=7, dtype=torch.float64):
    tensors = torch.randn(*shape, d), torch.randn(hidden, d), torch.randn(out, hidden)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_reference_by_hand(slope):
    x, w_up, w_down = example(shape=(2,))
    for row in range(2):
        expected = torch.zeros(7, dtype=torch.float64)
        for unit in range(10):
            pre = (x[row] * w_up[unit]).sum()
            expected += w_down[:, unit] * (pre if pre > 0 else slope * pre) ** 2
        assert_close(mlp_reference(x, w_up, w_down, slope)[row], expected, 1e-9)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.5, 1.0])
def test_output_and_gradients(slope):
    inputs = example()
    found, expected = mlp(*inputs, slope), mlp_reference(*inputs, slope)
    assert_close(found, expected, 1e-9)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, inputs, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        assert_close(got, wanted, 1e-9)


def test_the_default_slope_is_a_half():
    inputs = example()
    assert torch.equal(mlp(*inputs), mlp(*inputs, 0.5))


def test_gradcheck():
    assert torch.autograd.gradcheck(mlp, example(), atol=1e-4)


@pytest.mark.parametrize("wanted", range(3))
def test_one_gradient_at_a_time(wanted):
    inputs = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(example())]
    upstream = torch.randn(3, 5, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad(mlp(*inputs), inputs[wanted], upstream)
    (expected,) = torch.autograd.grad(mlp_reference(*inputs), inputs[wanted], upstream)
    assert_close(found, expected, 1e-9)


@pytest.mark.parametrize("dtype, ratio", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, ratio):
    inputs = example(shape=(40,), dtype=dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = mlp(*inputs), mlp_reference(*exact)
    assert y.dtype == dtype
    assert_close(y, expected, ratio)
    upstream = torch.randn(40, 7).to(dtype)
    gradients = torch.autograd.grad(y, inputs, upstream)
    for got, wanted in zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert_close(got, wanted, ratio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_weights_follow_a_16_bit_input(dtype):
    """What autocast leaves in a network: 16-bit activations, float32 weights, whose gradients are float32."""
    x, w_up, w_down = example(shape=(40,), dtype=torch.float32)
    half = x.detach().to(dtype)
    y = mlp(half, w_up, w_down)
    assert y.dtype == dtype and torch.equal(y, mlp(half, w_up.to(dtype), w_down.to(dtype)))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), (w_up, w_down)))
    with torch.autocast("cpu", dtype):
        assert torch.equal(mlp(x, w_up, w_down), y) and torch.equal(mlp(half, w_up, w_down), y)
        assert mlp(*example()).dtype == torch.float64
        compiled = torch.compile(lambda *inputs: mlp(*inputs), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, w_up, w_down), y)


def test_no_rows():
    x, w_up, w_down = example(shape=(0,))
    y = mlp(x, w_up, w_down)
    assert y.shape == (0, 7)
    assert all(g.eq(0).all() for g in torch.autograd.grad(y.sum(), (w_up, w_down)))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 6)}, "cast them to one"),
        ({"x": torch.zeros(2, 5, dtype=torch.float64)}, "do not fit together"),
        ({"w_down": torch.zeros(7, 11, dtype=torch.float64)}, "do not fit together"),
        ({"w_up": torch.zeros(1, 10, 6, dtype=torch.float64)}, "do not fit together"),
        ({"slope": -0.1}, r"\[0, 1\]"),
        ({"slope": 1.5}, r"\[0, 1\]"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        mlp(**{**dict(zip(("x", "w_up", "w_down"), example(), strict=True)), **change})


def test_a_layer_is_not_its_weight():
    x, w_up, w_down = example()
    with pytest.raises(TypeError, match="mlp: w_up must be a torch.Tensor, not torch's Linear; pass its weight"):
        mlp(x, torch.nn.Linear(6, 10), w_down)


def test_opcheck():
    x, w_up, w_down = example(shape=(15,))
    sideways = x.detach().T.contiguous().T.requires_grad_()
    for rows in (x, sideways):
        torch.library.opcheck(torch.ops.pgolf.mlp, (rows, w_up, w_down, 0.5))
    with torch.no_grad():
        _, saved = torch.ops.pgolf.mlp(x, w_up, w_down, 0.5)
        dy = torch.randn(15, 7, dtype=torch.float64)
        for wanted in ((True, True, True), (False, True, False)):
            torch.library.opcheck(torch.ops.pgolf.mlp_backward, (dy, x.detach(), w_up, w_down, saved, 0.5, *wanted))


def test_fullgraph_compile_with_a_dynamic_length():
    def block(x, w_up, w_down):
        return x + mlp(2 * x, w_up, w_down, 0.5)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter, dynamic=True)
    for length in (5, 9, 10):
        inputs = example(shape=(2, length), out=6)
        upstream = torch.randn(2, length, 6, dtype=torch.float64)
        found = torch.autograd.grad(compiled(*inputs), inputs, upstream)
        for got, wanted in zip(found, torch.autograd.grad(block(*inputs), inputs, upstream), strict=True):
            assert_close(got, wanted, 1e-9)
    assert counter.frame_count == 1


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_launches(capability):
    """Wide tiles as soon as they fill the device; a stage less where the epilogue needs the space."""
    wide = launch.MULTIPROCESSORS[capability] * 128 // 8
    assert launch.launch_up(wide, 2048, capability).tiles["BN"] == 256
    assert launch.launch_up(wide - 200, 2048, capability).tiles["BN"] == 128
    assert launch.launch_down(98_304, 512, capability).tiles == launch.launch_up(98_304, 2048, capability).tiles
    assert (
        launch.launch_hidden(98_304, 2048, capability).num_stages == launch.launch_up(98_304, 2048, capability).num_stages - 1
    )
    assert launch.launch_up(512, 2048, capability).tiles["TMA"] == (capability >= 90)


def test_parts_of_rows():
    chosen = launch.launch_w_down(90)
    assert launch.parts_of_rows(98_304, 2048, 512, chosen, 132) == (4, 24_576)
    assert launch.parts_of_rows(100, 2048, 512, chosen, 132) == (1, 128)
    assert launch.parts_of_rows(98_304, 8192, 2048, chosen, 132) == (1, 98_304)
    for rows in (1025, 5000, 33_333):
        parts, length = launch.parts_of_rows(rows, 256, 256, chosen, 132)
        assert length % chosen.tiles["BK"] == 0 and (parts - 1) * length < rows <= parts * length


def test_choices():
    assert launch.magnitude_product(98_304, 2048, 0.5) == "kernel"
    assert launch.magnitude_product(4096, 2048, 0.5) == "copy"
    assert launch.magnitude_product(98_304, 2048, 0.0) == "plain"
    assert launch.uses_kernels(512, 2048, 512, torch.bfloat16, 90)
    assert not launch.uses_kernels(512, 2048, 512, torch.float32, 90)
    assert not launch.uses_kernels(512, 2044, 512, torch.bfloat16, 90)
    assert not launch.uses_kernels(512, 2048, 512, torch.bfloat16, 75)
    assert all(launch.uses_kernels(512, 2048, 512, torch.bfloat16, newer) for newer in (86, 89, 103, 120))


def test_traffic():
    """The figures of a training step: 98,304 tokens, 512 to 2,048."""
    assert launch.traffic_up(98_304, 512, 2048) == (505_413_632, 206_158_430_208)
    assert launch.traffic_down(98_304, 2048, 512) == launch.traffic_up(98_304, 512, 2048)
    assert launch.traffic_hidden(98_304, 2048, 512)[0] == 505_413_632 + 2 * 98_304 * 2048
    assert launch.traffic_w_down(98_304, 2048, 512, parts=4)[0] == 2 * 98_304 * 2560 + 16 * 2048 * 512
