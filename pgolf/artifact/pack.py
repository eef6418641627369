"""Weights to model.pgolf and back.

Tensors travel under the submissions' per-layer names. Their names, shapes and order follow from the model's settings,
so the file holds only numbers: codes, row scales, and what is too small to round.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard
from torch import Tensor

from pgolf.artifact import rounding
from pgolf.artifact.container import read_container, write_container
from pgolf.artifact.errors import ArtifactError
from pgolf.config import ArtifactSettings, ModelSettings, Settings, SettingsError, check, from_table
from pgolf.model import build_model, import_checkpoint, submission_state

# no trained model needs less than a hundredth of a byte a weight: a file that claims more weights is not believed
WEIGHTS_PER_BYTE = 100


@dataclass(frozen=True)
class Artifact:
    """What a file holds: enough to score and to decode, nothing of training."""

    model_settings: ModelSettings
    meta: dict
    tokenizer: bytes
    state: dict[str, Tensor]

    def build_model(self, device="cpu"):
        model = build_model(self.model_settings, device=device)
        import_checkpoint(model, self.state)
        return model.eval()


@dataclass(frozen=True)
class Size:
    """Bytes against the limit, counted as the challenge does: model and code; the tokenizer travels along uncounted."""

    model_bytes: int
    code_bytes: int
    tokenizer_bytes: int
    limit: int
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.code_bytes

    @property
    def margin(self) -> int:
        return self.limit - self.total_bytes

    def as_dict(self) -> dict:
        return {**asdict(self), "total_bytes": self.total_bytes, "margin": self.margin}


def role_of(name: str, numel: int, settings: ArtifactSettings) -> str:
    """Which treatment a tensor gets: small (float16), matrix (few bits) or embedding (8 bits). The order of tests matters."""
    if numel <= settings.small_tensor:
        return "small"
    return "matrix" if ".mlp." in name or ".attn." in name or ".proj." in name else "embedding"


def write_artifact(path: Path, state: dict[str, Tensor], settings: Settings, tokenizer: bytes) -> Size:
    chosen = settings.artifact
    codes, scales, small = [], [], []
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().float()
        role = role_of(name, tensor.numel(), chosen)
        if role == "small":
            small.append(tensor.half().numpy().tobytes())
            continue
        rows = tensor.reshape(-1, tensor.shape[-1])
        if role == "matrix":
            rounded, scale = rounding.by_percentile(rows, chosen.matrix_bits, floor=chosen.scale_floor)
        else:
            rounded, scale = rounding.by_quantile(rows, chosen.embedding_bits, floor=chosen.scale_floor)
        codes.append(rounded.numpy().tobytes())
        scales.append(scale.numpy().tobytes())
    meta = {"preset": settings.preset, "seed": settings.seed, "model": asdict(settings.model), "artifact": asdict(chosen)}
    sections = {
        "meta": zlib.compress(json.dumps(meta, separators=(",", ":")).encode(), 9),
        "codes": compress(b"".join(codes)),
        "scales": compress(b"".join(scales)),
        "small": compress(b"".join(small)),
        "tokenizer": zlib.compress(tokenizer, 9),
    }
    total = write_container(path, sections)
    parts = {name: len(content) for name, content in sections.items()}
    return Size(total - parts["tokenizer"], 0, parts["tokenizer"], chosen.limit, parts)


def read_artifact(path: Path) -> Artifact:
    """A file as an artifact. It is checked as a stranger's: any flaw is one ArtifactError, and nothing in it is executed."""
    sections = read_container(path)
    missing = {"meta", "codes", "scales", "small", "tokenizer"} - sections.keys()
    if missing:
        raise ArtifactError(f"{path} is damaged: section {sorted(missing)[0]!r} is missing")
    meta = _read_meta(sections["meta"], path)
    try:
        model_settings = from_table(meta["model"], ModelSettings(), "model")
        chosen = from_table(meta["artifact"], ArtifactSettings(), "artifact")
        check(Settings(model=model_settings, artifact=chosen))
    except (SettingsError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} describes no network: {error}") from None
    size = sum(map(len, sections.values()))
    expected = dict(_shapes(model_settings, size, path))
    codes = Cursor(expand(sections["codes"], _bytes_of(expected, chosen, "codes"), path), np.int8)
    scales = Cursor(expand(sections["scales"], _bytes_of(expected, chosen, "scales"), path), np.float16)
    small = Cursor(expand(sections["small"], _bytes_of(expected, chosen, "small"), path), np.float16)
    state = {}
    for name, shape in expected.items():
        if role_of(name, shape.numel(), chosen) == "small":
            state[name] = small.take(shape.numel()).float().reshape(shape)
        else:
            rows = shape.numel() // shape[-1]
            rounded = codes.take(shape.numel()).reshape(rows, shape[-1])
            state[name] = (rounded.float() * scales.take(rows).float()[:, None]).reshape(shape)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ArtifactError(f"{path} is damaged: a weight is not finite")
    return Artifact(model_settings, meta, _inflate(sections["tokenizer"], path), state)


class Cursor:
    """Numbers taken from a buffer in order."""

    def __init__(self, data: bytes, kind):
        self._numbers = np.frombuffer(data, dtype=kind)
        self._at = 0

    def take(self, count: int) -> Tensor:
        self._at += count
        return torch.from_numpy(self._numbers[self._at - count : self._at].copy())


def compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22).compress(data)


def expand(data: bytes, size: int, where) -> bytes:
    """Exactly `size` bytes, or an error before anything larger is allocated."""
    try:
        declared = zstandard.frame_content_size(data)
        if declared != size:
            raise ArtifactError(f"{where} is damaged: a section holds {declared} bytes where the network needs {size}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"{where} is damaged: {error}") from None


def _inflate(data: bytes, where, limit: int = 8_000_000) -> bytes:
    try:
        machine = zlib.decompressobj()
        found = machine.decompress(data, limit)
    except zlib.error as error:
        raise ArtifactError(f"{where} is damaged: {error}") from None
    if not machine.eof:
        raise ArtifactError(f"{where} is damaged: a section has no end within {limit} bytes")
    return found


def _read_meta(data: bytes, where) -> dict:
    try:
        meta = json.loads(_inflate(data, where, 100_000))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is damaged: its description is no JSON ({error})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("model"), dict) or not isinstance(meta.get("artifact"), dict):
        raise ArtifactError(f"{where} is damaged: its description names no model")
    return meta


def _shapes(settings: ModelSettings, file_bytes: int, where) -> Iterator[tuple[str, torch.Size]]:
    dimensions = max(settings.layers, settings.dim, settings.mlp_hidden, settings.bigram_buckets, settings.mtp_heads, 1)
    if dimensions > 1_000_000 or settings.layers > 1000:
        raise ArtifactError(f"{where} describes a network of unbelievable size")
    model = build_model(settings, device="meta")
    state = submission_state(model)
    total = sum(tensor.numel() for tensor in state.values())
    if total > WEIGHTS_PER_BYTE * file_bytes:
        raise ArtifactError(f"{where} claims {total} weights in {file_bytes} bytes: not believable")
    for name, tensor in state.items():
        yield name, tensor.shape


def _bytes_of(shapes: dict[str, torch.Size], settings: ArtifactSettings, section: str) -> int:
    total = 0
    for name, shape in shapes.items():
        small = role_of(name, shape.numel(), settings) == "small"
        if section == "small" and small:
            total += 2 * shape.numel()
        elif section == "codes" and not small:
            total += shape.numel()
        elif section == "scales" and not small:
            total += 2 * (shape.numel() // shape[-1])
    return total
