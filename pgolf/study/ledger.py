"""The ledger of a study: a line of JSON for everything that happened, appended and never changed.

    {"kind": "begin", "run", "arm", "seed", "stage", "time", "settings", "commit", "host", "executor", "attempt"}
    {"kind": "end",   "run", "arm", "seed", "stage", "time", "exit", "reason", "figures", "device", "corpus", "seconds"}
    {"kind": "gate",  "run", "arm", "seed", "stage", "time", "reason"}

A stage that begins and does not end was killed with the study; it is begun again. Nothing else is remembered anywhere.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.errors import PgolfError


class LedgerError(PgolfError):
    """A ledger that cannot be used, in one line."""


@dataclass
class State:
    """What the ledger says of one run."""

    done: set[str] = field(default_factory=set)
    """Stages that ended well."""
    crashed: dict[str, str] = field(default_factory=dict)
    """Stages whose last attempt did not, and why."""
    attempts: dict[str, int] = field(default_factory=dict)
    stopped: str = ""
    """By a gate: why."""
    settings: str = ""
    """Digest of the settings that it was begun with."""


class Ledger:
    def __init__(self, path: Path):
        self.path = path

    def append(self, kind: str, **about) -> None:
        """On disk before this returns."""
        line = json.dumps({"kind": kind, **about, "time": round(time.time(), 3)}, sort_keys=True) + "\n"
        try:
            with open(self.path, "ab+") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    # a line that was cut off when the study was killed ends here
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be written: {error.strerror}") from None

    def lines(self) -> Iterator[dict]:
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"kind", "run", "stage"} <= line.keys():
                yield line

    def states(self) -> dict[str, State]:
        """By run."""
        states: dict[str, State] = {}
        for line in self.lines():
            state, stage = states.setdefault(line["run"], State()), line["stage"]
            if line["kind"] == "begin":
                state.attempts[stage] = state.attempts.get(stage, 0) + 1
                state.settings = line.get("settings", "")
                state.crashed.pop(stage, None)
            elif line["kind"] == "end" and line.get("exit") == 0:
                state.done.add(stage)
                state.crashed.pop(stage, None)
            elif line["kind"] == "end":
                state.crashed[stage] = str(line.get("reason", ""))
            elif line["kind"] == "gate":
                state.stopped = str(line.get("reason", ""))
        return states

    @contextmanager
    def held(self) -> Iterator[None]:
        """One driver at a time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LedgerError(f"{self.path.parent} is in use by another pgolf study; wait for it, or stop it") from None
            yield
