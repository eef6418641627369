"""A layer of attention and MLP, and what it shares with a Mamba-2 layer. Matrices are slices of the network's banks; the
small parameters here carry the names of the submissions' checkpoints.

    x_in = mix_0 x + mix_1 x0 (+ a share of the stream that entered the previous layer)
    x    = x_in + attn_scale Attention(c norm(x_in))
    x    = x + mlp_scale MLP(c norm(x)),    c = 1 / sqrt(layer + 1)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.adapters import Projector
from pgolf.model.layers import Layer
from pgolf.model.parts import epsilon, rms_norm
from pgolf.model.stream import LayerContext, Stream


class Attention(nn.Module):
    """Causal attention with grouped queries: q and k normed per head (QK-norm, arXiv:2010.04245), partly rotated, a gain for
    each query head; then, where the layer has them, XSA and a sigmoid gate for each head."""

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.settings, self.heads, self.kv_heads = settings, settings.heads, settings.kv_heads
        self.q_gain = nn.Parameter(torch.empty(settings.heads))
        self.attn_gate = nn.Linear(settings.dim, settings.heads) if settings.gated_attention else None
        inputs = settings.gate_inputs
        self.attn_gate_w = nn.Parameter(torch.empty(settings.heads, inputs)) if inputs else None
        # the first layer's pair has nothing to mix, but the submissions' checkpoints hold it
        self.vr_lambda = nn.Parameter(torch.empty(2)) if settings.value_residual else None

    def reset(self, settings: ModelSettings) -> None:
        """Initial values."""
        self.q_gain.fill_(settings.q_gain)
        if self.vr_lambda is not None:
            self.vr_lambda.copy_(torch.tensor(settings.value_residual_init))
        if self.attn_gate_w is not None:
            self.attn_gate_w.zero_()
        if self.attn_gate is not None:
            self.attn_gate.weight.zero_()
            self.attn_gate.bias.fill_(settings.gate_bias)

    def gate_matrix(self) -> tuple[Tensor | None, Tensor | None]:
        """(H, D) and (H,): the gate is the sigmoid of matrix u + bias. None without a gate."""
        if self.attn_gate_w is not None:
            missing = self.settings.dim - self.settings.gate_inputs
            return self.settings.gate_scale * F.pad(self.attn_gate_w, (0, missing)), torch.zeros_like(self.q_gain)
        if self.attn_gate is not None:
            return self.attn_gate.weight, self.attn_gate.bias
        return None, None

    def gate(self, u: Tensor) -> Tensor | None:
        """(B, T, H): sigmoid(W u + b), as in PR #745 of openai/parameter-golf, or of a few channels alone, as in #1787."""
        if self.attn_gate_w is not None:
            channels = u[..., : self.attn_gate_w.shape[1]]
            return torch.sigmoid(self.settings.gate_scale * F.linear(channels, self.attn_gate_w.to(u.dtype)))
        if self.attn_gate is None:
            return None
        return torch.sigmoid(F.linear(u, self.attn_gate.weight.to(u.dtype), self.attn_gate.bias.to(u.dtype)))

    def forward(self, u: Tensor, first_values: Tensor | None, context: LayerContext) -> tuple[Tensor, Tensor | None]:
        """The sublayer's output for u (B, T, D), and the first layer's values, which in that layer are its own."""
        project = context.project
        q = project("q", u).unflatten(-1, (self.heads, -1))
        k = project("k", u).unflatten(-1, (self.kv_heads, -1))
        v = project("v", u)
        if context.value_embedding is not None:
            v = v + context.value_embedding
        v = v.unflatten(-1, (self.kv_heads, -1))
        if self.vr_lambda is not None:
            # value residual, arXiv:2410.17897
            if first_values is None:
                first_values = v
            else:
                share = self.vr_lambda.to(v.dtype)
                v = share[0] * first_values + share[1] * v
        q, k = project.operators.rotary(q, k, self.q_gain.to(q.dtype), *context.rotary, eps=epsilon(q.dtype))
        y = context.attention(q, k, v, xsa=context.layer.xsa, gate=self.gate(u))
        return project.beside("attn_side", u, project("o", y.flatten(2))), first_values


class ResidualBlock(nn.Module):
    """What all blocks have: a residual stream that starts from a mix with the embedding, and a scale for each sublayer's
    output, named after it."""

    def __init__(self, settings: ModelSettings, layer: Layer, *sublayers: str):
        super().__init__()
        dim = settings.dim
        for sublayer in sublayers:
            self.register_parameter(f"{sublayer}_scale", nn.Parameter(torch.empty(dim)))
        self.sublayers = sublayers
        self.resid_mix = nn.Parameter(torch.empty(2, dim)) if settings.resid_mix else None
        # the middle weight is unused here as in the submission's code
        self.hyper = nn.Parameter(torch.empty(3)) if layer.hyper else None
        self.dtg_gate = nn.Linear(dim, 1) if settings.dtg else None

    def reset(self, settings: ModelSettings) -> None:
        """Initial values: the block is the identity but for what its sublayers add."""
        for sublayer in self.sublayers:
            self.get_parameter(f"{sublayer}_scale").fill_(1)
        if self.resid_mix is not None:
            self.resid_mix[0] = 1
            self.resid_mix[1] = 0
        if self.hyper is not None:
            self.hyper.copy_(torch.tensor([1.0, 0.0, 0.3]))
        if self.dtg_gate is not None:
            self.dtg_gate.weight.zero_()
            self.dtg_gate.bias.fill_(2)

    def enter(self, stream: Stream) -> Tensor:
        """The stream that the sublayers add to, (B, T, D)."""
        x = stream.x
        if self.resid_mix is not None:
            mix = self.resid_mix.to(x.dtype)
            x = mix[0] * x + mix[1] * stream.x0
        if self.hyper is not None:
            # hyper-connections (arXiv:2409.19606) in the form of PR #687 of openai/parameter-golf
            share = self.hyper.to(x.dtype)
            x = share[0] * x + share[2] * stream.prev_stream
        return x

    def leave(self, x: Tensor, x_in: Tensor) -> Tensor:
        """DTG, a gate for each token on what the block adds: x_in + sigmoid(w stopgrad(x_in) + b) (x - x_in)."""
        if self.dtg_gate is None:
            return x
        weight, bias = self.dtg_gate.weight.to(x.dtype), self.dtg_gate.bias.to(x.dtype)
        return x_in + torch.sigmoid(F.linear(x_in.detach(), weight, bias)) * (x - x_in)


class AttentionBlock(ResidualBlock):
    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter

    def __init__(self, settings: ModelSettings, layer: Layer):
        super().__init__(settings, layer, "attn", "mlp")
        self.slope = settings.mlp_slope
        self.attn = Attention(settings)

    def mlp(self, u: Tensor, project: Projector) -> Tensor:
        """W_down LeakyReLU(W_up u)^2, fused where neither matrix has an adapter."""
        if project.plain("up", "down"):
            y = project.operators.mlp(u, project.matrices["up"], project.matrices["down"], self.slope)
        else:
            y = project("down", F.leaky_relu(project("up", u), self.slope).square())
        return project.beside("mlp_side", u, y)

    def forward(self, stream: Stream, context: LayerContext) -> Stream:
        scale, x_in = context.layer.scale, self.enter(stream)
        y, first_values = self.attn(scale * rms_norm(x_in), stream.first_values, context)
        if context.lanes is not None and stream.lane is not None:
            # two lanes (PR #1529 of openai/parameter-golf): both sublayers read before either writes
            written = (
                self.attn_scale.to(x_in.dtype) * y,
                self.mlp_scale.to(x_in.dtype) * self.mlp(scale * rms_norm(stream.lane), context.project),
            )
            keeps, adds = (part.to(x_in.dtype) for part in context.lanes)
            x, lane = (
                keeps[i] * own + adds[0, i] * written[0] + adds[1, i] * written[1]
                for i, own in enumerate((stream.x, stream.lane))
            )
            return stream._replace(x=x, lane=lane, prev_stream=stream.x, first_values=first_values)
        x = x_in + self.attn_scale.to(x_in.dtype) * y
        x = x + self.mlp_scale.to(x.dtype) * self.mlp(scale * rms_norm(x), context.project)
        return stream._replace(x=self.leave(x, x_in), prev_stream=stream.x, first_values=first_values)
