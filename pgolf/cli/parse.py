"""Words to options, by tyro; a wrong word gets one line that names the nearest right one."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro

from pgolf.config import nearest
from pgolf.errors import UsageError

Options = TypeVar("Options")

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Runs = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
File = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class FolderOptions:
    """One stage of an existing run."""

    run: Run
    """Folder of the run."""


@dataclass(frozen=True)
class DeviceOptions(FolderOptions):
    """One stage of an existing run, on a device."""

    device: str = ""
    """cpu, cuda, ...; empty: CUDA if there."""


def parse(options: type[Options], words: list[str], stage: str, default: Options | None = None) -> Options:
    """`options` filled from the words behind a stage's name. --help prints and exits."""
    parsed, unknown = parse_known(options, words, stage, default)
    if unknown:
        word = unknown[0].split("=", 1)[0]
        if word.startswith("-"):
            raise UsageError(f"{stage} has no option {word}{nearest(word, flags_of(options))}")
        raise UsageError(f"{word!r} is a word too many; what belongs to {stage} says: pgolf {stage} --help")
    return parsed


def parse_known(
    options: type[Options], words: list[str], stage: str, default: Options | None = None
) -> tuple[Options, list[str]]:
    """The same, with the words that belong to no option."""
    start: Any = tyro.MISSING_NONPROP if default is None else default
    prog = f"pgolf {stage}"
    if {"-h", "--help"} & set(words):
        tyro.cli(options, args=["--help"], prog=prog, default=start)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(options, args=words, return_unknown_args=True, prog=prog, default=start)
    except SystemExit:
        raise UsageError(one_line(said.getvalue(), stage)) from None


def one_line(text: str, stage: str) -> str:
    """The complaint in tyro's box, which stands between its first two rules."""
    blocks = re.split(r"-{20,}", text)
    block = blocks[1] if len(blocks) > 1 else text
    if block.lstrip().startswith("Missing from"):
        missing = re.findall(r"^ {6}(\S.*?) *$", block, re.M)
        return f"{stage} needs {', '.join(missing)}; see: pgolf {stage} --help"
    line = " ".join(block.split()).rstrip(".")
    line = line.removeprefix("Error parsing ")
    line = re.sub(r": invalid literal for int\(\) with base 10: (.*)", r" is \1, but a whole number is wanted", line)
    return re.sub(r": could not convert string to float: (.*)", r" is \1, but a number is wanted", line)


def flags_of(options: type, prefix: str = "") -> Iterator[str]:
    """Every flag of a (nested) options class."""
    for item in dataclasses.fields(options):
        name = prefix + item.name.replace("_", "-")
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from flags_of(item.type, name + ".")
        else:
            yield "--" + name
