"""The stage pull: an artifact from a repository on the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path

from pgolf.cli.parse import parse
from pgolf.cli.push import Repo
from pgolf.hub import pull


@dataclass(frozen=True)
class Options:
    """An artifact that was pushed, its settings and its figures, checked and into a new folder; nothing executable."""

    repo: Repo
    """OWNER/NAME."""
    out: str
    """The folder to make."""
    revision: str = ""
    """Branch, tag or commit. Empty: the newest."""


def main(words: list[str]) -> int:
    options = parse(Options, words, "pull")
    folder = pull(options.repo, Path(options.out), options.revision)
    print(f"pulled {folder.artifact}, {folder.artifact.stat().st_size:,} bytes")
    return 0
