"""An artifact as a compressor, and the proof of a score."""

import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import zstandard

from pgolf.artifact.pack import read_artifact
from pgolf.budget import Budget
from pgolf.config import EvaluationSettings, Settings, SettingsError, from_table, scoring_table
from pgolf.data import load_tokenizer
from pgolf.evaluation.codec.coding import CodecError, believable, decode, encode, silent
from pgolf.evaluation.codec.stream import DIGEST, TEXT, TOKENS, Stream, computer
from pgolf.evaluation.codec.token_predictor import StreamPredictor
from pgolf.evaluation.evaluate import evaluate
from pgolf.evaluation.load import load_scorer
from pgolf.files import sha256_of, write_whole
from pgolf.kernels.threads import torch_threads

NO_CLOCK = 1e9
MOST_SETTINGS, MOST_THREADS, LARGEST_WINDOW = 100_000, 256, 27


class Codec:
    """
    settings   of a run, to score with; None: those that the artifact carries
    """

    def __init__(self, path: Path, settings: Settings | None = None):
        self.path = path
        self.artifact = read_artifact(path)
        self.digest = bytes.fromhex(sha256_of(path))[:DIGEST]
        self.own = self.artifact.meta.get("scoring", {})
        if settings is None and (not self.own or not isinstance(self.own, dict)):
            raise CodecError(f"{path} does not say how it is scored: an older program packed it; pack its run again")
        # by way of JSON, as the artifact's own have come: where they are the same, the stream need not carry them
        self.table: dict = self.own if settings is None else json.loads(json.dumps(scoring_table(settings)))
        self.tokenizer = load_tokenizer(f"{path}, its tokenizer", self.artifact.tokenizer)
        if self.tokenizer.vocab_size > self.artifact.model_settings.vocab_size:
            raise CodecError(f"{path}: its tokenizer has more entries than its network")

    # ---- text

    def compress(self, data: bytes, progress: Callable[[float], None] = silent) -> tuple[bytes, dict]:
        """The compressed file, and what it took: tokens, the claimed bits, the bits of the code."""
        tokens = np.array([self.tokenizer.bos, *self.tokenizer.encode_bytes(data)])
        restored = self.tokenizer.decode_bytes(tokens[1:].tolist())
        patch = b"" if restored == data else make_patch(restored, data)
        return self._write(tokens, TEXT, data, patch, progress)

    def decompress(self, packed: bytes, where: str | Path, progress: Callable[[float], None] = silent) -> bytes:
        stream = Stream.from_bytes(packed, where)
        tokens = self._read(stream, where, progress)
        if stream.kind == TEXT:
            found = self.tokenizer.decode_bytes(tokens[1:].tolist())
            if stream.patch:
                found = apply_patch(found, stream.patch, where)
        else:
            found = tokens.astype("<u2").tobytes()
        if hashlib.sha256(found).digest()[:DIGEST] != stream.digest:
            raise CodecError(
                f"{where}: what was decoded is not what was compressed, by its checksum; either the file was made by another "
                "program, or this computer computes differently than the one that made it"
            )
        return found

    # ---- tokens

    def compress_tokens(self, tokens: np.ndarray, progress: Callable[[float], None] = silent) -> tuple[bytes, dict]:
        """Any stream of tokens, the first of which is only told; it comes back as 16-bit words."""
        return self._write(np.asarray(tokens), TOKENS, tokens.astype("<u2").tobytes(), b"", progress)

    def _write(self, tokens, kind: int, content: bytes, patch: bytes, progress) -> tuple[bytes, dict]:
        first, targets = int(tokens[0]), len(tokens) - 1
        begun = time.perf_counter()
        # torch behaves otherwise where the number of threads was never set, as it is when this is read
        with torch_threads(torch.get_num_threads()):
            code, nats = encode(self.predictor(self.table, first, targets), tokens[1:], progress)
        settings = b"" if self.table == self.own else zlib.compress(json.dumps(self.table).encode(), 9)
        stream = Stream(
            artifact=self.digest,
            digest=hashlib.sha256(content).digest()[:DIGEST],
            computer=" ".join(computer().values()),
            settings=settings,
            patch=patch,
            kind=kind,
            first=first,
            targets=targets,
            code=code,
        )
        packed = stream.to_bytes()
        took = {
            "tokens": targets,
            "claimed_bits": nats / math.log(2),
            "code_bits": 8 * len(code),
            "bytes": len(packed),
            "seconds": time.perf_counter() - begun,
        }
        return packed, took

    def _read(self, stream: Stream, where: str | Path, progress) -> np.ndarray:
        if stream.artifact != self.digest:
            raise CodecError(
                f"{where} was made with another artifact (its sha256 begins with {stream.artifact.hex()}, that of {self.path} "
                f"with {self.digest.hex()}); give the one it was made with"
            )
        threads = check_computer(stream, where)
        vocabulary = self.artifact.model_settings.vocab_size
        if stream.first >= vocabulary or not believable(stream.targets, len(stream.code), vocabulary):
            raise CodecError(f"{where} is no stream that this program writes: it tells of {stream.targets:,} tokens")
        table = unpack_settings(stream.settings, where) if stream.settings else self.table
        with torch_threads(threads):
            predictor = self.predictor(table, stream.first, stream.targets)
            try:
                tokens = decode(predictor, stream.code, stream.targets, progress)
            except CodecError as error:
                raise CodecError(f"{where}: {error}") from None
        return np.concatenate([[stream.first], tokens])

    def predictor(self, table: dict, first: int, targets: int) -> StreamPredictor:
        settings = self._settings(table)
        loaded = load_scorer(self.artifact, settings)
        try:
            return StreamPredictor(
                loaded.model,
                settings.evaluation,
                self.tokenizer.byte_table,
                bos=self.tokenizer.bos,
                first=first,
                targets=targets,
                ngram_table=loaded.ngram_table,
            )
        except (SettingsError, ValueError) as error:
            raise CodecError(f"{self.path} cannot be scored with these settings: {error}") from None

    def claim(self, tokens: np.ndarray) -> tuple[float, str]:
        """The bits that the scorer itself finds for these tokens, without a clock, and the name of its predictor."""
        settings = self._settings(self.table)
        options = settings.evaluation
        # the fixed network's result, beside an adapting one's, is not asked for
        sliding = options.sliding and options.adaptation.method == "none"
        options = replace(options, top_predictions=0, published_tail=False, sliding=sliding)
        loaded = load_scorer(self.artifact, settings)
        found = evaluate(
            loaded.model,
            tokens,
            self.tokenizer.byte_table,
            options,
            bos=self.tokenizer.bos,
            budget=Budget(NO_CLOCK),
            ngram_table=loaded.ngram_table,
        )
        return found.results[found.main].score.nats / math.log(2), found.main

    def _settings(self, table: dict) -> Settings:
        try:
            settings = from_table(table, Settings(model=self.artifact.model_settings), "the settings to score with")
            settings.validate()
            check_believable(settings.evaluation)
        except (SettingsError, TypeError, AttributeError) as error:
            raise CodecError(f"{self.path} cannot be scored with these settings: {error}") from None
        return settings


# ---- what a tokenizer that normalises has lost


def make_patch(restored: bytes, data: bytes) -> bytes:
    """What turns the one into the other: zstd, with the one as its dictionary."""
    window = min(max((len(restored) + len(data)).bit_length(), zstandard.WINDOWLOG_MIN), LARGEST_WINDOW)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=len(data), dict_size=len(restored), window_log=window
    )
    return zstandard.ZstdCompressor(compression_params=parameters, **dictionary(restored)).compress(data)


def apply_patch(restored: bytes, patch: bytes, where: str | Path) -> bytes:
    try:
        size = zstandard.frame_content_size(patch)
        # no block of 128 KiB takes less than four bytes
        if not 0 <= size <= (len(patch) << 15):
            raise CodecError(f"{where} is no stream that this program writes: its patch tells of {size:,} bytes")
        machine = zstandard.ZstdDecompressor(max_window_size=1 << LARGEST_WINDOW, **dictionary(restored))
        return machine.decompress(patch)
    except zstandard.ZstdError as error:
        raise CodecError(f"{where} is no stream that this program writes: its patch is damaged ({error})") from None


def dictionary(content: bytes) -> dict:
    """zstd takes no empty one."""
    if not content:
        return {}
    return {"dict_data": zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)}


# ---- what a stream says of the computer and the settings


def check_computer(stream: Stream, where: str | Path) -> int:
    """The number of threads to compute with, where all else agrees."""
    here, said = computer(), stream.computer.split(" ")
    if len(said) != len(here):
        raise CodecError(f"{where} is no stream that this program writes: it does not say what computed it")
    for (name, own), made in zip(here.items(), said, strict=True):
        if name != "threads" and own != made:
            raise CodecError(
                f"{where} was made with {name} {made[:40]}, but here is {own}: its distributions would not agree to the last "
                "bit; decompress it where it was made"
            )
    if not said[-1].isdecimal() or not 1 <= int(said[-1]) <= MOST_THREADS:
        raise CodecError(f"{where} is no stream that this program writes: it tells of {said[-1][:40]!r} threads")
    return int(said[-1])


def check_believable(settings: EvaluationSettings) -> None:
    """Before anything is as large as the settings say, or takes as long."""
    adaptation = settings.adaptation
    if adaptation.method == "lora":
        raise SettingsError("documents with adapters of their own (adaptation.method lora) cannot be coded token by token yet")
    bounds = {
        "window": (settings.window, 1, 1 << 17),
        "batch": (settings.batch, 1, 1 << 17),
        "adaptation.chunk_tokens": (adaptation.chunk_tokens, 1, 1 << 24),
        "adaptation.epochs": (adaptation.epochs, 0, 1000),
        "adaptation.batch_sequences": (adaptation.batch_sequences, 1, 1 << 17),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise SettingsError(f"evaluation.{name} {value:,} is outside {least} to {most:,}")


def unpack_settings(packed: bytes, where: str | Path) -> dict:
    try:
        machine = zlib.decompressobj()
        found = json.loads(machine.decompress(packed, MOST_SETTINGS))
    except (zlib.error, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CodecError(f"{where} is no stream that this program writes: its settings cannot be read")
    return found


# ---- the proof


def prove(
    artifact_path: Path,
    tokens: np.ndarray,
    settings: Settings | None = None,
    *,
    stream_path: Path | None = None,
    progress: Callable[[float], None] = silent,
) -> dict:
    """Code tokens, as a stream of their own, and decode them in a process that has only the artifact and the bitstream.

    settings     of the run, to score with; None: those that the artifact carries
    stream_path  where to keep the bitstream; None: it is not kept
    progress     hears the share done

    The result:

    reading       the name of the predictor
    tokens        how many were coded: all but the first, which is only told
    claimed_bits  what the scorer's own pass over the same tokens says, in its windows
    coded_bits    the sum over the distributions that were coded
    code_bits     the range coder's words
    real_bits     all of the bitstream: its words, and the header that says what it depends on
    equal         whether the decoded tokens are these
    said          what the decoding process said if it failed
    seconds       in all; with encode_seconds and decode_seconds, loading included
    """
    begun = time.perf_counter()
    codec = Codec(artifact_path, settings)
    packed, took = codec.compress_tokens(tokens, lambda share: progress(0.45 * share))
    claimed, name = codec.claim(tokens)
    encoded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = stream_path or Path(folder) / "stream.pgolfz"
        write_whole(path, packed)
        back = Path(folder) / "tokens"
        words = ["decompress", str(path), "--artifact", str(artifact_path), "--out", str(back)]
        done = subprocess.run([sys.executable, "-m", "pgolf.run", *words], capture_output=True, text=True)
        equal = done.returncode == 0 and back.read_bytes() == tokens.astype("<u2").tobytes()
        said = done.stderr.strip()
    progress(1.0)
    ended = time.perf_counter()
    return {
        "result": name,
        "tokens": len(tokens) - 1,
        "claimed_bits": claimed,
        "coded_bits": took["claimed_bits"],
        "code_bits": took["code_bits"],
        "real_bits": 8 * len(packed),
        "equal": equal,
        "said": said,
        "seconds": ended - begun,
        "encode_seconds": took["seconds"],
        "decode_seconds": ended - encoded,
    }
