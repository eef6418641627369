"""Unusual legal scorers: none fails a test, and almost nothing of their claims is left in doubt.

Their calls are made in this process here, which takes seconds for all of them together; one goes the whole way, through
processes of its own.
"""

import copy
import time

import numpy as np
import pytest

from pgolf.audit import Effort, replay
from pgolf.audit.auditor import audit, audit_external
from pgolf.audit.external import ExternalScorer
from pgolf.audit.interface import as_scorer, claims_of
from tests.audit import legal

EFFORT = Effort(targets=240, probes=12, cuts=2, substitutions=1, samples=8)


@pytest.fixture(scope="module")
def text(dataset):
    return np.asarray(dataset.val_tokens())[:601].astype(np.int64)


class Here:
    """Stands for a scorer's processes: a copy of it for each."""

    by_steps = steps = False

    def __init__(self, scorer):
        self.scorer = as_scorer(scorer)
        self.vocab, self.claims = self.scorer.vocab, claims_of(scorer)

    def start(self):
        return copy.deepcopy(self)

    def finish(self, process):
        pass

    def score(self, tokens, probes=(), total=None, ranks=1, seconds=0):
        return self.scorer.score(tokens, tuple(probes), total)


def replayed(scorer, tokens, replays, seed=1):
    here = Here(scorer)
    claim = replay.claim_of(here, tokens)
    return replay.replay(here, claim, replay.Speed(0.0, 1e-4), seed=seed, seconds=1.0, replays=replays), claim


@pytest.mark.parametrize("scorer", legal.LEGAL, ids=lambda scorer: scorer.__name__)
def test_it_passes(scorer, text):
    report = audit(scorer if hasattr(scorer, "predict") else scorer(), text, effort=EFFORT)
    assert report.passed, [f"{one.id}: {one.figure}; {one.says}" for one in report.failed]
    found, _ = replayed(scorer, text[:121], 120)
    verdicts = replay.findings_of(found, claims_of(scorer).noise)
    assert all(one.passed for one in verdicts), verdicts
    # a token is a byte at least
    bound = found.as_dict()
    assert bound["replays"] == bound["targets"] == 120 and bound["bits_per_token"] <= 0.002


def test_one_of_them_in_processes_of_its_own(text):
    begun = time.perf_counter()
    scorer = ExternalScorer(f"{legal.__file__}:ReadsItsArtifact")
    report = audit_external(scorer, text[:201], effort=EFFORT, replays=200, byte_counts=np.full(200, 2))
    assert report.passed, [f"{one.id}: {one.figure}; {one.says}" for one in report.failed]
    assert report.bound["bits_per_byte"] <= 0.001 and report.seconds <= time.perf_counter() - begun


def test_one_that_goes_both_ways_is_replayed_as_a_whole(text):
    report = audit_external(ExternalScorer(f"{legal.__file__}:BothWays"), text, effort=EFFORT, replays=20)
    assert report.passed, [f"{one.id}: {one.figure}; {one.says}" for one in report.failed]
    whole = report.bound["whole"]
    assert whole["replays"] == whole["targets"] == len(text) - 1 and whole["bits_per_token"] <= 0.002


class PeeksLate(legal.Counted):
    """Honest for the first 300 targets; then at a third of the places, the target is all but certain."""

    def score(self, tokens, probes=(), total=None):
        self.tokens = tokens
        return super().score(tokens, probes, total)

    def row(self, past):
        row = super().row(past)
        if len(past) <= 300 or len(past) % 3:
            return row
        sure = 0.1 * row
        sure[self.tokens[len(past)]] += 0.9
        return sure


def test_what_is_stolen_late_in_a_stream_is_within_the_bound_of_the_whole(text):
    """Of the beginning all targets are replayed, of the rest some; whatever the draw, the bound holds what was stolen."""
    honest, _ = replayed(legal.Counted, text, 100)
    stolen = float(honest.claim.nats.sum() - replay.claim_of(Here(PeeksLate), text).nats.sum())
    assert stolen > 300
    bounds = []
    for seed in range(4):
        found, claim = replayed(PeeksLate, text, 100, seed)
        bound = found.as_dict()
        bounds.append(bound["whole"]["bits"] * np.log(2))
        assert bound["bits_per_token"] < 0.002 and bound["whole"]["targets"] == 600 > bound["targets"] == 100
        assert replay.findings_of(found, 0.0)[0].passed is False
    assert min(bounds) > stolen
    # and what is claimed less the bound is no score that could be had so
    assert honest.as_dict()["whole"]["bits"] < found.as_dict()["whole"]["bits"]
