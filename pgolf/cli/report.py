"""The stage report: pictures and report.html from a run folder's files."""

from dataclasses import dataclass

from pgolf.cli.parse import FolderOptions, parse
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.report.files import read_run
from pgolf.report.page import draw, page
from pgolf.report.watch import watch


@dataclass(frozen=True)
class Options(FolderOptions):
    """Pictures and report.html of a run, from its folder's files."""

    watch: bool = False
    """Serve the page on this machine while the run goes on; it refreshes itself. Ctrl-C ends it."""
    port: int = 8188
    """Port to serve it at; 0: any that is free."""


def main(words: list[str]) -> int:
    options = parse(Options, words, "report")
    folder = RunFolder.existing(options.run)
    if options.watch:
        watch(folder.path, options.port)
        return 0
    return report(folder)


def report(folder: RunFolder) -> int:
    with folder.writing():
        run = read_run(folder.path)
        for picture in draw(run, folder.pictures):
            print(f"picture {picture}")
        write_whole(folder.report, page(run))
    print(f"report {folder.report}")
    return 0
