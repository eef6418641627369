"""Where a run's figures also go, beside its own files: TensorBoard, trackio, Weights & Biases. `training.sinks` names them.

A sink gets the events of train.jsonl as they are written, and the figures of summary.json when the run has been scored, from
the first rank alone. One that fails is closed with a word about it; the run goes on.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pgolf.config import Settings
from pgolf.config.load import to_table
from pgolf.errors import PgolfError
from pgolf.summary import Summary

PROJECT = "pgolf"


def run_name(folder: Path) -> str:
    """Of a run in a service: its folder's name, and what tells folders of one name apart. A resumed run keeps it."""
    path = folder.resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


class SinkError(PgolfError):
    """A sink that cannot be written to, in one line."""


class Sink(Protocol):
    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, settings: Settings):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """SQLite in $TRACKIO_DIR, or in the cache of Hugging Face: `trackio show`."""

    def __init__(self, folder: Path, settings: Settings):
        import trackio

        plain = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        self.finish = trackio.finish
        self.run = trackio.init(PROJECT, run_name(folder), config=to_table(settings), resume="allow", **plain)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.finish()


class WandB:
    """A run of that service, or with WANDB_MODE=offline files in the run's folder."""

    def __init__(self, folder: Path, settings: Settings):
        import wandb

        known = {"name": folder.resolve().name, "id": run_name(folder), "dir": folder, "config": to_table(settings)}
        self.run = wandb.init(project=PROJECT, resume="allow", **known)

    def log(self, figures: dict[str, float], step: int) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()


SINKS: dict[str, Callable[[Path, Settings], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}


def check_sinks(settings: Settings) -> None:
    """Whether the packages of the sinks are there, before anything is begun."""
    for name in settings.training.sinks:
        if importlib.util.find_spec(name) is None:
            raise SinkError(f"training.sinks names {name}, which is not installed: pip install {name}")


class Sinks:
    """The sinks of a run; none where another rank is the first.

    say  gets the word about a sink that fails
    """

    def __init__(self, settings: Settings, folder: Path, say: Callable[[str], None], *, active: bool = True):
        check_sinks(settings)
        self.say, self.open = say, {}
        for name in settings.training.sinks if active else ():
            try:
                self.open[name] = SINKS[name](folder, settings)
            except Exception as error:  # of another package, which may raise what it likes
                raise SinkError(f"the sink {name} cannot be opened: {_line(error)}; mend it, or leave it out") from error

    def event(self, event: dict) -> None:
        self._each(lambda sink: sink.log(figures, event["step"]) if (figures := figures_of_event(event)) else None)

    def summary(self, summary: Summary) -> None:
        step = summary.train.steps if summary.train else 0
        self._each(lambda sink: sink.log(figures_of_summary(summary), step))

    def __enter__(self) -> "Sinks":
        return self

    def __exit__(self, *_) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, do: Callable[[Sink], None]) -> None:
        for name, sink in list(self.open.items()):
            try:
                do(sink)
            except Exception as error:
                del self.open[name]
                self.say(f"the sink {name} gets nothing more: {_line(error)}")


def figures_of_event(event: dict) -> dict[str, float]:
    """The numbers of a step or of a validation; nothing of other events."""
    prefix = {"step": "train", "validation": "validation"}.get(event["kind"])
    if prefix is None:
        return {}
    return {f"{prefix}/{name}": value for name, value in event.items() if isinstance(value, float)}


def figures_of_summary(summary: Summary) -> dict[str, float]:
    figures = {f"score/{name}": score.bpb for name, score in summary.score.items()}
    if summary.main_score:
        figures["score/main"] = summary.main_score.bpb
    if summary.artifact:
        figures["artifact/total_bytes"] = float(summary.artifact.total_bytes)
    if summary.train:
        figures["train/seconds"] = summary.train.seconds
    if summary.scoring:
        figures["scoring/seconds"] = summary.scoring.seconds
    return figures


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
