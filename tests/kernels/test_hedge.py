"""The published mixers on a CPU, against their references; the five experts' reference against numbers worked out by hand."""

import math

import numba
import numpy as np
import pytest
import torch

from pgolf.kernels.hedge import BoostedCache, HedgeMixer, OnlineBias
from pgolf.kernels.hedge.launch import launch_tokens
from pgolf.kernels.hedge.reference import (
    BOOST_ORDERS,
    boost_buckets_reference,
    boost_window_reference,
    count_reference,
    hedge_step_reference,
    score_reference,
    trigram_bucket,
)
from pgolf.kernels.logit_stats import logit_stats
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens

EXACT = 1e-11


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


# ---- five experts


def test_the_reference_on_numbers_worked_out_by_hand():
    """V = 2, four buckets, tokens 0 1 1 0 counted; then the window 1 1 -> 1 0 under a neural model that says 3/4 and 1/4."""
    tables = [torch.zeros(shape, dtype=torch.int64) for shape in ((2,), (2, 2), (2,), (4, 2), (4,))]
    count_reference(torch.tensor([0, 1, 1, 0]), *tables)
    unigram, bigram, bigram_total, trigram, trigram_total = (table.tolist() for table in tables)
    assert unigram == [2, 2] and bigram == [[0, 1], [1, 1]] and bigram_total == [1, 2]
    # contexts (0, 1) and (1, 1): 27191 mod 4 = 3, and (36313 xor 27191) mod 4 = 2
    assert trigram == [[0, 0], [0, 0], [1, 0], [0, 1]] and trigram_total == [0, 0, 1, 1]
    neural = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    entropy = torch.full((1, 2), math.log(2), dtype=torch.float64)
    inputs, targets, valid = torch.tensor([[1, 1]]), torch.tensor([[1, 0]]), torch.tensor([[True, False]])
    log_weights = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64)
    nll, experts, sums = score_reference(neural, entropy, inputs, targets, valid, *tables, log_weights, 4)
    # the window's first target follows 0 (nothing), then 1; its second follows 1, then 1
    first = [0.75, 2.1 / 4.2, 1.1 / 2.2, 1.01 / 1.02, 0.5]
    second = [0.25, 2.1 / 4.2, 1.1 / 2.2, 1.01 / 1.02, 0.5]
    assert_close(experts[0].neg().exp(), torch.tensor([first, second], dtype=torch.float64), 1e-12)
    weights = [math.exp(2) / (math.exp(2) + 4)] + [1 / (math.exp(2) + 4)] * 4
    mixed = [sum(w * p for w, p in zip(weights, row, strict=True)) for row in (first, second)]
    assert nll[0].tolist() == pytest.approx([-math.log(p) for p in mixed], rel=1e-12)
    assert sums.tolist() == pytest.approx([-math.log(p) for p in first], rel=1e-12)
    moved = hedge_step_reference(log_weights, sums, valid.sum())
    assert moved.tolist() == pytest.approx([w + 0.1 * math.log(p) for w, p in zip((2, 0, 0, 0, 0), first, strict=True)])


def test_five_experts_over_chunks_and_the_tail():
    vocabulary, chunk, length, stride, total = 13, 60, 24, 8, 205
    stream = repeating_tokens(total + 1, vocabulary)
    mixer = HedgeMixer(vocabulary, buckets=32, warmup=100)
    tables = [table.clone() for table in mixer.tables]
    log_weights, counted, scored_positions = mixer.log_weights.clone(), 0, 0
    windows = [w for w in range(0, total, stride) if min(w + length, total) - w >= stride or w == 0]
    for begin in range(0, total, chunk):
        mine = [w for w in windows if begin <= (w + max(min(length, total - w) - stride, 0) if w else 0) < begin + chunk]
        span = stream[: min(begin + chunk, total) + 1 + length]
        chunk_of: list = []
        for group in (mine[at : at + 3] for at in range(0, len(mine), 3)):
            lengths = [min(length, total - w) for w in group]
            kept = [size if w == 0 else stride for w, size in zip(group, lengths, strict=True)]
            logits = torch.randn(len(group), length, vocabulary, dtype=torch.float64) * 2
            valid = torch.arange(length) < torch.tensor(lengths)[:, None]
            padded = torch.stack([torch.cat([stream, stream.new_zeros(length)])[w : w + length + 1] for w in group])
            inputs, targets = torch.where(valid, padded[:, :-1], 0), torch.where(valid, padded[:, 1:], 0)
            stats = logit_stats(logits, targets)
            expected = -stats.target
            if counted >= 100:
                batch = (stats.target, stats.entropy, inputs, targets, valid)
                expected, _, sums = score_reference(*batch, *tables, log_weights, counted)
                log_weights = hedge_step_reference(log_weights, sums, valid.sum())
                scored_positions += sum(kept)
            last = torch.arange(length) >= torch.tensor([size - k for size, k in zip(lengths, kept, strict=True)])[:, None]
            chunk_of.append((stats, list(zip(group, lengths, kept, strict=True)), expected[valid & last], log_weights))
        target, entropy = (torch.cat([getattr(stats, name) for stats, *_ in chunk_of]) for name in ("target", "entropy"))
        triples = [triple for _, windows, *_ in chunk_of for triple in windows]
        few = mixer.score_chunk(target, entropy, span, triples, batch=3)
        assert torch.allclose(few.nll, torch.cat([nll for _, _, nll, _ in chunk_of]), atol=1e-11)
        assert_close(few.log_weights[0, 1:], torch.stack([weights for *_, weights in chunk_of]), EXACT)
        mixer.log_weights = few.log_weights[0, -1]
        chunk_tokens = stream[begin : min(begin + chunk, total) + 1]
        count_reference(chunk_tokens, *tables)
        counted += len(chunk_tokens)
        mixer.count(chunk_tokens)
        assert mixer.tokens == counted
        assert all(torch.equal(a, b) for a, b in zip(mixer.tables, tables, strict=True))
    assert scored_positions > 50 and log_weights[0] != 2


def test_the_mass_of_the_entropy_expert():
    """Every symbol in turn as the target of the last position of a window, whose trigram row is not empty."""
    vocabulary = 17
    mixer = HedgeMixer(vocabulary, buckets=64, warmup=0)
    stream = repeating_tokens(400, vocabulary)
    mixer.count(stream)
    inputs, logits = stream[:9], torch.randn(vocabulary, dtype=torch.float64) * 2
    assert mixer.trigram_total[trigram_bucket(inputs[-2], inputs[-1], 64)] > 0
    stats = logit_stats(logits.expand(vocabulary, -1), torch.arange(vocabulary))
    nll = []
    for symbol in range(vocabulary):
        log_prob, entropy = torch.zeros(2, 1, 9, dtype=torch.float64)
        log_prob[0, -1], entropy[0, -1] = stats.target[symbol], stats.entropy[symbol]
        nll.append(mixer.score_chunk(log_prob, entropy, torch.cat([inputs, torch.tensor([symbol])]), [(0, 9, 1)]).nll)
    mass = torch.cat(nll).neg().exp().sum()
    assert mass.item() == pytest.approx(mixer.mass(stats.entropy[0]).item(), rel=1e-10) and mass > 1.02


def chunk_example(vocabulary=13, width=24, ranks=3, kind=torch.float64):
    """Windows of several ranks, one of which has none, with weights of their own."""
    mixer = HedgeMixer(vocabulary, buckets=32, warmup=0)
    mixer.count(repeating_tokens(300, vocabulary))
    tokens = repeating_tokens(150, vocabulary, 1)
    windows = [(begin, min(width, 149 - begin), 8 if begin else width) for begin in range(0, 142, 8)]
    shares = [0, 7, 7, len(windows)]
    log_prob, entropy = (-torch.rand(len(windows), width, dtype=kind) * 5, torch.rand(len(windows), width, dtype=kind) * 3)
    return mixer, (log_prob, entropy, tokens, windows), shares, torch.randn(ranks, 5, dtype=torch.float64)


def test_ranks_of_a_chunk_are_apart():
    mixer, (log_prob, entropy, tokens, windows), shares, weights = chunk_example()
    together = mixer.score_chunk(log_prob, entropy, tokens, windows, batch=4, shares=shares, log_weights=weights)
    assert together.log_weights.shape == (3, 4, 5)
    done = 0
    for rank, (first, last) in enumerate(zip(shares, shares[1:], strict=False)):
        if first < last:
            own = (log_prob[first:last], entropy[first:last], tokens, windows[first:last])
            alone = mixer.score_chunk(*own, batch=4, log_weights=weights[rank : rank + 1])
            assert torch.equal(together.nll[done : done + len(alone.nll)], alone.nll)
            assert torch.equal(together.log_weights[rank, : alone.log_weights.shape[1]], alone.log_weights[0])
            done += len(alone.nll)
    assert done == len(together.nll) and torch.equal(together.log_weights[:, 0], weights)


def test_chunks_say_what_is_wrong():
    mixer, (log_prob, entropy, tokens, windows), shares, weights = chunk_example()
    for message, change in {
        "does not fit": {"windows": [(140, 24, 8), *windows[1:]]},
        "must be": {"entropy": entropy[1:]},
        "must rise": {"shares": [0, 9, 7, len(windows)]},
        "not 2": {"log_weights": weights[:2]},
    }.items():
        given = {"log_prob": log_prob, "entropy": entropy, "tokens": tokens, "windows": windows}
        with pytest.raises(ValueError, match=message):
            mixer.score_chunk(**{**given, "shares": shares, "log_weights": weights, **change})
    with pytest.raises(ValueError, match="0..12"):
        mixer.count(torch.tensor([13]))


# ---- hashed counts, two experts


def test_boost_buckets_by_hand():
    """Order 3 at index 3 hashes tokens 0 and 1, not the one before the target; then the target into the full bucket."""
    tokens, multiplier, word = [5, 7, 11, 13], 2_654_435_761, 2**64
    h = (5 * 36_313) * multiplier % word
    h = (h ^ (7 * 27_191)) * multiplier % word
    full = (h ^ (13 * 51_647)) * multiplier % word
    assert boost_buckets_reference(tokens, 3, 3, 4096) == (h % 4096, full % 4096)


def test_boost_of_one_target_by_hand():
    """A context seen 3 times, twice before this target: beta = ln(1 + 2) - ln(1 + max(3 - 2, 1)), at an entropy of 4."""
    contexts, fulls = (torch.zeros(9, 64, dtype=torch.int64) for _ in range(2))
    tokens = [0, 1, 2]
    context, full = boost_buckets_reference(tokens, 2, 2, 64)
    contexts[0, context], fulls[0, full] = 3, 2
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    numbers = torch.tensor([-2.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    losses = boost_window_reference(tokens, 2, 3, 1, *numbers, contexts, fulls, weights)[0]
    boosted = -2 + (0.05 + 0.55 / 2) * math.log(3 / 2)
    assert losses.tolist() == pytest.approx([-math.log((math.exp(-2) + math.exp(boosted)) / 2), 2, -boosted], rel=1e-12)
    moved = [math.exp(-0.2), math.exp(0.1 * boosted)]
    assert weights.tolist() == pytest.approx([w / sum(moved) for w in moved], rel=1e-12)
    assert contexts[0, context] == 4 and fulls[0, full] == 3 and contexts.sum() == 4


@pytest.mark.parametrize("buckets", [16, 4096])
def test_boost(buckets):
    stream = repeating_tokens(220, 6)
    windows = [(1, 65, 64), *((w + 1, w + 65, 8) for w in range(8, 150, 8)), (180, 181, 1)]
    log_probs, entropy = -torch.rand(220, dtype=torch.float64) * 4, torch.rand(220, dtype=torch.float64) * 7
    cache = BoostedCache(buckets=buckets)
    contexts, fulls = (torch.zeros(len(BOOST_ORDERS), buckets, dtype=torch.int64) for _ in range(2))
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for begin, end, scored in windows:
        here = slice(end - scored, end)
        found = cache.score(stream, begin, end, log_probs[here], entropy[here])
        numbers = log_probs[here], entropy[here]
        expected = boost_window_reference(stream, begin, end, scored, *numbers, contexts, fulls, weights)
        assert torch.allclose(found, expected, atol=1e-12)
        assert cache.weights.tolist() == pytest.approx(weights.tolist(), abs=1e-12)
    assert contexts.tolist() == cache.contexts.tolist() and fulls.tolist() == cache.fulls.tolist()
    assert weights[1] > 0.51


@numba.njit
def published_boost(contexts, fulls):
    """The lines of #1014's compiled loop that turn the counts of one target into its boost: int() of a uint32 is unsigned
    there, so that a difference below zero wraps around."""
    boost = 0.0
    for order in range(len(contexts)):
        context, full = int(contexts[order]), int(fulls[order])
        if context > 0 and full > 0:
            boost = max(boost, math.log(1.0 + full) - math.log(1.0 + max(context - full, 1)))
    return boost


@pytest.mark.parametrize("seen, hits", [(3, 2), (5, 5), (5, 6), (1, 9), (7, 0), (0, 4)])
def test_boost_of_a_shared_bucket_is_lost_as_published(seen, hits):
    """Where two contexts share the bucket of context and target, it may have been counted more often than the context."""
    tokens, numbers = [0, 1, 2], (torch.tensor([-2.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    beta = published_boost(np.array([seen], np.uint32), np.array([hits], np.uint32))
    assert (beta == 0) == (seen < hits or not hits)
    expected = 2 - (0.05 + 0.55 / 2) * beta
    context, full = boost_buckets_reference(tokens, 2, 2, 64)
    contexts, fulls = (torch.zeros(9, 64, dtype=torch.int64) for _ in range(2))
    contexts[0, context], fulls[0, full] = seen, hits
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    cache = BoostedCache(buckets=64)
    cache.contexts[0, context], cache.fulls[0, full] = seen, hits
    assert float(boost_window_reference(tokens, 2, 3, 1, *numbers, contexts, fulls, weights)[0, 2]) == pytest.approx(expected)
    assert float(cache.score(torch.tensor(tokens), 2, 3, *numbers)[0, 2]) == pytest.approx(expected)


def test_boost_clips_a_probability_at_1e_12_as_published():
    for log_prob in (-20.0, -27.7, -80.0):
        losses = BoostedCache(buckets=64).score(
            torch.tensor([0, 1, 2]), 2, 3, torch.tensor([log_prob], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        )
        assert losses[0].tolist() == pytest.approx([-max(log_prob, math.log(1e-12))] * 3, rel=1e-9)


def test_online_bias():
    bias, expected = OnlineBias(5, rate=0.01), torch.zeros(5)
    for _ in range(3):
        raw, targets = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
        logits = bias.apply(raw)
        assert torch.allclose(logits, raw + expected)
        for a in range(5):
            frequency = (targets == a).float().mean()
            expected[a] += 0.01 * (frequency - (raw + expected.clone() if a == 0 else logits).softmax(-1)[..., a].mean())
        bias.learn(logits, targets)
        assert torch.allclose(bias.bias, expected, atol=1e-7)
    assert bias.bias.abs().max() > 1e-4
    bias.reset()
    assert not bias.bias.any()


# ---- registration, launch, errors


def example_arguments():
    tokens = repeating_tokens(50, 11)
    mixer = HedgeMixer(11, buckets=16, warmup=0)
    mixer.count(tokens)
    grid = tokens.reshape(5, 10)
    stats = logit_stats(torch.randn(5, 10, 11), grid)
    return {
        "chunk": (
            stats.target[:2], stats.entropy[:2], tokens, [0, 10, 10, 8, 9, 3], [0, 1, 2], 1, *mixer.tables,
            torch.randn(2, 5, dtype=torch.float64), 50, 0.1,
        ),
        "count": (tokens, *mixer.tables),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["chunk", "count"])
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.pgolf, f"hedge_{name}").default, example_arguments()[name])


def test_launch():
    assert launch_tokens().tiles["BN"] >= 32 * launch_tokens().num_warps


def test_bad_arguments_are_explained():
    tokens, numbers = torch.tensor([0, 1, 2, 3]), torch.randn(5)
    with pytest.raises(ValueError, match="must be positive"):
        HedgeMixer(0)
    with pytest.raises(ValueError, match="power of two"):
        BoostedCache(buckets=100)
    with pytest.raises(ValueError, match="do not fit"):
        BoostedCache(buckets=4).score(tokens, 1, 4, numbers, numbers)
    with pytest.raises(ValueError, match="rows of logits"):
        OnlineBias(5).learn(torch.randn(4, 5), tokens[:2])
