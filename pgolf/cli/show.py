"""The stage show: the figures of a run, in the terminal."""

from pgolf.artifact.code import embedded
from pgolf.cli.parse import FolderOptions, parse
from pgolf.folder import RunFolder
from pgolf.report.tables import tables

Options = FolderOptions


def main(words: list[str]) -> int:
    return show(RunFolder.existing(parse(Options, words, "show").run))


def show(folder: RunFolder) -> int:
    if not embedded():
        from pgolf.report.files import read_run
        from pgolf.report.page import further_tables

        print(further_tables(read_run(folder.path)) + "\n")
    print(tables(folder.read_summary()))
    return 0
