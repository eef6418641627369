"""PNG pictures of a run: loss, learning rate, and where the budgets went."""

import json
from pathlib import Path

# two colours that the colour-blind tell apart, and a quiet third
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"


def draw(folder: Path) -> list[Path]:
    """All pictures that the folder's files allow; the names of those drawn."""
    import matplotlib

    matplotlib.use("Agg")
    events = read_events(folder / "train.jsonl")
    summary_file = folder / "summary.json"
    summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.exists() else {}
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    steps = [event for event in events if event["kind"] == "step"]
    drawn = []
    if steps:
        drawn.append(_curves(pictures / "loss.png", steps, "loss", "nats per token", "Training loss", BLUE))
        rate = _curves(pictures / "learning_rate.png", steps, "multiplier", "share of the base rate", "Learning rate", ORANGE)
        drawn.append(rate)
    budgets = [(name, summary[name]) for name in ("train", "scoring") if "parts" in summary.get(name, {})]
    if budgets:
        drawn.append(_budgets(pictures / "budget.png", budgets))
    return drawn


def read_events(path: Path) -> list[dict]:
    """The events of a run in order. A resumed run repeats steps: the later account of a step replaces the earlier."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # the line a killed run did not finish
    latest = {event["step"]: i for i, event in enumerate(events) if event["kind"] == "step"}
    return [event for i, event in enumerate(events) if event["kind"] != "step" or latest[event["step"]] == i]


def _curves(path: Path, steps: list[dict], key: str, unit: str, title: str, colour: str) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([event["step"] for event in steps], [event[key] for event in steps], color=colour, linewidth=1.2)
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    seconds = axes.twiny()
    seconds.set_xlim(*[_seconds_at(steps, step) for step in axes.get_xlim()])
    seconds.set_xlabel("seconds of the training clock")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _seconds_at(steps: list[dict], step: float) -> float:
    """Steps are even enough for one scale to serve both axes."""
    first, last = steps[0], steps[-1]
    span = max(last["step"] - first["step"], 1)
    return first["elapsed"] + (step - first["step"]) * (last["elapsed"] - first["elapsed"]) / span


def _budgets(path: Path, budgets: list[tuple[str, dict]]) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.8 * len(budgets)), layout="constrained")
    colours = pyplot.get_cmap("cividis")
    for row, (_, budget) in enumerate(budgets):
        left = 0.0
        for i, (part, seconds) in enumerate(budget["parts"].items()):
            axes.barh(row, seconds, left=left, color=colours(0.15 + 0.7 * i / max(len(budget["parts"]) - 1, 1)))
            if seconds > 0.06 * budget["limit"]:
                words = f"{part}\n{seconds:.0f} s"
                axes.text(left + seconds / 2, row, words, ha="center", va="center", fontsize=8, color="white")
            left += seconds
        axes.plot([budget["limit"]] * 2, [row - 0.45, row + 0.45], color=ORANGE, linewidth=2)
    axes.set_yticks(range(len(budgets)), [name for name, _ in budgets])
    axes.set(title="Where the budgets went (orange: the limit)", xlabel="seconds")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
