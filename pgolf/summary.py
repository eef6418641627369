"""summary.json: what a run came to, stage by stage. This file is its schema, its one reader and its one writer.

A part is None (or empty) until the stage that it belongs to has finished; a stage is done when its part is there.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.config.checks import SettingsError
from pgolf.config.types import dataclass_of
from pgolf.errors import PgolfError
from pgolf.files import write_whole

VERSION = 2
# what each stage writes, in the order in which they follow from each other
STAGES = {
    "train": ("preset", "seed", "corpus", "parameters", "device", "versions", "train"),
    "pack": ("artifact",),
    "score": ("score", "main", "scoring", "compressors"),
    "audit": ("audit",),
}


class SummaryError(PgolfError):
    """A summary.json that cannot be used, in one line."""


@dataclass(frozen=True)
class Corpus:
    name: str
    digest: str
    """sha256 of the corpus, as its shards have it."""
    shared: float | None = None
    """The share of validation bytes in passages that also stand in training; None: not measured, `data --overlap` does."""


@dataclass(frozen=True)
class Train:
    seconds: float
    """On the training clock: the parts, calibration and rounding of the stage pack included."""
    limit: float
    parts: dict[str, float]
    untimed: dict[str, float]
    """What is not on the clock: set-up, warm-up, export."""
    steps: int
    tokens: int
    loss: float
    """Of the last step, nats per token."""
    weights: str
    """Which weights became the artifact: raw, ema, swa, lawa."""
    peak_memory_bytes: int | None = None
    """The most that the first rank took: of its GPU's memory, or of the machine's. Of a resumed run, since it went on."""
    over_limit: bool = False
    """More seconds than the limit, where the clock decides how long training is."""


@dataclass(frozen=True)
class ArtifactSize:
    model_bytes: int
    """model.pgolf without the tokenizer, which the challenge does not count."""
    code_bytes: int
    tokenizer_bytes: int
    limit: int
    parts: dict[str, int]
    """Bytes of the file's sections."""
    total_bytes: int
    """Model and code."""
    margin: int
    seconds: float


@dataclass(frozen=True)
class Score:
    """One predictor's result on the validation stream."""

    bpb: float
    """Bits per byte of text."""
    loss: float
    """Nats per token."""
    nats: float
    tokens: int
    bytes: int
    legal: bool
    """A code length: normalised, and a function of the tokens before."""
    seconds: float
    partial: bool = False
    """Only evaluation.max_tokens of the stream were scored."""
    baseline: str | None = None
    """The predictor that this one builds on."""
    gain: float | None = None
    """Over the baseline, in bits per byte."""
    gain_error: float | None = None
    """Its standard error, paired document by document."""


@dataclass(frozen=True)
class Scoring:
    seconds: float
    limit: float
    parts: dict[str, float]
    gave_up: dict[str, int | float | list[str]]
    """What the clock left no time for; empty: nothing."""
    replayed: bool
    """The decisions came from a plan.json instead of the clock."""
    adaptation_steps: int
    over_limit: bool = False
    """More seconds than the limit: it cannot be met on this machine."""


@dataclass(frozen=True)
class Compressor:
    """What a general-purpose compressor needs for the text that was scored."""

    bytes: int
    bpb: float
    text_bytes: int
    primed_bytes: int | None = None
    """What it needs on top where it has read the training text before; None: it was not tried."""
    primed_bpb: float | None = None


@dataclass(frozen=True)
class Audit:
    passed: bool
    failed: list[str]
    """Tests that do not hold."""
    tests: int
    results: list[str]
    """The predictors that were tried."""
    seconds: float
    bound: dict[str, Any] | None = None
    """What of the score may not be earned, and from how many replays that follows; `says` is its sentence."""
    decoded: dict[str, Any] | None = None
    """What compressing and decoding a part of the text took."""


@dataclass(frozen=True)
class Summary:
    version: int = VERSION
    preset: str | None = None
    seed: int | None = None
    corpus: Corpus | None = None
    parameters: int | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    train: Train | None = None
    artifact: ArtifactSize | None = None
    score: dict[str, Score] = field(default_factory=dict)
    """By predictor, in the order in which they build on each other."""
    main: str = ""
    """The predictor whose score is the run's."""
    scoring: Scoring | None = None
    compressors: dict[str, Compressor] = field(default_factory=dict)
    audit: Audit | None = None

    @property
    def over_limit(self) -> bool:
        """Whether a clock was not kept."""
        return any(stage is not None and stage.over_limit for stage in (self.train, self.scoring))

    @property
    def main_score(self) -> Score | None:
        return self.score.get(self.main)


def read_summary(path: Path) -> Summary:
    """The summary in a file; an empty one where there is no file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Summary()
    except (OSError, ValueError, RecursionError) as error:
        raise SummaryError(f"{path} is damaged ({error}); delete it and run the stage again") from None
    if isinstance(table, dict) and table.get("version") != VERSION:
        raise SummaryError(
            f"{path} has version {table.get('version', 1)!r}, but this pgolf reads {VERSION}; "
            f"delete it and run the stages again"
        )
    try:
        return dataclass_of(Summary, table, path.name)
    except SettingsError as error:
        raise SummaryError(f"{path} is damaged ({error}); delete it and run the stage again") from None


def write_summary(path: Path, summary: Summary) -> None:
    write_whole(path, json.dumps(dataclasses.asdict(summary, dict_factory=_present), indent=2) + "\n")


def _present(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dataclass's fields without those that are not known yet."""
    return {name: value for name, value in items if value is not None}
