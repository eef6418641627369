"""Weights to model.pgolf and back.

Tensors travel under the submissions' per-layer names. Their names, shapes and order follow from the model's settings,
so the file holds only numbers: codes, row scales, and what is too small to round.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf.artifact import compression
from pgolf.artifact.container import join_sections, read_container
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.grid import Rounded
from pgolf.artifact.rounding import Correction
from pgolf.artifact.weights import Weights, outlines_of, role_of, round_weights
from pgolf.config import ArtifactSettings, ModelSettings, Settings, SettingsError, changed, from_table, scoring_table
from pgolf.files import write_whole
from pgolf.model import Network, build_model, count_parameters, import_checkpoint, submission_state
from pgolf.model.rounding import FakeRounding

# even at two bits, mostly zeros, a trained weight needs more: a file that claims so many weights is not believed
WEIGHTS_PER_BYTE = 40
META_LIMIT, TOKENIZER_LIMIT = 100_000, 8_000_000
REQUIRED = ("meta", "codes", "scales", "small", "tokenizer")


@dataclass(frozen=True)
class Artifact:
    """What a file holds: enough to score and to decode, nothing of training."""

    model_settings: ModelSettings
    meta: dict
    tokenizer: bytes
    state: dict[str, Tensor]
    weights: Weights
    """What `state` was made from."""
    sections: dict[str, bytes] = field(default_factory=dict)
    """What else the file carries, by name."""

    def build_model(self, device="cpu", fake_rounding: FakeRounding | None = None) -> Network:
        """On a GPU matrices are read as codes; a CPU's caches are quicker with floats."""
        model = build_model(self.model_settings, device=device, fake_rounding=fake_rounding)
        import_checkpoint(model, self.state)
        if torch.device(device).type == "cuda":
            read_codes(model, self.weights)
        return model.eval()


def read_codes(model: Network, weights: Weights) -> None:
    from pgolf.model.packed_bank import pack_banks

    pack_banks(model, {name: matrix for name, matrix in weights.rounded.items() if name not in weights.corrections})


@dataclass(frozen=True)
class Size:
    """Bytes against the limit, counted as the challenge does: model and code; the tokenizer travels along uncounted."""

    model_bytes: int
    code_bytes: int
    tokenizer_bytes: int
    limit: int
    parts: dict[str, int]
    """Bytes of each section, and of the file's own frame."""

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.code_bytes

    @property
    def margin(self) -> int:
        return self.limit - self.total_bytes

    def as_dict(self) -> dict:
        return {**asdict(self), "total_bytes": self.total_bytes, "margin": self.margin}


# ---- writing


def sections_of(
    weights: Weights, settings: Settings, tokenizer: bytes, extra: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    chosen = settings.artifact
    outlines, matrices = weights.coded(chosen)
    codes = [matrix.codes.numpy() for matrix in matrices]
    scales = [matrix.scales.numpy() for matrix in matrices]
    small = [tensor.numpy().ravel() for tensor in weights.small.values()]
    ranks = {name: len(correction.left.codes) for name, correction in weights.corrections.items()}
    meta = {
        "preset": settings.preset,
        "seed": settings.seed,
        # as they differ from the defaults, which are part of the format too: a default that changes needs a new version
        "model": changed(settings.model, ModelSettings()),
        "artifact": changed(chosen, ArtifactSettings()),
        "corrections": ranks,
        "scoring": scoring_table(settings),
    }
    return {
        "meta": compression.pack_text(json.dumps(meta, separators=(",", ":")).encode()),
        "codes": compression.pack_codes(outlines, codes, chosen.compressor),
        "scales": compression.pack_halves(_joined(scales), chosen.compressor),
        "small": compression.pack_halves(_joined(small), chosen.compressor),
        "tokenizer": compression.pack_text(tokenizer),
        **(extra or {}),
    }


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float16)


def size_of(sections: Mapping[str, bytes], limit: int, code_bytes: int) -> Size:
    total = len(join_sections(sections))
    parts = {name: len(content) for name, content in sections.items()}
    parts["frame"] = total - sum(parts.values())
    return Size(total - parts["tokenizer"], code_bytes, parts["tokenizer"], limit, parts)


def write_artifact(
    path: Path,
    state: Mapping[str, Tensor],
    settings: Settings,
    tokenizer: bytes,
    *,
    hessians: Mapping[str, Tensor] | None = None,
    code_bytes: int = 0,
    extra: Mapping[str, bytes] | None = None,
) -> Size:
    """Round, code and write. Nothing is written that does not fit the limit."""
    weights = round_weights(state, settings.artifact, hessians)
    return write_weights(path, weights, settings, tokenizer, code_bytes=code_bytes, extra=extra)


def write_weights(
    path: Path,
    weights: Weights,
    settings: Settings,
    tokenizer: bytes,
    *,
    code_bytes: int = 0,
    extra: Mapping[str, bytes] | None = None,
) -> Size:
    sections = sections_of(weights, settings, tokenizer, extra)
    size = size_of(sections, settings.artifact.limit, code_bytes)
    if size.margin < 0:
        raise ArtifactError(
            f"model {size.model_bytes:,} + code {size.code_bytes:,} bytes are {-size.margin:,} above the limit of "
            f"{size.limit:,}; give fewer bits, a larger artifact.clip_scale, or --artifact.fit, which finds them"
        )
    write_whole(path, join_sections(sections))
    return size


# ---- reading


def read_artifact(path: Path) -> Artifact:
    """A file as an artifact. It is untrusted: any flaw is one ArtifactError, and nothing in it is executed."""
    sections = read_container(path)
    try:
        return _artifact(sections)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is damaged or no artifact: {error}") from None


def _artifact(sections: dict[str, bytes]) -> Artifact:
    missing = [name for name in REQUIRED if name not in sections]
    if missing:
        raise ArtifactError(f"section {missing[0]!r} is missing")
    meta = _read_meta(sections["meta"])
    try:
        model_settings = from_table(meta["model"], ModelSettings(), "model")
        chosen = from_table(meta["artifact"], ArtifactSettings(), "artifact")
        _check_believable(model_settings)
        Settings(model=model_settings, artifact=chosen).validate()
    except (SettingsError, TypeError, ValueError, ArithmeticError) as error:
        raise ArtifactError(f"it describes no network: {error}") from None
    shapes = _shapes(model_settings, sum(map(len, sections.values())))
    weights = _weights(sections, meta, shapes, chosen)
    state = weights.values(shapes)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ArtifactError("a weight is not finite")
    tokenizer = compression.unpack_text(sections["tokenizer"], TOKENIZER_LIMIT)
    further = {name: content for name, content in sections.items() if name not in REQUIRED}
    return Artifact(model_settings, meta, tokenizer, state, weights, further)


def _weights(sections: Mapping[str, bytes], meta: dict, shapes: Mapping[str, torch.Size], chosen: ArtifactSettings) -> Weights:
    roles = {name: role_of(name, shape.numel(), chosen) for name, shape in shapes.items()}
    large = {name: (shape.numel() // shape[-1], shape[-1]) for name, shape in shapes.items() if roles[name] != "small"}
    ranks = _read_ranks(meta, large)
    outlines = outlines_of(large, ranks, chosen)
    small = {name: shape for name, shape in shapes.items() if roles[name] == "small"}
    counts = [outline.shape[0] for outline in outlines]
    small_count = sum(shape.numel() for shape in small.values())
    halves = compression.unpack_halves(sections["scales"], sum(counts), chosen.compressor)
    scales = np.split(halves, np.cumsum(counts[:-1])) if counts else []
    outlines = [outline.given(mine) for outline, mine in zip(outlines, scales, strict=True)]
    codes = compression.unpack_codes(sections["codes"], outlines, chosen.compressor)
    numbers = compression.unpack_halves(sections["small"], small_count, chosen.compressor)

    matrices = [Rounded(torch.from_numpy(a), torch.from_numpy(b.copy())) for a, b in zip(codes, scales, strict=True)]
    weights = Weights(rounded=dict(zip(large, matrices, strict=False)))
    factors = matrices[len(large) :]
    for number, name in enumerate(ranks):
        weights.corrections[name] = Correction(factors[2 * number], factors[2 * number + 1])
    at = 0
    for name, extent in small.items():
        weights.small[name] = torch.from_numpy(numbers[at : at + extent.numel()].copy())
        at += extent.numel()
    return weights


def _read_meta(data: bytes) -> dict:
    try:
        meta = json.loads(compression.unpack_text(data, META_LIMIT))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"its description is no JSON ({error})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("model"), dict) or not isinstance(meta.get("artifact"), dict):
        raise ArtifactError("its description names no model")
    return meta


def _read_ranks(meta: dict, large: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The rank of each correction, none higher than its matrix has."""
    ranks = meta.get("corrections", {})
    if not isinstance(ranks, dict):
        raise ArtifactError("its corrections are no table")
    for name, rank in ranks.items():
        if name not in large or type(rank) is not int or not 1 <= rank <= min(large[name]):
            raise ArtifactError(f"its correction of {name[:40]!r} fits no matrix")
    return ranks


def _check_believable(settings: ModelSettings) -> None:
    """Before anything is as large or as many as the settings say."""
    sizes = (
        settings.vocab_size, settings.dim, settings.mlp_hidden, settings.bigram_buckets, settings.bigram_dim,
        settings.value_embedding_dim, settings.rotary_dims, settings.scan_state, settings.scan_width,
        settings.gate_inputs, settings.smear_inputs,
    )  # fmt: skip
    counts = (
        settings.layers, settings.heads, settings.kv_heads, settings.hyper_layers, settings.xsa_last, settings.mtp_heads,
        len(settings.recurrence), *settings.recurrence, *settings.value_embedding_layers, len(settings.scan_layers),
        *settings.scan_layers, settings.scan_expansion, settings.scan_heads, settings.scan_conv,
        *settings.loop_layers, len(settings.loop_layers) * settings.loop_passes, settings.lanes_from,
    )  # fmt: skip
    if min(sizes + counts) < 0 or max(sizes) > 1_000_000 or max(counts) > 256 or not settings.layers:
        raise ArtifactError("it describes a network of unbelievable size")
    if not all(math.isfinite(value) for value in _numbers(asdict(settings))):
        raise ArtifactError("it describes no network: a setting is not finite")


def _shapes(settings: ModelSettings, file_bytes: int) -> dict[str, torch.Size]:
    """Names and shapes of the network's tensors, once the file could hold them."""
    try:
        model = build_model(settings, device="meta")
    except (ValueError, RuntimeError, ArithmeticError, IndexError) as error:
        raise ArtifactError(f"it describes no network: {error}") from None
    # heads that only training uses are not in the file, but the network is built with them
    total = count_parameters(model)
    if total > WEIGHTS_PER_BYTE * file_bytes:
        raise ArtifactError(f"{total:,} weights in {file_bytes:,} bytes are not believable")
    return {name: tensor.shape for name, tensor in submission_state(model).items()}


def _numbers(table: dict) -> list[float]:
    values = [item for value in table.values() for item in (value if isinstance(value, tuple) else (value,))]
    return [value for value in values if isinstance(value, float)]
