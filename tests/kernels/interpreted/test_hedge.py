"""The mixer's Triton kernels as numpy, against the references in float64."""

import math

import pytest
import torch
import triton
import triton.language as tl

from pgolf.kernels.hedge import HedgeMixer, NgramBackoff, gpu, op, reference
from tests.kernels.compare import assert_close

RATIO = {torch.float32: 1e-5, torch.float16: 2e-3}


def tokens_with_repeats(count, vocabulary):
    tokens = torch.randint(0, vocabulary, (count,))
    tokens[count // 2 :] = tokens[: count - count // 2].clone()
    return tokens


def sweep_example(vocabulary, candidates, dtype, per_token, count=7):
    logits = (torch.randn(count, vocabulary) * 4).to(dtype)
    logits[1, 0] = -math.inf
    targets = torch.randint(1 if vocabulary > 1 else 0, vocabulary, (count,))
    picked = torch.randint(-1, vocabulary, (count, candidates), dtype=torch.int32)
    picked[1] = picked[1].clamp_min(min(1, vocabulary - 1))
    if candidates > 1:
        picked[2, :2] = targets[2]
    temperature = torch.rand(count if per_token else 1) + 0.5
    return logits, targets, picked, temperature


# widths that fill a tile, leave a remainder, need several sweeps, and hold next to nothing
@pytest.mark.parametrize(
    "vocabulary, candidates, dtype, per_token",
    [
        (1000, 4, torch.float32, False),
        (128, 16, torch.float32, True),
        (3, 1, torch.float32, True),
        (4096, 0, torch.float32, False),
        (9001, 5, torch.float32, True),
        (1000, 4, torch.float16, False),
    ],
)
def test_statistics(vocabulary, candidates, dtype, per_token):
    arguments = sweep_example(vocabulary, candidates, dtype, per_token)
    found = op.statistics_triton(*arguments)
    logits, targets, picked, temperature = arguments
    expected = reference.statistics_reference(logits.double(), targets, picked, temperature.double())
    for name, x, wanted in zip(("lse", "entropy", "target", "candidates"), found, expected, strict=True):
        assert x.dtype == torch.float32
        absent = torch.isneginf(wanted)
        assert torch.equal(absent, torch.isneginf(x)), name
        if wanted.numel():
            assert_close(x[~absent], wanted[~absent], RATIO[dtype], name)

    lse, entropy = expected[:2]
    upstream = [torch.randn(x.shape) for x in expected]
    d_logits, d_rows = op.statistics_backward_triton(*arguments, lse.float(), entropy.float(), *upstream)
    wanted = reference.statistics_backward_reference(
        logits.double(), targets, picked, temperature.double(), lse, entropy, *(x.double() for x in upstream)
    )
    assert d_logits.dtype == dtype
    assert_close(d_logits, wanted[0], RATIO[dtype], "d_logits")
    assert_close(d_rows, wanted[1], RATIO[dtype], "d_temperature")


def test_ids_outside_the_vocabulary_become_nan():
    logits = torch.randn(2, 5)
    _, _, target, picked = op.statistics_triton(
        logits, torch.tensor([5, -1]), torch.tensor([[-1, 4, 5], [-2, 0, 1]]), torch.ones(1)
    )
    assert target.isnan().all()
    assert picked.isnan().tolist() == [[False, False, True], [True, False, False]] and picked[0, 0] == -math.inf


def five_example(vocabulary=37, buckets=64):
    mixer = HedgeMixer(vocabulary, buckets=buckets, warmup=0)
    mixer.count(tokens_with_repeats(600, vocabulary))
    mixer.log_weights = torch.tensor([2.0, 0.3, -1.0, 0.5, -0.2], dtype=torch.float64)
    return mixer


def test_five():
    mixer = five_example()
    inputs, targets = torch.randint(0, 37, (2, 3, 111))
    neural, entropy = -torch.rand(3, 111) * 5, torch.rand(3, 111) * 3
    neural[0, 3] = -200
    valid = torch.rand(3, 111) > 0.3
    state = (*mixer.tables, mixer.log_weights, mixer.tokens)
    nll, experts, sums = op.five_triton(neural, entropy, inputs, targets, valid, *state)
    wanted = reference.five_reference(neural.double(), entropy.double(), inputs, targets, valid, *state)
    assert_close(nll, wanted[0], 1e-5)
    assert_close(experts, wanted[1].permute(2, 0, 1), 1e-5)
    assert_close(sums, wanted[2], 1e-5)

    tokens = tokens_with_repeats(150, 37)
    begins, lengths, scored = [0, 40, 60], [111, 70, 89], [111, 9, 0]
    span = torch.stack([torch.nn.functional.pad(tokens, (0, 111))[b : b + 112] for b in begins])
    known = torch.arange(111) < torch.tensor(lengths)[:, None]
    fast = op.five_windows_triton(neural, entropy, tokens, begins, lengths, scored, *op.five_ngrams_triton(tokens), *state)
    wanted = reference.five_reference(neural.double(), entropy.double(), span[:, :-1], span[:, 1:], known, *state)
    last = known & (torch.arange(111) >= torch.tensor(lengths)[:, None] - torch.tensor(scored)[:, None])
    assert_close(fast[0], wanted[0][last], 1e-5)
    assert_close(fast[1], wanted[1][last].t(), 1e-5)
    assert_close(fast[2], wanted[2], 1e-5)


def test_five_count():
    found = five_example()
    expected = [table.clone() for table in found.tables]
    tokens = tokens_with_repeats(301, 37)
    op.five_count_triton(tokens, *found.tables)
    reference.five_count_reference(tokens, *expected)
    assert all(torch.equal(a, b) for a, b in zip(found.tables, expected, strict=True))


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
    tokens = tokens_with_repeats(41, 3)
    starts = torch.zeros(41, dtype=torch.bool)
    starts[documents[:-1]] = True
    found = op.evidence_triton(tokens, documents, list(orders), granularity, shared, multiplier)
    expected = reference.evidence_reference(tokens, starts, orders, granularity, shared)
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
    assert len(pairs) <= 128 and out.tolist() == [reference.evidence_cell(*pair) for pair in pairs]


def mix_example(levels=3, count=301):
    ngram_backoff = NgramBackoff(tuple(range(levels)), granularity=5, table=torch.rand(levels, 9, 33) * 0.9 + 0.05)
    evidence = ngram_backoff.evidence(tokens_with_repeats(count, 6), torch.tensor([0, count // 3, count]))
    target, candidates = -torch.rand(count) * 6, -torch.rand(count, levels) * 10
    target[7] = target[-1] = -120
    candidates[:9, 0] = torch.tensor([*reference.Q_CUTS, -0.0])
    return ngram_backoff, target, candidates, evidence


def test_mix():
    ngram_backoff, target, candidates, evidence = mix_example()
    found = op.mix_triton(target, candidates, *evidence[1:4], ngram_backoff.table)
    wanted = reference.mix_reference(target.double(), candidates, *evidence[1:4], ngram_backoff.table)
    for x, y in zip(found, wanted, strict=True):
        assert_close(x, y, 1e-5)


def test_mix_online():
    ngram_backoff, target, candidates, evidence = mix_example(count=61)
    state = [
        ngram_backoff.table.float(),
        ngram_backoff.visits,
        ngram_backoff.places,
        ngram_backoff.posteriors.float(),
        ngram_backoff.waiting,
    ]
    table, visits, waiting = ngram_backoff.table.clone(), ngram_backoff.visits.clone(), []
    for span in (slice(0, 33), slice(33, 61)):
        rows = [x[span] for x in (candidates, *evidence[1:])]
        found = op.mix_online_triton(target[span], *rows, *state, 2e-3)
        wanted = reference.mix_online_reference(target[span].double(), *rows, table, visits, waiting, 2e-3)
        for x, y in zip(found, wanted, strict=True):
            assert_close(x, y, 1e-5)
    assert_close(state[0], table, 1e-6, "table")
    assert torch.equal(state[1], visits) and int(state[4]) == len(waiting) > 0
