"""What each executed layer is and reads: one description for the network, its cached form, adapters and the decoder."""

from dataclasses import dataclass

from pgolf.config import ModelSettings


@dataclass(frozen=True)
class Layer:
    index: int
    """Its place among the executed layers, which its adapters and its cached keys and values go by."""
    block: int
    """Its small parameters are those of `Network.blocks[block]`."""
    physical: int
    """The layer whose matrices it multiplies with."""
    slot: int
    """The slice of each part of its kind's banks that holds them."""
    mamba: bool
    """A Mamba-2 block instead of attention and MLP."""
    scale: float
    """Of the sublayers' normed inputs: 1 / sqrt(block + 1) or 1."""
    lanes: bool
    """Attention and MLP read and write two residual lanes."""
    xsa: bool
    """Exclusive self-attention, arXiv:2603.09078."""
    hyper: bool
    """Starts from a share of the stream that entered the previous layer too."""
    value_embedding: int | None
    """The row of `ve_layer_scales` for the value embedding that its values get."""
    skip: int | None
    """The row of `skip_weights` by which the output of layer `source` joins before it."""
    source: int | None
    pushes: bool
    """Its output waits for a later layer's skip."""


def executed_layers(settings: ModelSettings, *, looped: bool = True) -> tuple[Layer, ...]:
    """The layers in the order they are executed. The first half feeds the second, last to first, as in a U-Net.

    looped  whether layers that are looped run all their passes, or one
    """
    order = settings.virtual_layers if looped or not settings.loop_layers else tuple(range(settings.layers))
    # a second pass of a recurrence has small parameters of its own, one of a loop has not
    blocks = settings.layers if settings.loop_layers else len(order)
    encoders = len(order) // 2 if settings.unet_skips else 0
    kinds = (settings.attention_layers, sorted(settings.scan_layers))
    layers = []
    for index, physical in enumerate(order):
        block = physical if settings.loop_layers else index
        mamba = physical in settings.scan_layers
        joins = encoders <= index < 2 * encoders
        values = settings.value_embedding_layers
        layers.append(
            Layer(
                index=index,
                block=block,
                physical=physical,
                slot=kinds[mamba].index(physical),
                mamba=mamba,
                scale=(block + 1) ** -0.5 if settings.layer_scale else 1.0,
                lanes=0 < settings.lanes_from <= physical,
                xsa=block >= blocks - settings.xsa_last,
                hyper=block >= blocks - settings.hyper_layers,
                value_embedding=values.index(block) if block in values else None,
                skip=index - encoders if joins else None,
                source=2 * encoders - 1 - index if joins else None,
                pushes=index < encoders,
            )
        )
    return tuple(layers)
