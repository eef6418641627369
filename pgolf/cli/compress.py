"""The stage compress: a file to as many bits as the score says."""

from dataclasses import dataclass
from pathlib import Path

from pgolf.cli.parse import File, parse
from pgolf.evaluation.codec import Codec
from pgolf.files import system_error, write_whole
from pgolf.progress import Display


@dataclass(frozen=True)
class Options:
    """A file to bits, or back, with what an artifact predicts."""

    file: File
    """The file to read."""
    artifact: str
    """The model.pgolf of a run; to decompress, the one that compressed."""
    out: str
    """The file to write."""


def main(words: list[str]) -> int:
    return compress(parse(Options, words, "compress"))


def compress(options: Options) -> int:
    data = content_of(options.file)
    codec = Codec(Path(options.artifact))
    with Display() as display:
        packed, took = codec.compress(data, lambda share: display.status(f"{options.file}: {share:.0%} compressed", share))
        write_whole(Path(options.out), packed)
        display.settle()
        per_byte = 1 / max(len(data), 1)
        display.say(
            f"{options.file}: {len(data):,} bytes, {took['tokens']:,} tokens, in {took['seconds']:.1f} s "
            f"({took['tokens'] / took['seconds']:,.0f} tokens/s)"
        )
        display.say(
            f"{options.out}: {len(packed):,} bytes, {8 * len(packed) * per_byte:.4f} bits per byte; the distributions claim "
            f"{took['claimed_bits'] / 8:,.0f}, {took['claimed_bits'] * per_byte:.4f}"
        )
    return 0


def content_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise system_error("read", path, error) from None
