"""The stage study: many runs as one experiment, and the page about them."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from pgolf.cli.parse import File, parse
from pgolf.study.driver import Driver
from pgolf.study.executors import executor_of
from pgolf.study.page import publish
from pgolf.study.plan import read_study


@dataclass(frozen=True)
class Options:
    """Run a study's arms over its seeds and compare them; the same command goes on where it was stopped."""

    file: File
    """The study: a TOML file, which pgolf/study/plan.py explains."""
    out: str = ""
    """Its folder. Empty: runs/study-<name>."""
    executor: str = "local"
    """local, slurm (needs submitit) or ray."""
    jobs: int = 0
    """Stages at once. 0: one on this machine, as many as fit on a cluster."""
    device: str = ""
    """cpu, cuda, ...; empty: CUDA if there."""
    retry: bool = False
    """Try stages again that crashed."""
    page_only: bool = False
    """Run nothing; write the page of what there is."""


def main(words: list[str]) -> int:
    options = parse(Options, words, "study")
    study = read_study(Path(options.file))
    folder = Path(options.out or f"runs/study-{study.name}")
    code = 0
    if not options.page_only:
        executor = executor_of(options.executor, folder / "cluster", options.jobs, study.slurm)
        # told to end, it stops what runs here and leaves the rest to the next call
        signal.signal(signal.SIGTERM, lambda *about: sys.exit(128 + signal.SIGTERM))
        code = Driver(study, folder, executor, device=options.device, retry=options.retry).run()
    print(publish(study, folder))
    return code
