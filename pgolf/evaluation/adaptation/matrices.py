"""Which weights learn when a network is trained on scored chunks, and at which rate."""

from collections.abc import Sequence

from pgolf.config import AdaptationSettings
from pgolf.model.layers import Layer
from pgolf.model.parameters import parameter


def learns(name: str, settings: AdaptationSettings, layers: Sequence[Layer]) -> bool:
    """Whether a weight, by its per-layer name, is trained. `layers` are the executed ones.

    freeze_first  nothing of the first n layers moves
    train_last    of the rest of the network only scales (and an untied head) move with the last n layers

    What several layers share belongs to all of them: it is fixed if one of them is.
    """
    row = parameter(name)
    everywhere = not settings.train_last or row.scale or row.name == "lm_head.weight"
    if not name.startswith("blocks."):
        return everywhere
    number = int(name.split(".")[1])
    first = min(layer.index for layer in layers if number == (layer.physical if row.bank else layer.block))
    if first < settings.freeze_first:
        return False
    return everywhere or first >= len(layers) - settings.train_last


def rate_factor(name: str, settings: AdaptationSettings) -> float:
    """The share of the learning rate: output_lr for what writes into the residual stream, input_lr for what feeds the
    MLP, table_lr for the tables beside the token embedding, and 1."""
    row = parameter(name)
    return getattr(settings, row.rate) if row.rate else 1.0
