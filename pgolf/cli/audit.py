"""The stage audit: whether a score is a code length."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pgolf.artifact.code import device_kind, make_script
from pgolf.audit.command import audit_scorer, decode_run, publish
from pgolf.audit.run_audit import audit_run
from pgolf.cli.common import CACHE, chosen_device, dataset_of
from pgolf.cli.parse import parse
from pgolf.config import read_toml
from pgolf.errors import UsageError
from pgolf.folder import RunFolder
from pgolf.progress import Display
from pgolf.summary import Audit


@dataclass(frozen=True)
class Options:
    """Try whether a score is a code length: of a run's predictors, or of a scorer of your own."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """Folder of the run."""
    scorer: str = ""
    """Instead of a run: MODULE:NAME or FILE.py:NAME; pgolf/audit/interface.py says what it has to offer."""
    tokens: str = ""
    """Text for a scorer to be tried on: a shard, or a .npy of token ids. Empty: the built-in corpus, or a made-up text for
    vocabularies that it does not fit."""
    targets: int = 0
    """Tokens that the trials use; 0: as many as their share of the clock allows."""
    replays: int = 0
    """Targets at the beginning of a claim that are replayed from their past alone; 0: as many as half a minute allows."""
    decode: int = 0
    """Also compress so many tokens of the text by the scorer's own distributions, and decode them again."""
    seed: int = 0
    """Of the positions that are replayed and of the texts that the audit makes up; 0: drawn after the claim, and printed."""
    out: str = ""
    """Where audit.json and audit.html go; empty: the run's folder, or the current one."""
    device: str = ""
    """cpu, cuda, ...; empty: CUDA if there."""


def main(words: list[str]) -> int:
    return audit(parse(Options, words, "audit"))


def audit(options: Options) -> int:
    if bool(options.run) == bool(options.scorer):
        raise UsageError("audit needs either the folder of a run or --scorer MODULE:NAME: pgolf audit RUN")
    if options.scorer:
        with Display() as display:
            report = audit_scorer(
                options.scorer,
                options.tokens,
                CACHE,
                targets=options.targets,
                replays=options.replays,
                decode=options.decode,
                seed=options.seed or None,
                progress=said_by(display),
            )
            display.settle()
            return publish(report, Path(options.out or "."), options.scorer, display.say)
    folder = RunFolder.existing(options.run)
    settings = read_toml(folder.config)
    with folder.writing(), Display(folder.log) as display:
        dataset = dataset_of(settings, display)
        trained_on = folder.read_summary().device
        kind = device_kind(trained_on) if trained_on else chosen_device(options.device).type
        report = audit_run(
            folder,
            dataset,
            make_script(settings, kind),
            device=chosen_device(options.device),
            targets=options.targets,
            seed=options.seed or None,
            progress=said_by(display),
        )
        if options.decode:
            report.decoded = decode_run(folder, dataset, options.decode, said_by(display))
        display.settle()
        folder.withdraw("audit")
        code = publish(report, Path(options.out) if options.out else folder.path, folder.path.name, display.say)
        folder.update_summary(
            audit=Audit(
                passed=report.passed,
                failed=sorted({one.id for one in report.failed}),
                tests=len(report.judged),
                results=report.results,
                seconds=report.seconds,
                bound=report.bound,
                decoded=report.decoded,
            )
        )
        return code


def said_by(display: Display):
    return lambda name, share: display.status(f"audit, {name}: {share:.0%}", share)
