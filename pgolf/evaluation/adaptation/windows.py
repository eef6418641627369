"""The windows of a batch of documents, moved on chunk by chunk, that compute nothing twice which cannot have changed.

What enters the first adapted layer depends on tokens alone, so it is kept as long as the windows' start stands. From
there on the adapters learn: either the whole window is computed anew for every chunk, or its last tokens only, in which
case attention sees keys and values of the earlier ones as they were when last computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.kernels.launch import next_power
from pgolf.model import Adapters, KVCachedNetwork
from pgolf.model.cache import Past
from pgolf.model.stream import Stream


class Span(Protocol):
    """Targets start..stop-1 of a stream whose tokens up to there can be read: an `OpenSpan`, or what a decoder has decoded."""

    start: int
    stop: int

    def inputs(self, start: int, stop: int) -> np.ndarray:
        """The tokens that stand before targets start..stop-1."""


@dataclass
class Memory:
    """What is kept of all rows' positions from `dropped` to `known`, counted from where each row's window begins."""

    tokens: Tensor
    stream: Stream
    """What enters the first adapted layer."""
    below: Past
    """Keys and values of the layers below it."""
    kept: Past
    """Those of the layers from there on, where they are not computed anew."""
    dropped: int = 0

    @property
    def known(self) -> int:
        return self.dropped + self.tokens.shape[1]

    def part(self, rows: slice, positions: slice) -> "Memory":
        below, kept = (_part(past, rows, positions) for past in (self.below, self.kept))
        dropped = self.dropped + (positions.start or 0)
        return Memory(self.tokens[rows, positions], self.stream.part(rows, positions), below, kept, dropped)


class Given(NamedTuple):
    """What is computed anew for a chunk, as tensors alone: T positions behind P that are kept."""

    stream: Stream
    """What enters the first adapted layer, (B, T, D)."""
    tokens: Tensor
    """(B, T)"""
    rotary: tuple[Tensor, Tensor]
    past: Past
    """(B, P, Hkv, d)"""
    hidden: Tensor | None
    """How many of those P are padding; None for none."""
    places: Tensor
    """(B, n): where among the T each open target is predicted; rows with fewer repeat their last."""


def compute(network: KVCachedNetwork, floor: int, given: Given, adapters: Adapters | None) -> tuple[Tensor, Past]:
    """Raw logits of the open targets, (B, n, V), and the adapted layers' keys and values (B, P + T, Hkv, d)."""
    stream, seen = network.run_layers(
        given.stream, given.tokens, network.layers[floor:], rotary=given.rotary, past=given.past, hidden=given.hidden,
        adapters=adapters,
    )  # fmt: skip
    leaving = stream.leaving()
    opened = leaving.gather(1, given.places[..., None].expand(-1, -1, leaving.shape[-1]))
    return network.logits(opened, adapters), seen


class Windows:
    """One row a document, all at the same chunk.

    floor    the first adapted layer
    context  longest window
    refresh  tokens before a chunk that are computed anew with it; negative: all
    """

    def __init__(self, network: KVCachedNetwork, floor: int, context: int, refresh: int):
        self.network, self.floor, self.context, self.refresh = network, floor, context, refresh
        self.device = network.device
        self.origins: tuple[int, ...] = ()
        self.lowest = 0
        """The first position of a window, where keys are kept."""
        self.memory: Memory | None = None

    def open(self, opened: Sequence[Span], starts: Sequence[int], stop: int) -> None:
        """Take in spans of documents that begin at `starts`; `stop` is where the chunk ends, counted from there. Where windows
        are computed anew they end with the document, as the submissions' do; where keys are kept, windows are those of the
        chunk, wherever in it a document ends."""
        before = self.memory
        if self.refresh < 0:
            origins = tuple(max(start, span.stop - self.context) for span, start in zip(opened, starts, strict=True))
            if origins != self.origins:
                before = None
            self.origins, self.fresh = origins, 0
        else:
            self.lowest = max(0, stop - self.context)
            if before and self.lowest > before.dropped:
                before = before.part(slice(None), slice(self.lowest - before.dropped, None))
            self.origins, self.fresh = tuple(starts), max(self.lowest, opened[0].start - starts[0] - self.refresh)
        self.memory = self._extended(before, opened)
        width = max(span.stop - span.start for span in opened)
        places = [
            np.minimum(np.arange(width) + span.start, span.stop - 1) - origin - self.fresh
            for span, origin in zip(opened, self.origins, strict=True)
        ]
        self.places = torch.from_numpy(np.stack(places)).to(self.device)

    def given(self, rows: int = 0) -> Given:
        """For `compute`. With `rows` in one of a few shapes that a compiler can count on: so many rows, and powers of two
        of positions. What is filled in stands where no target sees it."""
        network, memory = self.network, self._open_memory()
        at = self.fresh - memory.dropped
        stream, tokens = memory.stream.part(slice(None), slice(at, None)), memory.tokens[:, at:]
        past, places, hidden = _part(memory.kept, slice(None), slice(at)), self.places, None
        self.network.token_layers += (
            tokens.numel() * (len(network.layers) - self.floor) * (3 if torch.is_grad_enabled() else 1)
        )
        if rows:
            more, after = rows - len(tokens), next_power(tokens.shape[1]) - tokens.shape[1]
            before = next_power(at) - at if past else 0
            hidden = torch.full((), before, device=tokens.device) if past else None
            stream = stream.padded(more, after)
            tokens, places = F.pad(tokens, (0, after, 0, more)), F.pad(places, (0, 0, 0, more))
            past = {
                layer: (_behind(keys, before, more), _behind(values, before, more)) for layer, (keys, values) in past.items()
            }
        return Given(stream, tokens, network.rotary(self.fresh, self.fresh + tokens.shape[1]), past, hidden, places)

    def keep_keys(self, given: Given, seen: Past) -> None:
        """What `compute` gave, for the next chunk."""
        memory = self._open_memory()
        if self.refresh >= 0 and seen:
            rows, count = memory.tokens.shape
            filled = next(iter(seen.values()))[0].shape[1] - given.tokens.shape[1] - (self.fresh - memory.dropped)
            memory.kept = _part(seen, slice(rows), slice(filled, filled + count))

    def logits(self, adapters: Adapters | None) -> Tensor:
        """Raw logits of the open targets, (rows, longest span, V); rows with fewer repeat their last."""
        given = self.given()
        logits, seen = compute(self.network, self.floor, given, adapters)
        self.keep_keys(given, seen)
        return logits

    @torch.no_grad()
    def past(self, opened: Sequence[Span], starts: Sequence[int], stop: int, adapters: Adapters | None) -> Past:
        """Keys and values of every layer at the positions from `lowest` on, before any target of a chunk is known: `opened`
        are spans without targets that stand where it begins. What is computed anew with the chunk has these adapters. Where
        keys are kept."""
        self.open(opened, starts, stop)
        memory = self._open_memory()
        begin = self.fresh - memory.dropped
        seen = _part(memory.kept, slice(None), slice(begin))
        if memory.tokens.shape[1] > begin:
            _, seen = self.network.run_layers(
                memory.stream.part(slice(None), slice(begin, None)), memory.tokens[:, begin:],
                self.network.layers[self.floor :], rotary=self.network.rotary(self.fresh, memory.known), past=seen,
                adapters=adapters,
            )  # fmt: skip
        return memory.below | seen

    def keep(self, rows: int) -> None:
        """Go on with the first documents only."""
        self.origins = self.origins[:rows]
        self.memory = self._open_memory().part(slice(rows), slice(None))

    # ---- how it works

    def _open_memory(self) -> Memory:
        if self.memory is None:
            raise ValueError("the windows were not opened yet")
        return self.memory

    @torch.no_grad()
    def _extended(self, before: Memory | None, opened: Sequence[Span]) -> Memory:
        """What was remembered, and the new tokens brought up to the first adapted layer."""
        known = before.known if before else 0
        lead = min(2, known)
        if before and all(span.stop == origin + known for span, origin in zip(opened, self.origins, strict=True)):
            return before
        rows = [span.inputs(origin + known - lead, span.stop) for span, origin in zip(opened, self.origins, strict=True)]
        padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        given = torch.from_numpy(padded).to(self.device)
        tokens, below = given[:, lead:], before.below if before else {}
        stream, below = self.network.run_layers(
            self.network.embed(given, lead), tokens, self.network.layers[: self.floor],
            rotary=self.network.rotary(known, known + tokens.shape[1]), past=below,
        )  # fmt: skip
        self.network.token_layers += tokens.numel() * self.floor
        if before is None:
            return Memory(tokens, stream, below, {})
        tokens = torch.cat([before.tokens, tokens], 1)
        return Memory(tokens, before.stream.then(stream), below, before.kept, before.dropped)


def _behind(kept: Tensor, positions: int, rows: int) -> Tensor:
    """Keys or values (B, P, Hkv, d) behind so many positions of padding, and as many more rows."""
    return F.pad(kept, (0, 0, 0, 0, positions, 0, 0, rows))


def _part(past: Past, rows: slice, positions: slice) -> Past:
    return {layer: (keys[rows, positions], values[rows, positions]) for layer, (keys, values) in past.items()}
