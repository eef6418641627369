"""The stage compare: one page of several runs, and the table of their differences."""

from dataclasses import dataclass
from pathlib import Path

from pgolf.cli.parse import Runs, parse
from pgolf.errors import UsageError
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.report.compare import page, tables
from pgolf.report.files import read_run


@dataclass(frozen=True)
class Options:
    """One page of several runs, and the table of their differences."""

    runs: Runs
    """Folders of the runs; those of one configuration are taken together."""
    out: str = "compare.html"
    """The page to write."""


def main(words: list[str]) -> int:
    return compare(parse(Options, words, "compare"))


def compare(options: Options) -> int:
    if len(options.runs) < 2:
        raise UsageError("compare needs the folders of two runs or more: pgolf compare RUN RUN")
    runs = [read_run(RunFolder.existing(run).path) for run in options.runs]
    write_whole(Path(options.out), page(runs))
    print(tables(runs))
    print(f"report {options.out}")
    return 0
