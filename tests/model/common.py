"""A small network with every shape odd, and random weights in which no part is neutral."""

import dataclasses

import torch

from pgolf.config import ModelSettings
from pgolf.model import build_model

SMALL = ModelSettings(
    vocab_size=61,
    layers=5,
    dim=48,
    heads=4,
    kv_heads=2,
    mlp_hidden=80,
    rotary_dims=6,
    rope_reference_length=32,
    bigram_buckets=37,
    bigram_dim=10,
    value_embedding_layers=(3, 4),
    value_embedding_dim=14,
    xsa_last=2,
)
EVERYTHING = dataclasses.replace(
    SMALL, value_residual=True, gated_attention=True, recurrence=(2, 3), hyper_layers=2, dtg=True, tied=False, xsa_last=4
)
# what pr1855 adds, with everything it can be combined with
LANES = dataclasses.replace(
    SMALL,
    layers=6,
    value_embedding_layers=(),
    bigram_buckets=0,
    smear=False,
    xsa_last=6,
    loop_layers=(2, 3),
    loop_passes=3,
    skip_gates=True,
    lanes_from=4,
    gate_inputs=5,
    gate_scale=0.5,
    smear_inputs=7,
    document_bos=1,
)
SHALLOW = dataclasses.replace(EVERYTHING, layers=2, recurrence=(0,), value_embedding_layers=(1, 2), xsa_last=2, hyper_layers=1)


@torch.no_grad()
def randomise(named, seed=0):
    """Matrices keep the size of what they multiply; everything else is around 0.7, some of it negative; nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in named:
        drawn = torch.randn(tensor.shape, generator=generator)
        matrix = name.endswith((".weight", "_bank", "attn_gate_w"))
        tensor.copy_(drawn / tensor.shape[-1] ** 0.5 if matrix else 0.7 + 0.4 * drawn)


def random_model(settings, seed=0, **how):
    model = build_model(settings, seed=0, **how)
    randomise(model.named_parameters(), seed)
    return model


def facts(settings):
    """What the transcription cannot read off the names."""
    order = list(settings.virtual_layers)
    blocks = settings.layers if settings.loop_layers else len(order)
    return {
        "loops": bool(settings.loop_layers),
        "lanes_from": settings.lanes_from,
        "gate_scale": settings.gate_scale,
        "bos": settings.smear_bos,
        "document_bos": settings.document_bos,
        "heads": settings.heads,
        "kv_heads": settings.kv_heads,
        "order": order,
        "xsa_from": blocks - settings.xsa_last,
        "value_layers": settings.value_embedding_layers,
        "rotary_dims": settings.rotary_dims,
        "base": settings.rope_base,
        "reference_length": settings.rope_reference_length,
        "slope": settings.mlp_slope,
        "softcap": settings.softcap,
        "layer_scale": settings.layer_scale,
        "unet": settings.unet_skips,
        "hyper_from": blocks - settings.hyper_layers,
    }


def error(found, wanted):
    """Largest deviation, relative to the largest value."""
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


def tokens(batch, length, vocabulary=SMALL.vocab_size, seed=1):
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
