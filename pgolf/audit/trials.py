"""What is done with a scorer: the calls of an audit, each made once and judged by several tests.

The scorer is asked for costs and, at a few places, for whole distributions. It is never told which trial this is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from pgolf.audit import streams
from pgolf.audit.interface import AuditError, Claims, Scored, as_scorer, claims_of
from pgolf.evaluation.stream import StreamError

ByResult = dict[str, Scored]


class Subject(Protocol):
    """One or more predictors of the same stream, scored together."""

    vocab: int
    claims: Claims
    results: dict[str, bool]
    """By name, whether it calls itself a code length."""

    def score(self, tokens: np.ndarray, probes: Sequence[int] = (), total: int | None = None) -> ByResult: ...


class OneScorer:
    """A scorer as a subject of one predictor."""

    def __init__(self, scorer, name: str = "score"):
        self.scorer, self.name = as_scorer(scorer, name), name
        self.vocab, self.claims = self.scorer.vocab, claims_of(scorer)
        self.results: dict[str, bool] = {name: True}

    def score(self, tokens, probes=(), total=None) -> ByResult:
        return {self.name: self.scorer.score(tokens, tuple(probes), total)}

    def on_ranks(self, ranks: int) -> Subject | None:
        """The same scorer on several processes, if it says how."""
        spread = getattr(self.scorer, "on_ranks", None)
        return OneScorer(spread(ranks), self.name) if spread else None


@dataclass(frozen=True)
class Substituted:
    """What a target would have cost, had it been another symbol: all symbols, or some drawn from a known law."""

    target: int
    symbols: np.ndarray
    log_law: np.ndarray | None
    """None: all symbols of the vocabulary, each once."""
    nats: dict[str, np.ndarray]


@dataclass(frozen=True)
class Effort:
    """How much is tried. What is here is always tried; only the size of the sample follows the clock."""

    targets: int = 1200
    probes: int = 48
    cuts: int = 5
    substitutions: int = 2
    """Places at which every symbol is tried in the target's stead,"""
    samples: int = 48
    """or so many symbols, where the vocabulary is too large for that."""


@dataclass
class Trials:
    tokens: np.ndarray
    vocab: int
    probes: list[int] = field(default_factory=list)
    plain: ByResult = field(default_factory=dict)
    probed: ByResult = field(default_factory=dict)
    flipped: list[tuple[int, ByResult]] = field(default_factory=list)
    cut_short: list[tuple[int, ByResult]] = field(default_factory=list)
    canaries: tuple[int, ByResult] | None = None
    uniform: tuple[np.ndarray, ByResult] | None = None
    drawn: tuple[streams.Drawn, ByResult] | None = None
    sprinkled: tuple[streams.Drawn, ByResult] | None = None
    neighbour: list[tuple[int, int, ByResult]] = field(default_factory=list)
    substituted: list[Substituted] = field(default_factory=list)
    ranks: ByResult = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Trials that the guard of the stream stopped, and what it said."""
    miscounted: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Predictors that gave another number of costs than there were targets: both numbers."""

    @property
    def targets(self) -> int:
        return len(self.tokens) - 1


def run_trials(
    subject: Subject,
    tokens: np.ndarray,
    effort: Effort,
    *,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> Trials:
    """All calls, in an order that lets the first ones say where the later ones should look."""
    rng = np.random.default_rng(seed)
    tokens = np.asarray(tokens).astype(np.int64)
    tokens.setflags(write=False)
    vocab, bos = subject.vocab, subject.claims.bos
    trials = Trials(tokens, vocab)
    targets = trials.targets

    calls, done = 10 + effort.cuts + effort.substitutions * min(vocab, effort.samples), 0

    def call(name: str, stream: np.ndarray, probes=(), total: int | None = None, by: Subject = subject) -> ByResult:
        nonlocal done
        progress(name, min(done / calls, 1.0))
        done += 1
        stream.setflags(write=False)
        try:
            by_result = by.score(stream, probes, total)
        except AuditError:
            raise
        except StreamError as error:
            # the guard of the stream has caught it reading ahead or learning first
            trials.refused[name] = str(error)
            return {}
        except Exception as error:
            raise AuditError(f"the scorer failed ({name}): {type(error).__name__}: {error}") from error
        return {result: one_cost_each(scored, result, len(stream) - 1) for result, scored in by_result.items()}

    def one_cost_each(scored: Scored, result: str, targets: int) -> Scored:
        """A missing cost is not a number, so that every test can go on."""
        nats = np.asarray(scored.nats, dtype=np.float64).reshape(-1)
        if len(nats) == targets:
            return replace(scored, nats=nats)
        trials.miscounted.setdefault(result, (len(nats), targets))
        return replace(scored, nats=np.full(targets, np.nan))

    trials.plain = call("as it is", tokens)
    if not trials.plain:
        return trials
    results = list(trials.plain.values())
    tried = [min(12, targets - 1), targets // 2][: effort.substitutions]
    first = max(results, key=lambda one: len(streams.edges_of(one, targets)))
    cuts = streams.places_to_cut(first, targets, effort.cuts, rng)
    trials.probes = sorted({*streams.places_to_probe(results, tokens, bos, effort.probes, rng), *tried, *cuts})
    trials.probed = call("with distributions", tokens, trials.probes)
    for cut in cuts:
        changed = streams.with_other_future(tokens, cut, vocab, rng)
        trials.flipped.append((cut, call(f"another future from {cut:,}", changed, [p for p in trials.probes if p <= cut])))
    middle = cuts[len(cuts) // 2]
    whole = call("cut short", tokens[: middle + 2], [p for p in trials.probes if p <= middle], targets)
    trials.cut_short.append((middle, whole))
    changed, kept = streams.with_canaries(tokens, vocab)
    trials.canaries = kept, call("rare symbols at the end", changed)
    coins = streams.uniform(len(tokens), vocab, rng, int(tokens[0]))
    trials.uniform = coins, call("uniform noise", coins)
    law = streams.drawn(tokens, vocab, rng)
    trials.drawn = law, call("symbols of a known law", law.tokens)
    noise = streams.sprinkled(tokens, vocab, rng)
    trials.sprinkled = noise, call("noise in places", noise.tokens)
    if subject.claims.isolated and bos is not None:
        _try_neighbours(trials, call, bos, rng)
    spread = getattr(subject, "on_ranks", lambda ranks: None)(2)
    if spread is not None:
        trials.ranks = call("on two ranks", tokens, by=spread)
    for place in dict.fromkeys(tried):
        trials.substituted.append(_substitute(trials, call, place, effort.samples, rng))
    progress("tried", 1.0)
    return trials


def _try_neighbours(trials: Trials, call, bos: int, rng: np.random.Generator) -> None:
    """Change the end of a document and look at the next one."""
    starts = streams.document_starts(trials.tokens, bos)
    usable = [int(start) for start in starts if start >= 1 and trials.tokens[start] != bos]
    for start in usable[:2]:
        changed = trials.tokens.copy()
        others = [symbol for symbol in range(trials.vocab) if symbol not in (bos, int(trials.tokens[start]))]
        changed[start] = rng.choice(others)
        after = [int(other) for other in starts if other > start]
        end = after[0] if after else trials.targets
        probes = [place for place in trials.probes if start < place < end]
        trials.neighbour.append((start, end, call("another neighbour", changed, probes)))


def _substitute(trials: Trials, call, place: int, samples: int, rng: np.random.Generator) -> Substituted:
    """Try other symbols in a target's stead, in a stream that ends there."""
    symbols, log_law = np.arange(trials.vocab), None
    if trials.vocab > samples:
        law = _law_for(trials, place)
        symbols = rng.choice(trials.vocab, samples, p=law)
        log_law = np.log(law[symbols])
    nats: dict[str, list[float]] = {}
    for symbol in symbols:
        changed = trials.tokens[: place + 2].copy()
        changed[-1] = symbol
        for name, scored in call("other symbols", changed, total=trials.targets).items():
            nats.setdefault(name, []).append(float(scored.nats[-1]))
    complete = {name: np.array(costs) for name, costs in nats.items() if len(costs) == len(symbols)}
    return Substituted(place, symbols, log_law, complete)


def _law_for(trials: Trials, place: int) -> np.ndarray:
    """Half uniform, half what the predictors say is likely there, if they say so."""
    laws = [np.full(trials.vocab, 1 / trials.vocab)]
    for scored in trials.probed.values():
        row = np.asarray(scored.distributions.get(place, ()), dtype=np.float64)
        if row.shape == laws[0].shape and np.isfinite(row.max()):
            weights = np.exp(row - row.max())
            laws.append(weights / weights.sum())
    return 0.5 * laws[0] + 0.5 * np.mean(laws[1:] or laws, 0)
