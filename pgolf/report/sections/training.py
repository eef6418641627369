"""Loss, learning rates, gradient norm, speed and arithmetic, against tokens and seconds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pgolf.config import SettingsError, read_toml
from pgolf.flops import training_flops, utilisation
from pgolf.report.charts import Chart, Curves, Mark, Series, choice, missing, thinned
from pgolf.report.files import ODD, Run
from pgolf.report.html import Html, join
from pgolf.report.scales import Axis, number
from pgolf.report.sections.section import Section, grid, lead
from pgolf.report.tables import columns

SMOOTHING = 40
"""A smoothed curve forgets over this share of the run."""
AXES = (("tokens", Axis("trained on", "tokens")), ("seconds", Axis("training clock", "s")))


@dataclass(frozen=True)
class Metric:
    """A column of train.jsonl that is drawn for one run, and over each other for several."""

    name: str
    title: str
    key: str
    axis: Axis
    smooth: bool = False
    compared: bool = True


METRICS = (
    Metric("loss", "Training loss", "loss", Axis("loss", "nats per token"), smooth=True),
    Metric("gradient_norm", "Gradient norm", "gradient_norm", Axis("norm", "before clipping", log=True), compared=False),
    Metric("speed", "Speed", "tokens_per_second", Axis("speed", "tokens per second", low=0.0)),
)


def charts(run: Run) -> dict[str, Chart]:
    return _charts(run, AXES[0][1]) if run.steps else {}


def body(run: Run) -> Html:
    steps = run.steps
    if not steps:
        return missing("No steps yet", "train.jsonl has no step of this run.")
    last = steps[-1]
    says = f"{last['step']:,} steps, {last['step'] * run.batch_tokens:,} tokens, {last['elapsed']:.1f} s on the clock."
    if not any(event["kind"] == "end" for event in run.events):
        says += " Training has not come to its end: it is still running, or was cut off here."
    facts = cost(run)
    says += f" {facts}." if facts else ""
    if not _validations(run):
        says += " No validation along the way: training.validate_every is 0."
    panels = [(name, grid(_charts(run, axis).values())) for name, axis in AXES]
    return join([lead(says), choice("training-axis", "horizontal axis", panels)])


def text(run: Run) -> str:
    steps = run.steps
    if not steps:
        return ""
    picked = [steps[i] for i in sorted({round(share * (len(steps) - 1)) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)})]
    head = ["training", "tokens", "seconds", "loss", "gradient norm", "of the peak rate", "tokens/s"]
    rows = [
        [
            f"  step {step['step']:,}",
            f"{step['step'] * run.batch_tokens:,}",
            f"{step['elapsed']:.1f}",
            f"{step['loss']:.4f}",
            f"{step['gradient_norm']:.3f}",
            f"{step['multiplier']:.0%}",
            f"{step['tokens_per_second']:,.0f}",
        ]
        for step in picked
    ]
    validations = [[f"  step {event['step']:,}", f"{event['loss']:.4f}"] for event in _validations(run)]
    parts = [columns([head, *rows]), columns([["validation", "loss"], *validations]) if validations else "", cost(run)]
    return "\n".join(part for part in parts if part)


def cost(run: Run) -> str:
    """Arithmetic and memory, as far as the files tell."""
    speeds = [step["tokens_per_second"] for step in run.steps if step.get("tokens_per_second")]
    per_token, parts = flops_per_token(run), []
    if per_token and speeds:
        rate = per_token * float(np.median(speeds))
        share = utilisation(rate, run.summary.device or "")
        parts.append(f"{number(per_token, 3)}FLOP a token, {number(rate, 3)}FLOP/s" + (f", MFU {share:.1%}" if share else ""))
    train = run.summary.train
    memory = train.peak_memory_bytes if train else None
    if memory:
        parts.append(f"at most {memory / 2**30:.2f} GiB of memory")
    return "; ".join(parts)


def flops_per_token(run: Run) -> float:
    """Of training, forward and backward; 0 where the settings do not tell."""
    try:
        settings = read_toml(run.path / "config.toml")
        length = settings.training.sequence_length
        return 0.0 if settings.model.scan_layers else training_flops(settings, length) / length
    except (OSError, SettingsError, *ODD):
        return 0.0


def across(run: Run, axis: Axis) -> np.ndarray:
    """Where each step lies on a horizontal axis."""
    return np.array([event["elapsed"] if axis.unit == "s" else event["step"] * run.batch_tokens for event in run.steps])


def column(steps: Sequence[dict], key: str) -> np.ndarray:
    values = [event.get(key) for event in steps]
    return np.array([np.nan if value is None else float(value) for value in values])


def smoothed(values: np.ndarray) -> np.ndarray:
    """An exponential mean that forgets over a fortieth of the run, unbiased at its beginning."""
    keep = math.exp(-1 / max(len(values) / SMOOTHING, 1.0))
    means, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means[i] = total / weight if weight else np.nan
    return means


def overlaid(metric: Metric, axis: Axis, runs: Sequence[tuple[str, Run]]) -> Curves:
    """One metric of several runs."""
    series = []
    for i, (name, run) in enumerate(runs):
        if run.steps:
            values = column(run.steps, metric.key)
            x, y, _, _ = thinned(across(run, axis), smoothed(values) if metric.smooth else values)
            series.append(Series(name, x, y, style=i))
    return Curves(metric.title + (", smoothed" if metric.smooth else ""), axis, metric.axis, series)


def _charts(run: Run, axis: Axis) -> dict[str, Chart]:
    places = across(run, axis)
    drawn: dict[str, Chart] = {}
    for metric in METRICS:
        values = column(run.steps, metric.key)
        if not np.isfinite(values).any():
            continue
        x, y, low, high = thinned(places, values)
        series = [Series("each step" if metric.smooth else metric.title.lower(), x, y, low, high)]
        if metric.smooth:
            x, y, _, _ = thinned(places, smoothed(values))
            series = [replace(series[0], style=1, thin=True), Series("smoothed", x, y, style=0)]
        if metric.key == "loss":
            series += _validation_series(run, places)
        marks = _phases(run, places) if metric.key == "loss" else ()
        drawn[metric.name] = Curves(metric.title, axis, metric.axis, series, marks)
        if metric.key == "loss":
            drawn["learning_rates"] = Curves("Learning rates", axis, Axis("learning rate", "per step"), _rates(run, places))
    return drawn


def _phases(run: Run, places: np.ndarray) -> list[Mark]:
    by_step = [event["step"] for event in run.steps]
    marks = []
    for event in run.events:
        if event["kind"] == "phase":
            place = min(int(np.searchsorted(by_step, event["step"])), len(places) - 1)
            where = 0.0 if event["step"] == 0 else float(places[place])
            marks.append(Mark(where, f"{event['name']}, from step {event['step']:,}"))
    return marks


def _validations(run: Run) -> list[dict]:
    return [e for e in run.events if e["kind"] == "validation" and isinstance(e.get("loss"), (int, float))]


def _validation_series(run: Run, places: np.ndarray) -> list[Series]:
    events = _validations(run)
    if not events:
        return []
    by_step = np.array([event["step"] for event in run.steps])
    at = np.minimum(np.searchsorted(by_step, [event["step"] for event in events]), len(places) - 1)
    return [Series("validation", places[at], [float(event["loss"]) for event in events], style=5, dots=True)]


def _rates(run: Run, places: np.ndarray) -> list[Series]:
    """Each parameter group's rate, as the start event names them; groups with one rate share a curve."""
    multiplier = column(run.steps, "multiplier")
    groups: dict[float, list[str]] = {}
    for event in run.events:
        for name, rate in event.get("rates", {}).items() if event["kind"] == "start" else ():
            groups.setdefault(float(rate), []).append(str(name))
    series = []
    for i, (rate, names) in enumerate(groups.items()):
        x, y, _, _ = thinned(places, rate * multiplier)
        series.append(Series(", ".join(dict.fromkeys(names)), x, y, style=i))
    return series


SECTION = Section("training", "Training", body, text, charts)
