"""The tests of the streams: each looks at what the trials have found for one predictor and says whether it holds.

A test gives None for its verdict where it does not apply, and says why.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pgolf.audit import streams
from pgolf.audit.interface import Claims, Scored
from pgolf.audit.trials import Trials

# how far a sum may be from one, in logarithms; and a cost from the entry it is read off
SUM_TOLERANCE = 1e-5
ENTRY_TOLERANCE = 5e-5
# whoever computes fewer targets at once may round otherwise
SHAPE_TOLERANCE = 2e-4
# a legal scorer is failed by chance less than once in e^20, e^9 audits
COIN_NATS = 20.0
BET_NATS = 9.0
# stakes of the bets against a sum of one
STAKES = (0.01, 0.03, 0.1, 0.3, 0.6)
# the noise stream is judged from so many places on, so that a warm-up hides nothing
RESTARTS = 8


@dataclass(frozen=True)
class Finding:
    id: str
    title: str
    result: str
    figure: str
    passed: bool | None
    """None: the test does not apply."""
    says: str

    def as_dict(self) -> dict:
        return dict(self.__dict__)


Verdict = tuple[str, bool | None, str]
"""Figure, whether it holds, and one sentence."""
Check = Callable[[Trials, str, Claims], Verdict]
CHECKS: dict[str, tuple[str, Check]] = {}


def check(id: str, title: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        CHECKS[id] = title, function
        return function

    return add


def findings(trials: Trials, result: str, claims: Claims, only: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Every test of one predictor, or only some."""
    for id, (title, function) in CHECKS.items():
        if only and id not in only:
            continue
        figure, passed, says = function(trials, result, claims)
        yield Finding(id, title, result, figure, None if passed is None else bool(passed), says)


# ---- a distribution


def log_sums(scored: Scored, vocab: int) -> dict[int, float]:
    """The logarithm of the sum over the vocabulary at each probed target; nan where the vector is no vector."""
    found = {}
    for target, row in scored.distributions.items():
        row = np.asarray(row, dtype=np.float64)
        # a probability of zero is allowed, one above any number is not
        broken = row.shape != (vocab,) or np.isnan(row).any() or np.isposinf(row).any()
        found[int(target)] = math.nan if broken else float(np.logaddexp.reduce(row))
    return found


NO_VECTOR = "It shows no whole distribution, only the cost of what came; N3, N4 and N5 test the sum without one."


@check("N1", "probabilities sum to one")
def sums(trials: Trials, result: str, claims: Claims) -> Verdict:
    found = log_sums(trials.probed[result], trials.vocab)
    if not found:
        return "no vectors", None, NO_VECTOR
    broken = [target for target, value in found.items() if math.isnan(value)]
    if broken:
        says = f"At target {broken[0]:,} there is no probability for each of the {trials.vocab:,} symbols."
        return f"{len(broken)} of {len(found)} broken", False, says
    worst = max(found, key=lambda target: abs(found[target]))
    figure = f"ln of the sum at most {abs(found[worst]):.1e} from 0 at {len(found)} places"
    if abs(found[worst]) <= SUM_TOLERANCE:
        return figure, True, "At every place looked at, the probabilities of all symbols sum to one, as a code needs."
    total = math.exp(min(found[worst], 700.0))
    what = "more than one, so no code has this length" if total > 1 else "less than one: a code, but a wasteful one"
    return figure, False, f"At target {worst:,} the probabilities of all symbols sum to {total:.4g}, {what}."


@check("N2", "the score is an entry of that distribution")
def entries(trials: Trials, result: str, claims: Claims) -> Verdict:
    scored = trials.probed[result]
    gaps = {}
    for target, row in scored.distributions.items():
        token = int(trials.tokens[target + 1])
        entry = -float(row[token]) if token < len(row) else math.inf
        cost = float(scored.nats[target])
        gaps[int(target)] = 0.0 if entry == cost else abs(cost - entry)
    if not gaps:
        return "no vectors", None, NO_VECTOR
    worst = max(gaps, key=lambda target: math.inf if math.isnan(gaps[target]) else gaps[target])
    figure = f"at most {gaps[worst]:.1e} nats apart"
    if gaps[worst] <= ENTRY_TOLERANCE:
        return figure, True, "What each symbol cost is what the distribution shown beforehand says."
    return figure, False, f"At target {worst:,} the reported cost is not the one in the distribution that it shows."


@check("N3", "trying other symbols: what they cost adds up to one")
def substitutions(trials: Trials, result: str, claims: Claims) -> Verdict:
    found = [one for one in trials.substituted if result in one.nats]
    if not found:
        return "not tried", None, "The scorer could not be asked what other symbols would have cost."
    worst, figure = None, []
    for one in found:
        with np.errstate(over="ignore"):
            weights = np.exp(-one.nats[result] - (0.0 if one.log_law is None else one.log_law))
        if one.log_law is None:
            total, allowed = float(weights.sum()), SUM_TOLERANCE + trials.vocab * 1e-9
            figure.append(f"{total:.6f} at target {one.target:,}")
        else:
            total = float(weights.mean())
            # few draws know little of rare large weights, hence the floor
            allowed = 4 * max(float(weights.std()), 0.3) / math.sqrt(len(weights))
            figure.append(f"{total:.2f} at target {one.target:,} by {len(weights)} draws")
        # where draws follow no law of the scorer's, only a surplus is evidence
        low = one.log_law is None or bool(trials.probed[result].distributions)
        bad = not math.isfinite(total) or total > 1 + allowed or (low and total < 1 - allowed)
        if bad and worst is None:
            worst = one.target, total
    if worst is None:
        return ", ".join(figure), True, "Put any symbol in a target's place: together they get the probability one, no more."
    says = f"At target {worst[0]:,} all symbols together get {worst[1]:.4g} instead of one, asked one after another."
    return ", ".join(figure), False, says


@check("N4", "symbols drawn from a known law cost what they must")
def drawn(trials: Trials, result: str, claims: Claims) -> Verdict:
    return _betting(trials.drawn, result, "drawn from a known law", lambda mean: f"the sum is estimated as {mean}")


@check("N5", "noise cannot be compressed")
def coins(trials: Trials, result: str, claims: Claims) -> Verdict:
    if trials.uniform is None or result not in trials.uniform[1]:
        return "not tried", None, "The scorer could not be given noise."
    gains = coin_gains(trials, result)
    if np.isnan(gains).any():
        return "not a number", False, "On uniform noise some cost is not a number."
    starts = [len(gains) * i // RESTARTS for i in range(RESTARTS)]
    # from each start on, the largest gain that was ever reached
    best = max(float(np.cumsum(gains[start:]).max()) for start in starts)
    surplus = -float(gains.sum())
    figure = f"{surplus / math.log(2):+,.0f} bits over n ln V, {len(gains):,} symbols"
    allowed = COIN_NATS + math.log(RESTARTS)
    if best <= allowed:
        return figure, True, "Uniform noise costs it at least what noise must cost any code."
    saved = best / math.log(2)
    says = f"It pays {saved:,.0f} bits less for a stretch of noise than any code can: its sums exceed one."
    return figure, False, says


def coin_gains(trials: Trials, result: str) -> np.ndarray:
    """Of each target of the noise, by how much it cost less than ln V."""
    assert trials.uniform is not None
    return math.log(trials.vocab) - np.asarray(trials.uniform[1][result].nats, dtype=np.float64)


@check("N5b", "nor can noise in the midst of text")
def sprinkles(trials: Trials, result: str, claims: Claims) -> Verdict:
    return _betting(trials.sprinkled, result, "that are noise within the text", lambda mean: f"the mean of V p is {mean}")


def _betting(trial, result: str, what: str, figure_of) -> Verdict:
    """Bet against the claim that p / law is at most one on average: who wins much from a valid code is as lucky as rare."""
    if trial is None or result not in trial[1]:
        return "not tried", None, f"The scorer could not be given symbols {what}."
    law, found = trial
    log_ratio = -np.asarray(found[result].nats, dtype=np.float64)[law.places] - law.log_law
    if np.isnan(log_ratio).any():
        return "not a number", False, f"The cost of some symbols {what} is not a number."
    ratio = np.exp(np.minimum(log_ratio, 700.0))
    error = float(ratio.std() / math.sqrt(len(ratio)))
    wins = [float(np.log1p(stake * (ratio - 1)).sum()) for stake in STAKES]
    evidence = float(np.logaddexp.reduce(wins)) - math.log(len(STAKES))
    figure = figure_of(f"{float(ratio.mean()):.3g} ± {error:.2g}")
    if evidence <= BET_NATS:
        return figure, True, f"The {len(ratio)} symbols {what} are not priced below their worth."
    says = f"The {len(ratio)} symbols {what} cost less than in any code; by luck this happens once in {odds(evidence)}."
    return figure, False, says


def odds(nats: float) -> str:
    exponent = nats / math.log(10)
    return f"{math.exp(nats):,.0f}" if exponent < 6 else f"10^{exponent:,.0f}"


# ---- the past alone


def difference(trials: Trials, result: str, other: Scored, targets: slice | np.ndarray) -> tuple[int, int, float]:
    """(how many targets cost something else than in the plain run, the first of them, the largest difference)."""
    mine, theirs = np.asarray(trials.plain[result].nats)[targets], np.asarray(other.nats)[targets]
    with np.errstate(invalid="ignore"):
        gaps = np.where(mine == theirs, 0.0, np.abs(mine - theirs))
    gaps = np.nan_to_num(gaps, nan=np.inf)
    moved = np.flatnonzero(gaps)
    places = np.arange(trials.targets)[targets]
    return len(moved), int(places[moved[0]]) if len(moved) else -1, float(gaps.max(initial=0.0))


def vectors_differ(trials: Trials, result: str, other: Scored, below: int) -> tuple[int, float]:
    """(how many of the distributions at targets below a place were looked at, the largest difference of an entry)."""
    base, largest, count = trials.probed[result].distributions, 0.0, 0
    for target, row in other.distributions.items():
        if target < below and target in base:
            count += 1
            largest = max(largest, apart(base[target], row))
    return count, largest


def apart(one, other) -> float:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if one.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        gaps = np.where(one == other, 0.0, np.abs(one - other))
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


@check("C1a", "another future changes nothing before it")
def future(trials: Trials, result: str, claims: Claims) -> Verdict:
    found = [(cut, by[result]) for cut, by in trials.flipped if result in by]
    if not found:
        return "not tried", None, "The scorer could not be given another future."
    looked, worst, where = 0, 0.0, ""
    for cut, other in found:
        moved, first, largest = difference(trials, result, other, slice(0, cut))
        vectors, entries = vectors_differ(trials, result, other, cut)
        looked += cut + vectors
        if max(largest, entries) > worst:
            worst = max(largest, entries)
            where = f"Changing target {cut:,} and what follows moves "
            where += f"{moved:,} scores before it, the first at target {first:,}." if moved else "a distribution before it."
    figure = f"{looked:,} scores and vectors under {len(found)} futures, at most {worst:.1e} nats apart"
    if worst <= claims.noise:
        return figure, True, "What comes later does not change what was scored before."
    return figure, False, where + " A decoder does not know the future."


@check("C1b", "the symbol itself does not change the distribution it is scored by")
def same_step(trials: Trials, result: str, claims: Claims) -> Verdict:
    base, gaps = trials.probed[result].distributions, {}
    for cut, by in trials.flipped:
        if result in by and cut in by[result].distributions and cut in base:
            gaps[cut] = apart(base[cut], by[result].distributions[cut])
    if not gaps:
        return "no vectors", None, "It shows no whole distribution; N3 asks for the cost of every symbol instead."
    worst = max(gaps, key=gaps.__getitem__)
    figure = f"{len(gaps)} places, at most {gaps[worst]:.1e} nats apart"
    if gaps[worst] <= claims.noise:
        return figure, True, "The distribution stands before the symbol is known: another symbol meets the same one."
    return figure, False, f"At target {worst:,} the distribution depends on the very symbol that it should predict."


@check("C1c", "a stream cut short scores the same")
def truncation(trials: Trials, result: str, claims: Claims) -> Verdict:
    found = [(last, by[result]) for last, by in trials.cut_short if result in by]
    if not found:
        return "not tried", None, "The scorer could not be given a shorter stream."
    last, other = found[0]
    moved, first, largest = difference(trials, result, other, slice(0, last + 1))
    _, entries = vectors_differ(trials, result, other, last + 1)
    largest = max(largest, entries)
    figure = f"{last + 1:,} targets alone, at most {largest:.1e} nats apart"
    if largest <= max(SHAPE_TOLERANCE, claims.noise):
        return figure, True, "Scored without their future, the first targets cost the same."
    return figure, False, f"Without what follows, {moved:,} targets cost something else, the first of them {first:,}."


@check("C1d", "rare symbols at the end change nothing before them")
def canaries(trials: Trials, result: str, claims: Claims) -> Verdict:
    if trials.canaries is None or result not in trials.canaries[1]:
        return "not tried", None, "The scorer could not be given rare symbols."
    kept, by = trials.canaries
    moved, first, largest = difference(trials, result, by[result], slice(0, kept))
    figure = f"{kept:,} targets, at most {largest:.1e} nats apart"
    if largest <= claims.noise:
        return figure, True, "Symbols that only come at the end are not known before."
    return figure, False, f"Symbols that only come at the end change {moved:,} scores before them, first at target {first:,}."


# ---- the order of things


@check("C3", "scored first, learnt from afterwards")
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


@check("C4", "every target scored once, in order")
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


# ---- company


@check("D1", "documents know nothing of each other")
def neighbours(trials: Trials, result: str, claims: Claims) -> Verdict:
    if not claims.isolated or result in claims.across:
        return "not claimed", None, "It does not claim that documents are scored apart from each other."
    found = [(start, end, by[result]) for start, end, by in trials.neighbour if result in by]
    if not found:
        return "no neighbours", None, "The sample holds no two documents."
    worst, says = 0.0, ""
    for start, end, other in found:
        # the token at `start` is the last of a document; its successor opens the next, whose targets follow
        inside = slice(start + 1, end)
        moved, first, largest = difference(trials, result, other, inside)
        base = trials.probed[result].distributions
        entries = [apart(base[p], row) for p, row in other.distributions.items() if start < p < end and p in base]
        if max([largest, *entries]) > worst:
            worst = max([largest, *entries])
            says = f"Another last token of one document changes the next one, at target {max(first, start + 1):,}."
    figure = f"{len(found)} borders, at most {worst:.1e} nats apart"
    if worst <= claims.noise:
        return figure, True, "A document costs the same whatever stands before it."
    return figure, False, says


@check("R1", "the same again gives the same")
def again(trials: Trials, result: str, claims: Claims) -> Verdict:
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
