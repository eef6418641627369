"""A network's weights in the decoder's layout, with the description of its layers as arrays."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgolf.model.blocks import AttentionBlock
from pgolf.model.decoder.step import times
from pgolf.model.mamba import Mamba2Block, Mamba2Mixer
from pgolf.model.network import Network
from pgolf.model.parts import BigramEmbedding, ValueEmbedding, rotary_tables


class Weights(NamedTuple):
    """Products as (slots, in, out); a part that is switched off has no rows, or the value that makes it vanish. L counts
    executed layers, N blocks, A those with attention, M those with a mixer, and n and m the slots of either's banks. A mixer
    has H heads of width I / H, a state of S, and a convolution over K tokens."""

    tokens: np.ndarray  # (V, D)
    pairs: np.ndarray  # (buckets, D), projected and scaled
    smear: np.ndarray  # (D,)
    smear_gate: np.ndarray  # (n,), of the raw embedding's first channels
    smear_lambda: float
    smear_bos: int
    # the executed layers, as `layers.Layer` describes them
    block: np.ndarray  # (L,)
    physical: np.ndarray  # (L,)
    slot: np.ndarray  # (L,)
    place: np.ndarray  # (L,), its block's number among those of its kind
    cached: np.ndarray  # (L,), its number among the executed layers of its kind
    mamba: np.ndarray  # (L,)
    scale: np.ndarray  # (L,)
    lanes: np.ndarray  # (L,)
    xsa: np.ndarray  # (L,)
    skip: np.ndarray  # (L,), -1 for none
    source: np.ndarray  # (L,)
    pushes: np.ndarray  # (L,)
    extra_scale: np.ndarray  # (L,), of the value embedding, 0 where the layer takes none
    # blocks
    mix: np.ndarray  # (N, 2, D)
    hyper: np.ndarray  # (N,), the share of the stream that entered the previous layer
    leave: np.ndarray  # (N or 0, D), the dynamic token gate
    leave_bias: np.ndarray  # (N or 0,)
    skips: np.ndarray  # (skips, D)
    skip_gates: np.ndarray  # (skips, D), the stream's share against the skip's; 0 rows where skips are added
    keeps: np.ndarray  # (layers or 0, 2), each lane's own factor
    adds: np.ndarray  # (layers or 0, 2, 2), what attention and MLP write into each lane
    # attention and MLP
    extra: np.ndarray  # (V, Dkv), the value embedding, projected and scaled
    cos: np.ndarray  # (length, r / 2)
    sin: np.ndarray
    qkv: np.ndarray  # (n, D, D + 2 Dkv)
    o: np.ndarray  # (n, D, D)
    up: np.ndarray  # (n, D, hidden)
    down: np.ndarray  # (n, hidden, D)
    slope: np.float32
    attn_scale: np.ndarray  # (A, D)
    mlp_scale: np.ndarray  # (A, D)
    q_gain: np.ndarray  # (A, heads)
    gate: np.ndarray  # (A or 0, D, heads); one of some channels alone has zeros for the others
    gate_bias: np.ndarray  # (A or 0, heads)
    share: np.ndarray  # (A, 2), of the first layer's values and of the layer's own
    # mixers
    mixer_in: np.ndarray  # (m, D, 2 I + 2 H S): value, gate, B and C
    mixer_out: np.ndarray  # (m, I, D)
    mixer_scale: np.ndarray  # (M, D)
    taps: np.ndarray  # (M, K, I), the convolution, the token's own last
    taps_bias: np.ndarray  # (M, I)
    dt: np.ndarray  # (M, H): dt itself, or where it depends on the token, what is added to the product below
    dt_proj: np.ndarray  # (M or 0, D, H)
    decay: np.ndarray  # (M, H): the decay itself, or where dt depends on the token, A
    straight: np.ndarray  # (M, H), the share of the value that goes past the state
    # output
    head: np.ndarray  # (D, V)
    softcap: float


@torch.no_grad()
def weights_of(model: Network, length: int) -> Weights:
    """Copies: what trains the network further does not reach them. Rotary tables are those of `length` tokens."""
    return Weights(
        **_embeddings(model), **_layers(model), **_residual(model), **_attention(model), **_mixers(model),
        cos=_array(_rotary(model, length)[0]),
        sin=_array(_rotary(model, length)[1]),
        head=_array(model.output_matrix().mT),
        softcap=model.settings.softcap,
    )  # fmt: skip


def _array(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().to("cpu", torch.float32).numpy(), order="C")


def _each(owners: Iterable, part: Callable, shape: tuple[int, ...], absent: float | None = None) -> np.ndarray:
    """One row an owner; one without the part gets `absent`, and where that is None there are no rows at all."""
    parts = [part(owner) for owner in owners]
    if absent is None and (not parts or parts[0] is None):
        return np.empty((0, *shape), np.float32)
    return np.stack([np.full(shape, absent, np.float32) if row is None else _array(row).reshape(shape) for row in parts])


def _or_none(tensor: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    """No rows where the network lacks the part."""
    return np.empty((0, *shape), np.float32) if tensor is None else _array(tensor)


def _embeddings(model: Network) -> dict:
    settings = model.settings
    dim, values = settings.dim, settings.kv_heads * settings.head_dim

    def projected(owner: BigramEmbedding | ValueEmbedding | None, width: int) -> np.ndarray:
        """The rows of an embedding behind its projection and scale."""
        if owner is None:
            return np.empty((0, width), np.float32)
        rows = np.empty((owner.embed.num_embeddings, width), np.float32)
        times(_array(owner.embed.weight), _array(owner.proj.weight.mT), rows)
        return rows * _array(owner.scale)

    return {
        "tokens": _array(model.tok_emb.weight),
        "pairs": projected(model.bigram, dim),
        "smear": _array(torch.zeros(dim) if model.smear is None else torch.sigmoid(model.smear.gate.double())),
        "smear_gate": np.empty(0, np.float32) if model.smear_gate is None else _array(model.smear_gate.weight[0]),
        "smear_lambda": 0.0 if model.smear_lambda is None else model.smear_lambda.item(),
        "smear_bos": settings.smear_bos,
        "extra": projected(model.ve_shared if settings.value_embedding_layers else None, values),
    }


def _layers(model: Network) -> dict:
    layers, kinds = model.layers, [type(block) for block in model.blocks]

    def of(fact: Callable) -> np.ndarray:
        return np.array([fact(layer) for layer in layers])

    def extra_scale(layer) -> float:
        return 0.0 if layer.value_embedding is None else model.ve_layer_scales[layer.value_embedding].item()

    return {
        "block": of(lambda layer: layer.block),
        "slot": of(lambda layer: layer.slot),
        "place": of(lambda layer: kinds[: layer.block].count(kinds[layer.block])),
        "cached": of(lambda layer: sum(other.mamba == layer.mamba for other in layers[: layer.index])),
        "mamba": of(lambda layer: layer.mamba),
        "physical": of(lambda layer: layer.physical),
        "scale": of(lambda layer: layer.scale),
        "lanes": of(lambda layer: layer.lanes),
        "xsa": of(lambda layer: layer.xsa),
        "skip": of(lambda layer: -1 if layer.skip is None else layer.skip),
        "source": of(lambda layer: -1 if layer.source is None else layer.source),
        "pushes": of(lambda layer: layer.pushes),
        "extra_scale": of(extra_scale).astype(np.float32),
    }


def _residual(model: Network) -> dict:
    settings, blocks, dim = model.settings, model.blocks, model.settings.dim
    mix = _each(blocks, lambda block: block.resid_mix, (2, dim), 0.0)
    if not settings.resid_mix:
        mix[:, 0] = 1
    mix *= _each(blocks, lambda block: None if block.hyper is None else block.hyper[0], (1, 1), 1.0)
    return {
        "mix": mix,
        "hyper": _each(blocks, lambda block: None if block.hyper is None else block.hyper[2], (), 0.0),
        "leave": _each(blocks, lambda block: block.dtg_gate and block.dtg_gate.weight, (dim,)),
        "leave_bias": _each(blocks, lambda block: block.dtg_gate and block.dtg_gate.bias, ()),
        "skips": _or_none(model.skip_weights, (dim,)),
        "skip_gates": _or_none(None if model.skip_gates is None else torch.sigmoid(model.skip_gates.double()), (dim,)),
        "keeps": _or_none(model.parallel_resid_lambdas, (2,)),
        "adds": _or_none(model.parallel_post_lambdas, (2, 2)),
    }


def _rotary(model: Network, length: int) -> tuple[Tensor, Tensor]:
    return rotary_tables(model.settings, length, "cpu", torch.float32)


def _parts(bank: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
    """A bank's parts as (slots, in, out)."""
    return bank.mT.unflatten(0, (parts, -1)).unbind()


def _attention(model: Network) -> dict:
    settings, dim, heads = model.settings, model.settings.dim, model.settings.heads
    blocks = [block for block in model.blocks if isinstance(block, AttentionBlock)]
    (q, o), (k, v) = _parts(model.qo_bank, 2), _parts(model.kv_bank, 2)
    gates = [block.attn.gate_matrix() for block in blocks]
    share = _each(blocks, lambda block: block.attn.vr_lambda, (2,), 1.0)
    share[: 1 if settings.value_residual else len(blocks), 0] = 0
    share[0, 1] = 1
    return {
        "qkv": _array(torch.cat([q, k, v], 2)),
        "o": _array(o),
        "up": _array(model.mlp_up_bank.mT),
        "down": _array(model.mlp_down_bank.mT),
        "slope": np.float32(settings.mlp_slope),
        "attn_scale": _each(blocks, lambda block: block.attn_scale, (dim,)),
        "mlp_scale": _each(blocks, lambda block: block.mlp_scale, (dim,)),
        "q_gain": _each(blocks, lambda block: block.attn.q_gain, (heads,)),
        "gate": _each(gates, lambda gate: None if gate[0] is None else gate[0].mT, (dim, heads)),
        "gate_bias": _each(gates, lambda gate: gate[1], (heads,)),
        "share": share,
    }


def _mixers(model: Network) -> dict:
    settings, dim = model.settings, model.settings.dim
    blocks = [block for block in model.blocks if isinstance(block, Mamba2Block)]
    mixers = [block.mixer for block in blocks]
    heads, inner, taps = (settings.scan_heads, settings.scan_width, settings.scan_conv) if mixers else (1, 1, 1)
    mixer_in, mixer_out = torch.empty(0, dim, 1), torch.empty(0, 1, dim)
    if model.scan_in_bank is not None and model.scan_state_bank is not None and model.scan_out_bank is not None:
        mixer_in = torch.cat([*_parts(model.scan_in_bank), *_parts(model.scan_state_bank, 2)], 2)
        (mixer_out,) = _parts(model.scan_out_bank)

    def rates(mixer: Mamba2Mixer) -> tuple[Tensor, Tensor]:
        bias, rate = mixer.dt_bias.double(), -mixer.A_log.double().exp()
        if mixer.dt_proj is not None:
            return bias, rate
        dt = torch.nn.functional.softplus(bias)
        return dt, (rate * dt).exp()

    return {
        "mixer_in": _array(mixer_in),
        "mixer_out": _array(mixer_out),
        "mixer_scale": _each(blocks, lambda block: block.mixer_scale, (dim,)),
        "taps": _each(mixers, lambda mixer: mixer.conv1d.weight[:, 0].mT, (taps, inner)),
        "taps_bias": _each(mixers, lambda mixer: mixer.conv1d.bias, (inner,)),
        "dt": _each(mixers, lambda mixer: rates(mixer)[0], (heads,)),
        "dt_proj": _each(mixers, lambda mixer: mixer.dt_proj and mixer.dt_proj.weight.mT, (dim, heads)),
        "decay": _each(mixers, lambda mixer: rates(mixer)[1], (heads,)),
        "straight": _each(mixers, lambda mixer: mixer.D_param, (heads,)),
    }
