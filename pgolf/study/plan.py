"""A study file: what is compared with what.

name = "xsa"
preset = "pr549"              # of the base
scale = "tiny"
seeds = [1337, 42, 7]
steps = 100                   # or seconds, of training
score = "main"                # the predictor that arms are compared by; main: each run's own score

[base]                        # settings on top of the preset
evaluation.seconds = 3600.0

[arms.xsa-everywhere]
title = "XSA on all layers"
settings.model.xsa_last = 11

[arms.adapted]                # an arm may have another preset, predictor, or arm that it is held against
settings.evaluation.adaptation.method = "lora"
score = "adapted"
against = "base"

[grid]                        # every combination becomes an arm
"training.muon_lr" = [0.02, 0.04]

[[gates]]                     # an arm that is worse than the base's run of the same seed by more is stopped
after = "train"
figure = "train.loss"
worse_by = 0.1

[slurm]                       # what submitit takes: timeout_min, slurm_partition, gpus_per_node, ...
"""

import dataclasses
import itertools
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from pgolf.config import Settings, at_scale, changed, from_table, load_preset, nearest
from pgolf.errors import UsageError
from pgolf.study.figures import FIGURES

STAGES = ("train", "pack", "score")
BASE = "base"


class StudyError(UsageError):
    """A study file that cannot be used, in one line."""


@dataclass(frozen=True)
class Gate:
    """Stop an arm after a stage where a figure is larger than that of the arm it is held against by more than so much."""

    after: str
    figure: str
    worse_by: float


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    settings: Settings
    """Of every seed's run, but for the seed."""
    first_stage: str = "train"
    """The first stage in which it differs from the base, which lends it what earlier ones left."""
    score: str = "main"
    against: str = BASE
    against_score: str = "main"
    note: str = ""


@dataclass(frozen=True)
class Study:
    name: str
    title: str
    arms: dict[str, Arm]
    """The base comes first."""
    seeds: tuple[int, ...]
    gates: tuple[Gate, ...] = ()
    slurm: dict = field(default_factory=dict)

    @property
    def others(self) -> list[Arm]:
        return [arm for arm in self.arms.values() if arm.name != BASE]


TOP = {"name", "title", "preset", "scale", "seeds", "steps", "seconds", "score", "base", "arms", "grid", "gates", "slurm"}
OF_ARM = {"title", "note", "preset", "settings", "score", "against", "against_score"}


def read_study(path: Path) -> Study:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file; give the study's TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: {error}") from None
    return study_of(table, path.name)


def study_of(table: dict, where: str) -> Study:
    _known(table, TOP, where)
    name = _text(table, "name", where, default=Path(where).stem)
    seeds = table.get("seeds", [1337])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise StudyError(f"{where}: seeds is a list of whole numbers, one at least")
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"{where}: seeds names a seed twice")
    preset, score = _text(table, "preset", where, default="quick"), _text(table, "score", where, default="main")
    common = {**_section(table, "base", where)}
    budget = _budget(table, where)
    base = _settings(table, preset, [common, budget], f"{where}, [base]")
    arms = {BASE: Arm(BASE, _text(table, "title", where, default="the base"), base, score=score, against_score=score)}
    for arm, about in {**_section(table, "arms", where), **_grid(table, where)}.items():
        arms[_name(arm, where)] = _arm(table, arm, about, base, [common, budget], preset, score, f"{where}, [arms.{arm}]")
    if len(arms) == 1:
        raise StudyError(f"{where}: there is nothing to compare; add [arms.NAME] or [grid]")
    for one in arms.values():
        if one.against not in arms:
            raise StudyError(f"{where}: arm {one.name} is held against {one.against!r}{nearest(one.against, arms)}")
    gates = tuple(_gate(gate, f"{where}, gate {i + 1}") for i, gate in enumerate(table.get("gates", ())))
    return Study(name, _text(table, "title", where, default=name), arms, tuple(seeds), gates, _section(table, "slurm", where))


def _arm(table, name, about, base: Settings, common: list[dict], preset: str, score: str, where: str) -> Arm:
    if not isinstance(about, dict):
        raise StudyError(f"{where}: an arm is a table")
    _known(about, OF_ARM, where)
    own = _text(about, "preset", where, default=preset)
    settings = _settings(table, own, [*common, _section(about, "settings", where)], where)
    difference = changed(settings, base)
    if not difference and not about.keys() & {"score", "against", "against_score"}:
        raise StudyError(f"{where}: it is the base itself; name a setting that it changes")
    return Arm(
        name,
        _text(about, "title", where, default=_told(difference) or name),
        settings,
        _first_stage(difference),
        _text(about, "score", where, default=score),
        _text(about, "against", where, default=BASE),
        _text(about, "against_score", where, default=score),
        _text(about, "note", where, default=""),
    )


def _first_stage(difference: dict) -> str:
    """From the settings that differ. What the mixers hold goes into the artifact, so packing comes first there."""
    if set(difference) - {"artifact", "evaluation"}:
        return "train"
    mixer = difference.get("evaluation", {}).get("mixer", {})
    return "pack" if "artifact" in difference or mixer else "score"


def _settings(table: dict, preset: str, layers: list[dict], where: str) -> Settings:
    settings = at_scale(load_preset(preset), _text(table, "scale", where, default="full"))
    for layer in layers:
        settings = from_table(layer, settings, where)
    settings = dataclasses.replace(settings, seed=0)
    settings.validate()
    return settings


def _budget(table: dict, where: str) -> dict:
    if "steps" in table and "seconds" in table:
        raise StudyError(f"{where}: give steps or seconds, not both")
    return {"training": {key: table[key] for key in ("steps", "seconds") if key in table}}


def _grid(table: dict, where: str) -> dict[str, dict]:
    grid = _section(table, "grid", where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise StudyError(f'{where}, [grid]: "{key}" is a list of values (write the dotted name in quotes)')
    arms = {}
    for combination in itertools.product(*grid.values()) if grid else ():
        settings: dict = {}
        for key, value in zip(grid, combination, strict=True):
            *sections, last = key.split(".")
            inner = settings
            for one in sections:
                inner = inner.setdefault(one, {})
            inner[last] = value
        parts = [f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in zip(grid, combination, strict=True)]
        arms[re.sub(r"[^\w.+-]", "_", "-".join(parts))] = {"settings": settings}
    return arms


def _gate(gate: dict, where: str) -> Gate:
    _known(gate, {"after", "figure", "worse_by"}, where)
    after, figure = _text(gate, "after", where), _text(gate, "figure", where)
    if after not in STAGES:
        raise StudyError(f"{where}: after is {after!r}; it can be {', '.join(STAGES)}")
    if figure not in FIGURES and not figure.startswith("score."):
        raise StudyError(f"{where}: no figure {figure!r}{nearest(figure, FIGURES)}; or score.NAME of a predictor")
    try:
        return Gate(after, figure, float(gate["worse_by"]))
    except (KeyError, TypeError, ValueError):
        raise StudyError(f"{where}: worse_by is a number") from None


def _told(difference: dict, path: str = "") -> str:
    """The settings that differ, in a line."""
    parts = []
    for key, value in difference.items():
        name = f"{path}.{key}" if path else key
        parts.append(_told(value, name) if isinstance(value, dict) else f"{name} = {value}")
    return ", ".join(parts)


def _name(name: str, where: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", name) or name == BASE:
        raise StudyError(f"{where}: {name!r} is no name of an arm; letters, digits and . + - _ are, and {BASE!r} is taken")
    return name


def _known(table: dict, known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise StudyError(f"{where}: no entry {key!r}{nearest(key, known)}")


def _text(table: dict, key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise StudyError(f"{where}: {key} is a text" if key in table else f"{where}: {key} is missing")
    return value


def _section(table: dict, key: str, where: str) -> dict:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise StudyError(f"{where}: {key} is a table")
    return value
