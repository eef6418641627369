"""The figures of a run that a study reads off, by name; less of them is better."""

import json
from collections.abc import Callable
from typing import Any

from pgolf.folder import RunFolder


def validation_loss(folder: RunFolder) -> float | None:
    """The last loss on validation text in the training log."""
    loss = None
    if folder.train_log.exists():
        for line in folder.train_log.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that a killed run did not finish
            if isinstance(event, dict) and event.get("kind") == "validation":
                loss = event.get("loss")
    return loss


# name, the part of the summary that has to be there, and how it is read
OF_SUMMARY: dict[str, tuple[str, Callable[[Any], float]]] = {
    "train.loss": ("train", lambda train: train.loss),
    "train.seconds": ("train", lambda train: train.seconds),
    "artifact.total_bytes": ("artifact", lambda artifact: artifact.total_bytes),
    "scoring.seconds": ("scoring", lambda scoring: scoring.seconds),
    "score.main": ("main_score", lambda score: score.bpb),
}
FIGURES = ("validation.loss", *OF_SUMMARY)


def figures_of(folder: RunFolder) -> dict[str, float]:
    """Every figure that the run's files know, the score of each predictor included."""
    summary = folder.read_summary()
    figures = {name: read(there) for name, (part, read) in OF_SUMMARY.items() if (there := getattr(summary, part)) is not None}
    figures |= {f"score.{name}": score.bpb for name, score in summary.score.items()}
    loss = validation_loss(folder)
    return figures if loss is None else {**figures, "validation.loss": loss}
