"""The windows of a batch of documents, moved on chunk by chunk, that compute nothing twice which cannot have changed.

What enters the first adapted layer depends on tokens alone, so it is kept as long as the windows' start stands. From
there on the adapters learn: either the whole window is computed anew for every chunk, or its last tokens only, in which
case attention sees keys and values of the earlier ones as they were when last computed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluation.adaptation.pieces import Carried, Past, Pieces
from pgolf.evaluation.stream import Opened
from pgolf.model import Adapters


class Windows:
    """One row a document, all at the same chunk.

    floor    the first adapted layer
    context  longest window
    refresh  tokens before a chunk that are computed anew with it; negative: all
    """

    def __init__(self, network: Pieces, floor: int, context: int, refresh: int):
        self.network, self.floor, self.context, self.refresh = network, floor, context, refresh
        self.device = network.tok_emb.weight.device
        self._forget(())

    def open(self, opened: Sequence[Opened], starts: Sequence[int], stop: int) -> None:
        """Take in the spans that were opened of documents that begin at `starts`; `stop` is where the longest span ends,
        counted from there."""
        begin = opened[0].start - starts[0]
        if self.refresh < 0:
            origins = tuple(max(start, span.stop - self.context) for span, start in zip(opened, starts, strict=True))
            if origins != self.origins:
                self._forget(origins)
            self.fresh = 0
        else:
            if not self.origins:
                self._forget(tuple(starts))
            lowest = max(0, stop - self.context)
            self._drop(lowest)
            self.fresh = max(lowest, begin - self.refresh)
        self._take(opened)
        width = max(span.stop - span.start for span in opened)
        places = [
            np.minimum(np.arange(width) + span.start, span.stop - 1) - origin - self.fresh
            for span, origin in zip(opened, self.origins, strict=True)
        ]
        self.places = torch.from_numpy(np.stack(places)).to(self.device)

    def states(self, adapters: Adapters | None) -> Tensor:
        """What leaves the last layer at the open targets, (rows, longest span, D); rows with fewer repeat their last."""
        network, at = self.network, self.fresh - self.dropped
        layers = range(self.floor, len(network.blocks))
        carried, tokens = self.carried[:, at:], self.tokens[:, at:]
        before: Past = {layer: (k[:, :at], v[:, :at]) for layer, (k, v) in self.kept.items()}
        leaving, own = network.through(carried, tokens, layers, first=self.fresh, past=before, adapters=adapters)
        if self.refresh >= 0:
            self.kept = _joined(before, own)
        return leaving.x.gather(1, self.places[..., None].expand(-1, -1, leaving.x.shape[-1]))

    def keep(self, rows: int) -> None:
        """Go on with the first documents only."""
        self.origins = self.origins[:rows]
        self.carried, self.tokens = self.carried[:rows], self.tokens[:rows]
        self.below = {layer: (k[:rows], v[:rows]) for layer, (k, v) in self.below.items()}
        self.kept = {layer: (k[:rows], v[:rows]) for layer, (k, v) in self.kept.items()}

    # ---- how it works. Positions count from a row's origin; what is remembered covers [dropped, known).

    def _forget(self, origins: tuple[int, ...]) -> None:
        self.origins = origins
        self.known = self.dropped = 0
        self.carried: Carried | None = None
        self.tokens: Tensor | None = None
        self.below: Past = {}
        self.kept: Past = {}

    def _drop(self, lowest: int) -> None:
        """No window reaches back beyond `lowest` any more."""
        gone = min(lowest, self.known) - self.dropped
        if gone > 0:
            self.dropped += gone
            self.carried, self.tokens = self.carried[:, gone:], self.tokens[:, gone:]
            self.below = {layer: (k[:, gone:], v[:, gone:]) for layer, (k, v) in self.below.items()}
            self.kept = {layer: (k[:, gone:], v[:, gone:]) for layer, (k, v) in self.kept.items()}

    @torch.no_grad()
    def _take(self, opened: Sequence[Opened]) -> None:
        """Bring the new tokens up to the first adapted layer."""
        lead = min(2, self.known)
        rows = [span.inputs(origin + self.known - lead, span.stop) for span, origin in zip(opened, self.origins, strict=True)]
        padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        given = torch.from_numpy(padded).to(self.device)
        tokens = given[:, lead:]
        carried, own = self.network.through(
            self.network.enter(given, lead), tokens, range(self.floor), first=self.known, past=self.below
        )
        self.below = _joined(self.below, own)
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], 1)
        self.carried = carried if self.carried is None else self.carried.then(carried)
        self.known += tokens.shape[1]


def _joined(past: Past, own: Past) -> Past:
    return {
        layer: tuple(torch.cat([a, b], 1) for a, b in zip(past[layer], kv, strict=True)) if layer in past else kv
        for layer, kv in own.items()
    }
