"""What goes from layer to layer, and what a layer is called with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.model.adapters import Projector
from pgolf.model.layers import Layer


class Stream(NamedTuple):
    """What positions (B, T) carry from one layer into the next."""

    x: Tensor
    """The residual stream, (B, T, D); of two lanes that which attention reads."""
    x0: Tensor
    """The embedding that it began as."""
    prev_stream: Tensor
    """The stream that entered the previous layer, for hyper-connections; at first the embedding."""
    first_values: Tensor | None = None
    """The first layer's values, (B, T, Hkv, d), in networks with value residuals."""
    lane: Tensor | None = None
    """The lane that the MLP reads, where there are two."""
    skips: tuple[Tensor, ...] = ()
    """Outputs that wait for a later layer's skip, the next one last."""

    @classmethod
    def of(cls, x: Tensor) -> "Stream":
        return cls(x, x, x)

    def leaving(self) -> Tensor:
        """What the final norm takes, (B, T, D), of what left the last layer."""
        return self.x if self.lane is None else (self.x + self.lane) / 2

    def part(self, rows: slice, positions: slice) -> "Stream":
        return self._each(lambda tensor: tensor[rows, positions])

    def padded(self, rows: int, positions: int) -> "Stream":
        """With so many rows and positions of zeros behind these."""
        return self._each(lambda tensor: F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, positions, 0, rows)))

    def then(self, later: "Stream") -> "Stream":
        """These positions and the ones after them."""
        return self._each(lambda tensor, after: torch.cat([tensor, after], 1), later)

    def _each(self, do: Callable[..., Tensor], *others: "Stream") -> "Stream":
        streams = (self, *others)

        def each(name: str):
            return None if getattr(self, name) is None else do(*(getattr(stream, name) for stream in streams))

        fields = {name: each(name) for name in self._fields if name != "skips"}
        skips = tuple(do(*tensors) for tensors in zip(*(stream.skips for stream in streams), strict=True))
        return self._replace(**fields, skips=skips)


class LayerContext(NamedTuple):
    """What a block is called with beside the stream and its matrices."""

    layer: Layer
    project: Projector
    """Its products, with adapters where there are some."""
    rotary: tuple[Tensor, Tensor]
    """Cosines and sines of the positions, each (T, r / 2)."""
    value_embedding: Tensor | None
    """What it adds to its values, (B, T, Dkv)."""
    attention: Callable[..., Tensor]
    """The operator, or a form of it that sees cached keys and values too."""
    lanes: tuple[Tensor, Tensor] | None = None
    """Of a layer with two lanes: each lane's own factor, (2,), and what each sublayer writes into each lane, (2, 2)."""
