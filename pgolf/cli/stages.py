"""The stages of a run, one after the other: of the command line and of the counted script alike."""

from collections.abc import Sequence

from pgolf.cli.pack import pack
from pgolf.cli.train import train
from pgolf.config.settings import Settings
from pgolf.errors import OVER_LIMIT
from pgolf.folder import RunFolder
from pgolf.process import rank, run_child
from pgolf.summary import Summary


def stages(folder: RunFolder, settings: Settings, device: str, resume: bool, scoring: Sequence[str]) -> int:
    """Train, pack and score, or what of it is not done yet. A clock that is overrun does not keep the next stage away; it
    stands in the summary.

    scoring  the command that scores the run, in a process of its own: the score must come from the artifact, by code that has
             never seen training
    """
    done = folder.read_summary() if resume else Summary()
    code = 0 if done.train else train(folder, settings, device, resume=resume)
    if code in (0, OVER_LIMIT) and not rank() and not done.artifact:
        code = pack(folder, device)
    if code in (0, OVER_LIMIT) and not done.scoring:
        code = run_child(scoring).returncode
    if code or rank():
        return code
    return OVER_LIMIT if folder.read_summary().over_limit else 0
