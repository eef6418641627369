"""A run is a folder. This file knows its names, writes them whole or not at all, and knows nothing of what is in them."""

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.summary import Summary, read_summary, write_summary


class FolderError(PgolfError):
    """A run folder that cannot be used, in one line."""


class RunFolder:
    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.toml"
        self.train_log = self.path / "train.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.weights = self.path / "weights.safetensors"
        self.artifact = self.path / "model.pgolf"
        self.quantisation = self.path / "quantisation.json"
        self.scores = self.path / "score.jsonl"
        self.weights_log = self.path / "weights.jsonl"
        self.top_predictions = self.path / "top_predictions.json"
        self.plan = self.path / "plan.json"
        self.summary = self.path / "summary.json"
        self.log = self.path / "log.txt"
        self.pictures = self.path / "pictures"
        self.report = self.path / "report.html"

    @classmethod
    def create(cls, path: str | Path, *, first: bool = True) -> "RunFolder":
        """A new run. A folder that holds one already is left alone; only the first of many ranks looks."""
        folder = cls(path)
        if first and folder.config.exists():
            raise FolderError(f"{folder.path} holds a run already; give --resume to continue it, or another --out")
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{folder.path} cannot be made: {error.strerror}") from None
        if not os.access(folder.path, os.W_OK):
            raise FolderError(f"{folder.path} cannot be written to; give another --out")
        return folder

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        folder = cls(path)
        if not folder.config.exists():
            raise FolderError(f"{folder.path} is no run folder: it has no config.toml")
        return folder

    def read_summary(self) -> Summary:
        return read_summary(self.summary)

    def update_summary(self, **parts) -> Summary:
        summary = replace(self.read_summary(), **parts)
        write_summary(self.summary, summary)
        return summary


def new_run_path(preset: str) -> Path:
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}"
