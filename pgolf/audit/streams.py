"""The streams that a scorer is tried on, all made from a stretch of real text: its future changed, cut short, followed by
rare symbols, replaced by noise in full or in places; and the places where trouble hides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.audit.interface import Scored

# of targets that are replaced by draws of a known law, and by uniform ones
DRAWN_SHARE, SPRINKLED_SHARE = 0.1, 0.01
LEAST_DRAWN, LEAST_SPRINKLED = 100, 40
CANARIES = 32


def with_other_future(tokens: np.ndarray, cut: int, vocab: int, rng: np.random.Generator) -> np.ndarray:
    """Target `cut` and all after it are others."""
    changed = tokens.copy()
    changed[cut + 1 :] = rng.integers(0, vocab, len(tokens) - cut - 1)
    changed[cut + 1] = (int(tokens[cut + 1]) + rng.integers(1, vocab)) % vocab
    return changed


def with_canaries(tokens: np.ndarray, vocab: int) -> tuple[np.ndarray, int]:
    """The last targets are symbols that the stream does not have, the highest first (or its rarest ones); and the first of
    these targets."""
    count = min(CANARIES, (len(tokens) - 1) // 4)
    seen = np.bincount(tokens[: len(tokens) - count], minlength=vocab)
    rare = sorted(range(vocab), key=lambda symbol: (seen[symbol], -symbol))[:CANARIES]
    changed = tokens.copy()
    changed[len(tokens) - count :] = np.resize(rare, count)
    return changed, len(tokens) - 1 - count


def uniform(length: int, vocab: int, rng: np.random.Generator, first: int) -> np.ndarray:
    """Coin flips: no code can spend less than ln V on each in the long run."""
    tokens = rng.integers(0, vocab, length)
    tokens[0] = first
    return tokens


@dataclass(frozen=True)
class Drawn:
    """A stream in which the targets at some places were drawn from a known law."""

    tokens: np.ndarray
    places: np.ndarray
    log_law: np.ndarray
    """The log-probability under that law of what was drawn, at each place."""


def drawn(tokens: np.ndarray, vocab: int, rng: np.random.Generator) -> Drawn:
    """One target in ten (of a short text more) comes from half uniform, half what follows the token before it elsewhere in
    this text."""
    targets = len(tokens) - 1
    count = max(1, int(targets * DRAWN_SHARE), min(LEAST_DRAWN, targets // 3))
    places = np.sort(rng.choice(targets, count, replace=False))
    changed, log_law = tokens.copy(), np.empty(len(places))
    for i, place in enumerate(places):
        followers = tokens[np.flatnonzero(tokens[:-1] == changed[place]) + 1]
        after = np.bincount(followers, minlength=vocab) + 0.01
        law = 0.5 / vocab + 0.5 * after / after.sum()
        changed[place + 1] = rng.choice(vocab, p=law / law.sum())
        log_law[i] = np.log(law[changed[place + 1]])
    return Drawn(changed, places, log_law)


def sprinkled(tokens: np.ndarray, vocab: int, rng: np.random.Generator) -> Drawn:
    """One target in a hundred, and at least some, is uniform noise."""
    targets = len(tokens) - 1
    count = min(max(LEAST_SPRINKLED, int(targets * SPRINKLED_SHARE)), targets)
    places = np.sort(rng.choice(targets, count, replace=False))
    changed = tokens.copy()
    changed[places + 1] = rng.integers(0, vocab, count)
    return Drawn(changed, places, np.full(count, -np.log(vocab)))


# ---- places


def document_starts(tokens: np.ndarray, bos: int | None) -> np.ndarray:
    """The targets that open a document, without the stream's first."""
    return np.flatnonzero(tokens[1:] == bos) if bos is not None else np.empty(0, np.int64)


def commits_of(scored: Scored) -> list[tuple[int, int]]:
    return [(event[1], event[2]) for event in scored.events or () if event[0] == "commit"]


def edges_of(scored: Scored, targets: int) -> list[int]:
    """Where a chunk ends and another begins, as far as the log of commits and lessons tells."""
    spans = [(event[1], event[2]) for event in scored.events or () if event[2] - event[1] > 1]
    return sorted({stop for _, stop in spans if 0 < stop < targets})


def extremes_of(scored: Scored, count: int = 2) -> list[int]:
    """Targets where a remarkable number, or the cost itself, is largest or smallest."""
    targets: list[int] = []
    for values in (scored.nats, *scored.remarkable.values()):
        order = np.argsort(np.nan_to_num(np.asarray(values, dtype=np.float64)), kind="stable")
        targets += [*order[:count].tolist(), *order[-count:].tolist()]
    return targets


def places_to_probe(
    scored: Sequence[Scored], tokens: np.ndarray, bos: int | None, count: int, rng: np.random.Generator
) -> list[int]:
    """First targets, last ones, both sides of chunk edges and document starts, extremes; the rest at random."""
    targets = len(tokens) - 1
    starts = document_starts(tokens, bos)
    groups = [[0, 1, 2, targets - 1, targets - 2]]
    groups += [sorted({place for one in scored for place in extremes_of(one)})]
    groups += [[edge + step for one in scored for edge in edges_of(one, targets)[:3] for step in (-1, 0)]]
    groups += [[int(start) + step for start in starts[:3] for step in (0, 1, 2)]]
    # a fair share for each kind, so that none crowds out the others
    wanted: list[int] = []
    for group in groups:
        wanted += list(dict.fromkeys(group))[: max(4, count // 4)]
    places = list(dict.fromkeys(place for place in wanted if 0 <= place < targets))[:count]
    rest = np.setdiff1d(np.arange(targets), places)
    more = rng.choice(rest, max(0, min(count - len(places), len(rest))), replace=False)
    return sorted([*places, *more.tolist()])


def places_to_cut(scored: Scored, targets: int, count: int, rng: np.random.Generator) -> list[int]:
    """Targets whose future is changed: within a chunk, early, on both sides of an edge, close to the end, and where
    something remarkable is."""
    edges = edges_of(scored, targets)
    wanted = [((edges[-1] if edges else 0) + targets) // 2, min(5, targets // 2)]
    if edges:
        wanted += [edges[0] - 1, edges[0]]
    wanted.append(targets - 3)
    for values in scored.remarkable.values():
        wanted.append(int(np.argmax(np.nan_to_num(values))))
    wanted += sorted(rng.integers(0, targets, count).tolist())
    return sorted(list(dict.fromkeys(place for place in wanted if 0 <= place < targets))[:count])
