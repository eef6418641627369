"""PNG pictures of a run: loss and learning rate, where the budgets went, and what each layer of scoring is worth."""

from pathlib import Path

from pgolf.report.files import Run
from pgolf.report.sections.scoring import results_shown

# two colours that the colour-blind tell apart, and a quiet third
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#cccccc"


def draw(run: Run, folder: Path) -> list[Path]:
    """All pictures that the run's files allow; the names of those drawn."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(exist_ok=True)
    summary, steps = run.summary, run.steps
    drawn = []
    if steps:
        drawn.append(_curves(folder / "loss.png", steps, "loss", "nats per token", "Training loss", BLUE))
        rate = _curves(folder / "learning_rate.png", steps, "multiplier", "share of the base rate", "Learning rate", ORANGE)
        drawn.append(rate)
    budgets = [(name, summary[name]) for name in ("train", "scoring") if "parts" in summary.get(name, {})]
    if budgets:
        drawn.append(_budgets(folder / "budget.png", budgets))
    if summary.get("score"):
        drawn.append(_onion(folder / "predictors.png", summary["score"], summary.get("main", "")))
    if run.scores and summary.get("score"):
        drawn.append(_where(folder / "where_bits_go.png", run))
    if run.traces:
        drawn.append(_weights(folder / "weights.png", run.traces))
    return drawn


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


def _onion(path: Path, scores: dict[str, dict], best: str) -> Path:
    """Bits per byte of every predictor, from the outermost layer in, with its gain over the one it builds on."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.4 * len(scores)), layout="constrained")
    names = list(scores)
    for row, name in enumerate(names):
        score = scores[name]
        colour = ORANGE if name == best else BLUE if score["legal"] else GREY
        axes.barh(row, score["bpb"], color=colour)
        ink = "white" if score["legal"] else "black"
        words = f"{score['bpb']:.4f}"
        if "over" in score:
            error = f" ± {score['gain_error']:.4f}" if score["gain_error"] is not None else ""
            words += f"   {-score['gain']:+.4f}{error} on {score['over'].replace('_', ' ')}"
        axes.text(0.01 * max(s["bpb"] for s in scores.values()), row, words, va="center", fontsize=8, color=ink)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.set(title="Predictors of one stream (orange: the run's score; grey: no code length)", xlabel="bits per byte")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _where(path: Path, run: Run) -> Path:
    """Bits per byte by position in the document and by the document's length."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    titles = {"by_position": "tokens from the document's beginning", "by_length": "tokens of the document"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        cells = getattr(run.scores, kind)
        places = range(len(cells.names))
        shown = results_shown(run)
        colours = pyplot.get_cmap("cividis")
        for i, (column, name, _) in enumerate(shown):
            colour = colours(i / max(len(shown) - 1, 1))
            axes.plot(places, cells.per_byte(column), marker="o", markersize=3, color=colour, label=name.replace("_", " "))
        axes.set_xticks(places, cells.names, fontsize=7)
        axes.set(xlabel=f"{title}, from", ylabel="bits per byte" if kind == "by_position" else "")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _weights(path: Path, traces: dict[str, list[tuple[int, dict[str, float]]]]) -> Path:
    """What each predictor's weights did along the stream, one panel a predictor."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(traces), 1, figsize=(8, 2.2 * len(traces)), layout="constrained", sharex=True, squeeze=False
    )
    for (axes,), (predictor, points) in zip(panels, traces.items(), strict=True):
        colours, names = pyplot.get_cmap("cividis"), list(points[0][1])
        for i, name in enumerate(names):
            colour = colours(i / max(len(names) - 1, 1))
            axes.plot([target for target, _ in points], [weights[name] for _, weights in points], color=colour, label=name)
        axes.set(title=predictor.replace("_", " "))
        axes.legend(fontsize=7, loc="center right")
        axes.grid(alpha=0.3)
    panels[-1][0].set(xlabel="targets scored")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
