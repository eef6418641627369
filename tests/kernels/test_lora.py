"""Per-document LoRA on a CPU: mathematics, registration, launch choice, messages."""

import math

import pytest
import torch

from pgolf.kernels.launch import Launch
from pgolf.kernels.lora import launch, lora, lora_adam, lora_initial, lora_reset
from pgolf.kernels.lora.reference import lora_reference
from tests.kernels.compare import assert_close

LENGTHS = [5, 0, 1, 9]


def adapters(docs=3, n=7, width=12, out=10, rank=3, dtype=torch.float64, base=True, lengths=None, device="cpu", seed=42):
    """x, weight, a, b and cu_seqlens (None for documents of equal length; else two rows more than the documents need)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    bounds = None
    if lengths is not None:
        docs = len(lengths)
        bounds = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    x = draw(docs, n, width) if lengths is None else draw(sum(lengths) + 2, width)
    weight = draw(out, width) / math.sqrt(width) if base else None
    return x, weight, draw(docs, rank, width) / math.sqrt(width), draw(docs, out, rank) / math.sqrt(rank), bounds


def row_by_row(x, weight, a, b, scale, bounds):
    """The same function from another formula: each row times its own dense matrix W + s B_d A_d."""
    rows = x.flatten(0, -2)
    if bounds is None:
        document = [i // x.shape[1] for i in range(len(rows))]
    else:
        document = [int((bounds[1:] <= i).sum()) for i in range(len(rows))]
    idle = torch.zeros(b.shape[1], a.shape[2], dtype=x.dtype) if weight is None else weight
    matrices = [idle + scale * b[d] @ a[d] if d < len(a) else idle for d in document]
    y = torch.stack([matrix @ row for matrix, row in zip(matrices, rows, strict=True)])
    return y.view(*x.shape[:-1], -1)


@pytest.mark.parametrize("base", [True, False], ids=["base", "adapters only"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
def test_result_and_gradients_against_a_matrix_for_each_row(lengths, base):
    x, weight, a, b, bounds = adapters(lengths=lengths, base=base)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, a, b) if leaf is not None]
    found, expected = lora(x, weight, a, b, 0.7, bounds), row_by_row(x, weight, a, b, 0.7, bounds)
    assert_close(found, expected, 1e-12)
    dy = torch.randn_like(found)
    gradients = zip(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for number, (one, other) in enumerate(gradients):
        assert_close(one, other, 1e-12, f"gradient {number}")


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
def test_gradcheck(lengths):
    x, weight, a, b, bounds = adapters(docs=2, n=3, width=4, out=3, rank=2, lengths=lengths)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, a, b)]
    assert torch.autograd.gradcheck(lambda x, w, a, b: lora(x, w, a, b, 1.5, bounds), leaves)


def test_frozen_inputs_get_no_gradient():
    x, weight, a, b, _ = adapters()
    lora(x, weight, a.requires_grad_(), b.requires_grad_()).sum().backward()
    assert x.grad is None and weight.grad is None
    expected = torch.autograd.grad(lora_reference(x, weight, a, b, 1.0, None)[0].sum(), (a, b))
    assert_close(a.grad, expected[0], 1e-12)
    assert_close(b.grad, expected[1], 1e-12)


@pytest.mark.parametrize("n", [1, 7, 48])
def test_a_document_does_not_depend_on_its_company(n):
    x, weight, a, b, _ = adapters(docs=5, n=n, width=96, out=80, rank=8, dtype=torch.float32)
    together = lora(x, weight, a, b)
    bounds = torch.tensor([0, n], dtype=torch.int32)
    for d in range(5):
        one = slice(d, d + 1)
        # as close as the library's product of many matrices is to that of one: on some processors it takes another path
        assert_close(lora(x[one], weight, a[one], b[one])[0], together[d], 1e-6)
        assert_close(lora(x[d], weight, a[one], b[one], 1.0, bounds), together[d], 1e-6)


def test_float32_adapters_on_bfloat16_rows():
    x, weight, a, b, _ = adapters(dtype=torch.bfloat16)
    a, b = a.float().requires_grad_(), b.float().requires_grad_()
    y = lora(x.requires_grad_(), weight, a, b)
    y.backward(torch.ones_like(y))
    assert (y.dtype, x.grad.dtype, a.grad.dtype, b.grad.dtype) == (*[torch.bfloat16] * 2, *[torch.float32] * 2)
    exact = lora_reference(*(tensor.double() for tensor in (x, weight, a, b)), 1.0, None)[0]
    assert_close(y, exact, 1e-2)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
def test_opcheck(lengths):
    x, weight, a, b, bounds = adapters(lengths=lengths, dtype=torch.float32)
    strided = x.mT.contiguous().mT.requires_grad_()
    for base in (weight, weight.mT.contiguous().mT.requires_grad_(), None):
        torch.library.opcheck(torch.ops.pgolf.lora, (strided, base, a.requires_grad_(), b.requires_grad_(), 0.5, bounds))
    y, t = torch.ops.pgolf.lora(x, None, a, b, 0.5, bounds)
    for wanted in (True, False):
        torch.library.opcheck(
            torch.ops.pgolf.lora_backward,
            tuple(v.detach() if torch.is_tensor(v) else v for v in (y, x, t, None, a, b, 0.5, bounds, wanted)),
        )


def test_whole_graph_with_changing_lengths():
    compiled = torch.compile(lambda *v: torch.tanh(lora(*v)), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 6, 11):
        x, weight, a, b, _ = adapters(n=n, dtype=torch.float32)
        leaves = [leaf.requires_grad_() for leaf in (x, weight, a, b)]
        found, expected = compiled(*leaves, 0.5), torch.tanh(lora(*leaves, 0.5))
        assert_close(found, expected, 1e-6)
        for one, other in zip(
            torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            assert_close(one, other, 1e-6)


def test_messages():
    x, weight, a, b, bounds = adapters(lengths=LENGTHS)
    dense = adapters()[0]
    wrong = [
        ("a must be", (dense, weight, a[0], b)),
        ("ranks 1 to 128", (x, weight, torch.zeros(4, 129, 12), torch.zeros(4, 10, 129), 1.0, bounds)),
        ("x must be", (dense, weight, a, b)),
        ("with cu_seqlens x must be", (dense, weight, a, b, 1.0, bounds)),
        ("cu_seqlens must be int32 with 5", (x, weight, a, b, 1.0, bounds.long())),
        ("weight must be", (x, weight.T, a, b, 1.0, bounds)),
        ("weight is torch.float32", (x, weight.float(), a, b, 1.0, bounds)),
        ("a and b must both", (x, weight, a, b.half(), 1.0, bounds)),
        ("cu_seqlens must rise", (x, weight, a, b, 1.0, bounds.flip(0))),
    ]
    for message, arguments in wrong:
        with pytest.raises(ValueError, match=message):
            lora(*arguments)


def test_rank_is_padded_to_two_blocks_only_where_that_is_less():
    blocks = {1: (16, 0), 8: (16, 0), 17: (32, 0), 40: (32, 16), 64: (64, 0), 80: (64, 16), 96: (64, 32), 97: (128, 0)}
    assert {rank: launch.rank_blocks(rank) for rank in blocks} == blocks
    for rank in range(1, launch.MAX_RANK + 1):
        assert rank <= sum(launch.rank_blocks(rank)) <= max(16, 2 * rank)
    assert {rank: launch.rank_step(rank) for rank in (8, 16, 17, 80, 96, 128)} == {
        8: 16,
        16: 16,
        17: 32,
        80: 32,
        96: 32,
        128: 64,
    }


def test_route_follows_the_shape():
    assert launch.choose_route(512, 512, 8, 2) == "whole"  # t again for every column of tiles costs less than reading x again
    assert launch.choose_route(512, 512, 80, 2) == "split"
    assert launch.choose_route(512, 8192, 8, 2) == "split"  # 32 columns of tiles
    assert launch.choose_route(8192, 512, 8, 2) == "whole"  # reading 8,192 numbers a row again is what costs
    assert launch.choose_route(8192, 512, 96, 2) == "around"
    assert launch.choose_route(512, 512, 8, 4) == "around"  # float32 has no tensor cores that keep its precision


def test_launch_tables():
    assert launch.launch_product(512, 2048, 90) == Launch({"BM": 128, "BN": 128, "BK": 64}, 8, 3)
    assert launch.launch_product(8192, 2048, 90).tiles["BN"] == 256
    assert launch.launch_product(512, 48, 90).tiles["BM"] == 64
    assert launch.launch_product(512, 2048, 120) == launch.launch_product(512, 2048, 100)
    assert launch.launch_shrink(8, 2048, 2, 90) == Launch({"BM": 128, "BK": 64}, 4, 4)
    assert launch.launch_shrink(96, 2048, 2, 90).num_warps == 8
    assert launch.launch_adapters(8, 2, 80).num_stages == 3
    assert launch.launch_expand(48, 2).tiles["BM"] == 64


def test_traffic_of_the_anchor():
    """64 documents of 2,048 tokens, 512 to 512, rank 8: 0.28 GB, 71 GFLOP."""
    moved, flops = launch.traffic_product(64, 64 * 2048, 512, 512, 8, 2, shrink=True)
    assert moved == 2 * (131_072 * (512 + 512 + 8) + 512 * 512 + 64 * 8 * 1024)
    assert flops == 2 * 131_072 * (512 * 512 + 8 * 1024)


def training(seed=0, dtype=torch.float32, docs=4, moments=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(docs, 3, 5), (docs, 7, 2), (docs, 33)]
    parameters = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    first = [torch.zeros(shape, dtype=moments) for shape in shapes]
    second = [torch.zeros(shape, dtype=moments) for shape in shapes]
    return parameters, first, second, torch.zeros(docs, dtype=torch.int32), generator


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.0, 0.999)], ids=["two moments", "one moment"])
def test_adam_is_torchs_adam_for_each_document(betas):
    """Each document keeps an optimiser of its own, which is stepped only when the document is active."""
    parameters, first, second, steps, generator = training()
    rates = torch.tensor([0.1, 0.01, 0.05, 0.02])
    twins = [[p[d].clone().double().requires_grad_() for p in parameters] for d in range(4)]
    optimisers = [
        torch.optim.AdamW(twin, lr=lr, betas=betas, eps=1e-10, weight_decay=0.3)
        for twin, lr in zip(twins, rates.tolist(), strict=True)
    ]
    moments = first if betas[0] else []
    for active in (None, torch.tensor([True, False, True, True]), torch.tensor([False, False, True, False]), None):
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        for d in range(4):
            if active is None or active[d]:
                for twin, gradient in zip(twins[d], gradients, strict=True):
                    twin.grad = gradient[d].double()
                optimisers[d].step()
        options = {"lr": rates, "betas": betas, "eps": 1e-10, "weight_decay": 0.3, "active": active}
        lora_adam(parameters, gradients, moments, second, steps, **options)
    assert steps.tolist() == [3, 2, 4, 3]
    for d in range(4):
        for found, twin in zip(parameters, twins[d], strict=True):
            assert_close(found[d], twin, 1e-6)


def test_adam_leaves_inactive_documents_alone():
    parameters, first, second, steps, _ = training(moments=torch.bfloat16)
    before = [tensor.clone() for tensor in (*parameters, *first, *second)]
    gradients = [torch.full_like(p, float("nan")) for p in parameters]
    for gradient in gradients:
        gradient[1] = 1.0
    lora_adam(parameters, gradients, first, second, steps, lr=0.1, active=torch.tensor([False, True, False, False]))
    for old, new in zip(before, (*parameters, *first, *second), strict=True):
        assert torch.equal(old[[0, 2, 3]], new[[0, 2, 3]])
        assert not torch.equal(old[1], new[1]) and new[1].isfinite().all()
    assert steps.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("chosen", [None, [True, False, False, True]], ids=["all", "some"])
def test_reset(chosen):
    a, first, second, steps, _ = training(1)
    b = [tensor.clone() for tensor in a]
    for tensor in (*first, *second, steps):
        tensor.fill_(3)
    initial = [torch.randn(tensor.shape[1:]) for tensor in a]
    before = [tensor.clone() for tensor in (*a, *b, *first, *second, steps)]
    documents = None if chosen is None else torch.tensor(chosen)
    lora_reset(a, b, initial, first, second, steps, documents=documents)
    expected = [*initial, *[0.0] * 10]
    for old, new, start in zip(before, (*a, *b, *first, *second, steps), expected, strict=True):
        for d in range(4):
            want = old[d] if chosen and not chosen[d] else torch.zeros_like(old[d]) + start
            assert torch.equal(new[d], want.to(new.dtype))


def test_initial_a_is_a_function_of_its_seed():
    one, again, other = (lora_initial(8, 64, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.abs().max() <= 1 / 8 and one.std() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)


def test_opcheck_of_the_update():
    parameters, first, second, steps, _ = training()
    mask = torch.tensor([True, False, True, True])
    gradients = [torch.randn_like(p) for p in parameters]
    arguments = (parameters, gradients, first, second, steps, None, 0.1, 0.9, 0.999, 1e-8, 0.0, mask)
    torch.library.opcheck(torch.ops.pgolf.lora_adam, arguments)
    initial = [torch.randn(p.shape[1:]) for p in parameters]
    torch.library.opcheck(torch.ops.pgolf.lora_reset, (parameters, initial, [*first, *second, steps], mask))


def test_messages_of_the_update():
    parameters, first, second, steps, _ = training()
    good = {"parameters": parameters, "gradients": parameters, "first": first, "second": second, "steps": steps}
    wrong = [
        ("steps must be int32", {"steps": steps.long()}),
        ("mask of documents", {"active": steps}),
        ("documents leading", {"gradients": [p[:2] for p in parameters]}),
        ("shapes of parameters", {"second": second[:2]}),
        ("one dtype", {"gradients": [parameters[0].half(), *parameters[1:]]}),
        ("contiguous", {"parameters": [p.mT.contiguous().mT if p.dim() > 2 else p for p in parameters]}),
        ("first is torch.float16", {"first": [m.half() for m in first]}),
        ("betas", {"betas": (0.9, 1.0)}),
        ("lr must be float32", {"lr": torch.zeros(3)}),
    ]
    for message, change in wrong:
        with pytest.raises(ValueError, match=message):
            lora_adam(**{"lr": 0.1, **good, **change})
    with pytest.raises(ValueError, match="one document's worth"):
        lora_reset(parameters, [], parameters, [], [], steps)


def test_a_whole_round_of_adaptation_lowers_the_loss():
    """Sixteen steps on four documents, each with a target map of its own."""
    x, weight, a, b, _ = adapters(docs=4, n=32, width=16, out=16, rank=4, dtype=torch.float32)
    wanted = lora(x, weight, a, b)
    parameters = [torch.stack([lora_initial(4, 16, seed=1)] * 4).requires_grad_(), torch.zeros_like(b).requires_grad_()]
    second, steps = [torch.zeros_like(p) for p in parameters], torch.zeros(4, dtype=torch.int32)
    losses = []
    for _ in range(16):
        loss = (lora(x, weight, *parameters) - wanted).square().mean((1, 2))
        losses.append(loss.detach())
        gradients = torch.autograd.grad(loss.sum(), parameters)
        lora_adam(parameters, gradients, [], second, steps, lr=0.05, betas=(0.0, 0.95))
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_kinds_of_arguments_and_nothing_at_all():
    x, weight, a, b, _ = adapters(dtype=torch.float32)
    with pytest.raises(TypeError, match="weight must be a torch.Tensor, not torch's Linear; pass its weight"):
        lora(x, torch.nn.Linear(12, 10), a, b)
    steps = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(TypeError, match="gradients must be a list of tensors"):
        lora_adam([a], a, [], [a], steps, lr=0.1, betas=(0.0, 0.9))
    with pytest.raises(TypeError, match=r"second\[0\] must be a torch.Tensor"):
        lora_adam([a], [a], [], [a.numpy()], steps, lr=0.1, betas=(0.0, 0.9))
    assert lora(x[:0], weight, a[:0], b[:0]).shape == (0, 7, 10) and lora(x[:, :0], weight, a, b).shape == (3, 0, 10)
    rows, bounds = x.flatten(0, 1), torch.zeros(1, dtype=torch.int32)
    assert_close(lora(rows, weight, a[:0], b[:0], cu_seqlens=bounds), rows @ weight.T, 1e-6)


def test_a_float32_weight_is_cast_as_autocast_would():
    x, weight, a, b, _ = adapters(dtype=torch.float32)
    half, weight = x.bfloat16(), weight.requires_grad_()
    y = lora(half, weight, a, b)
    assert y.dtype == torch.bfloat16 and torch.equal(y, lora(half, weight.bfloat16(), a, b))
    assert torch.autograd.grad(y.float().sum(), weight)[0].dtype == torch.float32
