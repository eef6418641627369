"""The stage push: a scored run to a repository on the Hugging Face Hub."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from pgolf.cli.parse import Run, parse
from pgolf.folder import RunFolder
from pgolf.hub import push

Repo = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO")]


@dataclass(frozen=True)
class Options:
    """A scored run's artifact to a repository on the Hugging Face Hub, its report as the model card."""

    run: Run
    """Folder of the run."""
    repo: Repo
    """OWNER/NAME; made if it is not there."""
    private: bool = False
    """Make a new repository private."""


def main(words: list[str]) -> int:
    options = parse(Options, words, "push")
    print(f"pushed to {push(RunFolder.existing(options.run), options.repo, private=options.private)}")
    return 0
