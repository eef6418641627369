"""Finished runs of one configuration to the folder that the challenge asks for."""

import json
import math
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev

from pgolf.artifact.code import device_kind, make_script, readable_script, requirements
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.rounding import FORMS
from pgolf.config import Settings, read_toml, to_toml
from pgolf.files import atomic_folder, write_whole
from pgolf.folder import FolderError, RunFolder
from pgolf.significance import welch
from pgolf.summary import ArtifactSize, Scoring, Summary, Train

READABLE = "train_gpt_readable.py"
# the challenge's bar for a record, which it gives in nats without saying of what
RECORD_NATS = 0.005


@dataclass(frozen=True)
class Submission:
    """What the submission's record says beside the measurements."""

    name: str = ""
    """Empty: the preset's."""
    author: str = ""
    github_id: str = ""
    track: str = "10min_16mb"


def export(runs: Sequence[str | Path], out: str | Path, about: Submission, baseline: str = "", readable: bool = False) -> None:
    """Write the submission of finished runs, one for each seed, into the folder `out`, and print its size.

    baseline  run folders or submission.json files, separated by commas; the gain over them is tested for significance
    readable  write the readable form of the script beside it, which is not counted
    """
    folders = [RunFolder.existing(run) for run in runs]
    settings = _one_configuration(folders)
    summaries = [_finished(folder) for folder in folders]
    seeds = [summary.seed for summary in summaries]
    if len(set(seeds)) != len(seeds):
        raise ArtifactError(f"two runs have the same seed {max(seeds, key=seeds.count)}; each must have its own")
    kinds = {device_kind(summary.device or "") for summary in summaries}
    if len(kinds) > 1:
        raise ArtifactError("some of the runs were on a CPU and some on a GPU; a script is for one of them")
    (device,) = kinds
    script = make_script(settings, device)
    for folder, summary in zip(folders, summaries, strict=True):
        _, artifact, _ = _stages(summary)
        if artifact.code_bytes != len(script):
            raise ArtifactError(
                f"{folder.path} was packed with {artifact.code_bytes:,} bytes of code, which are "
                f"{len(script):,} by now; pack and score it again"
            )
    result = _main_result(summaries)
    record = _record(about, settings, summaries, result, len(script))
    significance = _significance(record, baseline) if baseline else []

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FolderError(f"{out} is not empty; give another --out")
    with atomic_folder(out) as staging:
        write_whole(staging / "train_gpt.py", script)
        # its last line is no text, which git shall not change
        write_whole(staging / ".gitattributes", "train_gpt.py binary\n")
        if readable:
            write_whole(staging / READABLE, readable_script(settings, device))
        write_whole(staging / "requirements.txt", "\n".join(requirements(settings, device, readable)) + "\n")
        write_whole(staging / "submission.json", json.dumps(record, indent=2) + "\n")
        write_whole(staging / "README.md", _readme(record, settings, summaries, result, significance, readable))
        for folder, seed in zip(folders, seeds, strict=True):
            shutil.copyfile(folder.log, staging / f"train_seed{seed}.log")
    print(_size_line(record))
    for line in significance:
        print(line)
    print(f"submission {out}")


# ---- what the runs say


def _one_configuration(folders: list[RunFolder]) -> Settings:
    """The settings that all runs share, whatever their seeds."""
    settings = [read_toml(folder.config) for folder in folders]
    plain = [replace(one, seed=0) for one in settings]
    for folder, other in zip(folders, plain, strict=True):
        if other != plain[0]:
            lines = zip(to_toml(plain[0]).splitlines(), to_toml(other).splitlines(), strict=False)
            first, second = next((a, b) for a, b in lines if a != b)
            raise ArtifactError(f"{folders[0].path} and {folder.path} are two configurations: {first!r} against {second!r}")
    return settings[0]


def _finished(folder: RunFolder) -> Summary:
    summary = folder.read_summary()
    for part, stage in ((summary.train, "train"), (summary.artifact, "pack"), (summary.scoring, "score")):
        if not part:
            raise ArtifactError(f"{folder.path} is not finished: run the stage {stage} first")
    return summary


def _stages(summary: Summary) -> tuple[Train, ArtifactSize, Scoring]:
    """The parts of a summary that `_finished` has seen."""
    assert summary.train and summary.artifact and summary.scoring
    return summary.train, summary.artifact, summary.scoring


def _main_result(summaries: list[Summary]) -> str:
    """The predictor whose score is the runs' score: the one that each summary names as `main`, which scoring fixes before it
    has seen any text. Taking the best of several instead would be a choice made on the validation text."""
    names = {summary.main for summary in summaries}
    if len(names) > 1:
        raise ArtifactError(f"the runs have different main scores, {' and '.join(sorted(names))}; score them alike")
    (name,) = names
    if not all(name in summary.score and summary.score[name].legal for summary in summaries):
        raise ArtifactError(f"the runs' main score, {name!r}, is no legal score; nothing else can be submitted in its place")
    return name


def _record(about: Submission, settings: Settings, summaries: list[Summary], result: str, code_bytes: int) -> dict:
    scores = [summary.score[result] for summary in summaries]
    results = {}
    for summary, score in zip(summaries, scores, strict=True):
        train, artifact, scoring = _stages(summary)
        results[str(summary.seed)] = {
            "val_loss": score.loss,
            "val_bpb": score.bpb,
            "artifact_bytes": artifact.total_bytes,
            "steps": train.steps,
            "step_avg_ms": 1000 * train.parts.get("steps", 0.0) / max(train.steps, 1),
            "train_time_s": train.seconds,
            "eval_time_s": scoring.seconds,
            "scored_tokens": score.tokens,
            "scored_bytes": score.bytes,
            "partial": score.partial,
            "audit": _audited(summary),
        }
    models = [_stages(summary)[1].model_bytes for summary in summaries]
    sizes = [model + code_bytes for model in models]
    losses, bits = [score.loss for score in scores], [score.bpb for score in scores]
    return {
        "author": about.author,
        "github_id": about.github_id,
        "name": about.name or settings.preset,
        "blurb": settings.description,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "track": about.track,
        "val_loss": mean(losses),
        "val_bpb": mean(bits),
        "val_loss_std": stdev(losses) if len(losses) > 1 else 0.0,
        "val_bpb_std": stdev(bits) if len(bits) > 1 else 0.0,
        "seeds": [summary.seed for summary in summaries],
        "seed_results": results,
        "artifact_bytes_mean": round(mean(sizes)),
        "artifact_bytes_max": max(sizes),
        "bytes_total": max(sizes),
        "bytes_model": max(models),
        "bytes_code": code_bytes,
        "limit": settings.artifact.limit,
        "hardware": summaries[0].device,
        "python_version": platform.python_version(),
        "pytorch_version": summaries[0].versions["torch"],
        "technique_summary": settings.description,
    }


def _audited(summary: Summary) -> dict | None:
    """What `pgolf audit` said of a run; None: nobody has asked it."""
    audit = summary.audit
    if audit is None:
        return None
    bound = audit.bound or {}
    kept = {name: bound.get(name) for name in ("bits_per_byte", "confidence", "seed", "says")}
    return {"passed": audit.passed, "failed": audit.failed, "unearned": kept}


def _size_line(record: dict) -> str:
    margin = record["limit"] - record["bytes_total"]
    return (
        f"size: model {record['bytes_model']:,} + train_gpt.py {record['bytes_code']:,} = {record['bytes_total']:,} bytes, "
        f"{margin:,} below {record['limit']:,}"
    )


# ---- significance


def _significance(record: dict, baseline: str) -> list[str]:
    """One line for each predictor of the challenge's bar: per token and per byte, with and without it."""
    theirs = _baseline(baseline)
    ours = list(record["seed_results"].values())
    lines = []
    for unit, values in (
        ("nats per token", [[one["val_loss"] for one in side] for side in (ours, theirs)]),
        ("nats per byte", [[one["val_bpb"] * math.log(2) for one in side] for side in (ours, theirs)]),
    ):
        gain = mean(values[1]) - mean(values[0])
        for margin in (0.0, RECORD_NATS):
            t, p = welch(values[0], values[1], margin)
            lines.append(
                f"{gain:+.5f} {unit} below the baseline; by more than {margin:g}: t = {t:.2f}, p = {p:.2g} (one-sided Welch)"
            )
    return lines


def _baseline(words: str) -> list[dict]:
    scores: list[dict] = []
    for word in words.split(","):
        path = Path(word)
        if path.is_dir():
            summary = _finished(RunFolder.existing(path))
            score = summary.score[_main_result([summary])]
            scores.append({"val_loss": score.loss, "val_bpb": score.bpb})
            continue
        try:
            results = json.loads(path.read_text(encoding="utf-8"))["seed_results"]
            scores += [{name: float(one[name]) for name in ("val_loss", "val_bpb")} for one in results.values()]
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(f"{path} is no baseline: seed_results with val_loss and val_bpb are wanted") from None
    return scores


# ---- the README


def _readme(
    record: dict, settings: Settings, summaries: list[Summary], result: str, significance: list[str], readable: bool
) -> str:
    rows = [
        f"| {seed} | {one['val_loss']:.5f} | {one['val_bpb']:.5f} | {one['steps']:,} | {one['step_avg_ms']:.1f} | "
        f"{one['train_time_s']:.1f} | {one['eval_time_s']:.1f} | {one['artifact_bytes']:,} |"
        for seed, one in record["seed_results"].items()
    ]
    partial = any(one["partial"] for one in record["seed_results"].values())
    data = f"DATA_PATH={settings.data.path} " if settings.data.path else ""
    commands = "\n".join(f"    SEED={seed} {data}python train_gpt.py" for seed in record["seeds"])
    trains, artifacts, scorings = zip(*map(_stages, summaries), strict=True)
    train, scoring = mean(one.seconds for one in trains), mean(one.seconds for one in scorings)
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in trains[0].parts.items())
    note = "\nThe scores cover only part of the validation stream.\n" if partial else ""
    compared = "\n## Against the baseline\n\n" + "\n".join(f"- {line}" for line in significance) + "\n" if significance else ""
    sections = "".join(f"| {name} | {size:,} |\n" for name, size in artifacts[0].parts.items())
    return f"""# {record["name"]}

{settings.description}

val_bpb **{record["val_bpb"]:.5f}** (std {record["val_bpb_std"]:.5f}), val_loss {record["val_loss"]:.5f}
(std {record["val_loss_std"]:.5f}), over {len(rows)} seeds, scored as `{result}`.
{note}
| seed | val_loss | val_bpb | steps | ms a step | training s | scoring s | bytes |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}
{compared}
## Legality

- C1, strict causal dependence: a token's distribution comes from the artifact and from tokens before it; the stream
  refuses to hand out a token before its span is committed.
- C2, full normalised distribution: `{result}` is the negative logarithm of one softmax, or mixture of softmaxes, over
  the whole vocabulary.
- C3, score before update: what adapts learns only from spans whose scores are final.
- C4, one pass from left to right: every token is scored once, in order; a second commit of a place raises an error.
{chr(10).join(_audit_line(seed, one["audit"]) for seed, one in record["seed_results"].items())}
- Training saw no validation data: calibration for rounding reads {_calibration(settings)}.
- Time: training {train:.1f} s of {settings.training.seconds:.0f} s ({parts}); scoring {scoring:.1f} s of
  {settings.evaluation.seconds:.0f} s, loading, compiling and adapting included.
- {_size_line(record).capitalize()}.
  The tokenizer is not counted, as in the challenge's own script.

| part of the file | bytes |
|---|---|
{sections}
## Run it

    pip install -r requirements.txt
{commands}

On eight GPUs: `torchrun --standalone --nproc_per_node=8 train_gpt.py`. {_forms(readable)}
Hardware of these runs: {record["hardware"]}; torch {record["pytorch_version"]}.
"""


def _audit_line(seed: str, audit: dict | None) -> str:
    if audit is None:
        return f"- Seed {seed} was not audited."
    verdict = "passed" if audit["passed"] else f"FAILED ({', '.join(audit['failed'])})"
    says = audit["unearned"]["says"] or "It has no bound on what is not earned."
    return f"- Audit of seed {seed} {verdict}. {says}"


def _forms(readable: bool) -> str:
    text = (
        "The script is the part of the package's sources that these settings reach, merged and compressed: a stub in Latin-1, "
        "whose last line, a comment, holds the module, coded by context mixing; the stub decodes it into a private folder."
    )
    if not readable:
        return text + f" `pgolf export --readable` writes them beside it as {READABLE}."
    return (
        text
        + f" {READABLE} holds them as they are; this makes the one from the other, byte for byte:\n\n"
        + (f"    python {READABLE} compact | cmp - train_gpt.py\n")
    )


def _calibration(settings: Settings) -> str:
    if not FORMS[settings.artifact.rounding].needs_hessians:
        return "nothing"
    if settings.artifact.calibration == "generated":
        return "text that the model wrote itself"
    return "training data, inside the training clock"
