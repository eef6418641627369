"""score.jsonl: the stream and what each of its targets cost, a few hundred targets a line."""

import json
from pathlib import Path

import numpy as np

TARGETS_PER_LINE = 512


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
