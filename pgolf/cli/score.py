"""The stage score: model.pgolf to a score, in a process that has never seen training."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgolf.budget import Budget
from pgolf.cli.parse import DeviceOptions, parse
from pgolf.config import read_toml
from pgolf.errors import OVER_LIMIT
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.process import rank
from pgolf.progress import Display
from pgolf.sinks import Sinks
from pgolf.summary import Compressor, Score, Scoring

if TYPE_CHECKING:
    import numpy as np

    from pgolf.data import Dataset


@dataclass(frozen=True)
class Options(DeviceOptions):
    """Score a run's artifact on the validation text."""

    plan: str = ""
    """Repeat the decisions in this file (plan.json of an earlier scoring) instead of asking the clock."""


def main(words: list[str]) -> int:
    options = parse(Options, words, "score")
    folder = RunFolder.existing(options.run)
    code = score(folder, options.device, options.plan)
    if code in (0, OVER_LIMIT) and not rank():
        with Sinks(read_toml(folder.config), folder.path, print) as sinks:
            sinks.summary(folder.read_summary())
    return code


def score(folder: RunFolder, device: str = "", plan: str = "") -> int:
    settings = read_toml(folder.config)
    budget = Budget(settings.evaluation.seconds)
    # loading torch and numba is on the clock
    import numpy as np

    from pgolf.cli.common import chosen_device, dataset_of
    from pgolf.compressors import standing
    from pgolf.distributed import launch
    from pgolf.evaluation.evaluate import evaluate
    from pgolf.evaluation.load import load_scorer
    from pgolf.evaluation.records import read_plan, results_table, write_top_predictions, write_traces
    from pgolf.score_log import write_scores

    options = settings.evaluation
    # a fiftieth of the clock, to write down the results
    budget.reserve = options.seconds / 50
    replay = read_plan(Path(plan)) if plan else None
    with (
        folder.writing(),
        launch(chosen_device(device), "score") as world,
        Display(folder.log, active=world.is_first) as display,
    ):
        with budget.part("loading"):
            display.status("loading the artifact", 0.0)
            loaded = load_scorer(folder.artifact, settings, world.device)
            dataset = dataset_of(settings, display)
            tokens = np.asarray(dataset.val_tokens())
            partial = 0 < options.max_tokens < len(tokens) - 1
            tokens = tokens[: options.scored_targets(len(tokens) - 1) + 1]
            table = dataset.tokenizer.byte_table
        with budget.part("scoring"):
            evaluation = evaluate(
                loaded.model,
                tokens,
                table,
                options,
                bos=dataset.tokenizer.bos,
                budget=budget,
                ngram_table=loaded.ngram_table,
                primer=loaded.primer,
                replay=replay,
                device=world.device,
                world=world,
                report=lambda name, share: display.status(f"scoring, {name.replace('_', ' ')}: {share:.0%}", share),
            )
        display.settle()
        if not world.is_first:
            return 0
        folder.withdraw("score")
        with budget.part("writing"):
            per_target = table.count(tokens[:-1], tokens[1:])
            results = {
                name: Score(**entry, partial=partial)
                for name, entry in results_table(evaluation, tokens, dataset.tokenizer.bos, per_target).items()
            }
            columns = {name: result.nats[: len(per_target)] for name, result in evaluation.results.items()}
            write_scores(
                folder.scores, tokens, per_target, columns, bos=dataset.tokenizer.bos, pieces=dataset.tokenizer.pieces
            )
            pieces, top = dataset.tokenizer.pieces, evaluation.top_predictions
            write_top_predictions(folder.top_predictions, top, tokens, per_target, columns, pieces)
            write_traces(folder.weights_log, evaluation.traces)
            write_whole(folder.plan, json.dumps(evaluation.plan) + "\n")
        spent = budget.report()
        for name, result in results.items():
            display.say(result_line(name, result))
        if evaluation.gave_up:
            display.say(f"given up for the clock: {', '.join(f'{name} {what}' for name, what in evaluation.gave_up.items())}")
        over_limit = spent["total"] > options.seconds
        if over_limit:
            display.say(
                f"over the limit: scoring took {spent['total']:.1f} s of {options.seconds:.0f}, loading alone "
                f"{spent['parts']['loading']:.1f}; raise evaluation.seconds, or use a faster machine"
            )
        peers = compressors(dataset, tokens, results[evaluation.main], folder.artifact.stat().st_size, display)
        display.settle()
        if sentence := standing(results[evaluation.main].bpb, peers):
            display.say(sentence)
        folder.update_summary(
            score=results,
            main=evaluation.main,
            scoring=Scoring(
                seconds=spent["total"],
                limit=options.seconds,
                parts=spent["parts"],
                gave_up=evaluation.gave_up,
                replayed=bool(plan),
                adaptation_steps=evaluation.adaptation_steps,
                over_limit=over_limit,
            ),
            compressors=peers,
        )
    return OVER_LIMIT if over_limit else 0


def result_line(name: str, score: Score) -> str:
    mark = "" if score.legal else "  (as published; not a code length)"
    gain = ""
    if score.baseline and score.gain is not None:
        gain = f", {-score.gain:+.4f} on {score.baseline.replace('_', ' ')}"
    return f"{name.replace('_', ' ')}: {score.bpb:.4f} bits per byte{gain}, {score.seconds:.1f} s{mark}"


def compressors(
    dataset: "Dataset", tokens: "np.ndarray", score: Score, artifact_bytes: int, display: Display
) -> dict[str, Compressor]:
    """What general-purpose compressors need for the text that was scored, to hold the score against; and the score with the
    artifact's bytes on top, which decompressing needs."""
    from pgolf.compressors import MOST_BYTES, OWN, installed, measured
    from pgolf.config.types import dataclass_of
    from pgolf.data.dataset import MEASURED

    text = dataset.tokenizer.decode_bytes(tokens.tolist())
    if not text or len(text) > MOST_BYTES:
        return {}

    def measure() -> dict[str, dict]:
        training = dataset.training_text() if dataset.reads_whole() else b""
        peers = measured(text, training, lambda share: display.status(f"general compressors: {share:.0%}", share))
        return {name: asdict(peer) for name, peer in peers.items()}

    # they depend on the text and on what is installed alone
    fact = f"compressors of {len(tokens)} tokens: {', '.join(installed())}"
    peers = dataset.measured(
        fact, measure, lambda table: {name: dataclass_of(Compressor, peer, MEASURED) for name, peer in table.items()}
    )
    own = math.ceil(score.nats / math.log(2) / 8) + artifact_bytes
    return {**peers, OWN: Compressor(own, 8 * own / len(text), len(text))}
