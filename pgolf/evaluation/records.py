"""What a scoring run leaves behind beside score.jsonl: the table of results with their paired gains, and

weights.jsonl          the weights of temperature and mixers, span by span
top_predictions.json   the likeliest tokens before each token of two excerpts
plan.json              what the clock decided; `score RUN --plan FILE` repeats it
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgolf.evaluation.evaluate import Evaluation, Result
from pgolf.evaluation.planner import PlanError
from pgolf.evaluation.stream import document_starts
from pgolf.evaluation.top_predictions import TopPredictions
from pgolf.files import write_whole


def write_top_predictions(
    path: Path,
    top: TopPredictions,
    tokens: np.ndarray,
    bytes_per_target: np.ndarray,
    results: dict[str, np.ndarray],
    pieces: Sequence[bytes],
) -> None:
    """Each excerpt with its tokens, their nats by every predictor, and the likeliest tokens before each by some of them.
    Where the guesses stop, the time for them was used up."""
    seen: set[int] = set()
    excerpts = []
    for excerpt in top.excerpts:
        targets = range(excerpt.start, excerpt.stop)
        guesses = {name: [known[at] for at in targets if at in known] for name, known in top.guesses.items()}
        mine = tokens[excerpt.start + 1 : excerpt.stop + 1].tolist()
        seen.update(mine, (token for places in guesses.values() for place in places for token, _ in place))
        span = slice(excerpt.start, excerpt.stop)
        excerpts.append(
            {
                "why": excerpt.why,
                "start": excerpt.start,
                "document": excerpt.document,
                "tokens": mine,
                "bytes": bytes_per_target[span].tolist(),
                "nats": {name: [round(float(n), 4) for n in nats[span]] for name, nats in results.items()},
                "guesses": {
                    name: [[(token, round(share, 4)) for token, share in place] for place in places]
                    for name, places in guesses.items()
                },
            }
        )
    texts = {token: pieces[token].decode("utf-8", errors="backslashreplace") for token in sorted(seen)}
    write_whole(path, json.dumps({"pieces": texts, "excerpts": excerpts}, separators=(",", ":")) + "\n")


def write_traces(path: Path, traces: list[dict]) -> None:
    write_whole(path, "".join(json.dumps(trace) + "\n" for trace in traces))


def read_plan(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"{path} is no plan: {error}") from None


def results_table(evaluation: Evaluation, tokens: np.ndarray, bos: int, bytes_per_target: np.ndarray) -> dict[str, dict]:
    """Each reading with its score and, over the one it builds on, its gain in bits per byte and that gain's standard
    error. Predictors are paired document by document, so what they have in common does not blur the difference."""
    starts = document_starts(tokens, bos)
    table = {}
    for name, result in evaluation.results.items():
        table[name] = {**result.score.as_dict(), "seconds": result.seconds}
        if result.base:
            gain, error = paired_gain(evaluation.results[result.base], result, bytes_per_target, starts)
            table[name] |= {"baseline": result.base, "gain": gain, "gain_error": error}
    return table


def paired_gain(below: Result, result: Result, bytes_per_target: np.ndarray, starts: np.ndarray) -> tuple[float, float | None]:
    """The gain, and the standard error of a ratio: of what each document gained to the bytes it has. Tokens of one
    document share a subject and luck; documents are as good as drawn one by one."""
    count = len(bytes_per_target)
    gained = np.add.reduceat(below.nats[:count] - result.nats[:count], starts) / math.log(2)
    sizes = np.add.reduceat(bytes_per_target.astype(np.int64), starts)
    gain, documents = gained.sum() / sizes.sum(), len(starts)
    if documents < 2:
        return float(gain), None
    apart = ((gained - gain * sizes) ** 2).sum() * documents / (documents - 1)
    return float(gain), float(math.sqrt(apart) / sizes.sum())
