"""What a scoring run leaves behind: the readings with their paired gains, where bits went, and every target's cost.

score.jsonl     the stream and what each of its targets cost, a few hundred targets a line
weights.jsonl   the weights of temperature and mixers, span by span
plan.json       what the clock decided; `score RUN --plan FILE` repeats it
"""

import json
import math
from pathlib import Path

import numpy as np

from pgolf.evaluation.evaluate import Evaluation, Reading
from pgolf.evaluation.planner import PlanError
from pgolf.folder import write_whole

TARGETS_PER_LINE = 512
# neighbouring targets share context and luck, so differences are compared over stretches of this many
BLOCK = 512
# tokens from a document's beginning, and tokens of a document
EDGES = (0, 64, 256, 1024, 4096, 16_384, 65_536)


def write_scores(path: Path, tokens: np.ndarray, bytes_per_target: np.ndarray, readings: dict[str, np.ndarray]) -> None:
    """First line: what follows. Then spans of targets: token ids, their bytes, and the nats of every reading."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        head = {"targets": len(tokens) - 1, "readings": list(readings), "unit": "nats"}
        file.write(json.dumps(head) + "\n")
        for start in range(0, len(tokens) - 1, TARGETS_PER_LINE):
            stop = min(start + TARGETS_PER_LINE, len(tokens) - 1)
            line = {
                "start": start,
                "tokens": tokens[start + 1 : stop + 1].tolist(),
                "bytes": bytes_per_target[start:stop].tolist(),
                **{name: [round(float(n), 5) for n in nats[start:stop]] for name, nats in readings.items()},
            }
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    temporary.replace(path)


def write_traces(path: Path, traces: list[dict]) -> None:
    write_whole(path, "".join(json.dumps(trace) + "\n" for trace in traces))


def read_plan(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"{path} is no plan: {error}") from None


def readings_table(evaluation: Evaluation, bytes_per_target: np.ndarray) -> dict[str, dict]:
    """Each reading with its score and, over the one it builds on, its gain in bits per byte and that gain's standard
    error. Readings are paired target by target, so what they have in common does not blur the difference."""
    table = {}
    for name, reading in evaluation.readings.items():
        table[name] = {**reading.score.as_dict(), "seconds": reading.seconds}
        if reading.base:
            gain, error = paired_gain(evaluation.readings[reading.base], reading, bytes_per_target)
            table[name] |= {"over": reading.base, "gain": gain, "gain_error": error}
    return table


def paired_gain(below: Reading, reading: Reading, bytes_per_target: np.ndarray) -> tuple[float, float | None]:
    count, unit = len(bytes_per_target), math.log(2) * int(bytes_per_target.sum())
    differences = below.nats[:count] - reading.nats[:count]
    blocks = np.add.reduceat(differences, np.arange(0, count, BLOCK))
    error = float(blocks.std(ddof=1)) * math.sqrt(len(blocks)) / unit if len(blocks) > 1 else None
    return float(differences.sum()) / unit, error


def where_bits_go(tokens: np.ndarray, bos: int, bytes_per_target: np.ndarray, readings: dict[str, np.ndarray]) -> dict:
    """Bits per byte of each reading by position in the document and by the document's length, in tokens."""
    targets = np.arange(len(tokens) - 1)
    begins = np.union1d([0], np.flatnonzero(tokens[:-1] == bos))
    document = np.searchsorted(begins, targets, side="right") - 1
    lengths = np.diff(np.append(begins, len(targets)))
    found = {}
    for name, numbers in (("by_position", targets - begins[document]), ("by_length", lengths[document])):
        cell = np.searchsorted(EDGES, numbers, side="right") - 1
        spent = np.bincount(cell, bytes_per_target, minlength=len(EDGES))
        present = np.flatnonzero(spent)
        found[name] = {"from": [EDGES[i] for i in present], "bytes": spent[present].astype(int).tolist()}
        for reading, nats in readings.items():
            bits = np.bincount(cell, nats[: len(targets)], minlength=len(EDGES)) / math.log(2)
            found[name][reading] = (bits[present] / spent[present]).tolist()
    return found
