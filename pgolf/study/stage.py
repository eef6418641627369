"""One stage of one run, once: `python -m pgolf.study.stage RUN STAGE [--device D]`, what every executor runs.

A study that was killed may leave a stage running on a cluster. The lock makes a second one wait, and then find the work done.
"""

import argparse
import fcntl
import os
import sys

from pgolf.folder import RunFolder
from pgolf.process import end_with_parent

LEAVES = {"train": "train", "pack": "artifact", "score": "score"}


def is_done(folder: RunFolder, stage: str) -> bool:
    """A stage is done when its part of the summary is there."""
    return bool(getattr(folder.read_summary(), LEAVES[stage]))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pgolf.study.stage", description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("stage", choices=LEAVES)
    parser.add_argument("--device", default="")
    options = parser.parse_args(words)
    end_with_parent()
    folder = RunFolder.existing(options.run)
    lock = os.open(folder.path / ".stage.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if is_done(folder, options.stage):
        return 0
    # the stage takes this process's place, and the lock with it
    os.set_inheritable(lock, True)
    which = ["train", "--resume", "--out", options.run] if options.stage == "train" else [options.stage, options.run]
    device = ["--device", options.device] if options.device else []
    os.execv(sys.executable, [sys.executable, "-m", "pgolf.run", *which, *device])


if __name__ == "__main__":
    sys.exit(main())
