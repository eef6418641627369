"""Norms, rotary tables, and the embeddings beside the token's own.

Names of modules and parameters are those of the submissions' checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.kernels.rotary import rotary_table


def epsilon(dtype: torch.dtype) -> float:
    """The epsilon of norms: that of the precision they are computed in, which for bfloat16 is float32. bfloat16's own would
    be larger than the mean square of a fresh embedding."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=epsilon(x.dtype))


def softcapped(raw: Tensor, softcap: float | None) -> Tensor:
    """softcap tanh(raw / softcap), in float32 or float64 (Gemma 2, arXiv:2408.00118); raw itself with no softcap."""
    if softcap is None:
        return raw
    wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
    return softcap * torch.tanh(wide / softcap)


def previous(x: Tensor) -> Tensor:
    """Each position's predecessor in (B, T, ...); zeros before the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def rotary_base(settings: ModelSettings, length: int) -> float:
    """NTK-aware base: base (length / reference)^(r / (r - 2)) beyond the reference length, so that the slowest frequency
    spans the longer sequence too."""
    dims, stretch = settings.rotary_dims, max(1.0, length / settings.rope_reference_length)
    return settings.rope_base * stretch ** (dims / (dims - 2)) if dims > 2 else settings.rope_base


def rotary_tables(settings: ModelSettings, length: int, device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each (length, r / 2), for the first r dims of each head (partial RoPE, RoPE is
    arXiv:2104.09864); never rounded below float32."""
    kind = torch.promote_types(dtype, torch.float32)
    return rotary_table(length, settings.rotary_dims, rotary_base(settings, length), device=device, dtype=kind)


def bigram_bucket(token: Tensor, previous_token: Tensor, buckets: int) -> Tensor:
    """The row of a pair of neighbours, ((36313 token) xor (27191 previous)) mod (buckets - 1), as PR #549 of
    openai/parameter-golf hashes them. The products wrap as int32 ones do; the last row is kept for position 0."""
    mixed = (36313 * token.long()) ^ (27191 * previous_token.long())
    return (mixed.to(torch.int32) % (buckets - 1)).long()


class SmearGate(nn.Module):
    """x_t <- (1 - g) x_t + g x_{t-1}, g = sigmoid(gate) learnt for each channel (PR #549 of openai/parameter-golf)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, previous_x: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate).to(x.dtype)
        return (1 - g) * x + g * previous_x


class TokenSmearGate(nn.Module):
    """g_t = lambda sigmoid(w . x_t[:n]), 0 at a document's first token, for x_t <- x_t + g_t x_{t-1} (PR #1667 of
    openai/parameter-golf; the mask for first tokens is that of PR #1851)."""

    def __init__(self, inputs: int, bos: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, inputs))
        self.bos = bos

    def forward(self, x: Tensor, tokens: Tensor, factor: Tensor) -> Tensor:
        gate = torch.sigmoid(F.linear(x[..., : self.weight.shape[1]], self.weight.to(x.dtype)))
        return factor.to(x.dtype) * gate * (tokens != self.bos)[..., None]


class BigramEmbedding(nn.Module):
    """scale P e[bucket of (previous token, token)], a hash embedding of pairs (PR #549 of openai/parameter-golf)."""

    def __init__(self, buckets: int, width: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(buckets, width)
        self.proj = nn.Linear(width, dim, bias=False)
        self.scale = nn.Parameter(torch.empty(()))

    def buckets(self, tokens: Tensor) -> Tensor:
        """(B, T) rows of the table."""
        count = self.embed.num_embeddings
        pairs = bigram_bucket(tokens[:, 1:], tokens[:, :-1], count)
        return torch.cat([torch.full_like(tokens[:, :1], count - 1, dtype=torch.int64), pairs], 1)


class ValueEmbedding(nn.Module):
    """scale P e[token], one table for every layer that adds it to its values (PR #549 of openai/parameter-golf)."""

    def __init__(self, vocabulary: int, width: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.proj = nn.Linear(width, dim, bias=False)
        self.scale = nn.Parameter(torch.empty(()))
