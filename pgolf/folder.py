"""A run is a folder: the names of its files, and the lock that lets one process at a time write; not the files' formats."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pgolf.errors import PgolfError
from pgolf.files import sweep
from pgolf.process import rank
from pgolf.summary import STAGES, Summary, read_summary, write_summary

# tells the processes that a stage starts which folder is locked for them
LOCKED = "PGOLF_LOCKED"


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
    def create(cls, path: str | Path) -> "RunFolder":
        """A folder for a new run."""
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{folder.path} cannot be made: {error.strerror}; give another --out") from None
        if not os.access(folder.path, os.W_OK):
            raise FolderError(f"{folder.path} cannot be written to; give another --out")
        return folder

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        folder = cls(path)
        try:
            holds_run = folder.config.exists()
        except OSError as error:
            raise FolderError(f"{folder.path} cannot be read: {error.strerror}") from None
        if not holds_run:
            raise FolderError(f"{folder.path} is no run folder: it has no config.toml")
        return folder

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A block in which no other process may write into the folder; those that this one starts may. Of many ranks, the
        first one asks for all."""
        where = str(self.path.resolve())
        if rank() or os.environ.get(LOCKED) == where:
            yield
            return
        try:
            handle = os.open(where, os.O_RDONLY)
        except OSError as error:
            raise FolderError(f"{self.path} cannot be opened: {error.strerror}") from None
        before = os.environ.get(LOCKED)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderError(
                    f"{self.path} is being written by {_holder(handle)}; wait until it is done, or end it"
                ) from None
            # children keep the lock as long as they live
            os.set_inheritable(handle, True)
            os.environ[LOCKED] = where
            sweep(self.path)
            yield
        finally:
            os.close(handle)
            os.environ.pop(LOCKED, None)
            if before is not None:
                os.environ[LOCKED] = before

    def read_summary(self) -> Summary:
        return read_summary(self.summary)

    def update_summary(self, **parts) -> Summary:
        summary = replace(self.read_summary(), **parts)
        write_summary(self.summary, summary)
        return summary

    def withdraw(self, stage: str) -> None:
        """Take back what the summary says of a stage and of those after it, before the first of its files is replaced: what
        is cut off then is not taken for finished."""
        if not self.summary.exists():
            return
        empty, names = Summary(), list(STAGES)
        parts = [part for name in names[names.index(stage) :] for part in STAGES[name]]
        self.update_summary(**{part: getattr(empty, part) for part in parts})


def _holder(handle: int) -> str:
    """Who holds the lock, by Linux's list of locks."""
    inode = os.fstat(handle).st_ino
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "FLOCK" in words and words[-3].endswith(f":{inode}"):
                return f"process {words[-4]}"
    return "another process"


def new_run_path(preset: str) -> Path:
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{preset}"
