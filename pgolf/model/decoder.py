"""The network token by token, with a cache of keys and values, compiled by numba for one CPU core.

Encoder and decoder of a compressed file must find the same bits, perhaps on different machines. So nothing here depends
on the width of a machine's vectors or on its mathematical library: products run over the inputs in the outer loop and
over the outputs in the inner one, which vectorises without reordering any sum, and exponentials are made of additions
and multiplications.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from pgolf.model.parts import Block, turns

if TYPE_CHECKING:
    from pgolf.model.network import Network

TILE = 64
EPS = float(np.finfo(np.float32).eps)


class Plan(NamedTuple):
    """The weights as the loop wants them: products as (layers, in, out); a part that is switched off has no rows, or the
    value that makes it vanish. L counts executed layers, n physical ones."""

    tokens: np.ndarray  # (V, D)
    pairs: np.ndarray  # (buckets, D), projected and scaled
    smear: np.ndarray  # (D,)
    extra: np.ndarray  # (V, Dkv), the value embedding, projected and scaled
    extra_scale: np.ndarray  # (L,), 0 where the layer takes none
    cos: np.ndarray  # (length, r / 2)
    sin: np.ndarray
    physical: np.ndarray  # (L,)
    qkv: np.ndarray  # (n, D, D + 2 Dkv)
    o: np.ndarray  # (n, D, D)
    up: np.ndarray  # (n, D, hidden)
    down: np.ndarray  # (n, hidden, D)
    slope: float
    scale: np.ndarray  # (L,), of the sublayers' inputs
    mix: np.ndarray  # (L, 2, D)
    hyper: np.ndarray  # (L,), the share of the stream that entered the previous block
    attn_scale: np.ndarray  # (L, D)
    mlp_scale: np.ndarray  # (L, D)
    q_gain: np.ndarray  # (L, H)
    gate: np.ndarray  # (L or 0, D, H)
    gate_bias: np.ndarray  # (L or 0, H)
    share: np.ndarray  # (L, 2), of the first layer's values and of the layer's own
    exclusive: np.ndarray  # (L,)
    leave: np.ndarray  # (L or 0, D), the dynamic token gate
    leave_bias: np.ndarray  # (L or 0,)
    skips: np.ndarray  # (encoders, D)
    head: np.ndarray  # (D, V)
    softcap: float


class State(NamedTuple):
    """What a row remembers. Keys and values come in tiles of positions; within one, keys have positions last, so that
    scores are a product like every other."""

    keys: np.ndarray  # (L, B, Hkv, tiles, d, TILE)
    values: np.ndarray  # (L, B, Hkv, tiles, TILE, d)
    embedding: np.ndarray  # (B, D), of the last token, before smearing
    token: np.ndarray  # (B,), the last one


class Decoder:
    """`step` takes the next token of every row and gives the logits of the one after it.

    The arithmetic is float32, on a CPU, wherever the network lives; a row's result does not depend on what else is in the
    batch. The rotary base is that of a window of `length` tokens, which is also the most the decoder takes.
    """

    def __init__(self, model: "Network", batch: int, length: int):
        if batch < 1 or length < 1:
            raise ValueError(f"decoder: batch {batch} and length {length} must be at least 1")
        self.batch, self.length, self.position = batch, length, 0
        self._plan = _plan(model, length)
        settings, tiles = model.settings, -(-length // TILE)
        cache = (len(model.virtual_layers), batch, settings.kv_heads, tiles)
        self._state = State(
            np.zeros((*cache, settings.head_dim, TILE), np.float32),
            np.zeros((*cache, TILE, settings.head_dim), np.float32),
            np.zeros((batch, settings.dim), np.float32),
            np.zeros(batch, np.int64),
        )

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
        logits = np.empty((self.batch, len(self._plan.tokens)), np.float32)
        _advance(self._plan, self._state, given, self.position, logits)
        self.position += given.shape[1]
        return torch.from_numpy(logits).to(tokens.device)

    def reset(self) -> None:
        """Forget every token; the next one is a sequence's first."""
        self.position = 0
        self._state.embedding.fill(0)


@torch.no_grad()
def _plan(model: "Network", length: int) -> Plan:
    settings, blocks, shared = model.settings, model.blocks, model.ve_shared if model.value_layers else None
    executed, dim, values = len(blocks), settings.dim, settings.kv_heads * settings.head_dim

    def array(tensor: Tensor) -> np.ndarray:
        """A copy: what trains the network further does not reach it."""
        return np.array(tensor.detach().to("cpu", torch.float32).numpy(), order="C")

    def each(part: Callable[[Block], Tensor | None], shape: tuple[int, ...], absent: float | None = None) -> np.ndarray:
        """One row a block; a block without the part gets `absent`, and where that is None there are no rows at all."""
        found = [part(block) for block in blocks]
        if absent is None and found[0] is None:
            return np.empty((0, *shape), np.float32)
        return np.stack([np.full(shape, absent, np.float32) if row is None else array(row).reshape(shape) for row in found])

    def projected(owner, width: int) -> np.ndarray:
        """The rows of an embedding behind its projection and scale."""
        if owner is None:
            return np.empty((0, width), np.float32)
        rows = np.empty((owner.embed.num_embeddings, width), np.float32)
        _times(array(owner.embed.weight), array(owner.proj.weight.mT), rows)
        return rows * array(owner.scale)

    (q, o), (k, v) = (bank.mT.unflatten(0, (2, -1)) for bank in (model.qo_bank, model.kv_bank))
    mix = each(lambda block: block.resid_mix, (2, dim), 0.0)
    if not settings.resid_mix:
        mix[:, 0] = 1
    mix *= each(lambda block: None if block.hyper is None else block.hyper[0], (1, 1), 1.0)
    share = each(lambda block: block.attn.vr_lambda, (2,), 1.0)
    share[: 1 if settings.value_residual else executed, 0] = 0
    share[0, 1] = 1
    extra_scale = np.zeros(executed, np.float32)
    for layer, i in model.value_layers.items():
        extra_scale[layer] = model.ve_layer_scales[i].item()
    cos, sin = turns(settings, length, "cpu", torch.float32)
    return Plan(
        tokens=array(model.tok_emb.weight),
        pairs=projected(model.bigram, dim),
        smear=array(torch.zeros(dim) if model.smear is None else torch.sigmoid(model.smear.gate.double())),
        extra=projected(shared, values),
        extra_scale=extra_scale,
        cos=array(cos),
        sin=array(sin),
        physical=np.array(model.virtual_layers),
        qkv=array(torch.cat([q, k, v], 2)),
        o=array(o),
        up=array(model.mlp_up_bank.mT),
        down=array(model.mlp_down_bank.mT),
        slope=np.float32(settings.mlp_slope),
        scale=np.array([block.scale for block in blocks]),
        mix=mix,
        hyper=each(lambda block: None if block.hyper is None else block.hyper[2], (), 0.0),
        attn_scale=each(lambda block: block.attn_scale, (dim,)),
        mlp_scale=each(lambda block: block.mlp_scale, (dim,)),
        q_gain=each(lambda block: block.attn.q_gain, (settings.heads,)),
        gate=each(lambda block: block.attn.attn_gate and block.attn.attn_gate.weight.mT, (dim, settings.heads)),
        gate_bias=each(lambda block: block.attn.attn_gate and block.attn.attn_gate.bias, (settings.heads,)),
        share=share,
        exclusive=np.array([block.attn.exclusive for block in blocks]),
        leave=each(lambda block: block.dtg_gate and block.dtg_gate.weight, (dim,)),
        leave_bias=each(lambda block: block.dtg_gate and block.dtg_gate.bias, ()),
        skips=np.empty((0, dim), np.float32) if model.skip_weights is None else array(model.skip_weights),
        head=array(model.output_matrix().mT),
        softcap=settings.softcap,
    )


compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def _add_times(x, weights, y):
    """y += x W for x (rows, in), W (in, out): eight inputs at a time, so each output's sum has the same order everywhere."""
    rows, width = x.shape
    whole = width - width % 8
    for j in range(0, whole, 8):
        w0, w1, w2, w3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        w4, w5, w6, w7 = weights[j + 4], weights[j + 5], weights[j + 6], weights[j + 7]
        for row in range(rows):
            a, out = x[row, j : j + 8], y[row]
            a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
            for i in range(out.shape[0]):
                low = (a0 * w0[i] + a1 * w1[i]) + (a2 * w2[i] + a3 * w3[i])
                high = (a4 * w4[i] + a5 * w5[i]) + (a6 * w6[i] + a7 * w7[i])
                out[i] += low + high
    for j in range(whole, width):
        for row in range(rows):
            for i in range(y.shape[1]):
                y[row, i] += x[row, j] * weights[j, i]


@compiled
def _times(x, weights, y):
    y[:] = 0
    _add_times(x, weights, y)


@compiled
def _exp(x, work):
    """x <- e^x for float64 x: 2^k e^r with |r| <= ln(2) / 2, e^r by its series. Below e^-700 is as good as zero here."""
    shift = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to a whole number and leaves that in the lowest bits
    for i in range(x.shape[0]):
        v = min(max(x[i], -700.0), 700.0)
        rounded = v * 1.4426950408889634 + shift
        k = rounded - shift
        r = (v - k * 0.6931471803691238) - k * 1.9082149292705877e-10
        e = 1 / 479001600 * r + 1 / 39916800
        e = e * r + 1 / 3628800
        e = e * r + 1 / 362880
        e = e * r + 1 / 40320
        e = e * r + 1 / 5040
        e = e * r + 1 / 720
        e = e * r + 1 / 120
        e = e * r + 1 / 24
        e = e * r + 1 / 6
        e = e * r + 0.5
        e = e * r + 1
        x[i] = e * r + 1
        work[i] = rounded
    bits, powers = work.view(np.int64), work
    for i in range(x.shape[0]):
        bits[i] = (bits[i] + 1023) << 52
    for i in range(x.shape[0]):
        x[i] *= powers[i]


@compiled
def _sigmoid(x, work):
    """x <- 1 / (1 + e^-x) for float64 x."""
    for i in range(x.shape[0]):
        x[i] = -x[i]
    _exp(x, work)
    for i in range(x.shape[0]):
        x[i] = 1 / (1 + x[i])


@compiled
def _dot(x, y):
    total = 0.0
    for i in range(x.shape[0]):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@compiled
def _norm(x, scale, y):
    """Each row of y = scale * x / rms(x)."""
    for row in range(x.shape[0]):
        square = _dot(x[row], x[row]) / x.shape[1]
        factor = np.float32(scale / math.sqrt(square + EPS))
        for i in range(x.shape[1]):
            y[row, i] = factor * x[row, i]


@compiled
def _place(plan, layer, t, first, qkv, keys, values):
    """One row of (q, k, v) made ready: q stays in `qkv`, k and v go to position t of one layer's and row's cache."""
    heads, shared, size = plan.q_gain.shape[1], keys.shape[0], keys.shape[2]
    qk, v = qkv[: heads + shared], qkv[heads + shared :]
    if layer == 0:
        first[:] = v
    own, other = plan.share[layer, 1], plan.share[layer, 0]
    _norm(qk, 1.0, qk)
    half = plan.cos.shape[1]
    for head in range(heads + shared):
        for j in range(half):
            cos, sin, left, right = plan.cos[t, j], plan.sin[t, j], qk[head, j], qk[head, half + j]
            qk[head, j] = left * cos + right * sin
            qk[head, half + j] = right * cos - left * sin
    for head in range(heads):
        for j in range(size):
            qk[head, j] *= plan.q_gain[layer, head]
    for g in range(shared):
        for j in range(size):
            keys[g, t // TILE, j, t % TILE] = qk[heads + g, j]
            values[g, t // TILE, t % TILE, j] = other * first[g, j] + own * v[g, j]


@compiled
def _attend(q, keys, values, t, exclusive, scores, weights, work, y):
    """Attention of one position to those up to its own, t: q and y (group, d)."""
    tiles, scale = t // TILE + 1, 1 / math.sqrt(q.shape[1])
    for tile in range(tiles):
        _times(q, keys[tile], scores[tile])
    for head in range(q.shape[0]):
        most = scores[0, head, 0]
        for p in range(t + 1):
            most = max(most, scores[p // TILE, head, p % TILE])
        for p in range(tiles * TILE):
            weights[p] = scale * (scores[p // TILE, head, p % TILE] - most) if p <= t else -700.0
        _exp(weights[: tiles * TILE], work)
        total = 0.0
        for p in range(t + 1):
            total += weights[p]
        for p in range(tiles * TILE):
            scores[p // TILE, head, p % TILE] = weights[p] / total
    y[:] = 0
    for tile in range(tiles):
        _add_times(scores[tile], values[tile], y)
    if exclusive:
        own = values[t // TILE, t % TILE]
        square = max(_dot(own, own), 1e-24)
        for head in range(q.shape[0]):
            along = np.float32(_dot(y[head], own) / square)
            for i in range(own.shape[0]):
                y[head, i] -= along * own[i]


@compiled
def _advance(plan, state, tokens, start, logits):
    """Steps for tokens (B, n) from position `start`; the logits after the last."""
    batch, count = tokens.shape
    vocabulary, dim = plan.tokens.shape
    executed, _, shared, tiles, size, _ = state.keys.shape
    heads, buckets, encoders = plan.q_gain.shape[1], plan.pairs.shape[0], plan.skips.shape[0]
    group = heads // shared
    for b in range(batch):
        for step in range(count):
            if not 0 <= tokens[b, step] < vocabulary:
                raise ValueError("decoder: a token is outside the vocabulary")
    x, x0, x_in, entered, normed, added = np.empty((6, batch, dim), np.float32)
    qkv = np.empty((batch, heads + 2 * shared, size), np.float32)
    first = np.empty((batch, shared, size), np.float32)
    gates = np.empty((batch, heads), np.float32)
    y = np.empty((batch, heads, size), np.float32)
    hidden = np.empty((batch, plan.up.shape[2]), np.float32)
    outputs = np.empty((encoders, batch, dim), np.float32)
    scores = np.empty((tiles, group, TILE), np.float32)
    weights, work = np.empty((2, max(tiles * TILE, vocabulary, heads)), np.float64)
    for step in range(count):
        t = start + step
        for b in range(batch):
            token = tokens[b, step]
            bucket = buckets - 1
            if buckets and t > 0:
                bucket = np.int32((36313 * token) ^ (27191 * state.token[b])) % (buckets - 1)
            for i in range(dim):
                x[b, i] = plan.tokens[token, i] + (plan.pairs[bucket, i] if buckets else 0)
            state.token[b] = token
        _norm(x, 1.0, x)
        for b in range(batch):
            for i in range(dim):
                now, share = x[b, i], plan.smear[i]
                x0[b, i] = (1 - share) * now + share * state.embedding[b, i]
                state.embedding[b, i] = now
        x[:] = x0
        entered[:] = x0
        for layer in range(executed):
            physical = plan.physical[layer]
            for b in range(batch):
                if encoders <= layer < 2 * encoders:
                    for i in range(dim):
                        x[b, i] += plan.skips[layer - encoders, i] * outputs[2 * encoders - 1 - layer, b, i]
                for i in range(dim):
                    mixed = plan.mix[layer, 0, i] * x[b, i] + plan.mix[layer, 1, i] * x0[b, i]
                    x_in[b, i] = mixed + plan.hyper[layer] * entered[b, i]
                    entered[b, i] = x[b, i]
            _norm(x_in, plan.scale[layer], normed)
            _times(normed, plan.qkv[physical], qkv.reshape(batch, (heads + 2 * shared) * size))
            for b in range(batch):
                if plan.extra_scale[layer] != 0:
                    for g in range(shared):
                        for j in range(size):
                            value = plan.extra_scale[layer] * plan.extra[tokens[b, step], g * size + j]
                            qkv[b, heads + shared + g, j] += value
                _place(plan, layer, t, first[b], qkv[b], state.keys[layer, b], state.values[layer, b])
                for g in range(shared):
                    mine = slice(g * group, (g + 1) * group)
                    _attend(
                        qkv[b, mine], state.keys[layer, b, g], state.values[layer, b, g], t, plan.exclusive[layer],
                        scores, weights, work, y[b, mine],
                    )  # fmt: skip
            if plan.gate.shape[0]:
                _times(normed, plan.gate[layer], gates)
                for b in range(batch):
                    for head in range(heads):
                        weights[head] = gates[b, head] + plan.gate_bias[layer, head]
                    _sigmoid(weights[:heads], work)
                    for head in range(heads):
                        for j in range(size):
                            y[b, head, j] *= np.float32(weights[head])
            _times(y.reshape(batch, dim), plan.o[physical], added)
            for b in range(batch):
                for i in range(dim):
                    x[b, i] = x_in[b, i] + plan.attn_scale[layer, i] * added[b, i]
            _norm(x, plan.scale[layer], normed)
            _times(normed, plan.up[physical], hidden)
            for b in range(batch):
                for i in range(hidden.shape[1]):
                    h = max(hidden[b, i], np.float32(0)) + plan.slope * min(hidden[b, i], np.float32(0))
                    hidden[b, i] = h * h
            _times(hidden, plan.down[physical], added)
            for b in range(batch):
                for i in range(dim):
                    x[b, i] += plan.mlp_scale[layer, i] * added[b, i]
                if plan.leave.shape[0]:
                    weights[0] = _dot(plan.leave[layer], x_in[b]) + plan.leave_bias[layer]
                    _sigmoid(weights[:1], work)
                    for i in range(dim):
                        x[b, i] = x_in[b, i] + np.float32(weights[0]) * (x[b, i] - x_in[b, i])
            if layer < encoders:
                outputs[layer] = x
    _norm(x, 1.0, normed)
    _times(normed, plan.head, logits)
    for b in range(batch):
        # softcap tanh(z / softcap) = softcap (1 - 2 / (e^(2 z / softcap) + 1))
        for i in range(vocabulary):
            weights[i] = 2 * logits[b, i] / plan.softcap
        _exp(weights[:vocabulary], work)
        for i in range(vocabulary):
            logits[b, i] = plan.softcap * (1 - 2 / (weights[i] + 1))
