"""A run folder's files as plain values. What is missing or damaged is noted and left out."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.report.scores import Breakdown, read_scores
from pgolf.score_log import ODD, ScoreLogError
from pgolf.summary import Summary, SummaryError, read_summary


@dataclass
class Run:
    path: Path
    config: dict = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    events: list[dict] = field(default_factory=list)
    traces: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)
    plan: dict = field(default_factory=dict)
    audit: dict = field(default_factory=dict)
    quantisation: dict = field(default_factory=dict)
    top_predictions: dict = field(default_factory=dict)
    scores: Breakdown | None = None
    damaged: list[str] = field(default_factory=list)
    """What could not be read, one line each."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def steps(self) -> list[dict]:
        return [event for event in self.events if event["kind"] == "step"]

    @property
    def batch_tokens(self) -> int:
        return int(self.config.get("training", {}).get("batch_tokens", 1))

    @property
    def main(self) -> str:
        """The reading that is the run's score; empty before it is scored."""
        return self.summary.main if self.summary.main in self.summary.score else ""


def read_run(path: Path, *, scores: bool = True) -> Run:
    run = Run(path)
    run.config = _read(run, "config.toml", tomllib.loads)
    try:
        run.summary = read_summary(path / "summary.json")
    except SummaryError as error:
        run.damaged.append(str(error))
    for name in ("plan", "audit", "quantisation", "top_predictions"):
        setattr(run, name, _read(run, f"{name}.json", json.loads))
    run.events = read_events(path / "train.jsonl")
    run.traces = read_traces(path / "weights.jsonl")
    if scores and (path / "score.jsonl").exists():
        try:
            run.scores = read_scores(path / "score.jsonl")
        except ScoreLogError as error:
            run.damaged.append(str(error))
        except ODD as error:
            run.damaged.append(f"score.jsonl is damaged: {error}")
    return run


def _read(run: Run, name: str, parse) -> dict:
    """A table from a file; empty if there is none."""
    path = run.path / name
    if not path.exists():
        return {}
    try:
        table = parse(path.read_text(encoding="utf-8"))
        if isinstance(table, dict):
            return table
        run.damaged.append(f"{name} is damaged: it holds no table")
    except (ValueError, RecursionError, OSError) as error:
        run.damaged.append(f"{name} is damaged: {error}")
    return {}


def read_lines(path: Path) -> Iterator[dict]:
    """The objects of a file with one a line, without the line that a killed run did not finish."""
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    yield entry


def read_events(path: Path) -> list[dict]:
    """The events of a run in order. A resumed run repeats steps: the later account of a step replaces the earlier."""
    events = [event for event in read_lines(path) if isinstance(event.get("kind"), str)]
    events = [event for event in events if event["kind"] != "step" or type(event.get("step")) is int]
    latest = {event["step"]: i for i, event in enumerate(events) if event["kind"] == "step"}
    return [event for i, event in enumerate(events) if event["kind"] != "step" or latest[event["step"]] == i]


def read_traces(path: Path) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """The weights of each predictor along the stream."""
    traces: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for trace in read_lines(path):
        target = trace.pop("target", None)
        if isinstance(target, int):
            for predictor, weights in trace.items():
                if isinstance(weights, dict):
                    traces.setdefault(predictor, []).append((target, weights))
    return traces
