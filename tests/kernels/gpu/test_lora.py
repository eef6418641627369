"""LoRA on a GPU: bfloat16 against float64, unwritten memory, determinism, the optimiser step."""

import pytest
import torch

from pgolf.kernels.lora import launch, lora, lora_adam, lora_reset, op
from pgolf.kernels.lora.reference import lora_backward_reference, lora_reference
from tests.kernels.compare import assert_close
from tests.kernels.test_lora import adapters, training

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]

LENGTHS = [300, 0, 1, 2500, 64]


@pytest.mark.parametrize("adapter_dtype", [torch.bfloat16, torch.float32], ids=["bf16 adapters", "float32 adapters"])
@pytest.mark.parametrize("route", ["whole", "split", "around"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
@pytest.mark.parametrize("width,out,rank", [(512, 512, 8), (200, 2056, 32), (512, 512, 80), (256, 128, 96)])
def test_against_float64_and_twice_the_same(width, out, rank, lengths, route, adapter_dtype):
    if route == "whole" and launch.rank_blocks(rank)[1]:
        pytest.skip("this route pads the rank to one power of two")
    shape = {"docs": 5, "n": 2100, "width": width, "out": out, "rank": rank, "lengths": lengths}
    x, weight, a, b, bounds = adapters(**shape, dtype=torch.bfloat16, device="cuda")
    a, b = a.to(adapter_dtype), b.to(adapter_dtype)
    exact = [v.double().cpu() for v in (x, weight, a, b)]
    at_home = None if bounds is None else bounds.cpu()
    y, t = op.forward_triton(x, weight, a, b, 0.7, bounds, route)
    expected_y, expected_t = lora_reference(*exact, 0.7, at_home)
    assert_close(y, expected_y, 1e-2, "y")
    assert_close(t, expected_t, 1e-2, "t")
    dy = torch.randn_like(y)
    gradients = op.backward_triton(dy, x, t, weight, a, b, 0.7, bounds, True, route)
    expected = lora_backward_reference(dy.double().cpu(), exact[0], t.double().cpu(), *exact[1:], 0.7, at_home)
    for name, found, wanted in zip(("dx", "da", "db"), gradients, expected, strict=True):
        assert_close(found, wanted, 1e-2, name)
    again = op.backward_triton(dy, x, t, weight, a, b, 0.7, bounds, True, route)
    assert torch.equal(op.forward_triton(x, weight, a, b, 0.7, bounds, route)[0], y)
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@pytest.mark.parametrize("dtype,limit", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_public_function_and_its_gradients(dtype, limit):
    x, weight, a, b, _ = adapters(docs=3, n=50, width=96, out=72, rank=8, dtype=dtype, device="cuda")
    leaves = [leaf.requires_grad_() for leaf in (x, weight, a, b)]
    exact = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    y, wanted = lora(*leaves, 0.5), lora_reference(*exact, 0.5, None)[0]
    dy = torch.randn_like(y)
    assert_close(y, wanted, limit)
    for found, expected in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, exact, dy.double().cpu()), strict=True
    ):
        assert_close(found, expected, limit)


def test_opcheck():
    x, weight, a, b, bounds = adapters(width=16, out=24, rank=4, lengths=[5, 0, 9], dtype=torch.float32, device="cuda")
    torch.library.opcheck(torch.ops.pgolf.lora, (x, weight, a.requires_grad_(), b.requires_grad_(), 0.5, bounds))


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.999)], ids=["two moments", "one moment"])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_adam_and_reset_as_on_a_cpu(betas, moments):
    here, there = training(moments=moments), training(moments=moments)
    there = [[t.cuda() for t in part] if isinstance(part, list) else part for part in there]
    there[3] = there[3].cuda()
    active = torch.tensor([True, False, True, True])
    gradients = [torch.randn_like(p) for p in here[0]]
    for parameters, first, second, steps, _ in (here, there):
        device = steps.device
        for mask in (None, active.to(device)):
            moved = [g.to(device) for g in gradients]
            lora_adam(parameters, moved, first if betas[0] else [], second, steps, lr=0.01, betas=betas, active=mask)
    assert here[3].tolist() == there[3].tolist() == [2, 1, 2, 2]
    for one, other in zip((*here[0], *here[2]), (*there[0], *there[2]), strict=True):
        assert_close(other, one, 1e-2 if one.dtype == torch.bfloat16 else 1e-5)
    initial = [torch.randn(p.shape[1:]) for p in here[0]]
    for parameters, first, second, steps, _ in (here, there):
        device = steps.device
        lora_reset(parameters, first, [i.to(device) for i in initial], [], second, steps, documents=active.to(device))
    for one, start in zip(there[0], initial, strict=True):
        assert torch.equal(one[[0, 2, 3]].cpu(), start.expand(3, *start.shape))
    assert there[3].tolist() == [0, 1, 0, 0]
    assert not any(v[[0, 2, 3]].any() for v in there[2])
