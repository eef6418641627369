"""C3: a target is scored before anything is learnt from it. C4: every target is scored once, from left to right. R1: the
same stream costs the same again."""

import math

import numpy as np

from pgolf.audit import streams
from pgolf.audit.checks.base import SHAPE_TOLERANCE, Verdict, check, difference
from pgolf.audit.checks.distribution import ENTRY_TOLERANCE
from pgolf.audit.interface import NOISE_CAP, Claims
from pgolf.audit.trials import Trials


@check("C3", "C3", "scored first, learnt from afterwards")
def order(trials: Trials, result: str, claims: Claims) -> Verdict:
    if trials.refused:
        trial, said = next(iter(trials.refused.items()))
        return "refused by the guard", False, f"The guarded stream stopped it ({trial}): {said}."
    events = trials.plain[result].events
    if events is None:
        return "no log", None, "It keeps no log of scoring and learning; C1a and N3 look for the traces of learning first."
    committed, lessons = np.zeros(trials.targets + 1, dtype=bool), 0
    for kind, start, stop, *_ in events:
        if kind == "commit":
            committed[start:stop] = True
        elif kind == "learn":
            lessons += 1
            if stop > trials.targets or not committed[start:stop].all():
                says = f"It learnt from targets {start:,} to {stop:,} before all of them had their scores."
                return f"lesson {lessons}", False, says
    return f"{lessons:,} lessons", True, "Nothing was learnt from a symbol before its score was final."


@check("C4", "C4", "every target scored once, in order")
def once(trials: Trials, result: str, claims: Claims) -> Verdict:
    scored, targets = trials.plain[result], trials.targets
    nats = np.asarray(scored.nats, dtype=np.float64)
    if result in trials.miscounted:
        given, wanted = trials.miscounted[result]
        return f"{given:,} of {wanted:,}", False, f"Of {wanted:,} targets it reports the cost of {given:,}."
    if np.isnan(nats).any() or (nats < -ENTRY_TOLERANCE).any():
        return "no costs", False, "Some costs are below zero or not a number."
    reported, whole = claims.scored_targets, claims.stream_targets
    if reported is not None and whole is not None and reported != whole:
        figure = f"{reported:,} of {whole:,}"
        return figure, False, "The reported score is over a part of the validation text only."
    total = math.fsum(nats)
    if scored.total is not None and abs(scored.total - total) > 1e-6 * max(1.0, abs(total)):
        figure = f"{scored.total:,.2f} reported, {total:,.2f} added up"
        return figure, False, "The reported total is not the sum of what the targets cost."
    if scored.events is None:
        return f"{targets:,} costs", True, "Every target has one cost. (It keeps no log that would show a second look.)"
    return _committed_once(trials, result, claims)


def _committed_once(trials: Trials, result: str, claims: Claims) -> Verdict:
    targets = trials.targets
    commits = streams.commits_of(trials.plain[result])
    counts = np.zeros(targets + 1, dtype=np.int64)
    for start, stop in commits:
        counts[start : min(stop, targets + 1)] += 1
    counts = counts[:targets]
    often, never = int((counts > 1).sum()), int((counts == 0).sum())
    figure = f"{targets - never:,} of {targets:,}, {often:,} more than once"
    if often or never:
        what = f"{often:,} targets were scored more than once" if often else f"{never:,} targets were never scored"
        return figure, False, f"{what.capitalize()}: only one pass over the text counts."
    # documents that know nothing of each other may be scored in any order, each of them from its start
    openings = set(streams.document_starts(trials.tokens, claims.bos) + 1) if claims.isolated else set()
    reached = {0}
    for start, stop in commits:
        if start not in reached and start not in openings:
            return figure, False, f"Target {start:,} was scored before target {start - 1:,}: out of order."
        reached.add(stop)
    return figure, True, "Every target was scored exactly once, from left to right."


@check("R1", "C4", "the same again gives the same")
def again(trials: Trials, result: str, claims: Claims) -> Verdict:
    if claims.noise > NOISE_CAP:
        says = (
            f"It declares that costs may differ by {claims.noise:g} nats; above {NOISE_CAP} that could hide a record's gain."
        )
        return f"noise of {claims.noise:g} nats", False, says
    moved, first, largest = difference(trials, result, trials.probed[result], slice(None))
    figure = f"at most {largest:.1e} nats apart"
    if largest > claims.noise:
        return figure, False, f"The same stream costs something else the second time, first at target {first:,}."
    if result not in trials.ranks:
        return figure, True, "A second run gives the same costs."
    moved, first, largest = difference(trials, result, trials.ranks[result], slice(None))
    figure += f", on two ranks {largest:.1e}"
    if largest > max(SHAPE_TOLERANCE, claims.noise):
        return figure, False, f"On two ranks {moved:,} targets cost something else: the score depends on the machine's size."
    return figure, True, "A second run, and one on two ranks, give the same costs."
