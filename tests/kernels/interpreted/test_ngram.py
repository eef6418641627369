"""The n-gram back-off: Triton kernels under the interpreter, against the references in float64."""

import pytest
import torch
import triton
import triton.language as tl

from pgolf.kernels.ngram import NgramBackoff, gpu, op
from pgolf.kernels.ngram.reference import Q_CUTS, evidence_cell, evidence_reference, mix_online_reference, mix_reference
from tests.kernels.compare import assert_close


def repeating_halves(count, vocabulary):
    tokens = torch.randint(0, vocabulary, (count,))
    tokens[count // 2 :] = tokens[: count - count // 2].clone()
    return tokens


# a multiplier of 0 sends every key to one slot: what is found is right because it is verified
@pytest.mark.parametrize(
    "orders, shared, granularity, multiplier",
    [
        ((1, 2, 3, 4), False, 1, op.MULTIPLIER),
        ((0, 2), False, 1, 0),
        ((1, 3), False, 3, op.MULTIPLIER),
        ((0, 1), True, 1, op.MULTIPLIER),
        ((1, 2), True, 4, 0),
    ],
)
def test_evidence(orders, shared, granularity, multiplier):
    documents = torch.tensor([0, 1, 12, 13, 41])
    tokens = repeating_halves(41, 3)
    starts = torch.zeros(41, dtype=torch.bool)
    starts[documents[:-1]] = True
    found = op.evidence_triton(tokens, documents, list(orders), granularity, shared, multiplier)
    expected = evidence_reference(tokens, starts, orders, granularity, shared)
    for name, x, wanted in zip(("top", "cell", "count", "total"), found, expected, strict=True):
        assert x.dtype == wanted.dtype and torch.equal(x, wanted), name
    assert found[2].max() > 1


@triton.jit
def cells_kernel(p_total, p_distinct, p_out, count, B: tl.constexpr):
    o = tl.arange(0, B)
    m = o < count
    b_cell = gpu.cell_of(tl.load(p_total + o, mask=m, other=0), tl.load(p_distinct + o, mask=m, other=0))
    tl.store(p_out + o, b_cell, mask=m)


def test_evidence_cells_of_large_counts():
    pairs = [
        (n, u)
        for n in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65, 256, 257, 9999)
        for u in (1, 2, 4, 5, 8, 9, 64, 129)
        if u <= n or not n
    ]
    total, distinct = (torch.tensor(x, dtype=torch.int32) for x in zip(*pairs, strict=True))
    out = torch.empty_like(total)

    cells_kernel[(1,)](total, distinct, out, len(pairs), B=128)
    assert len(pairs) <= 128 and out.tolist() == [evidence_cell(*pair) for pair in pairs]


def mix_example(levels=3, count=301):
    backoff = NgramBackoff(tuple(range(levels)), granularity=5, table=torch.rand(levels, 9, 33) * 0.9 + 0.05)
    evidence = backoff.evidence(repeating_halves(count, 6), torch.tensor([0, count // 3, count]))
    target, candidates = -torch.rand(count) * 6, -torch.rand(count, levels) * 10
    target[7] = target[-1] = -120
    candidates[:9, 0] = torch.tensor([*Q_CUTS, -0.0])
    return backoff, target, candidates, evidence


def test_mix():
    backoff, target, candidates, evidence = mix_example()
    found = op.mix_triton(target, candidates, *evidence[1:4], backoff.table)
    wanted = mix_reference(target.double(), candidates, *evidence[1:4], backoff.table)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, 1e-5)


def test_mix_online():
    backoff, target, candidates, evidence = mix_example(count=61)
    state = [x.float() if x.is_floating_point() else x for x in backoff.learning_state]
    table, visits, pending = backoff.table.clone(), backoff.visits.clone(), []
    for span in (slice(0, 33), slice(33, 61)):
        rows = [x[span] for x in (candidates, *evidence[1:])]
        found = op.mix_online_triton(target[span], *rows, *state, 2e-3)
        wanted = mix_online_reference(target[span].double(), *rows, table, visits, pending, 2e-3)
        for x, y in zip(found, wanted, strict=True):
            assert_close(x, y, 1e-5)
    assert_close(state[0], table, 1e-6, "table")
    assert torch.equal(state[1], visits) and int(state[4]) == len(pending) > 0
