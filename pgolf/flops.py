"""The arithmetic of a network, from its settings alone: matrix products, two FLOPs a multiplication and addition."""

from pgolf.config import ModelSettings, Settings

NOMINAL_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "4090": 165e12}
"""Dense bfloat16 FLOPs a second by the vendor's data sheet, by a part of the device's name: what MFU is a share of."""


def matrix_weights(model: ModelSettings) -> int:
    """Weights that every token is multiplied with, layer by executed layer, head and projections included."""
    values = model.kv_heads * model.head_dim
    layer = 2 * model.dim * model.dim + 2 * model.dim * values + 2 * model.dim * model.mlp_hidden
    projections = model.bigram_dim * model.dim if model.bigram_buckets else 0
    projections += model.value_embedding_dim * values if model.value_embedding_layers else 0
    gates = model.dim * model.heads if model.gated_attention else 0
    return len(model.virtual_layers) * (layer + gates) + model.dim * model.vocab_size + projections


def forward_flops(model: ModelSettings, length: int, pairs: int | None = None) -> int:
    """Of one sequence; `pairs` of query and key that are multiplied, those that a causal mask leaves if not given. A backward
    pass costs twice as much."""
    pairs = length * (length + 1) // 2 if pairs is None else pairs
    return 2 * matrix_weights(model) * length + 4 * pairs * model.dim * len(model.virtual_layers)


def training_flops(settings: Settings, tokens: int) -> int:
    """Forward and backward. Not for networks with state-space layers, whose products are others."""
    length = settings.training.sequence_length
    return 3 * forward_flops(settings.model, length) * tokens // length


def utilisation(rate: float, device: str) -> float | None:
    """MFU of so many FLOPs a second, on a device whose data sheet is known."""
    nominal = next((flops for name, flops in NOMINAL_FLOPS.items() if name in device), None)
    return rate / nominal if nominal else None
