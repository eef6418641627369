"""The stage export: a submission's folder from finished runs of one configuration."""

from dataclasses import dataclass

from pgolf.artifact.export import Submission
from pgolf.artifact.export import export as write_submission
from pgolf.cli.parse import Runs, parse
from pgolf.errors import UsageError


@dataclass(frozen=True)
class Options:
    """A submission's folder from finished runs of one configuration."""

    runs: Runs
    """Folders of the runs, one for each seed."""
    out: str
    """The folder to write."""
    name: str = ""
    """Name of the submission; empty: the preset's."""
    author: str = ""
    """Who submits it."""
    github_id: str = ""
    """And under which account."""
    track: str = "10min_16mb"
    """Which track."""
    baseline: str = ""
    """What it is compared with: run folders or submission.json files, with commas between them."""
    readable: bool = False
    """Also write the script in readable form, which is not counted, beside it."""


def main(words: list[str]) -> int:
    return export(parse(Options, words, "export"))


def export(options: Options) -> int:
    if not options.runs:
        raise UsageError("export needs the folders of one run or more: pgolf export --out FOLDER RUN [RUN RUN]")
    about = Submission(options.name, options.author, options.github_id, options.track)
    write_submission(options.runs, options.out, about, options.baseline, options.readable)
    return 0
