"""The network in pieces: some of its layers, over some positions, with the keys and values of earlier ones remembered."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.kernels.attention import xsa
from pgolf.kernels.rotary import rotary_table
from pgolf.model import Adapters, Network
from pgolf.model.adapters import Projector
from pgolf.model.parts import rms_norm, rotary_base


@dataclass(frozen=True)
class Carried:
    """What positions (B, T) carry from one layer into the next; parts that the network has no use for are missing."""

    x: Tensor
    x0: Tensor
    before: Tensor
    first_values: Tensor | None
    skips: tuple[Tensor, ...]

    def __getitem__(self, part) -> "Carried":
        """Some of the rows, or of the positions."""
        first_values = None if self.first_values is None else self.first_values[part]
        return Carried(self.x[part], self.x0[part], self.before[part], first_values, tuple(s[part] for s in self.skips))

    def then(self, later: "Carried") -> "Carried":
        """These positions and the ones after them."""
        x, x0, before = (torch.cat(pair, 1) for pair in ((self.x, later.x), (self.x0, later.x0), (self.before, later.before)))
        skips = tuple(torch.cat(pair, 1) for pair in zip(self.skips, later.skips, strict=True))
        first_values = None
        if self.first_values is not None and later.first_values is not None:
            first_values = torch.cat([self.first_values, later.first_values], 1)
        return Carried(x, x0, before, first_values, skips)


Past = dict[int, tuple[Tensor, Tensor]]
"""For each layer the rotated keys and the values, (B, P, Hkv, d), of the positions right before."""


class Pieces(Network):
    """A frozen network over another's memory.

    length  rotary frequencies are those of windows of this many tokens, however long the pieces are
    """

    def __init__(self, model: Network, length: int):
        with torch.device("meta"):
            super().__init__(model.settings)
        self.activation, self.operators, self.length = model.activation, model.operators, length
        self.mtp_heads = nn.ModuleList()
        state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp_heads.")}
        self.load_state_dict(state, assign=True)
        self.requires_grad_(False).eval()
        # the weights do not change any more, so they are cast once
        self.matrices = self._matrices()
        self.output = self.output_matrix().to(self.activation)
        self._table: tuple[Tensor, Tensor] | None = None
        self.token_layers = 0
        """Positions times layers so far; those that a gradient flows through count three times."""

    def enter(self, tokens: Tensor, lead: int) -> Carried:
        """The embeddings of all but the first `lead` tokens. A token's depends on the two before it."""
        x = self._embed(tokens)[:, lead:]
        return Carried(x, x, x, None, ())

    def through(
        self,
        carried: Carried,
        tokens: Tensor,
        layers: range,
        *,
        first: int,
        past: Past,
        adapters: Adapters | None = None,
    ) -> tuple[Carried, Past]:
        """`carried` by the tokens (B, T) into layers.start, as they carry it out of the last of `layers`; and their keys
        and values. The tokens stand at positions first, first + 1, ...; `past` is what attention sees before them."""
        rows, width = tokens.shape
        self.token_layers += rows * width * len(layers) * (3 if torch.is_grad_enabled() else 1)
        table = self._turns(first, first + width, tokens.device)
        extra_values = self._extra_values(tokens) if len(layers) else {}
        x, x0, before = carried.x, carried.x0, carried.before
        first_values, skips = carried.first_values, carried.skips
        own: Past = {}
        for layer in layers:
            if self.skip_weights is not None and layer >= self.encoders and skips:
                x, skips = x + self.skip_weights[layer - self.encoders].to(x.dtype) * skips[-1], skips[:-1]
            entered = x
            recall = Recall(past.get(layer))
            operators = self._operators()
            operators = operators._replace(attention=recall.attention(operators.attention))
            project = Projector(operators, adapters, layer)
            x, values = self.blocks[layer](
                x, x0, before, self.matrices[layer], extra_values.get(layer), first_values, table, project
            )
            own[layer] = recall.own
            before = entered
            if layer == 0 and self.settings.value_residual:
                first_values = values
            if layer < self.encoders:
                skips = (*skips, x)
        return Carried(x, x0, before, first_values, skips), own

    def logits_of(self, x: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Softcapped logits (B, T, V) of what leaves the last layer."""
        return self.head(rms_norm(x), adapters)

    def _raw_logits(self, hidden: Tensor, adapters: Adapters | None = None) -> Tensor:
        return Projector(self._operators(), adapters, 0)("head", hidden, self.output)

    def _turns(self, first: int, last: int, device) -> tuple[Tensor, Tensor]:
        if self._table is None or len(self._table[0]) < last:
            kind = torch.promote_types(self.activation, torch.float32)
            base, length = rotary_base(self.settings, self.length), max(2 * last, self.length)
            self._table = rotary_table(length, self.settings.rotary_dims, base, device=device, dtype=kind)
        cos, sin = self._table
        return cos[first:last], sin[first:last]


@dataclass
class Recall:
    """Attention that also sees a past, and tells its own keys and values."""

    past: tuple[Tensor, Tensor] | None
    own: tuple[Tensor, Tensor] = field(init=False)

    def attention(self, plain):
        def attend(q: Tensor, k: Tensor, v: Tensor, *, xsa: bool, gate: Tensor | None) -> Tensor:
            self.own = k.detach(), v.detach()
            if self.past is None or not self.past[0].shape[1]:
                return plain(q, k, v, xsa=xsa, gate=gate)
            return attention_after(*self.past, q, k, v, exclusive=xsa, gate=gate)

        return attend


def attention_after(past_keys, past_values, q, k, v, *, exclusive: bool, gate: Tensor | None) -> Tensor:
    """Each query sees all of the past, and of its own piece what is not after it."""
    before, width = past_keys.shape[1], q.shape[1]
    mask = torch.ones(width, before + width, dtype=torch.bool, device=q.device).tril(before)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        torch.cat([past_keys, k], 1).transpose(1, 2),
        torch.cat([past_values, v], 1).transpose(1, 2),
        attn_mask=mask,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)
    if exclusive:
        return xsa(y, v, gate)
    return y if gate is None else (y * gate[..., None]).to(q.dtype)
