"""The network token by token, with a cache of keys and values, compiled by numba for one CPU core.

Encoder and decoder of a compressed file must find the same bits, perhaps on different machines. So every sum has one
fixed order: products run over the inputs in the outer loop and over the outputs in the inner one, which vectorises
without reordering anything, whatever the width of the vectors; and exponentials are taken in double precision.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pgolf.model.network import Network


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
    keys: np.ndarray  # (L, B, Hkv, d, length): positions last, so that scores are a product like every other
    values: np.ndarray  # (L, B, Hkv, length, d)
    embedding: np.ndarray  # (B, D), of the last token, before smearing
    token: np.ndarray  # (B,)


class Decoder:
    """`step` takes the next token of every row and gives the logits of the one after it.

    The arithmetic is float32 on a CPU (float64 for a float64 network), wherever the network lives. A row's result does not
    depend on what else is in the batch. The rotary base is that of a window of `length` tokens, which is also the most
    the decoder takes.
    """

    def __init__(self, model: "Network", batch: int, length: int):
        if batch < 1 or length < 1:
            raise ValueError(f"decoder: batch {batch} and length {length} must be at least 1")
        self.batch, self.length, self.position = batch, length, 0
        self._plan = _plan(model, length)
        settings, kind = model.settings, self._plan.tokens.dtype
        layers, shared, dim = len(model.virtual_layers), settings.kv_heads, settings.head_dim
        self._state = State(
            np.zeros((layers, batch, shared, dim, length), kind),
            np.zeros((layers, batch, shared, length, dim), kind),
            np.zeros((batch, settings.dim), kind),
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
        vocabulary = len(self._plan.tokens)
        if given.min() < 0 or given.max() >= vocabulary:
            raise ValueError(f"decoder: a token is outside the vocabulary of {vocabulary}")
        logits = np.empty((self.batch, vocabulary), self._plan.tokens.dtype)
        _advance(self._plan, self._state, given, self.position, logits)
        self.position += given.shape[1]
        return torch.from_numpy(logits).to(tokens.device)

    def reset(self) -> None:
        """Forget every token; the next one is a sequence's first."""
        self.position = 0
        self._state.embedding.fill(0)


@torch.no_grad()
def _plan(model: "Network", length: int) -> Plan:
    from pgolf.model.parts import turns

    settings, blocks = model.settings, model.blocks
    kind = torch.promote_types(model.activation, torch.float32)
    executed, dim, values = len(blocks), settings.dim, settings.kv_heads * settings.head_dim

    def array(tensor: Tensor) -> np.ndarray:
        return np.ascontiguousarray(tensor.detach().to("cpu", kind).numpy())

    def each(of, shape: tuple[int, ...], absent: float | None = None) -> np.ndarray:
        """One row a block; blocks without the part get `absent`, or, if that is None, there are no rows."""
        found = [of(block) for block in blocks]
        if absent is None and found[0] is None:
            return array(torch.empty(0, *shape))
        rows = [torch.full(shape, absent) if row is None else row.cpu().view(shape) for row in found]
        return array(torch.stack(rows))

    (q, o), (k, v) = (bank.mT.unflatten(0, (2, -1)) for bank in (model.qo_bank, model.kv_bank))
    bigram, shared = model.bigram, model.ve_shared if model.value_layers else None
    mix = each(lambda block: block.resid_mix, (2, dim), 0.0)
    if not settings.resid_mix:
        mix[:, 0] = 1
    mix *= each(lambda block: block.hyper[0] if block.hyper is not None else None, (1, 1), 1.0)
    share = each(lambda block: block.attn.vr_lambda, (2,), 1.0)
    share[0 if settings.value_residual else slice(None), 0] = 0
    share[0, 1] = 1
    extra_scale = np.zeros(executed, mix.dtype)
    for layer, i in model.value_layers.items():
        extra_scale[layer] = model.ve_layer_scales[i].item()
    cos, sin = turns(settings, length, "cpu", kind)
    return Plan(
        tokens=array(model.tok_emb.weight),
        pairs=array(torch.empty(0, dim) if bigram is None else _projected(bigram, kind)),
        smear=array(torch.zeros(dim) if model.smear is None else torch.sigmoid(model.smear.gate.to(kind))),
        extra=array(torch.empty(0, values) if shared is None else _projected(shared, kind)),
        extra_scale=extra_scale,
        cos=array(cos),
        sin=array(sin),
        physical=np.array(model.virtual_layers),
        qkv=array(torch.cat([q, k, v], 2)),
        o=array(o),
        up=array(model.mlp_up_bank.mT),
        down=array(model.mlp_down_bank.mT),
        slope=settings.mlp_slope,
        scale=np.array([block.scale for block in blocks], mix.dtype),
        mix=mix,
        hyper=each(lambda block: block.hyper[2] if block.hyper is not None else None, (), 0.0),
        attn_scale=each(lambda block: block.attn_scale, (dim,)),
        mlp_scale=each(lambda block: block.mlp_scale, (dim,)),
        q_gain=each(lambda block: block.attn.q_gain, (settings.heads,)),
        gate=each(lambda block: block.attn.attn_gate and block.attn.attn_gate.weight.mT.contiguous(), (dim, settings.heads)),
        gate_bias=each(lambda block: block.attn.attn_gate and block.attn.attn_gate.bias, (settings.heads,)),
        share=share,
        exclusive=np.array([block.attn.exclusive for block in blocks]),
        leave=each(lambda block: block.dtg_gate and block.dtg_gate.weight, (dim,)),
        leave_bias=each(lambda block: block.dtg_gate and block.dtg_gate.bias, ()),
        skips=array(torch.empty(0, dim) if model.skip_weights is None else model.skip_weights),
        head=array(model.output_matrix().detach().mT),
        softcap=settings.softcap,
    )


def _projected(owner, kind: torch.dtype) -> Tensor:
    return owner.scale.to(kind) * (owner.embed.weight.to(kind) @ owner.proj.weight.to(kind).mT)


compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def _times(x, weights, y):
    """y = x W for x (rows, in), W (in, out): eight inputs at a time, each output's sum in the same order everywhere."""
    rows, width = x.shape
    whole = width - width % 8
    y[:] = 0
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
        w = weights[j]
        for row in range(rows):
            a0, out = x[row, j], y[row]
            for i in range(out.shape[0]):
                out[i] += a0 * w[i]


@compiled
def _norm(x, scale, eps, y):
    """Each row of y = scale * x / rms(x)."""
    for row in range(x.shape[0]):
        total = 0.0
        for i in range(x.shape[1]):
            total += float(x[row, i]) * float(x[row, i])
        factor = x.dtype.type(scale / math.sqrt(total / x.shape[1] + eps))
        for i in range(x.shape[1]):
            y[row, i] = factor * x[row, i]


@compiled
def _sigmoid(x):
    return 1 / (1 + math.exp(-float(x)))


@compiled
def _rotate(x, cos, sin):
    half = cos.shape[0]
    for j in range(half):
        first, second = x[j], x[half + j]
        x[j] = first * cos[j] + second * sin[j]
        x[half + j] = second * cos[j] - first * sin[j]


@compiled
def _softmax(scores, scale):
    """In place, row by row; the exponentials and their sum in double precision."""
    for row in range(scores.shape[0]):
        most = scores[row].max()
        total = 0.0
        for i in range(scores.shape[1]):
            weight = math.exp(scale * (float(scores[row, i]) - float(most)))
            scores[row, i] = weight
            total += weight
        for i in range(scores.shape[1]):
            scores[row, i] = scores[row, i] / total


@compiled
def _attend(q, keys, values, exclusive, scores, y):
    """One position's attention: q (Hkv, group, d), its own key and value the last of keys (Hkv, d, t), values (Hkv, t, d)."""
    last = keys.shape[2] - 1
    scale = 1 / math.sqrt(q.shape[2])
    for g in range(q.shape[0]):
        weights = scores[:, : last + 1]
        _times(q[g], keys[g], weights)
        _softmax(weights, scale)
        _times(weights, values[g], y[g])
        if exclusive:
            own = values[g, last]
            square = 0.0
            for i in range(own.shape[0]):
                square += float(own[i]) * float(own[i])
            for head in range(q.shape[1]):
                along = 0.0
                for i in range(own.shape[0]):
                    along += float(y[g, head, i]) * float(own[i])
                along /= max(square, 1e-24)
                for i in range(own.shape[0]):
                    y[g, head, i] -= along * own[i]


@compiled
def _advance(plan, state, tokens, start, logits):
    """Steps for tokens (B, n) from position `start`; the logits after the last."""
    batch, count = tokens.shape
    dim = plan.tokens.shape[1]
    executed, _, shared, size, _ = state.keys.shape
    heads = plan.q_gain.shape[1]
    group = heads // shared
    width = shared * size
    encoders = plan.skips.shape[0]
    kind = plan.tokens.dtype
    eps = np.finfo(kind).eps
    x, x0, x_in, entered, before, normed, added = np.empty((7, batch, dim), kind)
    qkv = np.empty((batch, dim + 2 * width), kind)
    first_values = np.empty((batch, width), kind)
    gates = np.empty((batch, heads), kind)
    y = np.empty((batch, shared, group, size), kind)
    hidden = np.empty((batch, plan.up.shape[2]), kind)
    scores = np.empty((group, state.keys.shape[4]), kind)
    outputs = np.empty((encoders, batch, dim), kind)
    for step in range(count):
        t = start + step
        for b in range(batch):
            token = tokens[b, step]
            x[b] = plan.tokens[token]
            buckets = plan.pairs.shape[0]
            if buckets:
                bucket = buckets - 1
                if t > 0:
                    bucket = np.int32((36313 * token) ^ (27191 * state.token[b])) % (buckets - 1)
                x[b] += plan.pairs[bucket]
            state.token[b] = token
        _norm(x, 1.0, eps, x0)
        for b in range(batch):
            for i in range(dim):
                now, share = x0[b, i], plan.smear[i]
                x0[b, i] = (1 - share) * now + share * state.embedding[b, i]
                state.embedding[b, i] = now
        x[:] = x0
        before[:] = x0
        for layer in range(executed):
            physical = plan.physical[layer]
            if encoders <= layer < 2 * encoders:
                x += plan.skips[layer - encoders] * outputs[2 * encoders - 1 - layer]
            entered[:] = x
            for b in range(batch):
                for i in range(dim):
                    x_in[b, i] = plan.mix[layer, 0, i] * x[b, i] + plan.mix[layer, 1, i] * x0[b, i]
            if plan.hyper[layer]:
                x_in += plan.hyper[layer] * before
            before[:] = entered
            _norm(x_in, plan.scale[layer], eps, normed)
            _times(normed, plan.qkv[physical], qkv)
            if plan.gate.shape[0]:
                _times(normed, plan.gate[layer], gates)
            for b in range(batch):
                v = qkv[b, dim + width :]
                if plan.extra_scale[layer]:
                    v += plan.extra_scale[layer] * plan.extra[tokens[b, step]]
                if layer == 0:
                    first_values[b] = v
                elif plan.share[layer, 0] != 0 or plan.share[layer, 1] != 1:
                    v[:] = plan.share[layer, 0] * first_values[b] + plan.share[layer, 1] * v
                qk = qkv[b, : dim + width].reshape(heads + shared, size)
                _norm(qk, 1.0, eps, qk)
                for head in range(heads + shared):
                    _rotate(qk[head], plan.cos[t], plan.sin[t])
                for head in range(heads):
                    qk[head] *= plan.q_gain[layer, head]
                for g in range(shared):
                    state.keys[layer, b, g, :, t] = qk[heads + g]
                    state.values[layer, b, g, t] = v[g * size : (g + 1) * size]
                _attend(
                    qk[:heads].reshape(shared, group, size),
                    state.keys[layer, b, :, :, : t + 1],
                    state.values[layer, b, :, : t + 1],
                    plan.exclusive[layer],
                    scores,
                    y[b],
                )
                if plan.gate.shape[0]:
                    for head in range(heads):
                        y[b, head // group, head % group] *= _sigmoid(gates[b, head] + plan.gate_bias[layer, head])
            _times(y.reshape(batch, dim), plan.o[physical], added)
            for b in range(batch):
                for i in range(dim):
                    x[b, i] = x_in[b, i] + plan.attn_scale[layer, i] * added[b, i]
            _norm(x, plan.scale[layer], eps, normed)
            _times(normed, plan.up[physical], hidden)
            for b in range(batch):
                for i in range(hidden.shape[1]):
                    h = hidden[b, i]
                    h = h if h > 0 else kind.type(plan.slope) * h
                    hidden[b, i] = h * h
            _times(hidden, plan.down[physical], added)
            for b in range(batch):
                for i in range(dim):
                    x[b, i] += plan.mlp_scale[layer, i] * added[b, i]
                if plan.leave.shape[0]:
                    total = 0.0
                    for i in range(dim):
                        total += float(plan.leave[layer, i]) * float(x_in[b, i])
                    share = _sigmoid(total + plan.leave_bias[layer])
                    x[b] = x_in[b] + share * (x[b] - x_in[b])
            if layer < encoders:
                outputs[layer] = x
    _norm(x, 1.0, eps, normed)
    _times(normed, plan.head, logits)
    for b in range(batch):
        for i in range(logits.shape[1]):
            logits[b, i] = plan.softcap * math.tanh(float(logits[b, i]) / plan.softcap)
