"""The network with cached keys and values: some of its layers, over some positions, behind earlier ones that are kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.kernels.attention import xsa
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
        """Positions times layers so far; those that a gradient flows through count three times."""

    def embed(self, tokens: Tensor, lead: int) -> Stream:
        """What enters the first layer at all but the first `lead` of tokens (B, lead + T)."""
        return self.network.embed(tokens).part(slice(None), slice(lead, None))

    def run_layers(
        self,
        stream: Stream,
        tokens: Tensor,
        layers: Sequence[Layer],
        *,
        first: int,
        past: Past,
        adapters: Adapters | None = None,
    ) -> tuple[Stream, Past]:
        """What leaves the last of `layers`, which `stream` enters, and their keys and values. tokens (B, T) stand at the
        positions first, first + 1, ...; `past` is what attention sees before them."""
        rows, width = tokens.shape
        self.token_layers += rows * width * len(layers) * (3 if torch.is_grad_enabled() else 1)
        own: Past = {}

        def attention_of(layer: Layer, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def attention(q: Tensor, k: Tensor, v: Tensor, *, xsa: bool, gate: Tensor | None) -> Tensor:
                own[layer.index] = k.detach(), v.detach()
                earlier = past.get(layer.index)
                if earlier is None or not earlier[0].shape[1]:
                    return operator(q, k, v, xsa=xsa, gate=gate)
                return attention_after(*earlier, q, k, v, exclusive=xsa, gate=gate)

            return attention

        rotary = self._rotary_tables(first, first + width)
        stream = self.network.run_layers(
            stream, tokens, layers, rotary, adapters=adapters, matrices=self.matrices, attention_of=attention_of
        )
        return stream, own

    def logits(self, leaving: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Softcapped logits (B, T, V) of `Stream.leaving`, (B, T, D)."""
        return self.network.head(rms_norm(leaving), adapters)

    def _rotary_tables(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        if self._rotary is None or len(self._rotary[0]) < last:
            base, length = rotary_base(self.settings, self.length), max(2 * last, self.length)
            self._rotary = rotary_table(length, self.settings.rotary_dims, base, device=self.device, dtype=self.dtype)
        cos, sin = self._rotary
        return cos[first:last], sin[first:last]


def attention_after(past_keys, past_values, q, k, v, *, exclusive: bool, gate: Tensor | None) -> Tensor:
    """Attention of queries (B, T, H, d) to keys and values of P earlier positions, (B, P, Hkv, d), and causally to those of
    their own."""
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
