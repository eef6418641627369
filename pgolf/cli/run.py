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
    """Train, pack and score, or what of it is not done yet. A clock that is overrun does not keep the next stage away; the
    summary remembers it."""
    done, code = run.done, 0
    if not done.train:
        code = train(run.folder, run.settings, run.device, resume=run.resume)
    if code in (0, OVER_LIMIT) and not rank() and not done.artifact:
        code = pack(run.folder, run.device)
    if code in (0, OVER_LIMIT) and not done.scoring:
        # a process of its own: the score must come from the artifact, by code that has never seen training
        command = [sys.executable, "-m", "pgolf.run", "score", str(run.folder.path)]
        code = run_child(command + (["--device", run.device] if run.device else [])).returncode
    if code or rank():
        return code
    return OVER_LIMIT if run.folder.read_summary().over_limit else 0
