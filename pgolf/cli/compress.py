"""The stage compress: a file to as many bits as the score says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgolf.cli.parse import File, parse
from pgolf.evaluation.codec import Codec
from pgolf.files import system_error, write_whole
from pgolf.progress import Display


@dataclass(frozen=True)
class CodecOptions:
    """A file to bits, or back, with what an artifact predicts."""

    file: File
    """The file to read."""
    artifact: str
    """The model.pgolf of a run; to decompress, the one that compressed."""
    out: str
    """The file to write."""


@dataclass(frozen=True)
class Options(CodecOptions):
    """A file to bits with what an artifact predicts."""

    documents: Literal["one", "lines", "paragraphs"] = "one"
    """Where documents begin in the file: nowhere inside it, with every line, or after every empty line."""
    apart: bool = False
    """Predict each document by itself, whatever the run does: nothing is learnt from one for the next, and up to 16 are coded
    at once, which is many times faster."""


# what ends a document
ENDS = {"lines": rb"(?<=\n)", "paragraphs": rb"(?<=\n\n)(?=[^\n])"}


def main(words: list[str]) -> int:
    return compress(parse(Options, words, "compress"))


def compress(options: Options) -> int:
    data = content_of(options.file)
    codec = Codec(Path(options.artifact), apart=options.apart)
    documents = [data] if options.documents == "one" else [part for part in re.split(ENDS[options.documents], data) if part]
    with Display() as display:
        packed, took = codec.compress(
            documents, lambda share: display.status(f"{options.file}: {share:.0%} compressed", share)
        )
        write_whole(Path(options.out), packed)
        display.settle()
        display.say(
            f"{options.file}: {len(data):,} bytes, {took['tokens']:,} tokens, in {took['seconds']:.1f} s "
            f"({took['tokens'] / took['seconds']:,.0f} tokens/s)"
        )
        bits, claimed = 8 * len(packed), took["claimed_bits"]
        per_byte = (f", {bits / len(data):.4f} bits per byte", f", {claimed / len(data):.4f}") if data else ("", "")
        display.say(
            f"{options.out}: {len(packed):,} bytes{per_byte[0]}; the distributions claim {claimed / 8:,.0f}{per_byte[1]}"
        )
    return 0


def content_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise system_error("read", path, error) from None
