"""All stages of a run: train, pack, score in a process of its own, report, show."""

import subprocess
import sys

from pgolf.artifact.code import embedded
from pgolf.cli.begin import begin
from pgolf.cli.flags import RunFlags
from pgolf.cli.pack import pack
from pgolf.cli.show import show
from pgolf.cli.train import train

Options = RunFlags


def main(words: list[str]) -> int:
    run = begin(words, "run")
    folder = run.folder
    if not (run.resume and folder.weights.exists()):
        code = train(folder, run.settings, run.device, resume=run.resume)
        if code:
            return code
    if run.is_first and not (run.resume and folder.artifact.exists()):
        pack(folder, run.device)
    # a process of its own: the score must come from the artifact, by code that has never seen training
    command = [sys.executable, "-m", "pgolf.run", "score", str(folder.path)]
    done = subprocess.run(command + (["--device", run.device] if run.device else []))
    if done.returncode or not run.is_first:
        return done.returncode
    if not embedded():
        from pgolf.cli.report import report

        report(folder)
    return show(folder)
