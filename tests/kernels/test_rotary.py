"""Rotary on a CPU: the reference against another formula, the registered operator against the reference, and launch choice."""

import pytest
import torch

from pgolf.kernels.rotary import launch, reference, rotary, rotary_table
from tests.kernels.compare import assert_close

SHAPES = [(2, 7, 4, 2, 12, 6), (1, 5, 3, 3, 8, 8), (1, 3, 2, 1, 6, 0), (1, 1, 1, 1, 4, 2)]
IDS = "b{0[0]}-t{0[1]}-h{0[2]}-kv{0[3]}-d{0[4]}-r{0[5]}".format


def inputs(shape, dtype=torch.float64):
    batch, length, heads, kv_heads, dim, dims = shape
    q = torch.randn(batch, length, heads, dim, dtype=dtype, requires_grad=True)
    k = torch.randn(batch, length, kv_heads, dim, dtype=dtype, requires_grad=True)
    gain = torch.randn(heads, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    return q, k, gain, *rotary_table(length, dims, 100.0, dtype=gain.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_reference_is_a_complex_rotation_of_the_normalised_head(shape):
    """Pairs (x1, x2) as x1 - i x2 turn by e^(i phase); the rest is torch's own RMSNorm."""
    q, k, gain, cos, sin = inputs(shape)
    length, dim, dims = shape[1], shape[4], shape[5]
    half = dims // 2
    phase = [[t * 100.0 ** (-2 * j / dims) for j in range(half)] for t in range(length)]
    phase = torch.tensor(phase, dtype=torch.float64).reshape(length, half)
    wheel = torch.polar(torch.ones_like(phase), phase)[:, None]

    def independent(x):
        unit = torch.nn.functional.rms_norm(x, (dim,))
        turned = torch.complex(unit[..., :half], -unit[..., half:dims]) * wheel
        return torch.cat([turned.real, -turned.imag, unit[..., dims:]], -1)

    query, key = reference.rotary(q, k, gain, cos, sin)
    assert_close(query, independent(q) * gain[:, None], 1e-12)
    assert_close(key, independent(k), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_operator_and_gradients_equal_the_reference(shape):
    arguments = inputs(shape)
    weights = [torch.randn_like(arguments[0]), torch.randn_like(arguments[1])]
    for eps in (None, 0.3):
        found, wanted = rotary(*arguments, eps=eps), reference.rotary(*arguments, eps=eps)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, 1e-12)
        for one, other in zip(
            torch.autograd.grad(found, arguments[:3], weights),
            torch.autograd.grad(wanted, arguments[:3], weights),
            strict=True,
        ):
            assert_close(one, other, 1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("norm, gained", [(False, False), (False, True), (True, False)])
def test_without_norm_or_gain(norm, gained, dtype, tolerance):
    """Plain RoPE and the two forms between it and the whole, against the reference."""
    q, k, gain, cos, sin = inputs((2, 7, 4, 2, 12, 6), dtype)
    leaves = [q, k, gain] if gained else [q, k]
    arguments = (q, k, gain if gained else None, cos, sin)
    found, wanted = rotary(*arguments, norm=norm), reference.rotary(*arguments, norm=norm)
    weights = [torch.randn_like(q), torch.randn_like(k)]
    gradients = (torch.autograd.grad(out, leaves, weights) for out in (found, wanted))
    for one, other in zip((*found, *next(gradients)), (*wanted, *next(gradients)), strict=True):
        assert_close(one, other, tolerance)
    if not norm and not gained:
        first, second = q[..., :3], q[..., 3:6]
        turned = torch.cat([first * cos[:, None] + second * sin[:, None], second * cos[:, None] - first * sin[:, None]], -1)
        assert_close(found[0], torch.cat([turned, q[..., 6:]], -1), tolerance)


def test_gradcheck():
    q, k, gain, cos, sin = inputs((1, 3, 2, 1, 6, 4))
    assert torch.autograd.gradcheck(lambda *x: rotary(*x, cos, sin, eps=1e-3), (q, k, gain))


def test_eps_defaults_to_the_dtype_of_the_input():
    q, k, gain, cos, sin = (x.detach() for x in inputs((1, 4, 2, 1, 8, 4), torch.bfloat16))
    q = q * 0.1
    query, _ = rotary(q, k, gain, cos, sin)
    unit = torch.nn.functional.rms_norm(q[:, 0].float(), (8,), eps=torch.finfo(torch.bfloat16).eps)
    assert query.dtype == torch.bfloat16
    assert_close(query[:, 0], unit * gain[:, None], 5e-3)


def test_table():
    cos, sin = rotary_table(5, 4, 10_000.0)
    assert cos.shape == sin.shape == (5, 2) and cos.dtype == torch.float32
    assert torch.allclose(cos[3], torch.tensor([3.0, 0.03]).cos()) and torch.allclose(sin[3], torch.tensor([3.0, 0.03]).sin())
    far = rotary_table(2_000_001, 2, 1.0)[0][-1].item()
    assert abs(far - torch.tensor(2e6, dtype=torch.float64).cos().item()) < 1e-7
    with pytest.raises(ValueError, match="even"):
        rotary_table(5, 3, 10.0)


@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(strided):
    q, k, gain, cos, sin = inputs((2, 5, 4, 2, 8, 4), torch.float32)
    if strided:
        q, k = (x.detach().mT.contiguous().mT.requires_grad_() for x in (q, k))
    torch.library.opcheck(torch.ops.pgolf.rotary, (q, k, gain, cos, sin, 1e-6, True))
    grads = torch.randn_like(q), torch.randn_like(k)
    plain = (x.detach() for x in (q, k, gain, cos, sin))
    torch.library.opcheck(torch.ops.pgolf.rotary_backward, (*grads, *plain, 1e-6, True))


def test_compiles_into_one_graph_of_any_length():
    def step(q, k, gain, cos, sin):
        query, key = rotary(q * 2, k, gain, cos, sin)
        return query.square().sum() + (key * 3).sin().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 9, 12):
        arguments = inputs((1, length, 4, 2, 8, 4), torch.float32)
        wanted = torch.autograd.grad(step(*arguments), arguments[:3])
        for one, other in zip(torch.autograd.grad(compiled(*arguments), arguments[:3]), wanted, strict=True):
            assert_close(one, other, 1e-6)


@pytest.mark.parametrize("capability", [75, 80, 86, 90, 100, 120])
def test_launch(capability):
    for dim in (64, 128, 96, 4, 2048):
        chosen = launch.launch_rotary(dim, capability)
        tiles = chosen.tiles
        assert tiles["BD"] >= dim and tiles["BT"] >= 1
        assert all(size & (size - 1) == 0 for size in tiles.values())
        # a row within one warp: eight numbers a thread, 32 threads
        assert dim > 256 or tiles["BD"] <= 8 * 32 and tiles["BT"] * tiles["BD"] == 8 * 32 * chosen.num_warps


def test_traffic():
    assert launch.traffic_rotary(98_304, 8, 4, 64, 2, "forward")[0] == 301_989_888
    assert launch.traffic_rotary(98_304, 8, 4, 64, 2, "backward")[0] == 452_984_832


def test_bad_arguments_are_named():
    q, k, gain, cos, sin = inputs((1, 5, 4, 2, 8, 4), torch.float32)
    for arguments, message in (
        ((q, k[:, :4], gain, cos, sin), "q .B, T, H, d."),
        ((q, k.half(), gain, cos, sin), "one floating-point dtype"),
        ((q, k, gain[:3], cos, sin), "per query head"),
        ((q, k, gain, cos[:4], sin[:4]), "T = 5"),
        ((q, k, gain, cos, sin[:, :1]), "cos and sin"),
        ((q, k, gain, torch.zeros(5, 5), torch.zeros(5, 5)), "r <= 8"),
        ((q, k, gain, cos.half(), sin.half()), "float32 or float64"),
    ):
        with pytest.raises(ValueError, match=message):
            rotary(*arguments)
    with pytest.raises(ValueError, match=r"\(B, H, T, d\), pass x.transpose\(1, 2\)"):
        rotary(q.transpose(1, 2), k.transpose(1, 2), gain, cos, sin)
    with pytest.raises(TypeError, match="rotary: cos must be a torch.Tensor, not NoneType"):
        rotary(q, k, gain, None, sin)
