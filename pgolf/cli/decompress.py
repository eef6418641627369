"""The stage decompress: the bits of `compress` back to the file."""

from dataclasses import dataclass
from pathlib import Path

from pgolf.cli.compress import CodecOptions, content_of
from pgolf.cli.parse import parse
from pgolf.evaluation.codec import Codec
from pgolf.evaluation.codec.stream import Stream
from pgolf.files import write_whole
from pgolf.progress import Display


@dataclass(frozen=True)
class Options(CodecOptions):
    """The bits of a compressed file back to the file, with the artifact that they were made by."""


def main(words: list[str]) -> int:
    return decompress(parse(Options, words, "decompress"))


def decompress(options: Options) -> int:
    packed = content_of(options.file)
    # what it begins with is checked before a model is loaded
    Stream.from_bytes(packed, options.file)
    codec = Codec(Path(options.artifact))
    with Display() as display:
        data = codec.decompress(
            packed, options.file, lambda share: display.status(f"{options.file}: {share:.0%} decompressed", share)
        )
        write_whole(Path(options.out), data)
        display.settle()
        display.say(f"{options.out}: {len(data):,} bytes, as they were")
    return 0
