"""The network token by token, with a cache of keys and values and the states of scans, for one CPU core."""

import numpy as np
import torch
from torch import Tensor

from pgolf.model.decoder.step import TILE, State, advance
from pgolf.model.decoder.weights import Weights, weights_of
from pgolf.model.network import Network


class Decoder:
    """`step` takes the next token of every row and gives the logits of the one after it.

    The arithmetic is float32, on a CPU, wherever the network lives; a row's result does not depend on what else is in the
    batch. The rotary base is that of a window of `length` tokens, which is also the most the decoder takes. The weights
    are those of the network at its start.
    """

    def __init__(self, model: Network, batch: int, length: int):
        if batch < 1 or length < 1:
            raise ValueError(f"decoder: batch {batch} and length {length} must be at least 1")
        self.batch, self.length, self.position = batch, length, 0
        self._weights = weights_of(model, length)
        self._state = state_of(model, self._weights, batch, length)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (batch,) -> softcapped logits (batch, V)."""
        return self.prefill(tokens[:, None])

    def prefill(self, tokens: Tensor) -> Tensor:
        """tokens (batch, n), n steps at once -> the logits (batch, V) after the last; the same bits as step by step."""
        if tokens.dim() != 2 or len(tokens) != self.batch or tokens.shape[1] < 1:
            raise ValueError(f"decoder: tokens for {self.batch} rows wanted, not {tuple(tokens.shape)}")
        if self.position + tokens.shape[1] > self.length:
            raise ValueError(
                f"decoder: {self.position} of {self.length} tokens are taken, {tokens.shape[1]} more do not fit; "
                "start another one, or build it longer"
            )
        given = np.ascontiguousarray(tokens.cpu().numpy(), np.int64)
        logits = np.empty((self.batch, len(self._weights.tokens)), np.float32)
        advance(self._weights, self._state, given, self.position, logits)
        self.position += given.shape[1]
        return torch.from_numpy(logits).to(tokens.device)

    def reset(self) -> None:
        """Forget every token; the next one is a sequence's first."""
        self.position = 0
        self._state.embedding.fill(0)
        self._state.scanned.fill(0)


def state_of(model: Network, weights: Weights, batch: int, length: int) -> State:
    """An empty state for `batch` rows of `length` tokens."""
    settings, tiles = model.settings, -(-length // TILE)
    mixers = sum(layer.mamba for layer in model.layers)
    cache = (len(model.layers) - mixers, batch, settings.kv_heads, tiles)
    heads, taps = weights.dt.shape[1], weights.taps.shape[1:]
    return State(
        np.zeros((*cache, settings.head_dim, TILE), np.float32),
        np.zeros((*cache, TILE, settings.head_dim), np.float32),
        np.zeros((mixers, batch, heads, settings.scan_state, taps[1] // heads), np.float32),
        np.zeros((mixers, batch, *taps), np.float32),
        np.zeros((batch, settings.dim), np.float32),
        np.zeros((batch, settings.dim), np.float32),
        np.zeros(batch, np.int64),
    )
