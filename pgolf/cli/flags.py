"""The options of a run: which preset, which settings, where it goes."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.cli.parse import parse, parse_known
from pgolf.config import (
    ArtifactSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    at_scale,
    changed,
    from_environment,
    load_preset,
)
from pgolf.errors import UsageError

SECTIONS = ("data", "model", "training", "artifact", "evaluation")


@dataclass(frozen=True)
class RunOptions:
    """Train a language model into 16,000,000 bytes, then score it on text it has not seen.

    Settings come from the preset, then from the environment names of the challenge (SEED, DATA_PATH, TOKENIZER_PATH,
    MAX_WALLCLOCK_SECONDS, RUN_ID, ...), then from flags; --help-all shows a flag for every setting.
    """

    preset: str = "quick"
    """Which system; --list shows all."""
    out: str = ""
    """Folder of the run. Empty: runs/<time>-<preset>, or runs/$RUN_ID."""
    scale: str = "full"
    """tiny: every mechanism of the preset at a size that two CPU cores can run."""
    steps: int = 0
    """So many training steps, which repeat bit for bit. 0: by the clock."""
    seed: int = 1337
    """Seed of everything that is drawn."""
    device: str = ""
    """cpu, cuda, ...; empty: CUDA if there."""
    resume: bool = False
    """Continue the run in --out where it was cut off, with the settings that it was begun with."""


@dataclass(frozen=True)
class RunFlags(RunOptions):
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    artifact: ArtifactSettings = field(default_factory=ArtifactSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


@dataclass(frozen=True)
class BaseModel:
    vocab_size: int = 0


@dataclass(frozen=True)
class Base:
    """What decides the defaults of other flags, and whether the vocabulary was given."""

    preset: str = "quick"
    scale: str = "full"
    model: BaseModel = field(default_factory=BaseModel)


def settings_from(words: list[str], stage: str, *, cuda: bool, environment=os.environ) -> tuple[Settings, RunOptions]:
    """Preset, environment, flags: the settings of a new run, checked."""
    if {"-h", "--help"} & set(words):
        parse(RunOptions, words, stage)
    helps = "--help-all" in words
    words = [word for word in words if word != "--help-all"]
    chosen, _ = parse_known(Base, words, stage)
    base = at_scale(from_environment(load_preset(chosen.preset, cuda=cuda), environment), chosen.scale)
    default = flags_with(base)
    options = parse(RunFlags, ["--help"] if helps else words, stage, default)
    settings = with_flags(base, options)
    settings.validate()
    if settings.data.path:
        given = bool(chosen.model.vocab_size or environment.get("VOCAB_SIZE"))
        settings = with_vocabulary(settings, fixed=given or settings.data.vocabulary == "preset")
    return settings, options


def with_vocabulary(settings: Settings, *, fixed: bool) -> Settings:
    """With the vocabulary of the dataset that the settings name; if it is fixed, an error where that is another one."""
    from pgolf.data import open_dataset

    data = settings.data
    dataset = open_dataset(data.path, data.tokenizer or None, settings.model.vocab_size if fixed else None)
    model = dataclasses.replace(settings.model, vocab_size=dataset.vocab_size)
    settings = dataclasses.replace(settings, model=model)
    settings.validate()
    return settings


def flags_with(settings: Settings) -> RunFlags:
    """The flags whose values are these settings."""
    sections = {name: getattr(settings, name) for name in SECTIONS}
    return RunFlags(
        preset=settings.preset, scale=settings.scale, seed=settings.seed, steps=settings.training.steps, **sections
    )


def with_flags(base: Settings, flags: RunFlags) -> Settings:
    """The settings that the flags say; --steps is short for --training.steps."""
    sections = {name: getattr(flags, name) for name in SECTIONS}
    settings = dataclasses.replace(base, seed=flags.seed, **sections)
    if flags.steps != base.training.steps:
        training = dataclasses.replace(settings.training, steps=flags.steps)
        settings = dataclasses.replace(settings, training=training)
    return settings


def resumed(words: list[str], stage: str, kept: Settings) -> None:
    """Raise one line if the flags that come with --resume say otherwise than the run's own settings."""
    flags = parse(RunFlags, words, stage, flags_with(kept))
    for name in ("preset", "scale"):
        if getattr(flags, name) != getattr(kept, name):
            _disagree(name, getattr(flags, name), getattr(kept, name))
    table = changed(with_flags(kept, flags), kept)
    path: list[str] = []
    before = kept
    while isinstance(table, dict) and table:
        key = next(iter(table))
        path.append(key)
        table, before = table[key], getattr(before, key)
    if path:
        _disagree(".".join(path), table, before)


def _disagree(name: str, asked, kept) -> None:
    raise UsageError(
        f"--{name.replace('_', '-')} {asked} disagrees with the run that --resume continues, which has {kept}; "
        f"leave the flag out, or begin another run"
    )


def run_path(options: RunOptions, environment=os.environ) -> Path | None:
    if options.out:
        return Path(options.out)
    return Path("runs") / environment["RUN_ID"] if environment.get("RUN_ID") else None
