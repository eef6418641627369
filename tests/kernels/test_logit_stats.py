"""Statistics of the logits on a CPU, against softmax in float64."""

import math

import numpy as np
import pytest
import torch

from pgolf.kernels.logit_stats import cpu, logit_stats
from pgolf.kernels.logit_stats.launch import launch_forward, traffic_forward
from tests.kernels.compare import assert_close

EXACT = 1e-11


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


def test_row_maxima_are_those_of_torch():
    inf, nan = math.inf, math.nan
    odd = [[-0.0, 0.0, -1e-45], [-3.0, -2.5, -inf], [inf, 1.0, 2.0], [-inf, -inf, -inf], [1.0, nan, inf], [3e38, -nan, -1.0]]
    rows = torch.cat([torch.tensor(odd), torch.randn(50, 3) * 10 ** (8 * torch.randn(50, 1))])
    found = np.full(len(rows), 7, np.float32)
    cpu.row_maxima(rows.numpy(), found)
    assert np.array_equal(found, rows.amax(1).numpy(), equal_nan=True)
    stats = logit_stats(rows[4:6], torch.tensor([0, 0]))
    assert all(bool(x.isnan().all()) for x in stats[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 7, 257, 1000])
def test_stats_against_softmax(vocabulary, dtype):
    logits = (torch.randn(3, 11, vocabulary) * 5).to(dtype)
    targets = torch.randint(0, vocabulary, (3, 11))
    candidates = torch.randint(-1, vocabulary, (3, 11, 5), dtype=torch.int32)
    temperature = torch.rand(3, 11, dtype=torch.float64) + 0.5
    for t in (1.0, 0.98, temperature):
        found = logit_stats(logits, targets, candidates, t)
        probs = torch.softmax(logits.double() / (t[..., None] if torch.is_tensor(t) else t), -1)
        picked = probs.gather(-1, candidates.long().clamp_min(0)).log()
        assert all(x.dtype == torch.float64 for x in found)
        assert_close(found.lse, (logits.double() / (t[..., None] if torch.is_tensor(t) else t)).logsumexp(-1), EXACT, "lse")
        assert torch.allclose(found.entropy, -torch.special.xlogy(probs, probs).sum(-1), atol=1e-11)
        assert torch.allclose(found.target, probs.gather(-1, targets[..., None]).log()[..., 0], atol=1e-11)
        assert torch.allclose(found.candidates, torch.where(candidates >= 0, picked, -math.inf), atol=1e-11)


def test_stats_of_extreme_rows():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [2e4, -2e4, 0.0], [-1e3, -1e3, -1e3]])
    found = logit_stats(logits, torch.tensor([1, 0, 2]))
    assert found.entropy.tolist() == pytest.approx([math.log(2), 0, math.log(3)], abs=1e-12)
    assert found.target.tolist() == pytest.approx([-math.inf, 0, -math.log(3)], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_softcap_is_that_of_capped_logits(dtype):
    """From raw logits as from logits that were capped outside, in their own or, for bfloat16, in single precision."""
    raw = (torch.randn(5, 9, 40, dtype=torch.float64) * 8).to(dtype)
    targets, candidates = torch.randint(0, 40, (5, 9)), torch.randint(-1, 40, (5, 9, 3))
    temperature = torch.rand(5, 9, dtype=torch.float64) + 0.5
    wide = raw if dtype != torch.bfloat16 else raw.float()
    for t in (1.0, temperature):
        found = logit_stats(raw, targets, candidates, t, softcap=4.0)
        expected = logit_stats(4.0 * torch.tanh(wide / 4.0), targets, candidates, t)
        for x, y in zip(found, expected, strict=True):
            assert torch.equal(torch.isneginf(x), torch.isneginf(y))
            assert_close(x.nan_to_num(neginf=0), y.nan_to_num(neginf=0), EXACT)
    assert (found.lse - logit_stats(raw, targets, candidates, temperature).lse).abs().min() > 0.1


def test_rows_in_blocks(monkeypatch):
    logits, targets = torch.randn(50, 30), torch.randint(0, 30, (50,))
    temperature = torch.rand(50, dtype=torch.float64) + 0.5
    whole = logit_stats(logits, targets, targets[:, None], temperature, softcap=2.0)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 7 * 30 + 5)
    assert all(map(torch.equal, whole, logit_stats(logits, targets, targets[:, None], temperature, softcap=2.0)))


def test_stats_are_the_same_for_any_number_of_threads(monkeypatch):
    logits, targets = torch.randn(700, 1000), torch.randint(0, 1000, (700,))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found.append(logit_stats(logits, targets, targets[:, None]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ---- registration, launches, errors


def test_opcheck():
    logits, targets = torch.randn(11, 50).t(), torch.randint(0, 11, (50,))
    candidates = torch.randint(-1, 11, (50, 2), dtype=torch.int32)
    torch.library.opcheck(torch.ops.pgolf.logit_stats, (logits, targets, candidates, torch.ones(1).double(), 3.0))


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 103, 120])
def test_launches(capability):
    for vocabulary in (1, 256, 1000, 1024, 8192, 65_536):
        launch = launch_forward(vocabulary, capability)
        assert launch.num_warps == 1 and min(vocabulary, 1024) <= launch.tiles["BV"] <= 1024


def test_traffic():
    assert traffic_forward(65_536, 1024, 0, 2) == (65_536 * (2048 + 20), 6 * 65_536 * 1024)


def test_bad_arguments_are_explained():
    logits, tokens = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for message, arguments in {
        "floating point": (tokens, tokens),
        "integer targets": (logits, tokens[:3]),
        "integer candidates": (logits, tokens, logits),
        "at most 128": (logits, tokens, torch.zeros(4, 129, dtype=torch.int32)),
        "temperature is 0.0": (logits, tokens, None, 0.0),
        "softcap is 0.0": (logits, tokens, None, 1.0, 0.0),
        "one number": (logits, tokens, None, torch.ones(3)),
        "targets reach from 0 to 5": (logits, torch.tensor([0, 1, 2, 5])),
        "candidates reach from -2": (logits, tokens, torch.full((4, 1), -2)),
    }.items():
        with pytest.raises(ValueError, match=message):
            logit_stats(*arguments)
