"""C2: at every position there is one distribution over the whole vocabulary, it sums to one, and the score is read off it.

N1 and N2 look at the vectors that the scorer shows, N3 tries every symbol in a target's place, N4, N5 and N5b bet against
the scorer on symbols whose law is known, which needs no vectors.
"""

import math

import numpy as np

from pgolf.audit.checks.base import Verdict, check
from pgolf.audit.interface import Claims, Scored
from pgolf.audit.trials import Trials

# how far a sum may be from one, in logarithms; and a cost from the entry it is read off
SUM_TOLERANCE = 1e-5
ENTRY_TOLERANCE = 5e-5
# a legal scorer is failed by chance less than once in e^20, e^9 audits
COIN_NATS = 20.0
BET_NATS = 9.0
# stakes of the bets against a sum of one
STAKES = (0.01, 0.03, 0.1, 0.3, 0.6)
# the noise stream is judged from so many places on, so that a warm-up hides nothing
RESTARTS = 8


# ---- a distribution


def log_sums(scored: Scored, vocab: int) -> dict[int, float]:
    """The logarithm of the sum over the vocabulary at each probed target; nan where the vector is no vector."""
    sums = {}
    for target, row in scored.distributions.items():
        row = np.asarray(row, dtype=np.float64)
        # a probability of zero is allowed, one above any number is not
        broken = row.shape != (vocab,) or np.isnan(row).any() or np.isposinf(row).any()
        sums[int(target)] = math.nan if broken else float(np.logaddexp.reduce(row))
    return sums


NO_VECTOR = "It shows no whole distribution where it is asked for one, so nothing proves that its costs are a code's."


@check("N1", "C2", "probabilities sum to one")
def sums(trials: Trials, result: str, claims: Claims) -> Verdict:
    by_target = log_sums(trials.probed[result], trials.vocab)
    if not by_target:
        return "no vectors", False, NO_VECTOR
    broken = [target for target, value in by_target.items() if math.isnan(value)]
    if broken:
        says = f"At target {broken[0]:,} there is no probability for each of the {trials.vocab:,} symbols."
        return f"{len(broken)} of {len(by_target)} broken", False, says
    worst = max(by_target, key=lambda target: abs(by_target[target]))
    figure = f"ln of the sum at most {abs(by_target[worst]):.1e} from 0 at {len(by_target)} places"
    if abs(by_target[worst]) <= SUM_TOLERANCE:
        return figure, True, "At every place looked at, the probabilities of all symbols sum to one, as a code needs."
    total = math.exp(min(by_target[worst], 700.0))
    what = "more than one, so no code has this length" if total > 1 else "less than one: a code, but a wasteful one"
    return figure, False, f"At target {worst:,} the probabilities of all symbols sum to {total:.4g}, {what}."


@check("N2", "C2", "the score is an entry of that distribution")
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


@check("N3", "C2", "trying other symbols: what they cost adds up to one")
def substitutions(trials: Trials, result: str, claims: Claims) -> Verdict:
    substituted = [one for one in trials.substituted if result in one.nats]
    if not substituted:
        return "not tried", None, "The scorer could not be asked what other symbols would have cost."
    worst, figure = None, []
    for one in substituted:
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


@check("N4", "C2", "symbols drawn from a known law cost what they must")
def drawn(trials: Trials, result: str, claims: Claims) -> Verdict:
    return _betting(trials.drawn, result, "drawn from a known law", lambda mean: f"the sum is estimated as {mean}")


@check("N5", "C2", "noise cannot be compressed")
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
    # whatever it wastes elsewhere: V p has the mean one at every place, given the past, so a bet on more wins nothing
    won = evidence_of(np.exp(np.minimum(gains, 700.0)))
    if best <= allowed and won > COIN_NATS:
        says = f"Some symbols of noise are priced below their worth; by luck this happens once in {odds(won)}."
        return figure, False, says
    if best <= allowed:
        return figure, True, "Uniform noise costs it at least what noise must cost any code."
    saved = best / math.log(2)
    says = f"It pays {saved:,.0f} bits less for a stretch of noise than any code can: its sums exceed one."
    return figure, False, says


def coin_gains(trials: Trials, result: str) -> np.ndarray:
    """Of each target of the noise, by how much it cost less than ln V."""
    assert trials.uniform is not None
    return math.log(trials.vocab) - np.asarray(trials.uniform[1][result].nats, dtype=np.float64)


@check("N5b", "C2", "nor can noise in the midst of text")
def sprinkles(trials: Trials, result: str, claims: Claims) -> Verdict:
    return _betting(trials.sprinkled, result, "that are noise within the text", lambda mean: f"the mean of V p is {mean}")


def _betting(trial, result: str, what: str, figure_of) -> Verdict:
    """Bet against the claim that p / law is at most one on average: who wins much from a valid code is as lucky as rare."""
    if trial is None or result not in trial[1]:
        return "not tried", None, f"The scorer could not be given symbols {what}."
    law, scored = trial
    log_ratio = -np.asarray(scored[result].nats, dtype=np.float64)[law.places] - law.log_law
    if np.isnan(log_ratio).any():
        return "not a number", False, f"The cost of some symbols {what} is not a number."
    ratio = np.exp(np.minimum(log_ratio, 700.0))
    error = float(ratio.std() / math.sqrt(len(ratio)))
    evidence = evidence_of(ratio)
    figure = figure_of(f"{float(ratio.mean()):.3g} ± {error:.2g}")
    if evidence <= BET_NATS:
        return figure, True, f"The {len(ratio)} symbols {what} are not priced below their worth."
    says = f"The {len(ratio)} symbols {what} cost less than in any code; by luck this happens once in {odds(evidence)}."
    return figure, False, says


def evidence_of(ratio: np.ndarray) -> float:
    """The logarithm of what bets of several stakes against ratios of the mean one have won together."""
    wins = [float(np.log1p(stake * (ratio - 1)).sum()) for stake in STAKES]
    return float(np.logaddexp.reduce(wins)) - math.log(len(STAKES))


def odds(nats: float) -> str:
    exponent = nats / math.log(10)
    return f"{math.exp(nats):,.0f}" if exponent < 6 else f"10^{exponent:,.0f}"
