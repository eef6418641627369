"""Attention that keeps the documents of a row apart."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.model.layers import Layer


def document_bounds(tokens: Tensor, bos: int) -> Tensor:
    """(B T + 1,) int32: where documents begin in tokens (B, T) laid end to end, one at each row and each `bos`; then B T, as
    often as is left, so that the size does not depend on the tokens."""
    rows, length = tokens.shape
    begins = (tokens == bos) | (torch.arange(length, device=tokens.device) == 0)
    begins = begins.flatten()
    count = rows * length
    # what begins nothing is written behind the end, and dropped
    place = torch.where(begins, begins.cumsum(0) - 1, count + 1)
    bounds = torch.full((count + 2,), count, dtype=torch.int32, device=tokens.device)
    return bounds.scatter(0, place, torch.arange(count, dtype=torch.int32, device=tokens.device))[: count + 1]


def within_documents(tokens: Tensor, bos: int) -> Callable[[Layer, Callable[..., Tensor]], Callable[..., Tensor]]:
    """For `Network.run_layers`: attention that goes back no further than the beginning of each token's document. The operator
    takes documents packed into one row (variable-length attention), so the batch is laid end to end for it."""
    bounds = document_bounds(tokens, bos)

    def attention_of(layer: Layer, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(q: Tensor, k: Tensor, v: Tensor, *, xsa: bool, gate: Tensor | None) -> Tensor:
            q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
            gate = None if gate is None else gate.flatten(0, 1)[None]
            y = operator(q, k, v, xsa=xsa, gate=gate, cu_seqlens=bounds)
            return y[0].unflatten(0, tokens.shape)

        return attention

    return attention_of
