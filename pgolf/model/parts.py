"""What the network is made of besides its banks: norms, the embeddings beside the token's own, and a block's small parts.

Names of modules and parameters are those of the submissions' checkpoints.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.kernels.rotary import rotary_table
from pgolf.model.adapters import Projector


def epsilon(dtype: torch.dtype) -> float:
    """What keeps norms finite: the precision they are computed in, which for bfloat16 is float32. bfloat16's own would be
    larger than the mean square of a fresh embedding."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=epsilon(x.dtype))


def previous(x: Tensor) -> Tensor:
    """Each position's predecessor in (B, T, ...); zeros before the first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def rotary_base(settings: ModelSettings, length: int) -> float:
    """The NTK rule: sequences beyond the reference length raise the base, so that the slowest turn spans them too."""
    dims, stretch = settings.rotary_dims, max(1.0, length / settings.rope_reference_length)
    return settings.rope_base * stretch ** (dims / (dims - 2)) if dims > 2 else settings.rope_base


def rotary_tables(settings: ModelSettings, length: int, device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position; never rounded below float32."""
    kind = torch.promote_types(dtype, torch.float32)
    return rotary_table(length, settings.rotary_dims, rotary_base(settings, length), device=device, dtype=kind)


def bigram_bucket(token: Tensor, before: Tensor, buckets: int) -> Tensor:
    """The row of each pair of neighbours. The products wrap as int32 ones do; the last row is kept for position 0."""
    mixed = (36313 * token.long()) ^ (27191 * before.long())
    return (mixed.to(torch.int32) % (buckets - 1)).long()


class SmearGate(nn.Module):
    """x_t <- (1 - g) x_t + g x_{t-1}, a learnt g for each channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate).to(x.dtype)
        return (1 - g) * x + g * before


class HashedPairs(nn.Module):
    """scale * P e[bucket of (previous token, token)]."""

    def __init__(self, buckets: int, width: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(buckets, width)
        self.proj = nn.Linear(width, dim, bias=False)
        self.scale = nn.Parameter(torch.empty(()))

    def buckets(self, tokens: Tensor) -> Tensor:
        count = self.embed.num_embeddings
        pairs = bigram_bucket(tokens[:, 1:], tokens[:, :-1], count)
        return torch.cat([torch.full_like(tokens[:, :1], count - 1, dtype=torch.int64), pairs], 1)


class SharedValues(nn.Module):
    """scale * P e[token], one table for every layer that adds it to its values."""

    def __init__(self, vocabulary: int, width: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.proj = nn.Linear(width, dim, bias=False)
        self.scale = nn.Parameter(torch.empty(()))


class Matrices(NamedTuple):
    """One executed layer's slices of the banks, in the activations' dtype."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    up: Tensor
    down: Tensor


class Attention(nn.Module):
    """The small parts of attention; its matrices are slices of the banks."""

    def __init__(self, settings: ModelSettings, layer: int):
        super().__init__()
        self.heads, self.kv_heads = settings.heads, settings.kv_heads
        self.exclusive = layer >= len(settings.virtual_layers) - settings.xsa_last
        self.q_gain = nn.Parameter(torch.empty(settings.heads))
        self.attn_gate = nn.Linear(settings.dim, settings.heads) if settings.gated_attention else None
        # the first layer's pair has nothing to mix, but the submissions' checkpoints hold it
        self.vr_lambda = nn.Parameter(torch.empty(2)) if settings.value_residual else None

    def gate(self, u: Tensor) -> Tensor | None:
        if self.attn_gate is None:
            return None
        return torch.sigmoid(F.linear(u, self.attn_gate.weight.to(u.dtype), self.attn_gate.bias.to(u.dtype)))

    def forward(
        self,
        u: Tensor,
        matrices: Matrices,
        extra_values: Tensor | None,
        first_values: Tensor | None,
        table: tuple[Tensor, Tensor],
        project: Projector,
    ) -> tuple[Tensor, Tensor]:
        """The sublayer's output; and its values as attention saw them, (B, T, Hkv, d)."""
        q = project("q", u, matrices.q).unflatten(-1, (self.heads, -1))
        k = project("k", u, matrices.k).unflatten(-1, (self.kv_heads, -1))
        v = project("v", u, matrices.v)
        if extra_values is not None:
            v = v + extra_values
        v = v.unflatten(-1, (self.kv_heads, -1))
        if self.vr_lambda is not None and first_values is not None:
            share = self.vr_lambda.to(v.dtype)
            v = share[0] * first_values + share[1] * v
        q, k = project.operators.rotary(q, k, self.q_gain.to(q.dtype), *table, eps=epsilon(q.dtype))
        y = project.operators.attention(q, k, v, xsa=self.exclusive, gate=self.gate(u))
        return project("o", y.flatten(2), matrices.o), v


class Residual(nn.Module):
    """What all blocks have: a residual stream that starts from a mix with the embedding, and a scale for each sublayer's
    output, named after it."""

    def __init__(self, settings: ModelSettings, layer: int, *sublayers: str):
        super().__init__()
        dim, executed = settings.dim, len(settings.virtual_layers)
        self.scale = (layer + 1) ** -0.5 if settings.layer_scale else 1.0
        for sublayer in sublayers:
            self.register_parameter(f"{sublayer}_scale", nn.Parameter(torch.empty(dim)))
        self.resid_mix = nn.Parameter(torch.empty(2, dim)) if settings.resid_mix else None
        # the middle weight is the submissions' own, and as unused as there
        self.hyper = nn.Parameter(torch.empty(3)) if layer >= executed - settings.hyper_layers else None
        self.dtg_gate = nn.Linear(dim, 1) if settings.dtg else None

    def enter(self, x: Tensor, x0: Tensor, before: Tensor) -> Tensor:
        """The stream that the sublayers add to; `before` is the stream that entered the previous block."""
        if self.resid_mix is not None:
            mix = self.resid_mix.to(x.dtype)
            x = mix[0] * x + mix[1] * x0
        if self.hyper is not None:
            share = self.hyper.to(x.dtype)
            x = share[0] * x + share[2] * before
        return x

    def leave(self, x: Tensor, x_in: Tensor) -> Tensor:
        if self.dtg_gate is None:
            return x
        weight, bias = self.dtg_gate.weight.to(x.dtype), self.dtg_gate.bias.to(x.dtype)
        return x_in + torch.sigmoid(F.linear(x_in.detach(), weight, bias)) * (x - x_in)


class Block(Residual):
    """One executed layer: attention, then the MLP."""

    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter

    def __init__(self, settings: ModelSettings, layer: int):
        super().__init__(settings, layer, "attn", "mlp")
        self.slope = settings.mlp_slope
        self.attn = Attention(settings, layer)

    def mlp(self, u: Tensor, matrices: Matrices, project: Projector) -> Tensor:
        if project.plain("up", "down"):
            return project.operators.mlp(u, matrices.up, matrices.down, self.slope)
        h = F.leaky_relu(project("up", u, matrices.up), self.slope)
        return project("down", h.square(), matrices.down)

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        before: Tensor,
        matrices: Matrices,
        extra_values: Tensor | None,
        first_values: Tensor | None,
        table: tuple[Tensor, Tensor],
        project: Projector,
    ) -> tuple[Tensor, Tensor]:
        """The stream that leaves the block, and its attention's values."""
        x_in = self.enter(x, x0, before)
        y, v = self.attn(self.scale * rms_norm(x_in), matrices, extra_values, first_values, table, project)
        x = x_in + self.attn_scale.to(x.dtype) * y
        x = x + self.mlp_scale.to(x.dtype) * self.mlp(self.scale * rms_norm(x), matrices, project)
        return self.leave(x, x_in), v
