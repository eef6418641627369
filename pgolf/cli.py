"""The command line: which stage, which settings. Wrong words get one line that names the nearest right one."""

import contextlib
import dataclasses
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.config import (
    ArtifactSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Settings,
    SettingsError,
    TrainingSettings,
    at_scale,
    from_environment,
    load_preset,
    nearest,
)
from pgolf.errors import PgolfError

PROGRAM = "python -m pgolf.run"


class UsageError(PgolfError):
    """The command line is wrong; exit code 2."""


@dataclass(frozen=True)
class RunOptions:
    """Train a language model into 16,000,000 bytes, then score it on text it has not seen.

    Without arguments: the preset `quick` on a corpus that every Python carries, without network or GPU.
    Other stages: train, pack, score, report, show (each with a run folder), data, export, compress and decompress.
    `--list` shows the presets.
    Settings come from the preset, then from the environment names of the challenge (SEED, DATA_PATH, TOKENIZER_PATH,
    MAX_WALLCLOCK_SECONDS, RUN_ID, ...), then from the flags below.
    """

    preset: str = "quick"
    """Which system; --list shows all."""
    out: str = ""
    """Folder of the run. Empty: runs/<time>-<preset>, or runs/$RUN_ID."""
    scale: str = "full"
    """tiny: every mechanism of the preset at a size that two CPU cores can run."""
    steps: int = 0
    """A fixed number of training steps; the schedule then counts steps and the run repeats bit for bit. 0: by the clock."""
    seed: int = 1337
    """Seed of everything that is drawn."""
    device: str = ""
    """cpu, cuda, ... Empty: CUDA where there is one."""
    resume: bool = False
    """Continue the run in --out where it was cut off."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    artifact: ArtifactSettings = field(default_factory=ArtifactSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True)
class StageOptions:
    """One stage of an existing run."""

    run: str
    """Folder of the run."""
    device: str = ""
    """cpu, cuda, ... Empty: CUDA where there is one."""


@dataclass(frozen=True)
class ScoreOptions(StageOptions):
    """Score a run's artifact on the validation text."""

    plan: str = ""
    """Repeat the decisions in this file (plan.json of an earlier scoring) instead of asking the clock."""


@dataclass(frozen=True)
class ReportOptions(StageOptions):
    """Pictures and report.html of a run, from its folder's files."""

    watch: bool = False
    """Serve the page on this machine while the run goes on; it refreshes itself. Ctrl-C ends it."""
    port: int = 8188
    """Port to serve it at; 0: any that is free."""


@dataclass(frozen=True)
class CompareOptions:
    """One page of several runs, and the table of their differences."""

    runs: tuple[str, ...]
    """Folders of the runs; may be given without the flag. Those of one configuration are taken together."""
    out: str = "compare.html"
    """The page to write."""


@dataclass(frozen=True)
class AuditOptions:
    """Try whether a score is a code length: of a run's predictors, or of a scorer of your own."""

    run: str = ""
    """Folder of the run."""
    scorer: str = ""
    """Instead of a run: MODULE:NAME or FILE.py:NAME; pgolf/audit/interface.py says what it has to offer."""
    tokens: str = ""
    """Text for a scorer to be tried on: a shard, or a .npy of token ids. Empty: the built-in corpus, or a made-up text for
    vocabularies that it does not fit."""
    targets: int = 0
    """Tokens that are tried; 0: as many as a fifth of the scoring clock allows."""
    decode: int = 0
    """Also compress so many tokens of the validation text with the run's own scorer, and decode them again."""
    seed: int = 0
    """Of the texts that the audit makes up."""
    out: str = ""
    """Where audit.json and audit.html go; empty: the run's folder, or the current one."""
    device: str = ""
    """cpu, cuda, ... Empty: CUDA where there is one."""


@dataclass(frozen=True)
class HonestyOptions:
    """The submissions' published and honest numbers, from short runs of their presets."""

    out: str = "runs/honesty"
    """Folder for the runs, one a system, and for honesty.json and honesty.md. Runs that are there are not made again."""
    steps: int = 100
    """Training steps of each run."""
    decode: int = 4096
    """Tokens that are compressed and decoded with each; 0: none."""


@dataclass(frozen=True)
class DataOptions:
    """Make a dataset: any text, or the challenge's public shards."""

    out: str
    """Folder to write tokenizer and shards to."""
    text: tuple[str, ...] = ()
    """Files, folders or JSONL with a `text` field; .zst and .gz of these."""
    vocab: int = 1024
    """Entries of the tokenizer to train."""
    tokenizer: str = ""
    """Use this SentencePiece model instead of training one."""
    name: str = "text"
    """First part of the shards' names."""
    fineweb: str = ""
    """Fetch the challenge's public set instead: sp1024, sp8192, ..."""
    shards: int = 1
    """How many training shards to fetch."""


@dataclass(frozen=True)
class CodecOptions:
    """A file to bits, or back, with what an artifact predicts."""

    file: str
    """The file to read."""
    artifact: str
    """The model.pgolf of a run; to decompress, the one that compressed."""
    out: str
    """The file to write."""


@dataclass(frozen=True)
class ExportOptions:
    """A submission's folder from finished runs of one configuration."""

    runs: tuple[str, ...]
    """Folders of the runs, one for each seed; may be given without the flag."""
    out: str
    """The folder to write."""
    name: str = ""
    """Name of the submission; empty: the preset's."""
    author: str = ""
    """Who submits it."""
    github_id: str = ""
    """And under which account."""
    track: str = "10min_16mb"
    """Which track."""
    baseline: str = ""
    """What it is compared with: run folders or submission.json files, with commas between them."""


def parse(options: type, words: list[str], *, default=None, positional: str = ""):
    """`options` filled from the command line by tyro, or UsageError with one line."""
    import tyro

    words = [f"--{positional}", *words] if positional and words and not words[0].startswith("-") else words
    known = _flags(options)
    for word in words:
        name = word.split("=", 1)[0].replace("_", "-")
        if name.startswith("--") and len(name) > 2 and name not in known and name != "--help":
            raise UsageError(f"no option {word.split('=', 1)[0]}{nearest(name, known)}")
    if "-h" in words or "--help" in words:
        return tyro.cli(options, args=words, default=default, prog=PROGRAM)
    said = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(options, args=words, default=default, prog=PROGRAM)
    except SystemExit:
        raise UsageError(_first_sentence(said.getvalue())) from None
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def named_runs(words: list[str]) -> list[str]:
    """Words that belong to no flag, behind the flag --runs; every other flag takes one value."""
    flags: list[str] = []
    runs: list[str] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        belongs = word.startswith("-") or (before.startswith("--") and "=" not in before and before != "--runs")
        (flags if belongs else runs).append(word)
    return [word for word in flags if word != "--runs"] + (["--runs", *runs] if runs else [])


def _flags(options: type, prefix: str = "") -> list[str]:
    """Every flag of a (nested) options class, with the `no-` forms of switches."""
    flags = []
    for item in dataclasses.fields(options):
        name = prefix + item.name.replace("_", "-")
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            flags += _flags(item.type, name + ".")
        else:
            flags.append("--" + name)
            if item.type is bool:
                head, _, last = name.rpartition(".")
                flags.append("--" + (head + "." if head else "") + "no-" + last)
    return flags


def _first_sentence(text: str) -> str:
    """What tyro's box says between its first two rules, on one line."""
    blocks = re.split(r"-{20,}", text)
    return " ".join((blocks[1] if len(blocks) > 1 else text).split()).rstrip(".")


def settings_from(words: list[str], *, cuda: bool, environment=os.environ) -> tuple[Settings, RunOptions]:
    """Preset, environment, flags: the settings of a run, checked."""
    preset = _value_of(words, "preset") or "quick"
    scale = _value_of(words, "scale") or "full"
    base = from_environment(load_preset(preset, cuda=cuda), environment)
    base = at_scale(base, scale)
    parts = {name: getattr(base, name) for name in ("data", "model", "training", "artifact", "evaluation")}
    default = RunOptions(preset=preset, scale=scale, seed=base.seed, steps=base.training.steps, **parts)
    options = parse(RunOptions, words, default=default)
    training = dataclasses.replace(options.training, steps=options.steps or options.training.steps)
    chosen = {name: getattr(options, name) for name in parts} | {"training": training}
    settings = dataclasses.replace(base, seed=options.seed, **chosen)
    settings.validate()
    return settings, options


def _value_of(words: list[str], name: str) -> str:
    """The value of a flag that decides the defaults of all others, and so is needed before they are parsed."""
    for i, word in enumerate(words):
        if word == f"--{name}":
            if i + 1 == len(words) or words[i + 1].startswith("--"):
                raise UsageError(f"--{name} needs a value")
            return words[i + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return ""


def run_path(options: RunOptions, environment=os.environ) -> Path | None:
    if options.out:
        return Path(options.out)
    return Path("runs") / environment["RUN_ID"] if environment.get("RUN_ID") else None


__all__ = [
    "CodecOptions",
    "CompareOptions",
    "AuditOptions",
    "DataOptions",
    "ExportOptions",
    "ReportOptions",
    "HonestyOptions",
    "RunOptions",
    "ScoreOptions",
    "SettingsError",
    "StageOptions",
    "UsageError",
    "named_runs",
    "parse",
    "run_path",
    "settings_from",
]
