"""One stage of one run, once: `python -m pgolf.study.stage RUN STAGE [--device D]`, what every executor runs.

A study that was killed may leave a stage running on a cluster. The lock makes a second one wait, and then find the work done.
"""

import argparse
import fcntl
import sys

from pgolf.folder import RunFolder
from pgolf.run import main as pgolf


def is_done(folder: RunFolder, stage: str) -> bool:
    """Whether the run's files hold what the stage leaves."""
    summary = folder.read_summary()
    if stage == "train":
        return folder.weights.exists() and summary.train is not None
    if stage == "pack":
        return folder.artifact.exists() and summary.artifact is not None
    return bool(summary.score)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pgolf.study.stage", description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("stage", choices=("train", "pack", "score"))
    parser.add_argument("--device", default="")
    options = parser.parse_args(words)
    folder = RunFolder.existing(options.run)
    with open(folder.path / ".stage.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_done(folder, options.stage):
            return 0
        device = ["--device", options.device] if options.device else []
        if options.stage == "train":
            return pgolf(["train", "--resume", "--out", options.run, *device])
        return pgolf([options.stage, options.run, *device])


if __name__ == "__main__":
    sys.exit(main())
