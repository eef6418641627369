"""The network with cached keys and values: some of its layers, over some positions, behind earlier ones that are kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.kernels.attention import xsa as exclude
from pgolf.kernels.rotary import rotary_table
from pgolf.model.adapters import Adapters
from pgolf.model.build import shared_view
from pgolf.model.layers import Layer
from pgolf.model.network import Network
from pgolf.model.parts import rms_norm, rotary_base
from pgolf.model.stream import Stream

Past = dict[int, tuple[Tensor, Tensor]]
"""For each layer the rotated keys and the values, (B, P, Hkv, d), of the positions right before."""


class KVCachedNetwork:
    """A frozen view of a network. Its rows are one document each: `model.document_bos` is not looked for in them.

    length  rotary frequencies are those of windows of this many tokens, however few are computed at once
    """

    def __init__(self, model: Network, length: int):
        self.network = shared_view(model).requires_grad_(False).eval()
        self.settings, self.layers = model.settings, self.network.layers
        self.device = self.network.tok_emb.weight.device
        self.dtype = torch.promote_types(model.activation, torch.float32)
        self.length = length
        # the weights do not change any more, so they are cast once
        self.matrices = self.network.matrices()
        self._rotary: tuple[Tensor, Tensor] | None = None
        self.token_layers = 0
        """Positions times layers that windows have computed; those that a gradient flows through count three times."""

    def embed(self, tokens: Tensor, lead: int) -> Stream:
        """What enters the first layer at all but the first `lead` of tokens (B, lead + T)."""
        return self.network.embed(tokens).part(slice(None), slice(lead, None))

    def run_layers(
        self,
        stream: Stream,
        tokens: Tensor,
        layers: Sequence[Layer],
        *,
        rotary: tuple[Tensor, Tensor],
        past: Past,
        hidden: Tensor | None = None,
        adapters: Adapters | None = None,
    ) -> tuple[Stream, Past]:
        """What leaves the last of `layers`, which `stream` enters, and their keys and values, those of the past included.
        tokens (B, T) stand at the positions of `rotary`; `past` is what attention sees before them, but for its first `hidden`
        positions (a number on the device), which are padding."""
        seen: Past = {}

        def attention_of(layer: Layer, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def attention(q: Tensor, k: Tensor, v: Tensor, *, xsa: bool, gate: Tensor | None) -> Tensor:
                earlier = past.get(layer.index)
                keys, values = (
                    (k, v) if earlier is None else (torch.cat(pair, 1) for pair in zip(earlier, (k, v), strict=True))
                )
                seen[layer.index] = keys.detach(), values.detach()
                if keys.shape == k.shape:
                    return operator(q, k, v, xsa=xsa, gate=gate)
                y = attention_to_all(q, keys, values, hidden)
                return exclude(y, v, gate) if xsa else y if gate is None else (y * gate[..., None]).to(q.dtype)

            return attention

        stream = self.network.run_layers(
            stream, tokens, layers, rotary, adapters=adapters, matrices=self.matrices, attention_of=attention_of
        )
        return stream, seen

    def logits(self, leaving: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Raw logits (B, T, V) of `Stream.leaving`, (B, T, D), in the activations' dtype."""
        return self.network.raw_logits(rms_norm(leaving), adapters)

    def rotary(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions first .. last - 1."""
        if self._rotary is None or len(self._rotary[0]) < last:
            base, length = rotary_base(self.settings, self.length), max(2 * last, self.length)
            self._rotary = rotary_table(length, self.settings.rotary_dims, base, device=self.device, dtype=self.dtype)
        cos, sin = self._rotary
        return cos[first:last], sin[first:last]


def attention_to_all(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Causal attention of queries (B, T, H, d) that stand at the last T of the keys' positions, (B, P + T, Hkv, d), to all but
    the first `hidden`."""
    width, length = q.shape[1], k.shape[1]
    mask = torch.ones(width, length, dtype=torch.bool, device=q.device).tril(length - width)
    if hidden is not None:
        mask = mask & (torch.arange(length, device=q.device) >= hidden)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=q.shape[2] != k.shape[2]
    )
    return y.transpose(1, 2)
