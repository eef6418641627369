"""External scorers that resemble none of the known violations: the audit must test the rules, not the cases."""

import numpy as np
import pytest

from pgolf.audit import AuditError, Claims, Effort, Scored, Stepwise, audit
from pgolf.audit.interface import as_scorer
from pgolf.audit.violations.base import VOCAB, Counts, LeftToRight, text

EFFORT = Effort(targets=300, probes=40, cuts=6)
TEXT = text(EFFORT.targets, seed=11)


def failed(scorer, tokens=TEXT):
    return {one.id for one in audit(scorer, tokens, effort=EFFORT).failed}


class RoundsDown(LeftToRight):
    """Costs in whole halves of a nat, in its favour; shows the exact distribution."""

    def cost(self, row, tokens, target):
        return np.floor(2 * super().cost(row, tokens, target)) / 2


class NeverSurprised(LeftToRight):
    """No symbol costs more than two and a half nats."""

    shows = False

    def cost(self, row, tokens, target):
        return min(super().cost(row, tokens, target), 2.5)


class FreeBoundaries(LeftToRight):
    """Ends of documents are for nothing."""

    shows = False

    def cost(self, row, tokens, target):
        return 0.0 if tokens[target + 1] == 1 else super().cost(row, tokens, target)


class GoodWhenWatched(LeftToRight):
    """Peeks wherever nobody asks for a distribution."""

    def score(self, tokens, probes=(), total=None):
        self.watched = set(probes)
        return super().score(tokens, probes, total)

    def row(self, tokens, target):
        p = super().row(tokens, target)
        if target in self.watched:
            return p
        sure = np.full(VOCAB, 0.2 / VOCAB)
        sure[tokens[target + 1]] += 0.8
        return sure


class Remembers(LeftToRight):
    """Keeps what it saw for the next time the same text is scored."""

    seen: dict = {}

    def row(self, tokens, target):
        p, key = super().row(tokens, target), tuple(tokens[max(0, target - 5) : target + 1].tolist())
        known = self.seen.get(key)
        self.seen[key] = int(tokens[target + 1])
        if known is not None:
            p = 0.5 * p
            p[known] += 0.5
        return p


class BestTemperature(LeftToRight):
    """Of three temperatures, the one that suits the whole text."""

    shows = False

    def score(self, tokens, probes=(), total=None):
        found = []
        for self.heat in (0.7, 1.0, 1.4):
            found.append(super().score(tokens, probes, total))
        return min(found, key=lambda scored: scored.nats.sum())

    def row(self, tokens, target):
        p = super().row(tokens, target) ** (1 / self.heat)
        return p / p.sum()


class SumOfExperts(LeftToRight):
    """The best expert for every symbol, which is more than one can know."""

    def row(self, tokens, target):
        return np.maximum(super().row(tokens, target), self.counts.unigrams())


class KnowsTheLength(LeftToRight):
    """Sharper in short texts."""

    def row(self, tokens, target):
        p = super().row(tokens, target) ** (1 + 10 / len(tokens))
        return p / p.sum()


class LearnsEarly(LeftToRight):
    """An update on a symbol one step before its score is written down."""

    def score(self, tokens, probes=(), total=None):
        found = super().score(tokens, probes, total)
        events = [("learn", start, stop + 1) if kind == "learn" else (kind, start, stop) for kind, start, stop in found.events]
        return Scored(found.nats, found.distributions, events)


class NotANumber(LeftToRight):
    def cost(self, row, tokens, target):
        return float("nan") if target == 100 else super().cost(row, tokens, target)


class LeavesOut(LeftToRight):
    """Does not score the dear ones."""

    shows = False

    def score(self, tokens, probes=(), total=None):
        found = super().score(tokens, probes, total)
        return Scored(found.nats[found.nats < 4], found.distributions, found.events)


@pytest.mark.parametrize(
    "scorer, expected",
    [
        (RoundsDown, {"N2", "N3"}),
        (NeverSurprised, {"N3"}),
        (FreeBoundaries, {"N3"}),
        (GoodWhenWatched, {"R1", "N4", "N5"}),
        (Remembers, {"R1"}),
        (BestTemperature, {"C1a"}),
        (SumOfExperts, {"N1", "N3"}),
        (KnowsTheLength, {"C1c"}),
        (LearnsEarly, {"C3"}),
        (NotANumber, {"C4"}),
        (LeavesOut, {"C4"}),
    ],
)
def test_an_external_scorer_is_caught(scorer, expected):
    Remembers.seen = {}
    assert expected <= failed(scorer())


class Honest:
    """Token by token, as a decoder would."""

    vocab = VOCAB

    def __init__(self):
        self.counts = Counts()

    def predict(self):
        return np.log(self.counts.probabilities())

    def observe(self, token):
        self.counts.learn(token)


class Generous(Honest):
    def predict(self):
        return super().predict() + 0.01


def test_token_by_token():
    assert failed(Honest) == set()
    assert {"N1", "N3"} <= failed(Generous)
    # the order of things is the auditor's own
    report = audit(Honest, TEXT, effort=EFFORT)
    verdicts = {one.id: one.passed for one in report.findings}
    assert verdicts["C3"] and verdicts["C4"] and verdicts["D1"] is None and verdicts["B1"] is None


def test_a_certain_scorer_passes():
    """Probabilities of zero, and costs without bound, are allowed."""

    class Certain(Honest):
        def predict(self):
            with np.errstate(divide="ignore"):
                return np.log(np.eye(VOCAB)[self.counts.last])

    assert failed(Certain) == set()


def test_learning_scored_tokens_by_heart_passes():
    """What was scored may be learnt by heart: noise does not repeat itself."""

    class Parrot(Honest):
        def observe(self, token):
            for _ in range(20):
                last = self.counts.last
                self.counts.learn(token)
                self.counts.last = last
            self.counts.last = token

    assert failed(Parrot) == set()


def test_what_is_no_scorer():
    with pytest.raises(AuditError, match="no `vocab`"):
        as_scorer(object(), "mine")
    with pytest.raises(AuditError, match="neither score"):
        as_scorer(type("Nothing", (), {"vocab": 5}), "mine")
    assert isinstance(as_scorer(Honest), Stepwise)
    with pytest.raises(AuditError, match="more than 16 tokens"):
        audit(Honest, TEXT[:10])
    with pytest.raises(AuditError, match="the token 99"):
        audit(Honest, np.full(100, 99))


def test_noise_of_another_machine_can_be_claimed():
    class Shaky(LeftToRight):
        claims = Claims(noise=1e-3)

        def start(self, tokens):
            super().start(tokens)
            self.draws = np.random.default_rng()

        def cost(self, row, tokens, target):
            return super().cost(row, tokens, target) + 1e-5 * self.draws.random()

    assert failed(Shaky()) == set()
