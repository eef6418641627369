"""Score a validation stream with a fixed model: windows side by side, and sliding."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pgolf.config import EvaluationSettings
from pgolf.evaluation.metric import Score, score_of
from pgolf.evaluation.sliding import gather, score_windows, share
from pgolf.evaluation.stream import ScoredStream
from pgolf.evaluation.windows import published_tail, sliding_windows


@dataclass(frozen=True)
class Reading:
    """One way of scoring the stream: its score, what it took, and the nats of each target."""

    score: Score
    seconds: float
    nats: np.ndarray


def evaluate(
    model,
    tokens: np.ndarray,
    byte_table,
    settings: EvaluationSettings,
    *,
    device="cpu",
    rank: int = 0,
    world: int = 1,
    report: Callable[[str, float], None] = lambda name, share: None,
) -> dict[str, Reading]:
    """All readings of `tokens` that the settings ask for. `report` hears the name of a reading and the share done."""
    bytes_per_target = byte_table.count(tokens[:-1], tokens[1:])
    readings = {}
    passes = {"non_overlapping": settings.window}
    if settings.sliding:
        passes["sliding"] = settings.stride
    for name, stride in passes.items():
        begun = time.perf_counter()
        stream = ScoredStream(tokens)
        windows = sliding_windows(len(stream), settings.window, stride)
        opened = stream.open(stream.last)

        def score(plan, opened=opened, name=name):
            mine = share(plan, rank, world)
            todo, done = sum(w.scored for w in mine), 0

            def advance(count):
                nonlocal done
                done += count
                report(name, done / max(todo, 1))

            return gather(score_windows(model, opened, mine, batch=settings.batch, device=device, progress=advance), world)

        nats = score(windows)
        repeated = None
        if name == "sliding" and settings.published_tail:
            agree, tail = published_tail(len(stream), settings.window, stride)
            repeated = np.concatenate([nats[:agree], score(tail)])
            targets = [np.arange(agree), *[np.arange(w.score_from, w.stop) for w in tail]]
            repeated_bytes = bytes_per_target[np.concatenate(targets)]
        stream.commit({name: nats})
        nats = stream.ledger.finished()[name]
        readings[name] = Reading(score_of(nats, bytes_per_target), time.perf_counter() - begun, nats)
        if repeated is not None:
            readings["sliding_published"] = Reading(score_of(repeated, repeated_bytes, legal=False), 0.0, repeated)
    return readings
