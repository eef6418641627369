"""The five-expert mixer: Triton kernels under the interpreter, against the reference in float64."""

import torch

from pgolf.kernels.hedge import HedgeMixer, op
from pgolf.kernels.hedge.reference import count_reference, score_reference
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens


def mixer_example(vocabulary=37, buckets=64):
    mixer = HedgeMixer(vocabulary, buckets=buckets, warmup=0)
    mixer.count(repeating_tokens(600, vocabulary))
    mixer.log_weights = torch.tensor([2.0, 0.3, -1.0, 0.5, -0.2], dtype=torch.float64)
    return mixer


def test_score():
    mixer = mixer_example()
    inputs, targets = torch.randint(0, 37, (2, 3, 111))
    neural, entropy = -torch.rand(3, 111) * 5, torch.rand(3, 111) * 3
    neural[0, 3] = -200
    valid = torch.rand(3, 111) > 0.3
    state = (*mixer.tables, mixer.log_weights, mixer.tokens)
    nll, experts, sums = op.score_triton(neural, entropy, inputs, targets, valid, *state)
    wanted = score_reference(neural.double(), entropy.double(), inputs, targets, valid, *state)
    assert_close(nll, wanted[0], 1e-5)
    assert_close(experts, wanted[1].permute(2, 0, 1), 1e-5)
    assert_close(sums, wanted[2], 1e-5)

    tokens = repeating_tokens(150, 37)
    begins, lengths, scored = [0, 40, 60], [111, 70, 89], [111, 9, 0]
    span = torch.stack([torch.nn.functional.pad(tokens, (0, 111))[b : b + 112] for b in begins])
    known = torch.arange(111) < torch.tensor(lengths)[:, None]
    fast = op.score_windows_triton(neural, entropy, tokens, begins, lengths, scored, *op.ngrams_triton(tokens), *state)
    wanted = score_reference(neural.double(), entropy.double(), span[:, :-1], span[:, 1:], known, *state)
    last = known & (torch.arange(111) >= torch.tensor(lengths)[:, None] - torch.tensor(scored)[:, None])
    assert_close(fast[0], wanted[0][last], 1e-5)
    assert_close(fast[1], wanted[1][last].t(), 1e-5)
    assert_close(fast[2], wanted[2], 1e-5)


def test_count():
    found = mixer_example()
    expected = [table.clone() for table in found.tables]
    tokens = repeating_tokens(301, 37)
    op.count_triton(tokens, *found.tables)
    count_reference(tokens, *expected)
    assert all(torch.equal(a, b) for a, b in zip(found.tables, expected, strict=True))
