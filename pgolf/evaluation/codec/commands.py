"""The stages compress and decompress."""

from pathlib import Path

from pgolf.cli import CodecOptions
from pgolf.evaluation.codec.codec import Codec
from pgolf.files import system_error
from pgolf.folder import write_whole
from pgolf.progress import Display


def compress(options: CodecOptions) -> int:
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


def decompress(options: CodecOptions) -> int:
    packed = content_of(options.file)
    codec = Codec(Path(options.artifact))
    with Display() as display:
        data = codec.decompress(
            packed, options.file, lambda share: display.status(f"{options.file}: {share:.0%} decompressed", share)
        )
        write_whole(Path(options.out), data)
        display.settle()
        display.say(f"{options.out}: {len(data):,} bytes, as they were")
    return 0


def content_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise system_error("read", path, error) from None
