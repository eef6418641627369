"""[artifact]: rounding, calibration and compression. Stored in the artifact, so a name here is part of the file format."""

from dataclasses import dataclass
from typing import Literal

from pgolf.config.checks import SettingsError, share


@dataclass(frozen=True)
class ArtifactSettings:
    limit: int = 16_000_000
    """Bytes allowed for model and code together."""
    matrix_bits: int = 6
    """Bits of attention and MLP matrices."""
    embedding_bits: int = 8
    """Bits of the embedding tables."""
    rounding: Literal["percentile", "quantile", "sdclip", "gptq-published", "gptq", "gptq-sdclip"] = "percentile"
    """How matrices are rounded: percentile search, one high quantile as embeddings are, k-sigma clipping, GPTQ as #688 wrote
    it, or GPTQ as it is meant, with either clip."""
    small_tensor: int = 65_536
    """Tensors with at most this many weights are kept in float16."""
    scale_floor: bool = True
    """Row clips are never below 1.0, as in the submissions; off: scales follow the row."""
    scale_steps: int = 0
    """Row scales are powers of 2^(1/n), which cost fewer bytes; 0: any float16."""
    clip_scale: float = 1.0
    """Factor on every row's clip: larger steps, fewer bytes."""
    sdclip_sigmas: float = 12.85
    """Clip of a matrix's row in standard deviations, for sdclip and gptq-sdclip."""
    sdclip_mlp_sigmas: float = 0.0
    """The same for the MLP's matrices; 0: as for the others."""
    sdclip_embedding_sigmas: float = 20.0
    """Clip of an embedding's row in standard deviations, for the same."""
    gptq_embedding: bool = False
    """GPTQ for the output matrix too; lookups have no inputs to calibrate with."""
    calibration: Literal["train", "generated"] = "train"
    """Where GPTQ's activations come from: training data inside the clock, or text the model writes itself."""
    calibration_sequences: int = 128
    """Sequences for calibration."""
    damping: float = 0.01
    """Share of the mean diagonal added to GPTQ's Hessian."""
    prune: float = 0.0
    """Share of smallest weights of each large tensor set to zero before rounding."""
    prune_ones: float = 0.0
    """Share of the codes +1 and -1 set to zero after rounding, the cheapest first."""
    lqer_rank: int = 0
    """Rank of a low-rank correction of the rounding error; 0 leaves it out."""
    lqer_tensors: int = 3
    """How many tensors get it: those with the largest error."""
    compressor: Literal["zstd", "lzma", "entropy"] = "zstd"
    """zstd 22 or lzma 6 over whole bytes, or the entropy coder with a model of each value."""
    fit: bool = False
    """Search bits, clip and pruning, in this order, for the setting that uses the limit."""

    def validate(self) -> None:
        """Raise one line for the first value that nothing can be rounded with."""
        for name in ("matrix_bits", "embedding_bits"):
            if not 2 <= getattr(self, name) <= 8:
                raise SettingsError(f"artifact.{name} {getattr(self, name)} is outside 2 to 8")
        share("artifact", self, "prune", "prune_ones")
        for name in ("clip_scale", "sdclip_sigmas", "sdclip_embedding_sigmas"):
            if not 0 < getattr(self, name) < 1e4:
                raise SettingsError(f"artifact.{name} {getattr(self, name)} must be above 0 and below 10,000")
        for name in (
            "small_tensor",
            "scale_steps",
            "sdclip_mlp_sigmas",
            "lqer_rank",
            "lqer_tensors",
            "damping",
            "calibration_sequences",
        ):
            if not 0 <= getattr(self, name) <= 1e9:
                raise SettingsError(f"artifact.{name} {getattr(self, name)} must not be negative")
