"""Submissions whose scorer is legal but not what they say beside it (bytes, files, seconds, documents, seeds), and legal
controls."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from pgolf.audit.interface import Claims, SeedRun
from pgolf.audit.violations.base import BOS, VOCAB, LeftToRight, text
from pgolf.data.passages import shared_bytes


def claiming(**claims) -> LeftToRight:
    """The legal scorer with these claims."""
    scorer = LeftToRight()
    scorer.claims = Claims(bos=BOS, **claims)
    return scorer


# ---- V13: a part of the text


def subset(folder: Path):
    return claiming(scored_targets=3_000_000, stream_targets=40_540_803)


def whole(folder: Path):
    return claiming(scored_targets=40_540_803, stream_targets=40_540_803)


# ---- V14: bytes. Every third symbol begins with a space; 2 is the space itself, 3 one byte of a longer character, and 4 a
# sentinel that spells nothing

SPACED = np.arange(VOCAB) % 3 == 0
LETTERS = np.array([0, 0, 1, 1, 0, *(1 + np.arange(VOCAB - 5) % 4)])
SPACED[:5] = False


def decode(tokens) -> bytes:
    # a leading space is not written at a document's beginning
    pieces, before = [], BOS
    for token in np.asarray(tokens).tolist():
        pieces.append(b"x" * int(LETTERS[token]))
        if SPACED[token] and before != BOS:
            pieces.append(b" ")
        before = token
    return b"".join(pieces)


def right_bytes(tokens) -> np.ndarray:
    before, after = np.asarray(tokens)[:-1], np.asarray(tokens)[1:]
    return LETTERS[after] + (SPACED[after] & (before != BOS))


def counted_right(folder: Path):
    return claiming(bytes_of=right_bytes, decode=decode)


def space_twice(folder: Path):
    return claiming(bytes_of=lambda tokens: right_bytes(tokens) + SPACED[tokens[1:]], decode=decode)


def space_as_mark(folder: Path):
    return claiming(bytes_of=lambda tokens: right_bytes(tokens) + 2 * (tokens[1:] == 2), decode=decode)


def byte_as_character(folder: Path):
    return claiming(bytes_of=lambda tokens: right_bytes(tokens) + 2 * (tokens[1:] == 3), decode=decode)


def sentinel_counted(folder: Path):
    return claiming(bytes_of=lambda tokens: right_bytes(tokens) + (tokens[1:] == 4), decode=decode)


# ---- V15, V16: documents


def hashes(seeds) -> list[bytes]:
    return [hashlib.blake2b(text(50, seed=seed).tobytes(), digest_size=8).digest() for seed in seeds]


def with_documents(training, validation, canonical) -> LeftToRight:
    return claiming(
        training_documents=lambda: hashes(training),
        validation_documents=lambda: hashes(validation),
        canonical_documents=lambda: hashes(canonical),
    )


def overlapping(folder: Path):
    return with_documents(range(8, 40), range(10), range(10))


def own_partition(folder: Path):
    return with_documents(range(50, 60), range(2, 12), range(10))


def disjoint(folder: Path):
    return with_documents(range(10, 40), range(10), range(10))


# ---- V29: passages that documents share


def with_passages(copied: int) -> LeftToRight:
    """Documents that all differ; the last `copied` bytes of a validation document are from a training document."""
    training, validation = (
        [text(256, seed=seed).astype(np.uint8).tobytes() for seed in seeds] for seeds in (range(9), range(9, 12))
    )
    validation[0] = validation[0][: 256 - copied] + training[4][100 : 100 + copied]
    total = sum(map(len, validation))
    return claiming(shared_passages=lambda: shared_bytes(validation, training) / total)


def copied_passage(folder: Path):
    return with_passages(72)


def copied_phrase(folder: Path):
    return with_passages(40)


# ---- V18: data and seconds of calibration; what is read while it scores

READER = """
from pathlib import Path

from pgolf.audit import Claims
from pgolf.audit.violations.base import BOS, LeftToRight

FILE = Path(__file__).with_name("tokens_000000.bin")


class Reads(LeftToRight):
    claims = Claims(bos=BOS, may_read={named})

    def start(self, tokens):
        super().start(tokens)
        FILE.read_bytes()
"""


def predictor(folder: Path, named: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens_000000.bin").write_bytes(bytes(64))
    (folder / "reads.py").write_text(READER.format(named=named))
    return f"{folder / 'reads.py'}:Reads"


def reads_training(folder: Path) -> str:
    """V18: opens a shard while it scores that it does not name."""
    return predictor(folder, "()")


def reads_its_own(folder: Path) -> str:
    """Legal: opens the file that it names."""
    return predictor(folder, "(str(FILE),)")


def calibrated_late(folder: Path):
    return claiming(train_seconds=599.0, train_parts={"steps": 598.0, "calibration": 14.0})


def calibrated_in_time(folder: Path):
    return claiming(train_seconds=599.0, train_parts={"steps": 584.0, "calibration": 14.0})


# ---- V22, V24: the scoring clock


def hints_outside(folder: Path):
    return claiming(score_seconds=520.0, score_parts={"loading": 20.0, "hints": 120.0, "scoring": 498.0})


def hints_inside(folder: Path):
    return claiming(score_seconds=590.0, score_parts={"loading": 20.0, "hints": 90.0, "scoring": 478.0})


def too_slow(folder: Path):
    return claiming(score_seconds=755.0)


def in_time(folder: Path):
    return claiming(score_seconds=595.0)


# ---- V23: size


def files(folder: Path, model: int, code: str, helper: str = "") -> Claims:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(bytes(model))
    (folder / "train_gpt.py").write_text(code)
    if helper:
        (folder / "helper.py").write_text(helper)
    return Claims(
        bos=BOS,
        artifact_files=(str(folder / "model.bin"),),
        code_files=(str(folder / "train_gpt.py"),),
        size_limit=10_000,
        claimed_bytes=model + len(code),
    )


def with_files(claims: Claims) -> LeftToRight:
    scorer = LeftToRight()
    scorer.claims = claims
    return scorer


def over_the_cap(folder: Path):
    return with_files(files(folder, 9_990, "print('hello')\n"))


def code_not_counted(folder: Path):
    return with_files(replace(files(folder, 5_000, "print('hello')\n"), claimed_bytes=5_000))


def helper_not_counted(folder: Path):
    return with_files(files(folder, 9_000, "import helper\n", "TABLE = '" + "x" * 2_000 + "'\n"))


def all_counted(folder: Path):
    return with_files(files(folder, 9_000, "import sys\n", "# nobody imports this\n" + "#" * 2_000))


# ---- V25: evidence


def mixed_configurations(folder: Path):
    return claiming(seeds=[SeedRun(1, "lr=1", 1.06), SeedRun(2, "lr=1", 1.07), SeedRun(3, "lr=2", 1.05)])


def single_seed(folder: Path):
    return claiming(seeds=[SeedRun(1337, "lr=1", 1.05)])


def three_seeds(folder: Path):
    return claiming(seeds=[SeedRun(seed, "lr=1", 1.06 + seed / 1000) for seed in range(3)])
