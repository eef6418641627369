"""All stages of a run: train, pack, score in a process of its own, report, show."""

import sys

from pgolf.artifact.code import embedded
from pgolf.cli.begin import Begun, begin
from pgolf.cli.flags import RunFlags
from pgolf.cli.pack import pack
from pgolf.cli.show import show
from pgolf.cli.train import train
from pgolf.errors import OVER_LIMIT
from pgolf.process import rank, run_child

Options = RunFlags


def main(words: list[str]) -> int:
    with begin(words, "run") as run:
        code = stages(run)
        if rank() or code not in (0, OVER_LIMIT):
            return code
        if not embedded():
            from pgolf.cli.report import report

            report(run.folder)
        show(run.folder)
        return code


def stages(run: Begun) -> int:
    """Train, pack and score, or what of it is not done yet. A clock that is overrun does not keep the next stage away."""
    codes = {0}
    if not run.done.train:
        codes.add(train(run.folder, run.settings, run.device, resume=run.resume))
    if codes <= {0, OVER_LIMIT} and not rank() and not run.done.artifact:
        codes.add(pack(run.folder, run.device))
    if codes <= {0, OVER_LIMIT} and not run.done.scoring:
        # a process of its own: the score must come from the artifact, by code that has never seen training
        command = [sys.executable, "-m", "pgolf.run", "score", str(run.folder.path)]
        codes.add(run_child(command + (["--device", run.device] if run.device else [])).returncode)
    return max(codes - {OVER_LIMIT}) or max(codes)
