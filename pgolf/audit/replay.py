"""What of a claimed score is earned: sampled positions of the claimed stream, replayed from their past alone.

A fresh process gets the tokens up to a target, a random symbol in the target's place, and nothing of what follows. It gives
a distribution q_t over all V symbols, whose entry at the true symbol is compared with the claimed cost c_t:

    q'_t = (1 - e) q_t / max(1, sum of q_t) + e / V          a distribution, whatever the scorer gave
    d_t  = -ln q'_t(x_t) - c_t  <=  u_t = ln(V / e) - c_t     what of the claim is not earned here

A decoder can ask for every q'_t in turn, so the sum of -ln q'_t(x_t) is a code length; the claim is below it by the sum of
d_t. Where q earns more than was claimed (d_t < 0) nothing is credited. Positions are drawn after the claim is fixed, with
probabilities in proportion to u_t, so more often where the claim earns most; ln(1 / e) is every position's equal share, and
bounds the weights. bounds.py turns the drawn d_t into a bound on their sum.

One process replays many positions in ascending order, so that nothing it was ever told lies ahead of what it is asked.
Whether a scorer notices that it is replayed is of no use to it: it would have to know the symbol.

Of a scorer that only takes whole streams, one call certifies one target: any other target that the call shows may have been
read before it was scored, and a stream with more symbols hidden has another past than the claim. A share f of bad targets
escapes K draws with the probability (1 - f)^K, and each may hide up to ln(V / e) nats. So a bound of b nats a target needs
about ln(100) ln(V / e) / b calls, however long the stream is: 20,000 for 0.002 bits a byte, if a token is two and a half
bytes. Short pasts are the cheap ones, so all targets of a beginning are replayed, as far as the clock lets them, and a few of
the rest. A scorer that can also go token by token is asked for every target in one pass, and its bound is of the whole claim.
"""

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pgolf.audit.bounds import draw_order, upper_bound
from pgolf.audit.checks.base import Finding
from pgolf.audit.external import CALL_SECONDS, Processes, ScorerFailed, ScorerProcess, ScorerSlow, whole_stream
from pgolf.audit.interface import NOISE_CAP, AuditError
from pgolf.evaluation.stream import StreamError

CONFIDENCE = 0.99
UNIFORM_SHARE = 1e-4
# what rounding may change in one cost, beside what the mixture with the uniform costs
REPLAY_TOLERANCE = 1e-3
MASS_TOLERANCE = 1e-5
# seconds for the claim, and for replays that cover the stream's beginning
CLAIM_SECONDS, DENSE_SECONDS = 8.0, 26.0
LEAST_DENSE, LEAST_SPARSE, MOST_SPARSE = 200, 4, 200
# how much longer than planned replays of a beginning may take, and a claim
LATE = 1.25


@dataclass(frozen=True)
class Claim:
    """The costs that a scorer claims for a stream, in nats, one a target."""

    tokens: np.ndarray
    nats: np.ndarray

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Stratum:
    """Consecutive targets of which some were replayed."""

    start: int
    stop: int
    order: np.ndarray
    """Targets as they were drawn, those that were replayed first."""
    losses: np.ndarray
    """d_t in nats of the targets that were replayed."""

    def bound(self, claim: Claim, vocab: int, confidence: float) -> float:
        """Nats of this stratum's claims that may not be earned."""
        limits = limits_of(claim.nats[self.start : self.stop], vocab)
        return upper_bound(limits, self.order[: len(self.losses)] - self.start, self.losses, confidence)


@dataclass(frozen=True)
class Replayed:
    """The beginning, of which all targets that are worth it were replayed, what the clock left out of it, and samples of the
    rest."""

    claim: Claim
    vocab: int
    seed: int
    dense: Stratum
    rest: tuple[Stratum, ...]
    losses: Mapping[int, float]
    """d_t in nats of every target that was replayed."""
    worst_mass: float = 1.0
    without_vector: int = 0
    failed: str = ""
    """What stopped a replay."""
    byte_counts: np.ndarray | None = field(default=None, repr=False)
    """Bytes of each target, where they are known."""

    def worst(self) -> tuple[int, float]:
        """The target with the largest loss, and its loss in nats."""
        return max(self.losses.items(), key=lambda pair: pair[1], default=(-1, 0.0))

    def as_dict(self) -> dict:
        """The audit's headline in figures: for the stratum that was replayed densely, and for the whole claim."""
        dense = self.dense.bound(self.claim, self.vocab, CONFIDENCE)
        # the beginning and the samples with half of the doubt each
        half = (1 + CONFIDENCE) / 2
        whole = dense
        if any(stratum.stop > stratum.start for stratum in self.rest):
            whole = sum(stratum.bound(self.claim, self.vocab, half) for stratum in (self.dense, *self.rest))
        figures = {
            "confidence": CONFIDENCE,
            "seed": self.seed,
            "replays": len(self.dense.losses),
            **self._per(dense, self.dense.stop),
            "whole": {"replays": len(self.losses), **self._per(whole, self.claim.targets)},
        }
        return figures | {"says": headline(figures)}

    def _per(self, nats: float, targets: int) -> dict:
        bits = nats / math.log(2)
        count = int(self.byte_counts[:targets].sum()) if self.byte_counts is not None else 0
        claimed = float(self.claim.nats[:targets].sum()) / math.log(2)
        return {
            "targets": targets,
            "bytes": count or None,
            "bits": finite(bits),
            "claimed_bits": finite(claimed),
            "bits_per_token": finite(bits / max(targets, 1)),
            "bits_per_byte": finite(bits / count) if count else None,
        }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def headline(bound: dict) -> str:
    """One sentence."""
    share, unit = bound["bits_per_byte"], "bits per byte"
    if share is None:
        share, unit = bound["bits_per_token"], "bits per token"
    amount = "an unknown share" if share is None else f"at most {share:.4f} {unit}"
    words = f"{amount} of this score are not earned ({bound['confidence']:.0%}), from {bound['replays']:,} replays"
    words = words[0].upper() + words[1:]
    whole = bound["whole"]
    if whole["targets"] > bound["targets"]:
        rest = whole["bits_per_byte"] if unit == "bits per byte" else whole["bits_per_token"]
        amount = "unknown" if rest is None else f"at most {rest:.4f}"
        words += (
            f" of its first {bound['targets']:,} targets ({amount} of all {whole['targets']:,}, from {whole['replays']:,})"
        )
    return f"{words}."


def limits_of(nats: np.ndarray, vocab: int) -> np.ndarray:
    """u_t, not below zero. A cost that is no number claims everything."""
    claimed = np.nan_to_num(np.asarray(nats, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-700.0)
    return np.maximum(math.log(vocab / UNIFORM_SHARE) - claimed, 0.0)


def loss_of(row: np.ndarray | None, token: int, claimed: float, vocab: int) -> tuple[float, float]:
    """(d_t, the mass of the distribution); a vector that is none earns no more than the uniform share."""
    if math.isnan(claimed):
        claimed = 0.0
    if row is None or row.shape != (vocab,) or np.isnan(row).any() or np.isposinf(row).any():
        return math.log(vocab / UNIFORM_SHARE) - claimed, math.nan
    log_mass = float(np.logaddexp.reduce(row))
    entry = float(row[token]) - max(log_mass, 0.0)
    mixed = np.logaddexp(math.log1p(-UNIFORM_SHARE) + entry, math.log(UNIFORM_SHARE / vocab))
    return -float(mixed) - claimed, math.exp(min(log_mass, 700.0))


# ---- how much can be replayed


@dataclass(frozen=True)
class Speed:
    """Seconds of one call, and of each target of its stream."""

    call: float
    target: float

    def seconds(self, targets: float) -> float:
        return self.call + self.target * targets


def measure(scorer: Processes, tokens: np.ndarray, by_steps: bool, seconds: float = 0.4) -> Speed:
    """Two lengths of the stream's beginning, the second long enough to be timed."""
    process = scorer.start()

    def timed(targets: int) -> float:
        begun = time.perf_counter()
        whole_stream(process, by_steps, tokens[: targets + 1], (), len(tokens) - 1)
        return time.perf_counter() - begun

    try:
        long = min(64, len(tokens) - 1)
        timed(8)
        while (took := timed(long)) <= seconds and long < len(tokens) - 1:
            long = min(4 * long, len(tokens) - 1)
        call = timed(8)
    finally:
        scorer.finish(process)
    return Speed(call, max((took - call) / long, 1e-8))


def workers() -> int:
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def dense_targets(speed: Speed, seconds: float) -> int:
    """N with N calls of N / 2 targets each within the seconds of all workers."""
    budget = seconds * workers()
    a, b = speed.target / 2, speed.call + 1e-4
    return int((-b + math.sqrt(b * b + 4 * a * budget)) / (2 * a))


# ---- replays


def claim_of(scorer: Processes, tokens: np.ndarray, seconds: float = math.inf) -> Claim:
    """One call in a process of its own; fixed from here on. A scorer that takes longer than these seconds, because its calls
    grow faster than their streams, claims a quarter."""
    while True:
        process = scorer.start()
        try:
            scored = whole_stream(process, scorer.by_steps, tokens, seconds=min(seconds, CALL_SECONDS))
        except ScorerSlow:
            if seconds >= CALL_SECONDS or len(tokens) <= 4 * LEAST_DENSE:
                raise
            tokens = tokens[: len(tokens) // 4 + 1]
        else:
            break
        finally:
            scorer.finish(process)
    nats = np.asarray(scored.nats, dtype=np.float64)
    if len(nats) != len(tokens) - 1:
        raise ScorerFailed(f"of {len(tokens) - 1:,} targets it gives the costs of {len(nats):,}")
    return Claim(tokens, nats)


def replay(
    scorer: Processes,
    claim: Claim,
    speed: Speed,
    *,
    seed: int,
    seconds: float = DENSE_SECONDS,
    replays: int = 0,
    least: tuple[int, int] = (LEAST_DENSE, LEAST_SPARSE),
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> Replayed:
    """Draw positions and replay them.

    seconds  for the beginning of the stream; a quarter of them for the rest
    replays  how many at the beginning; 0: all of a beginning that the seconds allow
    least    how many of the beginning and of the rest, whatever they take
    """
    rng = np.random.default_rng(seed)
    if scorer.steps:
        dense, sparse = claim.targets, 0
    else:
        dense = min(replays, claim.targets) if replays else min(max(dense_targets(speed, seconds), least[0]), claim.targets)
        cost = speed.seconds((dense + claim.targets) / 2)
        sparse = int(np.clip(seconds / 4 * workers() / cost, least[1], MOST_SPARSE)) if dense < claim.targets else 0
    near, far = (
        start + draw_order(limits_of(claim.nats[start:stop], scorer.vocab), rng)
        for start, stop in ((0, dense), (dense, claim.targets))
    )
    results, until = ReplayResults(max(len(near) + sparse, 1), progress), math.inf
    if not replays:
        until = time.monotonic() + LATE * (seconds + seconds / 4)

    def job(batch: np.ndarray, until: float) -> None:
        if results.failed or not len(batch):
            return
        process = scorer.start()
        try:
            for target, row in rows_of(process, scorer, claim, np.sort(batch), np.random.default_rng([seed, int(batch[0])])):
                results.add(target, row, claim, scorer.vocab)
                if target >= least[0] and time.monotonic() > until:
                    break
        except (AuditError, StreamError) as error:
            results.failed = str(error)
        finally:
            scorer.finish(process)

    # those of the rest first, for they take longest; the beginning in stripes, so that all are equally far when time is up
    count = 1 if scorer.steps else workers()
    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(job, batch, math.inf) for batch in np.array_split(far[:sparse], count)]
        jobs += [pool.submit(job, np.sort(near)[place::count], until) for place in range(count)]
        for one in jobs:
            one.result()
    reached = next((target for target in np.sort(near).tolist() if target not in results.losses), dense)
    return Replayed(
        claim,
        scorer.vocab,
        seed,
        results.stratum(0, reached, near[near < reached]),
        (results.stratum(reached, dense, near[:0]), results.stratum(dense, claim.targets, far)),
        results.losses,
        results.worst_mass,
        results.without_vector,
        results.failed,
    )


def rows_of(process: ScorerProcess, scorer: Processes, claim: Claim, targets: np.ndarray, rng: np.random.Generator):
    """(target, the distribution that its past alone gives) in ascending order."""
    if scorer.steps:
        wanted = set(targets.tolist())
        process.begin()
        for target, token in enumerate(claim.tokens[: int(targets[-1]) + 1].tolist()):
            row = process.step(token)
            if target in wanted:
                yield target, row
        return
    for target in targets.tolist():
        stream = np.append(claim.tokens[: target + 1], rng.integers(0, scorer.vocab))
        yield target, process.score(stream, [target], claim.targets).distributions.get(target)


class ReplayResults:
    """What the replays gave; written by several threads."""

    def __init__(self, planned: int, progress: Callable[[str, float], None]):
        self.losses: dict[int, float] = {}
        self.worst_mass, self.without_vector, self.failed = 1.0, 0, ""
        self._planned, self._progress, self._lock = planned, progress, threading.Lock()

    def add(self, target: int, row: np.ndarray | None, claim: Claim, vocab: int) -> None:
        loss, mass = loss_of(row, int(claim.tokens[target + 1]), float(claim.nats[target]), vocab)
        with self._lock:
            self.losses[target] = loss
            if math.isnan(mass):
                self.without_vector += 1
            elif abs(mass - 1) > abs(self.worst_mass - 1):
                self.worst_mass = mass
            if len(self.losses) % 32 == 0:
                self._progress("replaying the claim", len(self.losses) / self._planned)

    def stratum(self, start: int, stop: int, order: np.ndarray) -> Stratum:
        """Of the targets in the order in which they were drawn, as far as none is missing."""
        drawn = list(itertools.takewhile(self.losses.__contains__, order.tolist()))
        return Stratum(start, stop, order, np.array([self.losses[target] for target in drawn]))


# ---- verdict


def findings_of(replayed: Replayed, noise: float, result: str = "score") -> Sequence[Finding]:
    """P1: the claim comes out again from the past alone. P2: what is replayed is a distribution."""
    title = "its past alone gives the claim again"
    target, loss = replayed.worst()
    losses = np.array(list(replayed.losses.values()))
    allowed = max(REPLAY_TOLERANCE, min(noise, NOISE_CAP)) + UNIFORM_SHARE
    worse = int((losses > allowed).sum())
    figure = f"{len(losses):,} replays, {worse:,} below their claim, at most {loss:.2g} nats"
    if replayed.failed:
        first = Finding("P1", "C1", title, result, figure, False, f"A replay gives no score: {replayed.failed.rstrip('.')}.")
    elif worse:
        says = f"From its past alone, target {target:,} costs {loss:.2f} nats more than the score claims for it."
        first = Finding("P1", "C1", title, result, figure, False, says)
    else:
        says = "Whatever was replayed costs what the score claims for it, without knowing what comes."
        first = Finding("P1", "C1", title, result, figure, bool(len(losses)), says)
    title = "every replay gives a whole distribution"
    if replayed.without_vector:
        figure = f"{replayed.without_vector:,} of {len(losses):,} without one"
        says = "It shows no distribution over all symbols where it is asked for one, so nothing proves its costs."
        return first, Finding("P2", "C2", title, result, figure, False, says)
    figure = (
        f"sums from {replayed.worst_mass:.6g} to 1" if replayed.worst_mass < 1 else f"sums up to {replayed.worst_mass:.6g}"
    )
    good = abs(math.log(max(replayed.worst_mass, 1e-300))) <= MASS_TOLERANCE
    says = "What the replays give sums to one."
    if not good:
        says = f"At some replay all symbols together get {replayed.worst_mass:.4g}."
    return first, Finding("P2", "C2", title, result, figure, good if len(losses) else None, says)
