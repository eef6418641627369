"""Honest predictors are distributions, know the past alone, and say the same span by span, token by token and on two ranks."""

import copy
import math

import numpy as np
import pytest
import torch
import zstandard

from pgolf.budget import Clock
from pgolf.config import MixerSettings
from pgolf.config.predictors import HONEST_PREDICTORS
from pgolf.evaluation.planner import Steady
from pgolf.evaluation.predictors.base import Span
from pgolf.evaluation.predictors.bias import BiasPredictor
from pgolf.evaluation.predictors.counts import TopCounts
from pgolf.evaluation.predictors.ngram_backoff import (
    Learnt,
    NgramBackoffPredictor,
    TableError,
    learnt_from_bytes,
    learnt_to_bytes,
)
from pgolf.evaluation.predictors.ngrams import NgramsPredictor
from pgolf.evaluation.predictors.selection import honest_class
from pgolf.evaluation.predictors.temperature import ByEntropy, ByGrid, Online, Plain, Temperature, Tempered, policy
from pgolf.evaluation.predictors.tilt import BoostPredictor, TiltPredictor
from pgolf.evaluation.scoring_pass import ScoringPass
from pgolf.evaluation.statistics import log_probabilities, statistics_of
from tests.evaluation.toy import BOS, Toy, text

VOCAB, LENGTH, STRIDE = 24, 48, 16


TABLE = Learnt(torch.full((3, 9, 33), 0.3), torch.full((3, 9, 33), 40))


heat = ByEntropy(0.9)
MIXER = MixerSettings(orders=4, granularity=8)
MADE = {
    "plain": lambda: Plain("sliding"),
    "tempered": lambda: Tempered(heat),
    # every predictor that settings can name, and further forms of some
    **{name: lambda name=name: honest_class(name).create(VOCAB, MIXER) for name in HONEST_PREDICTORS},
    "fast bias": lambda: BiasPredictor(VOCAB, 8, rate=0.1),
    "frozen n-gram back-off": lambda: NgramBackoffPredictor(VOCAB, 3, 5, TABLE, online=False),
    "taught n-gram back-off": lambda: NgramBackoffPredictor(VOCAB, 3, 5, TABLE),
}
every_predictor = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def known(tokens):
    """The whole stream as one span, its logits, and one row of log-probabilities a target."""
    targets = tokens[1:].astype(np.int32)
    logits = Toy(VOCAB).logits(torch.from_numpy(tokens[:-1].astype(np.int64))[None])[0]
    return Span(0, targets, targets == BOS), logits


def score(predictor, tokens, pieces=()):
    """Nats of the stream, read in pieces that end at the places given."""
    span, logits = known(tokens)
    predictor.begin(int(tokens[0]))
    found, begin = [], 0
    for end in (*pieces, len(span)):
        part = span[begin:end]
        symbols = predictor.candidates(part)
        found.append(predictor.score(part, statistics(logits[begin:end], part, symbols)))
        begin = end
    return np.concatenate(found)


def statistics(logits, span, symbols):
    return statistics_of(logits, span.targets, symbols, temperature=heat, whole_rows=True)


def rows_for(predictor, logits):
    return log_probabilities(logits, heat if predictor.tempered else None)


@every_predictor
def test_a_predictor_is_a_distribution_at_a_thousand_places(make):
    tokens = text(1601)
    predictor = make()
    predictor.begin(int(tokens[0]))
    span, logits = known(tokens)
    at = list(range(601, 1601))
    first = span[:601]
    predictor.score(first, statistics(logits[:601], first, predictor.candidates(first)))
    rest = span[601:]
    probe, rows = [i - 601 for i in at], rows_for(predictor, logits[601:])
    looker = make()
    looker.begin(int(tokens[0]))
    symbols = looker.candidates(span)[601:]
    given = statistics(logits[601:], rest, symbols)
    log_probs = predictor.distributions(rest, given, probe, rows)
    assert log_probs.shape == (1000, VOCAB)
    assert np.abs(np.exp(log_probs).sum(1) - 1).max() < 1e-6
    # the audit leaves the predictor as it was, and the scores are entries of these distributions
    predictor.candidates(rest)
    nats = predictor.score(rest, given)
    np.testing.assert_allclose(nats, -log_probs[np.arange(1000), rest.targets], rtol=0, atol=2e-5)


@every_predictor
def test_future_tokens_do_not_change_earlier_scores(make):
    tokens = text(900)
    changed = tokens.copy()
    changed[501:] = np.random.default_rng(3).integers(0, VOCAB, len(changed) - 501)
    before, after = score(make(), tokens), score(make(), changed)
    assert np.array_equal(before[:500], after[:500])
    assert not np.array_equal(before[500:], after[500:])


@every_predictor
def test_pieces_of_any_size_give_the_same(make):
    tokens = text(700)
    whole = score(make(), tokens)
    np.testing.assert_allclose(score(make(), tokens, (1, 2, 170, 171, 333, 699)), whole, rtol=0, atol=1e-12)


@every_predictor
def test_token_by_token_gives_the_same(make):
    tokens = text(420)
    whole = score(make(), tokens)
    predictor = make()
    span, logits = known(tokens)
    predictor.begin(int(tokens[0]))
    nats = []
    for row, token in zip(rows_for(predictor, logits), span.targets, strict=True):
        nats.append(-predictor.predict(row)[token])
        predictor.observe(int(token), bool(token == BOS))
    np.testing.assert_allclose(nats, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", list(MADE.values())[2:], ids=list(MADE)[2:])
def test_what_predictors_know_is_worth_something(make):
    """On a text with phrases that come back, each predictor is better than the model it reads."""
    tokens = text(4000, document=900)
    assert score(make(), tokens).sum() < score(MADE["tempered"](), tokens).sum() - 1


# ---- each one's own mathematics


def test_tilt_by_hand():
    phrase = list(range(2, 20))
    tokens = np.array([BOS, *phrase, 20, *phrase, 21, *phrase, 20], dtype=np.uint16)
    raised = score(TiltPredictor(), tokens) - score(Tempered(heat), tokens)
    span, logits = known(tokens)
    p = np.exp(log_probabilities(logits, heat))
    expected = np.zeros(len(span))
    # 15 tokens of the phrase have come before at its places 15, 16, 17 and after it: second and third time
    fired = [18 + 1 + 15 + i for i in range(4)]
    for target in fired:
        hint = tokens[target + 1 - 19]
        gain = 2.625 if tokens[target + 1] == hint else 0.0
        expected[target] = math.log1p(p[target, hint] * math.expm1(2.625)) - gain
    third = [t + 19 for t in fired]
    for target in third[:3]:
        hint = tokens[target + 1]
        expected[target] = math.log1p(p[target, hint] * math.expm1(2.625)) - 2.625
    # after the phrase 20 and 21 came once each: neither has four fifths
    np.testing.assert_allclose(raised, expected, atol=1e-9)


def test_boost_raises_majorities_only_and_agreeing_orders_once():
    counts = np.array([[3, 3, 2, 1], [2, 0, 5, 9]], dtype=np.int32)
    top = np.array([[7, 7, 8, 9], [7, -1, 5, 5]], dtype=np.int32)
    total = np.array([[4, 3, 4, 1], [2, 0, 6, 9]], dtype=np.int32)
    predictor = BoostPredictor()
    predictor.num_candidates = 4
    symbols, gains = predictor.gains(top, counts, total)
    beta = lambda full, context: math.log1p(full) - math.log1p(max(context - full, 1))
    # a symbol that followed once, or half the time, is not raised
    assert symbols.tolist() == [[7, -1, -1, -1], [7, -1, 5, -1]]
    np.testing.assert_allclose(gains[0, 0], max(beta(3, 4), beta(3, 3)))
    np.testing.assert_allclose(gains[1, [0, 2]], [beta(2, 2), beta(9, 9)])


def test_ngram_experts_by_hand():
    tokens = text(300, vocab=VOCAB)
    found = score(NgramsPredictor(VOCAB), tokens)
    span, logits = known(tokens)
    neural = np.exp(log_probabilities(logits, heat))
    stream = tokens.tolist()
    weights, visits = np.tile([0.91, 0.03, 0.03, 0.03], (5, 1)), np.zeros(5)
    for t, y in enumerate(span.targets.tolist()):
        past = stream[: t + 1]
        p1, p2 = past[-1], past[-2] if t else past[-1]
        after_one = [b for a, b in zip(past, past[1:], strict=False) if a == p1]
        after_two = [c for a, b, c in zip([past[0], *past], past, past[1:], strict=False) if (a, b) == (p2, p1)]
        q = np.array(
            [
                neural[t, y],
                (past.count(y) + 0.1) / (len(past) + 0.1 * VOCAB),
                (after_one.count(y) + 0.1) / (len(after_one) + 0.1 * VOCAB),
                (after_two.count(y) + 0.01) / (len(after_two) + 0.01 * VOCAB),
            ]
        )
        cell = sum(len(after_two) > bound for bound in (0, 1, 3, 15))
        p = weights[cell] @ q
        assert found[t] == pytest.approx(-math.log(p), abs=1e-9)
        weights[cell] *= 1 + max(0.002, 1 / (visits[cell] + 50)) * (q / p - 1)
        visits[cell] += 1
    np.testing.assert_allclose(weights.sum(1), 1)


def test_bias_by_hand():
    tokens = text(40, vocab=VOCAB, document=15)
    assert (tokens[2:] == BOS).any()
    found = score(BiasPredictor(VOCAB, 3, rate=0.2), tokens)
    span, logits = known(tokens)
    rows = log_probabilities(logits, heat)
    bias, surplus, waiting = np.zeros(VOCAB), np.zeros(VOCAB), 0
    for t, y in enumerate(span.targets):
        z = rows[t] + bias
        p = np.exp(z) / np.exp(z).sum()
        assert found[t] == pytest.approx(-math.log(p[y]), abs=1e-5)
        if y == BOS:
            bias, surplus, waiting = np.zeros(VOCAB), np.zeros(VOCAB), 0
            continue
        surplus, waiting = surplus + p - np.eye(VOCAB)[y], waiting + 1
        if waiting == 3:
            bias, surplus, waiting = bias - 0.2 * surplus, np.zeros(VOCAB), 0


def test_counts_against_a_dictionary():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, 3000)
    counts = TopCounts((1, 3, 5))
    parts = [counts.read(part) for part in np.split(tokens, [1, 700, 701, 2500])]
    top, count, total = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    known: dict = {}
    for t, y in enumerate(tokens.tolist()):
        for level, length in enumerate((1, 3, 5)):
            if t < length:
                assert top[t, level] == -1
                continue
            after = known.setdefault((length, *tokens[t - length : t].tolist()), {"top": -1})
            assert total[t, level] == sum(n for symbol, n in after.items() if symbol != "top")
            assert top[t, level] == after["top"] and count[t, level] == after.get(after["top"], 0)
            after[y] = after.get(y, 0) + 1
            if after[y] > after.get(after["top"], 0):
                after["top"] = y
    found = counts.peek()
    assert found[2][0] == (tokens[:-1] == tokens[-1]).sum()


def test_full_tables_count_what_they_know_already():
    tokens = np.tile(np.arange(2, 40), 30)
    counts = TopCounts((1,), most=10)
    top, _, total = counts.read(tokens)
    assert counts.used[0] == 10
    assert total[-1, 0] == 0 and top[38 * 20 + 5, 0] == tokens[38 * 20 + 5]


# ---- temperatures


def test_temperature_by_entropy():
    entropy = torch.tensor([0.0, 1.0, math.log(VOCAB)], dtype=torch.float64)
    found = ByEntropy(0.98).of(entropy, VOCAB)
    expected = [0.98, 1 - 0.02 * (1 - 1 / math.log(VOCAB)), 1.0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ByEntropy(0.5).of(entropy, VOCAB)[0] == 0.9 and ByEntropy(1.3).of(entropy, VOCAB)[0] == 1.05
    assert ByEntropy(1.0).of(entropy, VOCAB) == 1.0


def test_temperature_by_grid_takes_the_best_for_the_first_sequences():
    model, tokens = Toy(VOCAB, strength=6.0), text(64 * 10)
    heat = ByGrid(0.98)
    heat.calibrate(lambda rows: model.logits(torch.from_numpy(rows)), tokens, 64)
    rows = torch.from_numpy(tokens[: 64 * 8 + 1].astype(np.int64))
    logits = model.logits(rows[:-1].reshape(8, 64)).flatten(0, 1)
    losses = {t / 100: torch.nn.functional.cross_entropy(logits / (t / 100), rows[1:]).item() for t in range(85, 116, 5)}
    assert heat.value == pytest.approx(min(losses, key=losses.get)) and heat.value != 0.98
    short = ByGrid(0.98)
    short.calibrate(lambda rows: 1 / 0, tokens[:60], 64)
    assert short.value == 0.98


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_online_temperature_finds_the_best_one(strength):
    """Of a model that is right but for its temperature: the text is drawn from it at strength 1.5."""
    model = Toy(VOCAB, strength=strength)
    tokens = drawn(20_000)
    logits = model.logits(torch.from_numpy(tokens[:-1].astype(np.int64))[None])[0]
    targets = torch.from_numpy(tokens[1:].astype(np.int64))
    heat = Online(1.0)
    for begin in range(0, 20_000, 1000):
        here = slice(begin, begin + 1000)
        heat.learn(statistics_of(logits[here], tokens[1:][here], temperature=heat))
    grid = np.exp(np.arange(-0.5, 0.501, 0.01))
    best = min(grid, key=lambda t: torch.nn.functional.cross_entropy(logits / t, targets).item())
    assert heat.value == pytest.approx(best, rel=0.03) and abs(math.log(best)) > 0.2


def drawn(count):
    """Tokens drawn from the model's own distribution at strength 1.5."""
    generator = torch.Generator().manual_seed(5)
    truth, tokens = Toy(VOCAB, strength=1.5), [BOS, 2]
    for _ in range(count - 1):
        logits = truth.logits(torch.tensor([tokens[-2:]]))[0, -1]
        tokens.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return np.array(tokens, dtype=np.uint16)


def test_policies_by_their_names():
    from pgolf.config import TemperatureSettings

    assert policy(TemperatureSettings()) is None
    for method, kind in (("fixed", Temperature), ("entropy", ByEntropy), ("grid", ByGrid), ("online", Online)):
        made = policy(TemperatureSettings(method, 0.97))
        assert type(made) is kind and made.value == 0.97


@pytest.mark.parametrize("heat", [None, Temperature(0.7), ByEntropy(0.9)], ids=["plain", "fixed", "by entropy"])
def test_raw_logits_give_what_capped_ones_give(heat):
    """To the last digit: a run on a CPU and its audit, which keeps capped logits, read the same numbers."""
    raw, wanted = 20 * torch.randn(33, VOCAB), np.tile([3, -1, 5], (33, 1))
    arguments = {"temperature": heat, "whole_rows": True, "kept": np.arange(0, 33, 4)}
    found = statistics_of(raw, np.arange(33) % VOCAB, wanted, softcap=15.0, **arguments)
    expected = statistics_of(15.0 * torch.tanh(raw / 15.0), np.arange(33) % VOCAB, wanted, **arguments)
    for name in ("nats", "target", "entropy", "candidate_log_probs", "logits", "kept_logits"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert not np.allclose(found.nats, statistics_of(raw, np.arange(33) % VOCAB).nats)


def test_candidates_are_read_at_the_temperature():
    logits = torch.randn(5, VOCAB, dtype=torch.float64)
    wanted = np.array([[3, -1], [0, 23], [5, 5], [-1, -1], [1, 2]])
    found = statistics_of(logits, np.arange(5), wanted, temperature=Temperature(0.7), whole_rows=True)
    rows = (logits / 0.7).log_softmax(-1).numpy()
    for i, symbols in enumerate(wanted):
        for k, symbol in enumerate(symbols):
            assert found.candidate_log_probs[i, k] == (pytest.approx(rows[i, symbol]) if symbol >= 0 else -math.inf)
    np.testing.assert_allclose(found.target, rows[np.arange(5), np.arange(5)])
    np.testing.assert_allclose(found.nats, -logits.log_softmax(-1).numpy()[np.arange(5), np.arange(5)])
    np.testing.assert_allclose(found.logits, (logits / 0.7).float().numpy(), rtol=1e-6)
    np.testing.assert_allclose(log_probabilities(logits, Temperature(0.7)), rows, atol=1e-12)


# ---- what the n-gram back-off has learnt


def random_learnt():
    return Learnt(torch.rand(4, 9, 33, dtype=torch.float64).clamp(1e-4, 0.9995), torch.randint(2**31 - 1, (4, 9, 33)).int())


def test_what_was_learnt_travels():
    learnt = random_learnt()
    learnt.visits[0, 0, :3] = torch.tensor([0, 1, 3])
    data = learnt_to_bytes(learnt)
    found = learnt_from_bytes(data)
    assert (torch.logit(found.table) - torch.logit(learnt.table)).abs().max() <= 1 / 16 + 1e-9
    assert (torch.log2(found.visits + 1.0) - torch.log2(learnt.visits + 1.0)).abs().max() <= 1 / 4 + 1e-6
    assert found.visits[0, 0, :3].tolist() == [0, 1, 3]
    assert learnt_to_bytes(found) == data
    assert len(learnt_to_bytes(Learnt(torch.full((4, 9, 33), 0.05), torch.zeros(4, 9, 33)))) < 60


@pytest.mark.parametrize("data", [b"", b"\x04", b"\x00abc", b"\x11" + b"x" * 40, learnt_to_bytes(random_learnt())[:-3]])
def test_damaged_tables_are_refused(data):
    with pytest.raises(TableError, match="is damaged"):
        learnt_from_bytes(data)


def test_more_visits_than_can_be_are_refused():
    data = b"\x01" + zstandard.ZstdCompressor().compress(bytes([50] * 297 + [63] * 297))
    with pytest.raises(TableError, match="more visits than there can be"):
        learnt_from_bytes(data)


def test_a_ngram_backoff_begins_with_what_was_learnt_and_goes_on_from_there():
    tokens = text(2000)
    learner = NgramBackoffPredictor(VOCAB, 3, 8)
    plain = score(learner, tokens)
    frozen = NgramBackoffPredictor(VOCAB, 4, 8, learner.learnt(), online=False)
    assert frozen.num_candidates == 3
    assert score(frozen, tokens).sum() < plain.sum()
    # two halves, one after the other, are the whole
    first, second = tokens[:1001], tokens[1000:]
    half = NgramBackoffPredictor(VOCAB, 3, 8)
    score(half, first)
    other = NgramBackoffPredictor(VOCAB, 3, 8, half.learnt())
    score(other, second)
    assert torch.equal(other.learnt().visits - half.learnt().visits, fresh(second).visits)
    # where learning has long gone on, a lesson changes little
    moved = (other.learnt().table - half.learnt().table).abs().max()
    assert moved < (fresh(second).table - 0.05).abs().max()


def fresh(tokens):
    predictor = NgramBackoffPredictor(VOCAB, 3, 8)
    score(predictor, tokens)
    return predictor.learnt()


def test_results_are_the_same_from_a_pass():
    """What the pass gives its predictors is what the whole stream's statistics are, whatever the spans and batches."""
    tokens = text(1234)
    for batch in (3, 8):
        # a pass holds one predictor of each name
        predictors = list({predictor.name: predictor for predictor in (make() for make in MADE.values())}.values())
        one = ScoringPass(
            Toy(VOCAB),
            tokens,
            copy.deepcopy(predictors),
            bos=BOS,
            window=LENGTH,
            batch=batch,
            temperature=heat,
            chunk_tokens=200,
        )
        nats = one.run(Steady(Clock(), 1234, STRIDE))
        for predictor in predictors:
            expected = score(predictor, tokens)[48:]
            np.testing.assert_allclose(nats[predictor.name][48:], expected, atol=2e-5, err_msg=predictor.name)
