"""All stages of a run: train, pack, score in a process of its own, report, show."""

import sys

from pgolf.artifact.code import embedded
from pgolf.cli.begin import begin
from pgolf.cli.flags import RunFlags
from pgolf.cli.show import show
from pgolf.cli.stages import stages
from pgolf.errors import OVER_LIMIT
from pgolf.process import rank

Options = RunFlags


def main(words: list[str]) -> int:
    with begin(words, "run") as run:
        scoring = [sys.executable, "-m", "pgolf.run", "score", str(run.folder.path)]
        scoring += ["--device", run.device] if run.device else []
        code = stages(run.folder, run.settings, run.device, run.resume, scoring)
        if rank() or code not in (0, OVER_LIMIT):
            return code
        if not embedded():
            from pgolf.cli.report import report

            report(run.folder)
        show(run.folder)
        return code
