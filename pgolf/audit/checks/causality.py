"""C1: what a target costs depends on the tokens before it alone."""

from pgolf.audit.checks.base import SHAPE_TOLERANCE, Verdict, apart, check, difference, vectors_differ
from pgolf.audit.interface import Claims
from pgolf.audit.trials import Trials


@check("C1a", "C1", "another future changes nothing before it")
def future(trials: Trials, result: str, claims: Claims) -> Verdict:
    scored = [(cut, by[result]) for cut, by in trials.flipped if result in by]
    if not scored:
        return "not tried", None, "The scorer could not be given another future."
    looked, worst, where = 0, 0.0, ""
    for cut, other in scored:
        moved, first, largest = difference(trials, result, other, slice(0, cut))
        vectors, entries = vectors_differ(trials, result, other, cut)
        looked += cut + vectors
        if max(largest, entries) > worst:
            worst = max(largest, entries)
            where = f"Changing target {cut:,} and what follows moves "
            where += f"{moved:,} scores before it, the first at target {first:,}." if moved else "a distribution before it."
    figure = f"{looked:,} scores and vectors under {len(scored)} futures, at most {worst:.1e} nats apart"
    if worst <= claims.noise:
        return figure, True, "What comes later does not change what was scored before."
    return figure, False, where + " A decoder does not know the future."


@check("C1b", "C1", "the symbol itself does not change the distribution it is scored by")
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


@check("C1c", "C1", "a stream cut short scores the same")
def truncation(trials: Trials, result: str, claims: Claims) -> Verdict:
    scored = [(last, by[result]) for last, by in trials.cut_short if result in by]
    if not scored:
        return "not tried", None, "The scorer could not be given a shorter stream."
    last, other = scored[0]
    moved, first, largest = difference(trials, result, other, slice(0, last + 1))
    _, entries = vectors_differ(trials, result, other, last + 1)
    largest = max(largest, entries)
    figure = f"{last + 1:,} targets alone, at most {largest:.1e} nats apart"
    if largest <= max(SHAPE_TOLERANCE, claims.noise):
        return figure, True, "Scored without their future, the first targets cost the same."
    return figure, False, f"Without what follows, {moved:,} targets cost something else, the first of them {first:,}."


@check("C1d", "C1", "rare symbols at the end change nothing before them")
def canaries(trials: Trials, result: str, claims: Claims) -> Verdict:
    if trials.canaries is None or result not in trials.canaries[1]:
        return "not tried", None, "The scorer could not be given rare symbols."
    kept, by = trials.canaries
    moved, first, largest = difference(trials, result, by[result], slice(0, kept))
    figure = f"{kept:,} targets, at most {largest:.1e} nats apart"
    if largest <= claims.noise:
        return figure, True, "Symbols that only come at the end are not known before."
    return figure, False, f"Symbols that only come at the end change {moved:,} scores before them, first at target {first:,}."


@check("D1", "C1", "documents know nothing of each other")
def neighbours(trials: Trials, result: str, claims: Claims) -> Verdict:
    if not claims.isolated or result in claims.across:
        return "not claimed", None, "It does not claim that documents are scored apart from each other."
    scored = [(start, end, by[result]) for start, end, by in trials.neighbour if result in by]
    if not scored:
        return "no neighbours", None, "The sample holds no two documents."
    worst, says = 0.0, ""
    for start, end, other in scored:
        # the token at `start` is the last of a document; its successor opens the next, whose targets follow
        inside = slice(start + 1, end)
        moved, first, largest = difference(trials, result, other, inside)
        base = trials.probed[result].distributions
        entries = [apart(base[p], row) for p, row in other.distributions.items() if start < p < end and p in base]
        if max([largest, *entries]) > worst:
            worst = max([largest, *entries])
            says = f"Another last token of one document changes the next one, at target {max(first, start + 1):,}."
    figure = f"{len(scored)} borders, at most {worst:.1e} nats apart"
    if worst <= claims.noise:
        return figure, True, "A document costs the same whatever stands before it."
    return figure, False, says
