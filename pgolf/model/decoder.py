"""The network token by token, with a cache of keys and values and the states of scans, compiled by numba for one CPU core.

Encoder and decoder of a compressed file must find the same bits, perhaps on different machines. So nothing here depends
on the width of a machine's vectors or on its mathematical library: products run over the inputs in the outer loop and
over the outputs in the inner one, which vectorises without reordering any sum, and exponentials are made of additions
and multiplications.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from pgolf.model.mamba import Mamba2Mixer, ScanBlock
from pgolf.model.network import Network
from pgolf.model.parts import Block, rotary_tables

TILE = 64
EPS = float(np.finfo(np.float32).eps)


class Plan(NamedTuple):
    """The weights as the loop wants them: products as (layers, in, out); a part that is switched off has no rows, or the
    value that makes it vanish. L counts executed layers, A those of them with attention, M those with a mixer, and n and m
    the slices of either's banks. A mixer has H heads of width I / H, a state of S, and a convolution over K tokens."""

    tokens: np.ndarray  # (V, D)
    pairs: np.ndarray  # (buckets, D), projected and scaled
    smear: np.ndarray  # (D,)
    scale: np.ndarray  # (L,), of the sublayers' inputs
    mix: np.ndarray  # (L, 2, D)
    hyper: np.ndarray  # (L,), the share of the stream that entered the previous block
    leave: np.ndarray  # (L or 0, D), the dynamic token gate
    leave_bias: np.ndarray  # (L or 0,)
    skips: np.ndarray  # (encoders, D)
    scans: np.ndarray  # (L,), whether it has a mixer instead of attention
    place: np.ndarray  # (L,), its number among those of its kind
    physical: np.ndarray  # (L,), its slice of its kind's banks
    # attention and MLP
    extra: np.ndarray  # (V, Dkv), the value embedding, projected and scaled
    extra_scale: np.ndarray  # (A,), 0 where the layer takes none
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
    gate: np.ndarray  # (A or 0, D, heads)
    gate_bias: np.ndarray  # (A or 0, heads)
    share: np.ndarray  # (A, 2), of the first layer's values and of the layer's own
    exclusive: np.ndarray  # (A,)
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


class State(NamedTuple):
    """What a row remembers. Keys and values come in tiles of positions; within one, keys have positions last, so that
    scores are a product like every other."""

    keys: np.ndarray  # (A, B, Hkv, tiles, d, TILE)
    values: np.ndarray  # (A, B, Hkv, tiles, TILE, d)
    scanned: np.ndarray  # (M, B, H, S, I / H)
    window: np.ndarray  # (M, B, K, I), what the convolutions still see: token t in place t mod K
    embedding: np.ndarray  # (B, D), of the last token, before smearing
    token: np.ndarray  # (B,), the last one


class Decoder:
    """`step` takes the next token of every row and gives the logits of the one after it.

    The arithmetic is float32, on a CPU, wherever the network lives; a row's result does not depend on what else is in the
    batch. The rotary base is that of a window of `length` tokens, which is also the most the decoder takes.
    """

    def __init__(self, model: Network, batch: int, length: int):
        if batch < 1 or length < 1:
            raise ValueError(f"decoder: batch {batch} and length {length} must be at least 1")
        self.batch, self.length, self.position = batch, length, 0
        self._plan = _plan(model, length)
        settings, tiles = model.settings, -(-length // TILE)
        mixers, inner = int(self._plan.scans.sum()), self._plan.taps.shape[2]
        heads = self._plan.dt.shape[1]
        cache = (len(model.virtual_layers) - mixers, batch, settings.kv_heads, tiles)
        self._state = State(
            np.zeros((*cache, settings.head_dim, TILE), np.float32),
            np.zeros((*cache, TILE, settings.head_dim), np.float32),
            np.zeros((mixers, batch, heads, settings.scan_state, inner // heads), np.float32),
            np.zeros((mixers, batch, *self._plan.taps.shape[1:]), np.float32),
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
        self._state.scanned.fill(0)


@torch.no_grad()
def _plan(model: Network, length: int) -> Plan:
    settings, blocks, shared = model.settings, model.blocks, model.ve_shared if model.value_layers else None
    dim, values = settings.dim, settings.kv_heads * settings.head_dim
    attentions = [block for block in blocks if isinstance(block, Block)]
    mixers = [block.mixer for block in blocks if isinstance(block, ScanBlock)]

    def array(tensor: Tensor) -> np.ndarray:
        """A copy: what trains the network further does not reach it."""
        return np.array(tensor.detach().to("cpu", torch.float32).numpy(), order="C")

    def each(owners, part: Callable, shape: tuple[int, ...], absent: float | None = None) -> np.ndarray:
        """One row an owner; one without the part gets `absent`, and where that is None there are no rows at all."""
        found = [part(owner) for owner in owners]
        if absent is None and (not found or found[0] is None):
            return np.empty((0, *shape), np.float32)
        return np.stack([np.full(shape, absent, np.float32) if row is None else array(row).reshape(shape) for row in found])

    def projected(owner, width: int) -> np.ndarray:
        """The rows of an embedding behind its projection and scale."""
        if owner is None:
            return np.empty((0, width), np.float32)
        rows = np.empty((owner.embed.num_embeddings, width), np.float32)
        _times(array(owner.embed.weight), array(owner.proj.weight.mT), rows)
        return rows * array(owner.scale)

    def pieces(bank: Tensor, parts: int = 1) -> tuple[Tensor, ...]:
        """A bank's parts as (slices, in, out)."""
        return bank.mT.unflatten(0, (parts, -1)).unbind()

    (q, o), (k, v) = pieces(model.qo_bank, 2), pieces(model.kv_bank, 2)
    mix = each(blocks, lambda block: block.resid_mix, (2, dim), 0.0)
    if not settings.resid_mix:
        mix[:, 0] = 1
    mix *= each(blocks, lambda block: None if block.hyper is None else block.hyper[0], (1, 1), 1.0)
    share = each(attentions, lambda block: block.attn.vr_lambda, (2,), 1.0)
    share[: 1 if settings.value_residual else len(attentions), 0] = 0
    share[0, 1] = 1
    place = [sum(type(other) is type(block) for other in blocks[:layer]) for layer, block in enumerate(blocks)]
    extra_scale = np.zeros(len(attentions), np.float32)
    for layer, i in model.value_layers.items():
        extra_scale[place[layer]] = model.ve_layer_scales[i].item()
    cos, sin = rotary_tables(settings, length, "cpu", torch.float32)
    heads, inner, seen = (settings.scan_heads, settings.scan_width, settings.scan_conv) if mixers else (1, 1, 1)
    mixer_in, mixer_out = torch.empty(0, dim, 1), torch.empty(0, 1, dim)
    if mixers:
        banks = (model.scan_in_bank, 1), (model.scan_state_bank, 2), (model.scan_out_bank, 1)
        (into,), (enter, leave), (mixer_out,) = (pieces(bank, parts) for bank, parts in banks if bank is not None)
        mixer_in = torch.cat([into, enter, leave], 2)

    def rates(mixer: Mamba2Mixer) -> tuple[Tensor, Tensor]:
        bias, rate = mixer.dt_bias.double(), -mixer.A_log.double().exp()
        if mixer.dt_proj is not None:
            return bias, rate
        dt = torch.nn.functional.softplus(bias)
        return dt, (rate * dt).exp()

    scan_layers, attention_layers = sorted(settings.scan_layers), list(settings.attention_layers)
    return Plan(
        tokens=array(model.tok_emb.weight),
        pairs=projected(model.bigram, dim),
        smear=array(torch.zeros(dim) if model.smear is None else torch.sigmoid(model.smear.gate.double())),
        scale=np.array([block.scale for block in blocks]),
        mix=mix,
        hyper=each(blocks, lambda block: None if block.hyper is None else block.hyper[2], (), 0.0),
        leave=each(blocks, lambda block: block.dtg_gate and block.dtg_gate.weight, (dim,)),
        leave_bias=each(blocks, lambda block: block.dtg_gate and block.dtg_gate.bias, ()),
        skips=np.empty((0, dim), np.float32) if model.skip_weights is None else array(model.skip_weights),
        scans=np.array([isinstance(block, ScanBlock) for block in blocks]),
        place=np.array(place),
        physical=np.array(
            [(scan_layers if i in settings.scan_layers else attention_layers).index(i) for i in model.virtual_layers]
        ),
        extra=projected(shared, values),
        extra_scale=extra_scale,
        cos=array(cos),
        sin=array(sin),
        qkv=array(torch.cat([q, k, v], 2)),
        o=array(o),
        up=array(model.mlp_up_bank.mT),
        down=array(model.mlp_down_bank.mT),
        slope=np.float32(settings.mlp_slope),
        attn_scale=each(attentions, lambda block: block.attn_scale, (dim,)),
        mlp_scale=each(attentions, lambda block: block.mlp_scale, (dim,)),
        q_gain=each(attentions, lambda block: block.attn.q_gain, (settings.heads,)),
        gate=each(attentions, lambda block: block.attn.attn_gate and block.attn.attn_gate.weight.mT, (dim, settings.heads)),
        gate_bias=each(attentions, lambda block: block.attn.attn_gate and block.attn.attn_gate.bias, (settings.heads,)),
        share=share,
        exclusive=np.array([block.attn.exclusive for block in attentions]),
        mixer_in=array(mixer_in),
        mixer_out=array(mixer_out),
        mixer_scale=each([block for block in blocks if isinstance(block, ScanBlock)], lambda block: block.mixer_scale, (dim,)),
        taps=each(mixers, lambda mixer: mixer.conv1d.weight[:, 0].mT, (seen, inner)),
        taps_bias=each(mixers, lambda mixer: mixer.conv1d.bias, (inner,)),
        dt=each(mixers, lambda mixer: rates(mixer)[0], (heads,)),
        dt_proj=each(mixers, lambda mixer: mixer.dt_proj and mixer.dt_proj.weight.mT, (dim, heads)),
        decay=each(mixers, lambda mixer: rates(mixer)[1], (heads,)),
        straight=each(mixers, lambda mixer: mixer.D_param, (heads,)),
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
def _softplus(x, work):
    """x <- log(1 + e^x) for float64 x: with z = e^-|x| it is max(x, 0) + 2 artanh(z / (2 + z)), by its series."""
    work[: x.shape[0]] = x
    for i in range(x.shape[0]):
        x[i] = -abs(x[i])
    _exp(x, work[x.shape[0] :])
    for i in range(x.shape[0]):
        s = x[i] / (2 + x[i])
        total = 0.0
        for k in range(35, 0, -2):
            total = total * s * s + 1 / k
        x[i] = max(work[i], 0.0) + 2 * s * total


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
def _place(plan, place, t, first, qkv, keys, values):
    """One row of (q, k, v) made ready: q stays in `qkv`, k and v go to position t of one layer's and row's cache."""
    heads, shared, size = plan.q_gain.shape[1], keys.shape[0], keys.shape[2]
    qk, v = qkv[: heads + shared], qkv[heads + shared :]
    if place == 0:
        first[:] = v
    own, other = plan.share[place, 1], plan.share[place, 0]
    _norm(qk, 1.0, qk)
    half = plan.cos.shape[1]
    for head in range(heads + shared):
        for j in range(half):
            cos, sin, left, right = plan.cos[t, j], plan.sin[t, j], qk[head, j], qk[head, half + j]
            qk[head, j] = left * cos + right * sin
            qk[head, half + j] = right * cos - left * sin
    for head in range(heads):
        for j in range(size):
            qk[head, j] *= plan.q_gain[place, head]
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
def _scan(plan, place, t, u, entering, scanned, window, weights, work, y):
    """One token of one row through a mixer: `entering` is the product of u with its matrices, y what W_out takes."""
    seen, inner = window.shape
    heads, size, width = scanned.shape
    value, gate, entries = entering[:inner], entering[inner : 2 * inner], entering[2 * inner :]
    window[t % seen] = value
    value[:] = plan.taps_bias[place]
    for i in range(max(0, seen - 1 - t), seen):
        earlier, tap = window[(t - seen + 1 + i) % seen], plan.taps[place, i]
        for j in range(inner):
            value[j] += tap[j] * earlier[j]
    for part in (value, gate):
        for j in range(inner):
            weights[j] = part[j]
        _sigmoid(weights[:inner], work)
        for j in range(inner):
            part[j] *= np.float32(weights[j])
    dts, decays = weights[:heads], weights[heads : 2 * heads]
    for head in range(heads):
        dts[head], decays[head] = plan.dt[place, head], plan.decay[place, head]
    if plan.dt_proj.shape[0]:
        for j in range(u.shape[0]):
            for head in range(heads):
                dts[head] += np.float64(u[j]) * plan.dt_proj[place, j, head]
        _softplus(dts, work)
        for head in range(heads):
            decays[head] *= dts[head]
        _exp(decays, work)
    for head in range(heads):
        mine = slice(head * width, (head + 1) * width)
        v, out, dt, decay = value[mine], y[mine], np.float32(dts[head]), np.float32(decays[head])
        straight = plan.straight[place, head]
        for p in range(width):
            out[p] = straight * v[p]
        for s in range(size):
            row, enters, leaves = scanned[head, s], dt * entries[head * size + s], entries[(heads + head) * size + s]
            for p in range(width):
                row[p] = decay * row[p] + enters * v[p]
                out[p] += leaves * row[p]
    for j in range(inner):
        y[j] *= gate[j]


@compiled
def _advance(plan, state, tokens, start, logits):
    """Steps for tokens (B, n) from position `start`; the logits after the last."""
    batch, count = tokens.shape
    vocabulary, dim = plan.tokens.shape
    _, _, shared, tiles, size, _ = state.keys.shape
    executed, inner = plan.scale.shape[0], plan.taps.shape[2]
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
    entering = np.empty((batch, plan.mixer_in.shape[2]), np.float32)
    scanned = np.empty((batch, inner), np.float32)
    outputs = np.empty((encoders, batch, dim), np.float32)
    scores = np.empty((tiles, group, TILE), np.float32)
    weights, work = np.empty((2, max(tiles * TILE, vocabulary, heads, inner, 2 * plan.dt.shape[1])), np.float64)
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
            physical, place = plan.physical[layer], plan.place[layer]
            for b in range(batch):
                if encoders <= layer < 2 * encoders:
                    for i in range(dim):
                        x[b, i] += plan.skips[layer - encoders, i] * outputs[2 * encoders - 1 - layer, b, i]
                for i in range(dim):
                    mixed = plan.mix[layer, 0, i] * x[b, i] + plan.mix[layer, 1, i] * x0[b, i]
                    x_in[b, i] = mixed + plan.hyper[layer] * entered[b, i]
                    entered[b, i] = x[b, i]
            _norm(x_in, plan.scale[layer], normed)
            if plan.scans[layer]:
                _times(normed, plan.mixer_in[physical], entering)
                for b in range(batch):
                    _scan(
                        plan, place, t, normed[b], entering[b], state.scanned[place, b], state.window[place, b],
                        weights, work, scanned[b],
                    )  # fmt: skip
                _times(scanned, plan.mixer_out[physical], added)
                for b in range(batch):
                    for i in range(dim):
                        x[b, i] = x_in[b, i] + plan.mixer_scale[place, i] * added[b, i]
            else:
                _times(normed, plan.qkv[physical], qkv.reshape(batch, (heads + 2 * shared) * size))
                for b in range(batch):
                    if plan.extra_scale[place] != 0:
                        for g in range(shared):
                            for j in range(size):
                                value = plan.extra_scale[place] * plan.extra[tokens[b, step], g * size + j]
                                qkv[b, heads + shared + g, j] += value
                    _place(plan, place, t, first[b], qkv[b], state.keys[place, b], state.values[place, b])
                    for g in range(shared):
                        mine = slice(g * group, (g + 1) * group)
                        _attend(
                            qkv[b, mine], state.keys[place, b, g], state.values[place, b, g], t, plan.exclusive[place],
                            scores, weights, work, y[b, mine],
                        )  # fmt: skip
                if plan.gate.shape[0]:
                    _times(normed, plan.gate[place], gates)
                    for b in range(batch):
                        for head in range(heads):
                            weights[head] = gates[b, head] + plan.gate_bias[place, head]
                        _sigmoid(weights[:heads], work)
                        for head in range(heads):
                            for j in range(size):
                                y[b, head, j] *= np.float32(weights[head])
                _times(y.reshape(batch, dim), plan.o[physical], added)
                for b in range(batch):
                    for i in range(dim):
                        x[b, i] = x_in[b, i] + plan.attn_scale[place, i] * added[b, i]
                _norm(x, plan.scale[layer], normed)
                _times(normed, plan.up[physical], hidden)
                for b in range(batch):
                    for i in range(hidden.shape[1]):
                        h = max(hidden[b, i], np.float32(0)) + plan.slope * min(hidden[b, i], np.float32(0))
                        hidden[b, i] = h * h
                _times(hidden, plan.down[physical], added)
                for b in range(batch):
                    for i in range(dim):
                        x[b, i] += plan.mlp_scale[place, i] * added[b, i]
            for b in range(batch):
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
