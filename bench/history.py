"""What #687's branch tried, tried again at a small scale: runs everything and writes docs/history.md.

    python -m bench.history [--steps N] [--seeds A,B,C] [--jobs N] [--runs FOLDER] [--page FILE]

Every switch is flipped alone against one base, with the same seeds and the same number of steps. Finished runs are kept in
runs/history and used again, so a command that was cut off goes on where it was.
"""

import argparse
import contextlib
import math
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from pgolf.config import Settings, at_scale, from_table, load_preset, preset_names, read_toml, to_toml
from pgolf.errors import PgolfError
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.progress import Display
from pgolf.summary import write_summary

ROOT = Path(__file__).parents[1]

# two-sided 95 % quantiles of Student's t, by degrees of freedom
STUDENT = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class HistoryError(PgolfError):
    """The page cannot be made, in one line."""


@dataclass(frozen=True)
class Row:
    """One line of the page: a run, what it changes and from which stage on, and the two figures that are compared."""

    run: str
    """Name of the run; rows may share one."""
    title: str
    claim: str
    """What was reported at full scale; empty where nothing was found."""
    changes: dict = field(default_factory=dict)
    """Settings by their dotted names, on top of the base's."""
    stage: str = "train"
    """The first stage that the changes touch; what earlier ones have left is the base's own."""
    result: str = "non_overlapping"
    against: str = "base"
    """The run that it is held against, which may be itself, by another predictor."""
    other: str = "non_overlapping"


QAT = {"training.qat_threshold": 0.15}
SLIDING = {"evaluation.sliding": True, "evaluation.max_tokens": 8192}
CHUNKS = {**SLIDING, "evaluation.adaptation.method": "chunks"}
ADAMW = {"evaluation.adaptation.optimiser": "adamw", "evaluation.adaptation.lr": 5e-4}
LORA = {**SLIDING, "evaluation.adaptation.method": "lora"}
# on all the base's targets: the published mixer rests until it has counted 10,000 tokens
MIXER = {
    "evaluation.sliding": True,
    "evaluation.mixer.honest": ("ngrams",),
    "evaluation.mixer.published": "hedge",
}

BASE = Row("base", "the base", "")
TRAINED = [
    Row("hyper", "hyper-connections on the top 4 blocks", "−0.0009, one seed: a false signal", {"model.hyper_layers": 4}),
    Row("deeper", "12 layers instead of 11", "+0.0023, and 17.4 MB", {"model.layers": 12}),
    Row("xsa", "XSA on all layers instead of 4", "−0.0016 (#634), −0.006 (#638)", {"model.xsa_last": 11}),
    Row("relu", "ReLU² instead of LeakyReLU(0.5)²", "+0.003 (#638)", {"model.mlp_slope": 0.0}),
    Row("bigram", "3,072 bigram buckets instead of 1,024", "−0.0009 from 1,536 on (#549)", {"model.bigram_buckets": 3072}),
    Row("mtp", "one further head (MTP)", "", {"model.mtp_heads": 1}),
    Row("qat", "late QAT, straight-through", "−0.0001 (#414)", QAT),
    Row("soft-to-hard", "late QAT, soft to hard", "", {**QAT, "training.qat_soft_to_hard": True}),
    Row("soft-round", "late QAT, soft round", "", {**QAT, "training.qat_soft_round": True}),
    Row("distillation", "distillation, half of the steps for the teacher", "", {"training.distillation_share": 0.5}),
    Row("burst", "burst, 2 epochs", "−0.0011, one seed; +0.0003, three", {"training.burst_epochs": 2}),
    Row("complement", "complementary training, α = 0.5", "", {"training.complement_alpha": 0.5}),
    Row("raw", "last weights instead of their EMA", "+0.0006 (#414)", {"training.export": "raw"}),
    Row("swa", "SWA instead of EMA", "worse, no figure (#414)", {"training.export": "swa"}),
]
PACKED = [
    Row("int5", "five bits instead of six, without GPTQ", "+0.035 (MLP only)", {"artifact.matrix_bits": 5}, "pack"),
    Row("gptq", "GPTQ as #688 wrote it, at six bits", "+0.011", {"artifact.rounding": "gptq-published"}, "pack"),
    Row("prune", "the smallest 3 % of the weights set to zero", "", {"artifact.prune": 0.03}, "pack"),
]
SCORED = [
    Row("sliding", "sliding windows, not side by side", "−0.0235 (#549)", SLIDING, "score", "sliding", "sliding"),
    Row(
        "stride",
        "stride 32 instead of 64",
        "0.000 (#700)",
        {**SLIDING, "evaluation.stride": 32},
        "score",
        "sliding",
        "sliding",
        "sliding",
    ),
    Row(
        "window",
        "windows twice as long as in training",
        "+0.19",
        {**SLIDING, "evaluation.window": 512},
        "score",
        "sliding",
        "sliding",
        "sliding",
    ),
    Row("sgd", "chunks learnt by SGD, 3 epochs", "−0.0022 to −0.0027", CHUNKS, "score", "adapted", "sgd", "sliding"),
    Row("adamw", "chunks learnt by AdamW at 5e-4", "+0.034", {**CHUNKS, **ADAMW}, "score", "adapted", "adamw", "sliding"),
    Row(
        "lora",
        "LoRA for each document, one pass",
        "−0.003 (#77); −0.049 in two passes, which break the rules",
        LORA,
        "score",
        "adapted",
        "lora",
        "sliding",
    ),
    Row(
        "mixer",
        "mixed with n-grams, normalised (32,768 targets)",
        "−0.0004 (orders 1, 2)",
        MIXER,
        "score",
        "ngrams",
        "mixer",
        "sliding",
    ),
    Row(
        "mixer",
        "five experts as published: not a code length (32,768 targets)",
        "−0.027",
        MIXER,
        "score",
        "published",
        "mixer",
        "sliding",
    ),
]
# whole systems: the preset, and what was reported
SYSTEMS = {
    "baseline-sliding": "1.2262 (one GPU, 4,800 s)",
    "baseline-int6": "",
    "mamba": "1.2519 (one GPU, 4,800 s)",
    "pr687": "1.1224 (8 GPUs, 600 s)",
}


# ---- settings


def settings_of(preset: str, changes: dict, steps: int, seed: int) -> Settings:
    """A preset at the scale of this page, with some settings changed."""
    common = {
        "training.steps": steps,
        # the same figures on every processor
        "training.precision": "float32",
        # half of what the scale takes, in one part: for two cores
        "training.batch_tokens": 1024,
        "training.micro_batches": 1,
        "evaluation.seconds": 36_000.0,
        "evaluation.sliding": False,
        "evaluation.published_tail": False,
        "evaluation.max_tokens": 32_768,
    }
    table: dict = {"seed": seed}
    for name, value in {**common, **changes}.items():
        *sections, key = name.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    settings = from_table(table, at_scale(load_preset(preset), "tiny"), "history")
    settings.validate()
    return settings


def base_settings(changes: dict, steps: int, seed: int) -> Settings:
    """#687 with every switch off."""
    off = {"training.burst_epochs": 0, "training.qat_threshold": 0.0, "training.qat_soft_to_hard": False}
    return settings_of("pr687", {**off, **changes}, steps, seed)


# ---- runs


@dataclass(frozen=True)
class Job:
    """One run folder and how to fill it."""

    path: Path
    settings: Settings
    stage: str
    base: Path


def jobs_of(runs: Path, steps: int, seeds: list[int]) -> list[Job]:
    """Every run once, seed by seed, the base's first: others borrow from them."""
    jobs: dict[Path, Job] = {}
    for seed in seeds:
        base = folder_of(runs, BASE.run, seed)
        for row in (BASE, *TRAINED):
            path = folder_of(runs, row.run, seed)
            jobs[path] = Job(path, base_settings(row.changes, steps, seed), row.stage, base)
        for name in systems():
            path = folder_of(runs, name, seed)
            jobs[path] = Job(path, settings_of(name, {}, steps, seed), "train", base)
        for row in (*PACKED, *SCORED):
            path = folder_of(runs, row.run, seed)
            jobs[path] = Job(path, base_settings(row.changes, steps, seed), row.stage, base)
    return list(jobs.values())


def systems() -> list[str]:
    return [name for name in SYSTEMS if name in preset_names()]


def folder_of(runs: Path, name: str, seed: int) -> Path:
    return runs / f"{name}-{seed}"


def is_done(job: Job) -> bool:
    """Whether the run is there, finished; one of other settings is refused."""
    folder = RunFolder(job.path)
    if not folder.config.exists():
        return False
    if read_toml(folder.config) != job.settings:
        raise HistoryError(f"{job.path} holds a run of other settings; delete it, or give another folder with --runs")
    return bool(folder.read_summary().score)


def carry_out(job: Job) -> Path:
    """Fill one run folder, or what is missing of it; in a process of its own, which fills one after the other."""
    import torch

    from pgolf.cli.pack import pack
    from pgolf.cli.score import score
    from pgolf.cli.train import train

    torch.set_num_threads(1)
    folder, base = RunFolder(job.path), RunFolder(job.base)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if not folder.config.exists():
            folder = RunFolder.create(job.path)
            write_whole(folder.config, to_toml(job.settings))
        if job.stage == "train":
            if not folder.weights.exists() and train(folder, job.settings, "cpu", resume=True):
                raise HistoryError(f"{job.path} was stopped; the same command goes on")
        else:
            shutil.copy(base.weights, folder.weights)
            kept = base.read_summary()
            write_summary(folder.summary, replace(kept, artifact=None, score={}, scoring=None, main=""))
        if job.stage == "score":
            shutil.copy(base.artifact, folder.artifact)
        elif not folder.artifact.exists():
            pack(folder, "cpu")
        score(folder, "cpu")
    return job.path


def run_all(jobs: list[Job], workers: int, display: Display) -> None:
    missing = [job for job in jobs if not is_done(job)]
    display.say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them there already, {workers} at a time")
    if not missing:
        return
    # each worker has one thread; torch reads this when it is loaded
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        pending = [pool.submit(carry_out, job) for job in missing]
        for done, future in enumerate(as_completed(pending), 1):
            name = future.result().name
            display.status(f"{done} of {len(missing)} runs, {name}", done / len(missing))
    finally:
        pool.shutdown(cancel_futures=True)
    display.settle()


# ---- the page


def bpb(runs: Path, name: str, seed: int, result: str) -> float:
    return RunFolder(folder_of(runs, name, seed)).read_summary().score[result].bpb


def differences(row: Row, runs: Path, seeds: list[int]) -> list[float]:
    """Bits per byte less than the other run's, seed by seed."""
    return [bpb(runs, row.run, seed, row.result) - bpb(runs, row.against, seed, row.other) for seed in seeds]


def verdict(found: list[float]) -> str:
    """What a paired t-test at 95 % says: a difference that the seeds' own scatter could make is none."""
    mean = statistics.fmean(found)
    if not any(found):
        return "no difference"
    if abs(mean) <= STUDENT[len(found) - 1] * statistics.stdev(found) / math.sqrt(len(found)):
        return "within noise"
    return "better" if mean < 0 else "worse"


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def table(rows: list[Row], runs: Path, seeds: list[int]) -> Iterator[str]:
    yield "| switch | reported | here | spread | verdict |"
    yield "|---|---|---|---|---|"
    for row in rows:
        found = differences(row, runs, seeds)
        mean, spread = signed(statistics.fmean(found)), f"{statistics.stdev(found):.4f}"
        yield f"| {row.title} | {row.claim or 'nothing'} | {mean} | {spread} | {verdict(found)} |"


def systems_table(runs: Path, seeds: list[int]) -> Iterator[str]:
    yield "| preset | reported | here | spread | parameters here |"
    yield "|---|---|---|---|---|"
    for name in systems():
        found = [bpb(runs, name, seed, "non_overlapping") for seed in seeds]
        count = RunFolder(folder_of(runs, name, seeds[0])).read_summary().parameters
        mean, spread = statistics.fmean(found), statistics.stdev(found)
        yield f"| `{name}` | {SYSTEMS[name] or 'nothing'} | {mean:.4f} | {spread:.4f} | {count:,} |"


def page(runs: Path, steps: int, seeds: list[int]) -> str:
    summary = RunFolder(folder_of(runs, BASE.run, seeds[0])).read_summary()
    base = [bpb(runs, BASE.run, seed, "non_overlapping") for seed in seeds]
    tokens, targets = summary.train.tokens, summary.score["non_overlapping"].tokens
    sliding = RunFolder(folder_of(runs, "sliding", seeds[0])).read_summary().score["sliding"].tokens
    rows = len(TRAINED) + len(PACKED) + len(SCORED)

    def lines(found: Iterator[str]) -> str:
        return "\n".join(found)

    return f"""\
# What #687's branch tried, tried again

Made by `python -m bench.history`, from runs and nothing else; do not edit it by hand.

The base is the preset `pr687` at `--scale tiny` with every switch off: {summary.parameters:,} parameters, {steps} steps of
{tokens // steps:,} tokens, seeds {", ".join(map(str, seeds))}, on the corpus {summary.corpus.name}
{summary.corpus.digest[:12]}. It reaches {statistics.fmean(base):.4f} bits per byte, with a spread of
{statistics.stdev(base):.4f}. Each switch is flipped alone, with the same seeds and the same number of steps.

*Reported* is what the branch's ledger, or the submission named, gave at full scale, as a difference in bits per byte; where
the ledger has a score only, it is held against the branch's mean of 1.1224. *Here* is the mean difference over the seeds,
each against the base of the same seed, and *spread* its standard deviation; below zero is better. The *verdict* is a paired
t-test at 95 %: what the scatter of the seeds could make by itself is within noise. Of {rows} such tests about one says more
than it should.

A network of this size after so few steps is no small copy of one of 27 million parameters after seven thousand: what is true
here may be false there. Steps are equal, not seconds: a distilled step, for one, takes longer.

## In training ({targets:,} targets, windows side by side)

{lines(table(TRAINED, runs, seeds))}

The teacher's and the burst's steps are part of the same number of steps. What was reported for late QAT is very probably
without any: compiled graphs folded the switch away. #687's code lost the gradient of soft to hard, and was straight-through.

## In packing (the base's own weights; {targets:,} targets)

{lines(table(PACKED, runs, seeds))}

## In scoring (the base's own artifacts; {sliding:,} targets)

{lines(table(SCORED, runs, seeds))}

## Whole systems

{lines(systems_table(runs, seeds))}

Bits per byte of {targets:,} targets, windows side by side, after {steps} steps, whatever a step costs.

Not tried here: FlashAttention-3 and step times, which need a GPU; mixtures of experts, focal loss, entropy regularisation, a
cosine fall and a curriculum, which the ledger calls negative and which no preset uses.
"""


# ---- the command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="training steps of every run (100)")
    parser.add_argument("--seeds", default="1337,42,7", help="two to ten seeds (1337,42,7)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time (one a core)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "history", help="where runs are kept (runs/history)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "history.md", help="what is written (docs/history.md)")
    options = parser.parse_args()
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {options.seeds}: whole numbers with commas between them are wanted")
    if not 2 <= len(set(seeds)) == len(seeds) <= len(STUDENT):
        parser.error(f"--seeds {options.seeds}: two to {len(STUDENT)} different ones are wanted")
    if options.jobs < 1 or options.steps < 10:
        parser.error("--jobs must be at least 1, and --steps at least 10")
    # whoever ends this process ends its workers: they finish the run they are at, and no more
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Display() as display:
            from pgolf.cli.common import CACHE
            from pgolf.data import default_dataset

            # once, before many processes ask for it
            default_dataset(CACHE)
            run_all(jobs_of(options.runs, options.steps, seeds), options.jobs, display)
            write_whole(options.page, page(options.runs, options.steps, seeds))
            display.say(f"wrote {options.page}")
    except PgolfError as error:
        print(f"history: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("history: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
