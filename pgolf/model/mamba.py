"""The state-space block of Mamba-2 (arXiv:2405.21060) in place of attention and MLP.

    value, gate = W_in u;    value <- SiLU(causal convolution of each channel);    B = W_B u, C = W_C u
    dt = softplus(dt_bias), or softplus(W_dt u + dt_bias) where it depends on the token;    log decay = -exp(A_log) dt
    y = scan(value, B, C, dt, log decay) + D value;    out = W_out (y SiLU(gate))

One dt, A and D a head. Names of parameters are those of the submission's checkpoints.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.adapters import Projector
from pgolf.model.blocks import ResidualBlock
from pgolf.model.layers import Layer
from pgolf.model.parts import rms_norm
from pgolf.model.stream import LayerContext, Stream


class Mamba2Mixer(nn.Module):
    """The small parts of the scan; its matrices are slices of the banks."""

    def __init__(self, settings: ModelSettings):
        super().__init__()
        heads, inner = settings.scan_heads, settings.scan_width
        self.heads = heads
        self.conv1d = nn.Conv1d(inner, inner, settings.scan_conv, groups=inner)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D_param = nn.Parameter(torch.empty(heads))
        self.dt_proj = nn.Linear(settings.dim, heads, bias=False) if settings.scan_input_dt else None

    def reset(self, settings: ModelSettings, generator: torch.Generator | None) -> None:
        """Initial values; dt is drawn evenly from 0.001 to 0.1, the convolution from +-1 / sqrt(taps)."""
        bound = settings.scan_conv**-0.5
        for part in self.conv1d.parameters():
            part.uniform_(-bound, bound, generator=generator)
        dt = torch.empty_like(self.dt_bias).uniform_(0.001, 0.1, generator=generator)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
        self.A_log.copy_(torch.arange(1, settings.scan_heads + 1).log())
        self.D_param.fill_(1)
        if self.dt_proj is not None:
            self.dt_proj.weight.zero_()

    def convolved(self, value: Tensor) -> Tensor:
        """The causal depthwise convolution of value (B, T, I), as shifted sums: a compiler makes one pass of them."""
        weight, bias = (part.to(value.dtype) for part in self.conv1d.parameters())
        taps = weight.shape[2]
        padded = F.pad(value, (0, 0, taps - 1, 0))
        return sum((padded[:, i : i + value.shape[1]] * weight[:, 0, i] for i in range(taps)), bias)

    def rates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """dt and the log of the decay, (heads,) or (B, T, heads), in at least float32."""
        kind = torch.promote_types(u.dtype, torch.float32)
        raw = self.dt_bias.to(kind)
        if self.dt_proj is not None:
            raw = raw + F.linear(u, self.dt_proj.weight.to(u.dtype)).to(kind)
        dt = F.softplus(raw)
        return dt, -self.A_log.to(kind).exp() * dt

    def forward(self, u: Tensor, project: Projector) -> Tensor:
        value, gate = project("mixer_in", u).chunk(2, -1)
        b, c = project("mixer_b", u), project("mixer_c", u)
        v, b, c = (x.unflatten(-1, (self.heads, -1)) for x in (F.silu(self.convolved(value)), b, c))
        y = project.operators.scan(v, b, c, *self.rates(u))
        y = y + self.D_param.to(v.dtype)[:, None] * v
        return project("mixer_out", y.flatten(2) * F.silu(gate))


class Mamba2Block(ResidualBlock):
    """One executed layer: the mixer alone."""

    mixer_scale: nn.Parameter

    def __init__(self, settings: ModelSettings, layer: Layer):
        super().__init__(settings, layer, "mixer")
        self.mixer = Mamba2Mixer(settings)

    def forward(self, stream: Stream, context: LayerContext) -> Stream:
        x_in = self.enter(stream)
        y = self.mixer(context.layer.scale * rms_norm(x_in), context.project)
        x = x_in + self.mixer_scale.to(x_in.dtype) * y
        return stream._replace(x=self.leave(x, x_in), prev_stream=stream.x)
