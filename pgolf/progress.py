"""What a person sees while it runs: one live line on a terminal, plain lines elsewhere, nothing but on rank 0.

Stages emit events (dictionaries with a `kind`); everything that is said goes to log.txt too.
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pgolf.files import system_error

if TYPE_CHECKING:
    from rich.live import Live


class Display:
    def __init__(self, log: Path | None = None, *, events: Path | None = None, active=True, plain_seconds=5.0):
        self.active = active
        self.terminal = active and sys.stdout.isatty()
        self._plain_seconds = plain_seconds
        self._last_plain = -math.inf
        self._live: Live | None = None
        self._begun, self._done = time.monotonic(), 1.0
        # line buffered, so that a killed run has lost nothing it said
        self._log = open(log, "a", encoding="utf-8", buffering=1) if active and log else None
        self._events = open(events, "a", encoding="utf-8", buffering=1) if active and events else None

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.active:
            return
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)
        if self._log:
            _write(self._log, text + "\n")

    def event(self, event: dict) -> None:
        """Write an event to the training log; it is not printed."""
        if self._events:
            _write(self._events, json.dumps(event) + "\n")

    def status(self, text: str, done: float, *, left: bool = True) -> None:
        """A line that replaces itself on a terminal; elsewhere one line every few seconds. `done` is a share of the whole,
        from which the time left follows, unless the text has it; 0: not known."""
        if not self.active:
            return
        now = time.monotonic()
        if done < self._done or not done:
            self._begun = now
        self._done = done
        seconds = now - self._begun
        if left and seconds >= 1 and 0 < done < 1:
            text += f", {clock(seconds * (1 - done) / done)} left"
        if self.terminal:
            self._show_live(text, done)
        elif done >= 1 or time.monotonic() - self._last_plain >= self._plain_seconds:
            self._last_plain = time.monotonic()
            self.say(text)

    def _show_live(self, text: str, done: float) -> None:
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            self._live = Live(refresh_per_second=8, transient=True)
            self._live.start()
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=1.0, completed=min(done, 1.0), width=24, pulse=not done), text)
        self._live.update(grid)

    def settle(self) -> None:
        """Take the live line away; what was said stays."""
        if self._live:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        self.settle()
        for file in (self._log, self._events):
            if file:
                with contextlib.suppress(OSError):  # of a line that could not be written, which was told
                    file.close()

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _write(file: TextIO, text: str) -> None:
    try:
        file.write(text)
    except OSError as error:
        raise system_error("write", file.name, error) from None


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
