"""What general compressors need for a text: alone, and primed, when the training text has been read before it.

Primed is the fair comparison: a network has read the training text too. Of a compressor that takes no dictionary it is
size(training + text) - size(training), in one stream. Those that are not installed are left out.
"""

import bz2
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import zstandard

from pgolf.files import temporary_folder
from pgolf.summary import Compressor

# more text than this is not worth the wait, and beyond 27 bits zstd's window no longer holds it
MOST_BYTES = 20_000_000
PROGRAM_SECONDS = 300
# the entry beside them: the run's own code with the artifact that its decoder must have
OWN = "pgolf and its artifact"

Size = Callable[[bytes], int]


def _zstd(text: bytes, training: bytes) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=len(text), dict_size=len(training), window_log=27
    )
    words = zstandard.ZstdCompressionDict(training, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if training else None
    return len(zstandard.ZstdCompressor(compression_params=parameters, dict_data=words).compress(text))


def _brotli(text: bytes) -> int:
    import brotli

    return len(brotli.compress(text, quality=11, lgwin=24))


def _ppmd(order: int) -> Size:
    def size(text: bytes) -> int:
        import pyppmd

        return len(pyppmd.compress(text, max_order=order, mem_size=1 << 28))

    return size


def _program(*words: str, made: str = "out") -> Size:
    """Of the file that a program makes from one named `text`; both lie in a folder of their own."""

    def size(text: bytes) -> int:
        with temporary_folder("compressor") as place:
            (place / "text").write_bytes(text)
            subprocess.run(
                words, cwd=place, check=True, capture_output=True, timeout=PROGRAM_SECONDS, stdin=subprocess.DEVNULL
            )
            return (place / made).stat().st_size

    return size


# of one text; zstd takes the training text as its dictionary instead
SIZES: dict[str, Size] = {
    "xz -9e": lambda text: len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
    "bzip2 -9": lambda text: len(bz2.compress(text, 9)),
    "brotli -11": _brotli,
    "PPMd H o6": _ppmd(6),
    "PPMd H o16": _ppmd(16),
    "PPMd H o32": _ppmd(32),
    "bzip3": _program("bzip3", "-e", "-b", "64", "text", "out"),
    "lrzip -z": _program("lrzip", "-q", "-z", "-L", "9", "-o", "out", "text"),
    "zpaq -m5": _program("zpaq", "a", "out.zpaq", "text", "-m5", "-t1", made="out.zpaq"),
}
ZSTD = "zstd --ultra -22"
NEEDS_MODULE = {"brotli": "brotli", "PPMd": "pyppmd"}
NEEDS_PROGRAM = ("bzip3", "lrzip", "zpaq")
# here wherever this program is, and done in no time
ALWAYS = (ZSTD, "xz -9e", "bzip2 -9")


def installed() -> list[str]:
    """The names of those that can run here."""

    def runs(name: str) -> bool:
        first = name.split()[0]
        if first in NEEDS_MODULE:
            return find_spec(NEEDS_MODULE[first]) is not None
        return first not in NEEDS_PROGRAM or shutil.which(first) is not None

    return [ZSTD, *filter(runs, SIZES)]


def measured(
    text: bytes, training: bytes, progress: Callable[[float], None] = lambda share: None, names: Sequence[str] | None = None
) -> dict[str, Compressor]:
    """By name (None: all that are installed), with `training` empty where there is no training text to prime them with."""
    names = installed() if names is None else names
    jobs = [(name, primed) for name in names for primed in ((False, True) if training else (False,))]
    sizes: dict[tuple[str, bool], int] = {}

    def measure(job: tuple[str, bool]) -> None:
        name, primed = job
        if name == ZSTD:
            sizes[job] = _zstd(text, training if primed else b"")
        else:
            sizes[job] = SIZES[name](training + text) - SIZES[name](training) if primed else SIZES[name](text)
        progress(len(sizes) / len(jobs))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # the slowest first
        waiting = {job: pool.submit(measure, job) for job in reversed(jobs)}
    failed = {
        name for (name, _), done in waiting.items() if isinstance(done.exception(), (OSError, subprocess.SubprocessError))
    }
    for (name, _), done in waiting.items():
        if name not in failed:
            done.result()

    def entry(alone: int, primed: int | None) -> Compressor:
        return Compressor(alone, 8 * alone / len(text), len(text), primed, None if primed is None else 8 * primed / len(text))

    return {name: entry(sizes[name, False], sizes.get((name, True))) for name in names if name not in failed}


def standing(bpb: float, peers: Mapping[str, Compressor]) -> str:
    """Which of them a score is below, in a sentence; each is taken at its best, primed where it was."""
    best = {name: min(peer.bpb, peer.primed_bpb or peer.bpb) for name, peer in peers.items() if name != OWN}
    primed = any(peer.primed_bpb is not None for peer in peers.values())
    sides = (("below", [name for name in best if bpb < best[name]]), ("above", [name for name in best if bpb >= best[name]]))
    told = [
        f"{side} " + ", ".join(f"{name} {best[name]:.4f}" for name in sorted(names, key=lambda name: best[name]))
        for side, names in sides
        if names
    ]
    return f"beside compressors{' that have read the training text' if primed else ''}: {'; '.join(told)}" if told else ""
