"""An artifact as a compressor, and the proof of a score."""

import hashlib
import json
import math
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import zstandard

from pgolf.artifact.pack import Artifact, read_artifact
from pgolf.budget import Budget
from pgolf.config import EvaluationSettings, Settings, SettingsError, from_table, scoring_table
from pgolf.data import load_tokenizer
from pgolf.evaluation.codec.coding import CodecError, believable, decode, encode, silent
from pgolf.evaluation.codec.documents import DocumentRows, decode_documents, encode_documents
from pgolf.evaluation.codec.plan import Plan
from pgolf.evaluation.codec.stream import DIGEST, TEXT, TOKENS, Stream, computer
from pgolf.evaluation.codec.token_predictor import StreamPredictor, coded_predictor, coded_settings, wanted_by
from pgolf.evaluation.evaluate import evaluate
from pgolf.evaluation.load import load_scorer
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.temperature import policy
from pgolf.evaluation.stream import document_bounds
from pgolf.files import sha256_of, temporary_folder, write_whole
from pgolf.kernels.threads import torch_threads
from pgolf.process import run_child

NO_CLOCK = 1e9
NOTHING_GIVEN_UP = Plan()
MOST_SETTINGS, MOST_THREADS, LARGEST_WINDOW = 100_000, 256, 27


class Codec:
    """
    settings   of a run, to score with; None: those that the artifact carries
    plan       of a run, `Planner.record`: what the clock decided while these tokens, or more that begin with them, were
               scored; None: nothing
    apart      score documents apart, as `apart_settings` changes them
    """

    def __init__(self, path: Path, settings: Settings | None = None, *, plan: dict | None = None, apart: bool = False):
        self.path, self.settings, self.plan, self.apart = path, settings, plan, apart
        self.digest = bytes.fromhex(sha256_of(path))[:DIGEST]

    @cached_property
    def artifact(self) -> Artifact:
        """Read when it is needed first: what is wrong with a stream's header is said before."""
        return read_artifact(self.path)

    @cached_property
    def own(self) -> dict:
        """How the artifact says it is scored, as it differs from the defaults."""
        return self.artifact.meta.get("scoring", {})

    @cached_property
    def table(self) -> dict:
        """How to score, in the same form."""
        if self.settings is not None:
            # by way of JSON, as the artifact's own has come: where they are the same, the stream need not carry it
            return json.loads(json.dumps(scoring_table(self.settings)))
        if not self.own or not isinstance(self.own, dict):
            raise CodecError(f"{self.path} does not say how it is scored: an older program packed it; pack its run again")
        if not self.apart:
            return self.own
        settings = self._settings(self.own)
        settings = replace(settings, evaluation=apart_settings(settings.evaluation))
        return json.loads(json.dumps(scoring_table(settings)))

    @cached_property
    def tokenizer(self):
        tokenizer = load_tokenizer(f"{self.path}, its tokenizer", self.artifact.tokenizer)
        if tokenizer.vocab_size > self.artifact.model_settings.vocab_size:
            raise CodecError(f"{self.path}: its tokenizer has more entries than its network")
        return tokenizer

    # ---- text

    def compress(self, data: bytes | Sequence[bytes], progress: Callable[[float], None] = silent) -> tuple[bytes, dict]:
        """The compressed file, and what it took: tokens, the claimed bits, the bits of the code. Several documents come back
        joined; each begins with BOS, and where the settings score documents apart they are coded side by side."""
        documents, bos = [data] if isinstance(data, bytes) else list(data), self.tokenizer.bos
        tokens = np.array([token for one in documents for token in (bos, *self.tokenizer.encode_bytes(one))] or [bos])
        content = b"".join(documents)
        restored = self.tokenizer.decode_bytes(tokens[1:].tolist())
        patch = b"" if restored == content else make_patch(restored, content)
        return self._write(tokens, TEXT, content, patch, progress)

    def decompress(self, packed: bytes, where: str | Path, progress: Callable[[float], None] = silent) -> bytes:
        stream = Stream.from_bytes(packed, where)
        tokens = self._read(stream, where, progress)
        if stream.kind == TEXT:
            data = self.tokenizer.decode_bytes(tokens[1:].tolist())
            if stream.patch:
                data = apply_patch(data, stream.patch, where)
        else:
            data = tokens.astype("<u2").tobytes()
        if hashlib.sha256(data).digest()[:DIGEST] != stream.digest:
            raise CodecError(
                f"{where}: what was decoded is not what was compressed, by its checksum; either the file was made by another "
                "program, or this computer computes differently than the one that made it"
            )
        return data

    # ---- tokens

    def compress_tokens(self, tokens: np.ndarray, progress: Callable[[float], None] = silent) -> tuple[bytes, dict]:
        """Any stream of tokens, the first of which is only told; it comes back as 16-bit words."""
        return self._write(np.asarray(tokens), TOKENS, tokens.astype("<u2").tobytes(), b"", progress)

    def _write(self, tokens, kind: int, content: bytes, patch: bytes, progress) -> tuple[bytes, dict]:
        first, targets = int(tokens[0]), len(tokens) - 1
        begun = time.perf_counter()
        bounds = document_bounds(tokens, self.tokenizer.bos)
        plan = Plan.of(self.plan, wanted_by(coded_settings(self._settings(self.table).evaluation)), [0, *bounds], targets)
        # torch behaves otherwise where the number of threads was never set, as it is when this is read
        with torch_threads(torch.get_num_threads()):
            predictor, documents, last_targets = self.predictor(self.table, first, targets, plan), 0, 0
            if isinstance(predictor, DocumentRows):
                split = np.split(tokens[1:], bounds)
                documents, last_targets = len(split), len(split[-1])
                code, nats = encode_documents(predictor, first, split, progress)
            else:
                code, nats = encode(predictor, tokens[1:], progress)
        settings = b"" if self.table == self.own else zlib.compress(json.dumps(self.table).encode(), 9)
        stream = Stream(
            artifact=self.digest,
            digest=hashlib.sha256(content).digest()[:DIGEST],
            computer=" ".join(computer().values()),
            settings=settings,
            plan=plan.to_bytes(),
            patch=patch,
            kind=kind,
            first=first,
            targets=targets,
            documents=documents,
            last_targets=last_targets,
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
        plan = Plan.from_bytes(stream.plan, where)
        with torch_threads(threads):
            predictor = self.predictor(table, stream.first, stream.targets, plan)
            if isinstance(predictor, DocumentRows) != bool(stream.documents):
                raise CodecError(f"{where} is no stream that this program writes: its documents do not fit its settings")
            try:
                if isinstance(predictor, DocumentRows):
                    tokens = decode_documents(predictor, stream, progress)
                else:
                    tokens = decode(predictor, stream.code, stream.targets, progress)
            except CodecError as error:
                raise CodecError(f"{where}: {error}") from None
        return np.concatenate([[stream.first], tokens])

    def predictor(
        self, table: dict, first: int, targets: int, plan: Plan = NOTHING_GIVEN_UP
    ) -> StreamPredictor | DocumentRows:
        settings = self._settings(table)
        loaded, options, bos = load_scorer(self.artifact, settings), coded_settings(settings.evaluation), self.tokenizer.bos

        def make_predictor() -> Predictor:
            return coded_predictor(options, loaded.model.settings.vocab_size, targets, loaded.ngram_table, loaded.primer)

        try:
            if options.adaptation.method == "lora":
                return DocumentRows(loaded.model, options, make_predictor, bos=bos, plain=plan.plain)
            if any(stride > options.window for _, stride, _ in plan.changes) or 0 < plan.targets < targets:
                raise ValueError("the plan is not one of theirs")
            return StreamPredictor(
                loaded.model, options, self.tokenizer.byte_table, make_predictor(), bos=bos, first=first, targets=targets,
                plan=plan,
            )  # fmt: skip
        except (SettingsError, ValueError) as error:
            raise CodecError(f"{self.path} cannot be scored with these settings: {error}") from None

    @property
    def result(self) -> str:
        """The name of the predictor that is coded."""
        options = coded_settings(self._settings(self.table).evaluation)
        return coded_predictor(options, self.artifact.model_settings.vocab_size, 0).name

    def claim(self, tokens: np.ndarray) -> float:
        """The bits that the scorer itself finds for these tokens, without a clock."""
        settings = self._settings(self.table)
        options = coded_settings(settings.evaluation)
        # the fixed network's result, beside an adapting one's, is not asked for
        sliding = options.sliding and options.adaptation.method == "none"
        options = replace(options, top_predictions=0, published_tail=False, sliding=sliding)
        loaded = load_scorer(self.artifact, settings)
        evaluation = evaluate(
            loaded.model,
            tokens,
            self.tokenizer.byte_table,
            options,
            bos=self.tokenizer.bos,
            budget=Budget(NO_CLOCK),
            ngram_table=loaded.ngram_table,
            primer=loaded.primer,
        )
        return evaluation.results[evaluation.main].score.nats / math.log(2)

    def _settings(self, table: dict) -> Settings:
        try:
            settings = from_table(table, Settings(model=self.artifact.model_settings), "the settings to score with")
            settings.validate()
        except (SettingsError, TypeError, AttributeError) as error:
            raise CodecError(f"{self.path} cannot be scored with these settings: {error}") from None
        return settings


def apart_settings(settings: EvaluationSettings) -> EvaluationSettings:
    """What comes closest to these settings where no document may learn from another: kept keys instead of overlapping
    windows, and of temperature and predictors those that need no more than the document."""
    mixer, temperature = settings.mixer, policy(settings.temperature)
    honest = tuple(name for name in mixer.honest if name == "ngram_backoff")
    if temperature and (temperature.learns or temperature.calibrates):
        settings = replace(settings, temperature=EvaluationSettings().temperature)
    return replace(
        settings,
        published_tail=False,
        adaptation=replace(settings.adaptation, method="lora"),
        lora=replace(
            settings.lora, passes=0, refresh_tokens=0, context_tokens=settings.window, chunk_tokens=settings.stride,
            minimum_tokens=0, maximum_tokens=0,
        ),
        mixer=replace(mixer, published="none", honest=honest, online_weights=False),
    )  # fmt: skip


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


def unpack_settings(packed: bytes, where: str | Path) -> dict:
    try:
        machine = zlib.decompressobj()
        table = json.loads(machine.decompress(packed, MOST_SETTINGS))
    except (zlib.error, ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise CodecError(f"{where} is no stream that this program writes: its settings cannot be read")
    return table


# ---- the proof


def prove(
    artifact_path: Path,
    tokens: np.ndarray,
    settings: Settings | None = None,
    *,
    plan: dict | None = None,
    claimed_bits: float | None = None,
    stream_path: Path | None = None,
    progress: Callable[[float], None] = silent,
) -> dict:
    """Code tokens, as a stream of their own, and decode them in a process that has only the artifact and the bitstream.

    settings     of the run, to score with; None: those that the artifact carries
    plan         of the run: what the clock decided; None: nothing
    claimed_bits of these tokens; None: what the scorer's own pass says
    stream_path  where to keep the bitstream; None: it is not kept
    progress     is called with the share done

    The result:

    result        the name of the predictor
    tokens        how many were coded: all but the first, which is only told
    claimed_bits  as they were given, or what the scorer's own pass over the same tokens says, in its windows
    coded_bits    the sum over the distributions that were coded
    code_bits     the range coder's words
    real_bits     all of the bitstream: its words, and the header that says what it depends on
    equal         whether the decoded tokens are these
    said          what the decoding process said if it failed
    seconds       in all; with encode_seconds and decode_seconds, loading included
    """
    begun = time.perf_counter()
    codec = Codec(artifact_path, settings, plan=plan)
    packed, took = codec.compress_tokens(tokens, lambda share: progress(0.45 * share))
    if claimed_bits is None:
        claimed_bits = codec.claim(tokens)
    encoded = time.perf_counter()
    with temporary_folder("decoding") as folder:
        path = stream_path or folder / "stream.pgolfz"
        write_whole(path, packed)
        back = folder / "tokens"
        words = ["decompress", str(path), "--artifact", str(artifact_path), "--out", str(back)]
        done = run_child(
            [sys.executable, "-m", "pgolf.run", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        equal = done.returncode == 0 and back.read_bytes() == tokens.astype("<u2").tobytes()
        said = done.stderr.strip()
    progress(1.0)
    ended = time.perf_counter()
    return {
        "result": codec.result,
        "tokens": len(tokens) - 1,
        "claimed_bits": claimed_bits,
        "coded_bits": took["claimed_bits"],
        "code_bits": took["code_bits"],
        "real_bits": 8 * len(packed),
        "equal": equal,
        "said": said,
        "seconds": ended - begun,
        "encode_seconds": took["seconds"],
        "decode_seconds": ended - encoded,
    }
