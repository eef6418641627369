"""The network token by token, with a cache of keys and values and the states of scans, for one CPU core."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.rotary import rotary_table
from pgolf.model.adapters import Adapters
from pgolf.model.decoder.state import TILE, LowRank, Places, state_of
from pgolf.model.decoder.step import advance, embed_only
from pgolf.model.decoder.weights import weights_of
from pgolf.model.network import Network
from pgolf.model.parameters import ADAPTED
from pgolf.model.parts import rotary_base

# tokens that go through a layer together, and rows below which another thread is not worth its start
BLOCK, ROWS_PER_THREAD = 64, 8


class Decoder:
    """`step` takes the next token of every row and gives the logits of the one after it.

    The arithmetic is float32, on a CPU, wherever the network lives; a row's result does not depend on what else is computed
    with it. The rotary base is that of a window of `length` tokens, which is also the most the decoder takes, unless
    positions are dropped.

    keep   0, or how many positions at least are kept, while a row may have any number of them: `first` says where attention
           begins, and must not lie further back
    ranks  rank of the adapters that `adapt` sets
    """

    def __init__(self, model: Network, batch: int, length: int, *, keep: int = 0, rank: int = 1):
        if batch < 1 or length < 1:
            raise ValueError(f"decoder: batch {batch} and length {length} must be at least 1")
        self.batch, self.length, self.endless = batch, length, keep > 0
        self.settings, self._layers, self._rank = model.settings, len(model.layers), rank
        self.positions = np.zeros(batch, np.int64)
        """Of each row's next token."""
        self.first = np.zeros(batch, np.int64)
        """The first position that each row's next tokens attend to."""
        self._weights = weights_of(model, length)
        self._state = state_of(model, batch, keep + TILE if keep else length)
        self._adapters = self._no_adapters()
        self._threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool: ThreadPoolExecutor | None = None

    @property
    def position(self) -> int:
        """Of the next token, where all rows are at the same."""
        return int(self.positions[0])

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (batch,) -> softcapped logits (batch, V)."""
        return self.prefill(tokens[:, None])

    def prefill(self, tokens: Tensor) -> Tensor:
        """tokens (batch, n), n steps at once -> the logits (batch, V) after the last; the same bits as step by step."""
        if tokens.dim() != 2 or len(tokens) != self.batch or tokens.shape[1] < 1:
            raise ValueError(f"decoder: tokens for {self.batch} rows wanted, not {tuple(tokens.shape)}")
        return torch.from_numpy(self.advance(range(self.batch), tokens.cpu().numpy())).to(tokens.device)

    def advance(self, rows: Sequence[int], tokens: np.ndarray) -> np.ndarray:
        """The next tokens (R, n) of some rows -> the logits (R, V) after the last of each."""
        chosen, tokens = np.asarray(rows, np.int64), np.ascontiguousarray(tokens, np.int64)
        count = tokens.shape[1]
        furthest = int(self.positions[chosen].max()) + count
        if not self.endless and furthest > self.length:
            raise ValueError(
                f"decoder: {furthest - count} of {self.length} tokens are taken, {count} more do not fit; "
                "start another one, or build it longer"
            )
        self._reach(furthest)
        logits = np.empty((len(chosen), len(self._weights.tokens)), np.float32)
        threads = min(self._threads, -(-len(chosen) // ROWS_PER_THREAD))
        if threads == 1:
            self._advance(chosen, tokens, logits)
        else:
            parts = np.array_split(np.arange(len(chosen)), threads)
            # rows do not share any memory that is written, and the loop holds no lock
            self._pool = self._pool or ThreadPoolExecutor(self._threads - 1)
            each = lambda part: self._advance(chosen[part], tokens[part], logits[part[0] : part[-1] + 1])
            others = [self._pool.submit(each, part) for part in parts[1:]]
            each(parts[0])
            for other in others:
                other.result()
        return logits

    def _advance(self, rows: np.ndarray, tokens: np.ndarray, logits: np.ndarray) -> None:
        count, size = tokens.shape[1], max(1, BLOCK // len(rows))
        for start in range(0, count, size):
            part = tokens[:, start : start + size]
            last = np.arange(1, len(rows) + 1) * part.shape[1] - 1 if start + size >= count else np.empty(0, np.int64)
            out = logits if len(last) else np.empty((0, logits.shape[1]), np.float32)
            at = self._places(rows, part)
            advance(self._weights, self._state, self._adapters, part.reshape(-1), at, last, out)
            self.positions[rows] += part.shape[1]

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget every token of all rows, or of some; the next one is a sequence's first."""
        chosen = slice(None) if rows is None else list(rows)
        self.positions[chosen], self.first[chosen] = 0, 0

    # ---- what is computed elsewhere

    def adapt(self, row: int, adapters: Adapters | None, document: int = 0) -> None:
        """From now on the row goes through these adapters of one document; None: through none."""
        factors, scale = ({}, 1.0) if adapters is None else (adapters.factors, adapters.scale)
        for site in ADAPTED:
            into, out = (getattr(self._adapters, f"{site}_{end}") for end in ("in", "out"))
            layers = [layer for name, layer in factors if name == site]
            if layers and not len(into):
                a, b = factors[site, layers[0]]
                count = 1 if site == "head" else self._layers
                into = np.zeros((count, self.batch, a.shape[2], a.shape[1]), np.float32)
                out = np.zeros((count, self.batch, b.shape[2], b.shape[1]), np.float32)
                self._adapters = self._adapters._replace(**{f"{site}_in": into, f"{site}_out": out})
            if len(out):
                out[:, row] = 0
            for layer in layers:
                a, b = (factor.detach()[document].float().cpu() for factor in factors[site, layer])
                into[layer, row] = a.mT.numpy()
                out[layer, row] = (scale * b.mT).numpy()

    def load(self, row: int, tokens: np.ndarray, position: int, past: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Set a row to stand at `position`, behind these last tokens (at least three, or all there are), with the keys and
        values (P, Hkv, d) of the P positions before it, by executed layer."""
        for layer, kept in past.items():
            count = kept[0].shape[0]
            places = np.arange(position - count, position)
            tile, within = places // TILE % self._state.keys.shape[3], places % TILE
            keys, values = (tensor.detach().float().cpu().numpy() for tensor in kept)
            cached = int(self._weights.cached[layer])
            self._state.keys[cached, row][:, tile, :, within] = keys
            self._state.values[cached, row][:, tile, within] = values.transpose(1, 0, 2)
        known = np.ascontiguousarray(tokens[-3:], np.int64)
        self._reach(position)
        self.positions[row] = position - len(known)
        if len(known):
            embed_only(self._weights, self._state, self._adapters, known, self._places(np.array([row]), known[None]))
        self.positions[row] = position

    # ---- how it works

    def _places(self, rows: np.ndarray, tokens: np.ndarray) -> Places:
        """Of the next tokens (R, n); where documents are kept apart, each attends to its own document alone."""
        positions = self.positions[rows][:, None] + np.arange(tokens.shape[1])
        first = np.repeat(self.first[rows][:, None], tokens.shape[1], 1)
        if self.settings.document_bos >= 0:
            begins = np.where(tokens == self.settings.document_bos, positions, 0)
            first = np.maximum.accumulate(np.maximum(begins, first), 1)
            self.first[rows] = first[:, -1]
        return Places(np.repeat(rows, tokens.shape[1]), positions.reshape(-1), first.reshape(-1))

    def _reach(self, positions: int) -> None:
        """Rotary tables for so many positions."""
        if positions > len(self._weights.cos):
            base, count = rotary_base(self.settings, self.length), 2 * positions
            cos, sin = rotary_table(count, self.settings.rotary_dims, base, device="cpu", dtype=torch.float32)
            self._weights = self._weights._replace(cos=cos.numpy(), sin=sin.numpy())

    def _no_adapters(self) -> LowRank:
        shapes = {"in": (0, 1, 1, self._rank), "out": (0, 1, self._rank, 1)}
        return LowRank(**{name: np.zeros(shapes[name.rpartition("_")[2]], np.float32) for name in LowRank._fields})
