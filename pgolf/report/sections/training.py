"""Loss, learning rates, gradient norm and speed, against tokens and seconds."""

import math
from collections.abc import Sequence

import numpy as np

from pgolf.report.charts import Axis, Mark, Series, choice, curves, missing, thinned
from pgolf.report.files import Run
from pgolf.report.html import Html, h
from pgolf.report.sections.parts import section

SMOOTHING = 40
"""A smoothed curve forgets over this share of the run."""


def training(run: Run) -> Html:
    title = "Training"
    steps = run.steps
    if not steps:
        return section("training", title, missing("No steps yet", "train.jsonl has no step of this run."))
    panels = []
    for name, axis in TRAINING_AXES:
        across = training_axis(run, steps, axis)
        marks = _phases(run, steps, axis)
        panels.append((name, h("div", _training_charts(run, steps, across, axis, marks), class_="grid")))
    done = any(event["kind"] == "end" for event in run.events)
    last = steps[-1]
    says = f"{last['step']:,} steps, {last['step'] * run.batch_tokens:,} tokens, {last['elapsed']:.1f} s on the clock."
    if not done:
        says += " Training has not come to its end: it is still running, or was cut off here."
    return section("training", title, choice("training-axis", "horizontal axis", panels), says=says)


TRAINING_AXES = (
    ("tokens", Axis("training tokens", "tokens")),
    ("seconds", Axis("training clock", "s")),
)


def training_axis(run: Run, steps: Sequence[dict], axis: Axis) -> np.ndarray:
    if axis.unit == "s":
        return np.array([event["elapsed"] for event in steps])
    return np.array([event["step"] * run.batch_tokens for event in steps])


def _phases(run: Run, steps: Sequence[dict], axis: Axis) -> list[Mark]:
    at = training_axis(run, steps, axis)
    by_step = [event["step"] for event in steps]
    found = []
    for event in run.events:
        if event["kind"] == "phase":
            place = min(int(np.searchsorted(by_step, event["step"])), len(at) - 1)
            where = 0.0 if event["step"] == 0 else float(at[place])
            found.append(Mark(where, f"{event['name']}, from step {event['step']:,}"))
    return found


def _training_charts(run: Run, steps: Sequence[dict], across: np.ndarray, axis: Axis, marks: Sequence[Mark]) -> list[Html]:
    loss = _column(steps, "loss")
    return [
        curves("Training loss", axis, Axis("loss", "nats per token"), loss_series(run, steps, across, axis), marks=marks,
               note="" if _validations(run) else "No validation along the way: training.validate_every is 0."),
        curves("Learning rates", axis, Axis("learning rate", "per step"), _rates(run, steps, across)),
        curves("Gradient norm", axis, Axis("norm", "before clipping", log=True),
               _one("gradient norm", across, _column(steps, "gradient_norm"), 3)),
        curves("Speed", axis, Axis("speed", "tokens per second", low=0.0),
               _one("tokens per second", across, _column(steps, "tokens_per_second"), 2)),
    ] if len(loss) else []  # fmt: skip


def _column(steps: Sequence[dict], key: str) -> np.ndarray:
    values = [event.get(key) for event in steps]
    return np.array([np.nan if value is None else float(value) for value in values])


def loss_series(run: Run, steps: Sequence[dict], across: np.ndarray, axis: Axis) -> list[Series]:
    x, y, low, high = thinned(across, _column(steps, "loss"))
    smooth_x, smooth_y, _, _ = thinned(across, smoothed(_column(steps, "loss")))
    found = [
        Series("each step", x, y, low, high, style=1, thin=True),
        Series("smoothed", smooth_x, smooth_y, style=0),
    ]
    validations = _validations(run)
    if validations:
        by_step = np.array([event["step"] for event in steps])
        places = np.minimum(np.searchsorted(by_step, [event["step"] for event in validations]), len(across) - 1)
        losses = [float(event["loss"]) for event in validations]
        found.append(Series("validation", across[places], losses, style=5, dots=True))
    return found


def smoothed(values: np.ndarray) -> np.ndarray:
    """An exponential mean that forgets over a fortieth of the run, unbiased at its beginning."""
    keep = math.exp(-1 / max(len(values) / SMOOTHING, 1.0))
    found, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        found[i] = total / weight if weight else np.nan
    return found


def _validations(run: Run) -> list[dict]:
    return [e for e in run.events if e["kind"] == "validation" and isinstance(e.get("loss"), (int, float))]


def _rates(run: Run, steps: Sequence[dict], across: np.ndarray) -> list[Series]:
    """Each parameter group's rate, as the start event names them; groups with one rate share a curve."""
    multiplier = _column(steps, "multiplier")
    groups: dict[float, list[str]] = {}
    for event in run.events:
        for name, rate in event.get("rates", {}).items() if event["kind"] == "start" else ():
            groups.setdefault(float(rate), []).append(str(name))
    found = []
    for i, (rate, names) in enumerate(groups.items()):
        x, y, _, _ = thinned(across, rate * multiplier)
        found.append(Series(", ".join(dict.fromkeys(names)), x, y, style=i))
    return found


def _one(name: str, across: np.ndarray, values: np.ndarray, style: int) -> list[Series]:
    x, y, low, high = thinned(across, values)
    return [Series(name, x, y, low, high, style=style)] if len(x) else []
