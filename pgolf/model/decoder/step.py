"""One step of the decoder, compiled by numba for one CPU core.

Encoder and decoder of a compressed file must find the same bits, perhaps on different machines. So nothing here depends
on the width of a machine's vectors or on its mathematical library: products run over the inputs in the outer loop and
over the outputs in the inner one, which vectorises without reordering any sum, and exponentials are made of additions
and multiplications.

A step is taken for N tokens at once, each with its sequence's row and its position in it: tokens of other sequences, or
several of one sequence in order, at the same bits as one by one.

All that is compiled is one file, because numba's cache does not see a change in a function that another file's function calls.
`w` are `weights.Weights`, `a` are `LowRank`, `b` are `Buffers`; `at` are `Places`.
"""

import math

import numba
import numpy as np

from pgolf.model.decoder.state import TILE, Buffers, Places

EPS = float(np.finfo(np.float32).eps)


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
def times(x, weights, y):
    y[:] = 0
    _add_times(x, weights, y)


@compiled
def _adapt(x, into, out, layer, at, low, y):
    """y += (x A) B, each token with its row's adapter of one site."""
    for n in range(at.row.shape[0]) if into.shape[0] else range(0):
        row = at.row[n]
        times(x[n : n + 1], into[layer, row], low)
        _add_times(low, out[layer, row], y[n : n + 1])


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
def _place(w, layer, t, first_values, qkv, keys, values):
    """One token's (q, k, v) made ready: q stays in `qkv`, k and v go to position t of one layer's and row's cache."""
    heads, shared, tiles, size = w.q_gain.shape[1], keys.shape[0], keys.shape[1], keys.shape[2]
    tile = t // TILE % tiles
    qk, v = qkv[: heads + shared], qkv[heads + shared :]
    place = w.place[layer]
    if w.cached[layer] == 0:
        first_values[:] = v
    own, other = w.share[place, 1], w.share[place, 0]
    _norm(qk, 1.0, qk)
    half = w.cos.shape[1]
    for head in range(heads + shared):
        for j in range(half):
            cos, sin, left, right = w.cos[t, j], w.sin[t, j], qk[head, j], qk[head, half + j]
            qk[head, j] = left * cos + right * sin
            qk[head, half + j] = right * cos - left * sin
    for head in range(heads):
        for j in range(size):
            qk[head, j] *= w.q_gain[place, head]
    for g in range(shared):
        for j in range(size):
            keys[g, tile, j, t % TILE] = qk[heads + g, j]
            values[g, tile, t % TILE, j] = other * first_values[g, j] + own * v[g, j]


@compiled
def _attend(q, keys, values, first, t, xsa, scores, weights, work, y):
    """Attention of one token to the positions from `first` to its own, t: q and y (group, d)."""
    begin = first // TILE
    tiles, scale = t // TILE - begin + 1, 1 / math.sqrt(q.shape[1])
    low, high = first - begin * TILE, t - begin * TILE
    for tile in range(tiles):
        times(q, keys[(begin + tile) % keys.shape[0]], scores[tile])
    for head in range(q.shape[0]):
        most = scores[low // TILE, head, low % TILE]
        for p in range(low, high + 1):
            most = max(most, scores[p // TILE, head, p % TILE])
        for p in range(tiles * TILE):
            weights[p] = scale * (scores[p // TILE, head, p % TILE] - most) if low <= p <= high else -700.0
        _exp(weights[: tiles * TILE], work)
        total = 0.0
        for p in range(low, high + 1):
            total += weights[p]
        for p in range(tiles * TILE):
            scores[p // TILE, head, p % TILE] = weights[p] / total
    y[:] = 0
    for tile in range(tiles):
        _add_times(scores[tile], values[(begin + tile) % keys.shape[0]], y)
    if xsa:
        own = values[t // TILE % keys.shape[0], t % TILE]
        square = max(_dot(own, own), 1e-24)
        for head in range(q.shape[0]):
            along = np.float32(_dot(y[head], own) / square)
            for i in range(own.shape[0]):
                y[head, i] -= along * own[i]


@compiled
def _scan(w, place, t, u, entering, scanned, window, weights, work, y):
    """One token of one row through a mixer: `entering` is the product of u with its matrices, y what W_out takes."""
    seen, inner = window.shape
    heads, size, width = scanned.shape
    value, gate, entries = entering[:inner], entering[inner : 2 * inner], entering[2 * inner :]
    window[t % seen] = value
    value[:] = w.taps_bias[place]
    for i in range(max(0, seen - 1 - t), seen):
        earlier, tap = window[(t - seen + 1 + i) % seen], w.taps[place, i]
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
        dts[head], decays[head] = w.dt[place, head], w.decay[place, head]
    if w.dt_proj.shape[0]:
        for j in range(u.shape[0]):
            for head in range(heads):
                dts[head] += np.float64(u[j]) * w.dt_proj[place, j, head]
        _softplus(dts, work)
        for head in range(heads):
            decays[head] *= dts[head]
        _exp(decays, work)
    for head in range(heads):
        mine = slice(head * width, (head + 1) * width)
        v, out, dt, decay = value[mine], y[mine], np.float32(dts[head]), np.float32(decays[head])
        straight = w.straight[place, head]
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
def _buffers(w, state, a, batch):
    vocabulary, dim = w.tokens.shape
    shared, tiles, size = state.keys.shape[2], state.keys.shape[3], state.keys.shape[4]
    heads, inner = w.q_gain.shape[1], w.taps.shape[2]
    rows = np.empty((8, batch, dim), np.float32)
    exponents = np.empty((2, max(tiles * TILE, vocabulary, heads, inner, 2 * w.dt.shape[1])), np.float64)
    return Buffers(
        rows[0],
        rows[1],
        rows[2],
        rows[3],
        rows[4],
        rows[5],
        rows[6],
        rows[7],
        np.empty((w.scale.shape[0], batch, dim), np.float32),
        np.empty((batch, heads + 2 * shared, size), np.float32),
        np.empty((batch, shared, size), np.float32),
        np.empty((batch, heads), np.float32),
        np.empty((batch, heads, size), np.float32),
        np.empty((batch, w.up.shape[2]), np.float32),
        np.empty((batch, w.mixer_in.shape[2]), np.float32),
        np.empty((batch, inner), np.float32),
        np.empty((1, a.head_in.shape[3]), np.float32),
        np.empty((tiles, heads // shared, TILE), np.float32),
        exponents[0],
        exponents[1],
    )


@compiled
def _embed(w, state, tokens, at, b):
    """x, x0 and prev_stream of the tokens (N,)."""
    buckets = w.pairs.shape[0]
    for n in range(tokens.shape[0]):
        token, row, t = tokens[n], at.row[n], at.position[n]
        bucket = buckets - 1
        if buckets and t > 0:
            bucket = np.int32((36313 * token) ^ (27191 * state.token[row])) % (buckets - 1)
        for i in range(b.x.shape[1]):
            b.x[n, i] = w.tokens[token, i]
        if w.smear_gate.shape[0]:
            b.weights[0] = _dot(w.smear_gate, b.x[n, : w.smear_gate.shape[0]])
            _sigmoid(b.weights[:1], b.work)
            share = np.float32(0.0 if token == w.smear_bos or t == 0 else w.smear_lambda * b.weights[0])
            for i in range(b.x.shape[1]):
                now = b.x[n, i]
                b.x[n, i] += share * state.raw[row, i]
                state.raw[row, i] = now
        for i in range(b.x.shape[1]):
            b.x[n, i] += w.pairs[bucket, i] if buckets else 0
        state.token[row] = token
    _norm(b.x, 1.0, b.x)
    for n in range(tokens.shape[0]):
        row = at.row[n]
        if at.position[n] == 0:
            state.embedding[row] = 0
        for i in range(b.x.shape[1]):
            now, share = b.x[n, i], w.smear[i]
            b.x0[n, i] = (1 - share) * now + share * state.embedding[row, i]
            state.embedding[row, i] = now
    b.x[:] = b.x0
    b.prev_stream[:] = b.x0


@compiled
def _enter(w, layer, b):
    """The skip that joins before the layer; then x_in, the mix that its sublayers add to."""
    skip, source, block = w.skip[layer], w.source[layer], w.block[layer]
    if w.lanes[layer] and (layer == 0 or not w.lanes[layer - 1]):
        b.lane[:] = b.x
    for row in range(b.x.shape[0]):
        if skip >= 0 and w.skip_gates.shape[0]:
            for i in range(b.x.shape[1]):
                joins = w.skips[skip, i] * b.pushed[source, row, i]
                b.x[row, i] = joins + w.skip_gates[skip, i] * (b.x[row, i] - joins)
        elif skip >= 0:
            for i in range(b.x.shape[1]):
                b.x[row, i] += w.skips[skip, i] * b.pushed[source, row, i]
        for i in range(b.x.shape[1]):
            mixed = w.mix[block, 0, i] * b.x[row, i] + w.mix[block, 1, i] * b.x0[row, i]
            b.x_in[row, i] = mixed + w.hyper[block] * b.prev_stream[row, i]
            b.prev_stream[row, i] = b.x[row, i]


@compiled
def _attention(w, state, a, layer, tokens, at, b):
    """Attention of `normed`, before W_o: y."""
    cached, place, shared = w.cached[layer], w.place[layer], state.keys.shape[2]
    batch, heads, size = b.y.shape
    group, queries, keyed = heads // shared, heads * size, (heads + shared) * size
    flat = b.qkv.reshape(batch, (heads + 2 * shared) * size)
    times(b.normed, w.qkv[w.slot[layer]], flat)
    _adapt(b.normed, a.q_in, a.q_out, layer, at, b.low, flat[:, :queries])
    _adapt(b.normed, a.k_in, a.k_out, layer, at, b.low, flat[:, queries:keyed])
    _adapt(b.normed, a.v_in, a.v_out, layer, at, b.low, flat[:, keyed:])
    for n in range(batch):
        row, t, first = at.row[n], at.position[n], at.first[n]
        if w.extra_scale[layer] != 0:
            for g in range(shared):
                for j in range(size):
                    value = w.extra_scale[layer] * w.extra[tokens[n], g * size + j]
                    b.qkv[n, heads + shared + g, j] += value
        keys, values = state.keys[cached, row], state.values[cached, row]
        _place(w, layer, t, b.first_values[n], b.qkv[n], keys, values)
        for g in range(shared):
            mine = slice(g * group, (g + 1) * group)
            _attend(b.qkv[n, mine], keys[g], values[g], first, t, w.xsa[layer], b.scores, b.weights, b.work, b.y[n, mine])
    if w.gate.shape[0]:
        times(b.normed, w.gate[place], b.gates)
        for n in range(batch):
            for head in range(heads):
                b.weights[head] = b.gates[n, head] + w.gate_bias[place, head]
            _sigmoid(b.weights[:heads], b.work)
            for head in range(heads):
                for j in range(size):
                    b.y[n, head, j] *= np.float32(b.weights[head])


@compiled
def _mlp(w, a, layer, at, b):
    """The MLP of `normed`: added."""
    slot = w.slot[layer]
    times(b.normed, w.up[slot], b.hidden)
    _adapt(b.normed, a.up_in, a.up_out, layer, at, b.low, b.hidden)
    for row in range(b.hidden.shape[0]):
        for i in range(b.hidden.shape[1]):
            h = max(b.hidden[row, i], np.float32(0)) + w.slope * min(b.hidden[row, i], np.float32(0))
            b.hidden[row, i] = h * h
    times(b.hidden, w.down[slot], b.added)
    _adapt(b.hidden, a.down_in, a.down_out, layer, at, b.low, b.added)
    _adapt(b.normed, a.mlp_side_in, a.mlp_side_out, layer, at, b.low, b.added)


@compiled
def _add(scale, x, added, y):
    """y = x + scale * added, channel by channel."""
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            y[row, i] = x[row, i] + scale[i] * added[row, i]


@compiled
def _into_lanes(w, a, layer, at, b):
    """The MLP of the second lane; then both sublayers' outputs into both lanes. Attention's is in `added`."""
    place, keeps, adds = w.place[layer], w.keeps[w.physical[layer]], w.adds[w.physical[layer]]
    for row in range(b.x.shape[0]):
        for i in range(b.x.shape[1]):
            b.written[row, i] = w.attn_scale[place, i] * b.added[row, i]
    _norm(b.lane, w.scale[layer], b.normed)
    _mlp(w, a, layer, at, b)
    for row in range(b.x.shape[0]):
        for i in range(b.x.shape[1]):
            attention, mlp = b.written[row, i], w.mlp_scale[place, i] * b.added[row, i]
            b.x[row, i] = keeps[0] * b.x[row, i] + adds[0, 0] * attention + adds[1, 0] * mlp
            b.lane[row, i] = keeps[1] * b.lane[row, i] + adds[0, 1] * attention + adds[1, 1] * mlp


@compiled
def _attention_layer(w, state, a, layer, tokens, at, b):
    slot, place = w.slot[layer], w.place[layer]
    batch, heads, size = b.y.shape
    y = b.y.reshape(batch, heads * size)
    _attention(w, state, a, layer, tokens, at, b)
    times(y, w.o[slot], b.added)
    _adapt(y, a.o_in, a.o_out, layer, at, b.low, b.added)
    _adapt(b.normed, a.attn_side_in, a.attn_side_out, layer, at, b.low, b.added)
    if w.lanes[layer]:
        _into_lanes(w, a, layer, at, b)
        return
    _add(w.attn_scale[place], b.x_in, b.added, b.x)
    _norm(b.x, w.scale[layer], b.normed)
    _mlp(w, a, layer, at, b)
    _add(w.mlp_scale[place], b.x, b.added, b.x)


@compiled
def _mamba_layer(w, state, layer, at, b):
    slot, place, cached = w.slot[layer], w.place[layer], w.cached[layer]
    times(b.normed, w.mixer_in[slot], b.entering)
    for n in range(b.x.shape[0]):
        row, t = at.row[n], at.position[n]
        if t == 0:
            state.scanned[cached, row] = 0
        _scan(
            w, place, t, b.normed[n], b.entering[n], state.scanned[cached, row], state.window[cached, row],
            b.weights, b.work, b.scanned[n],
        )  # fmt: skip
    times(b.scanned, w.mixer_out[slot], b.added)
    _add(w.mixer_scale[place], b.x_in, b.added, b.x)


@compiled
def _leave(w, layer, b):
    """The dynamic token gate on what the layer has added; and the push for a later layer's skip."""
    if w.leave.shape[0]:
        block = w.block[layer]
        for row in range(b.x.shape[0]):
            b.weights[0] = _dot(w.leave[block], b.x_in[row]) + w.leave_bias[block]
            _sigmoid(b.weights[:1], b.work)
            for i in range(b.x.shape[1]):
                b.x[row, i] = b.x_in[row, i] + np.float32(b.weights[0]) * (b.x[row, i] - b.x_in[row, i])
    if w.pushes[layer]:
        b.pushed[layer] = b.x


@compiled
def _logits(w, a, at, b, last, logits):
    """Of the tokens `last` (M,): softcap tanh(z / softcap) = softcap (1 - 2 / (e^(2 z / softcap) + 1)) for z = norm(x) W, x
    the mean of two lanes where there are two."""
    if w.lanes[-1]:
        for row in range(b.x.shape[0]):
            for i in range(b.x.shape[1]):
                b.x[row, i] = (b.x[row, i] + b.lane[row, i]) / 2
    rows = np.empty((last.shape[0], b.x.shape[1]), np.float32)
    for n in range(last.shape[0]):
        rows[n] = b.x[last[n]]
    _norm(rows, 1.0, rows)
    times(rows, w.head, logits)
    _adapt(rows, a.head_in, a.head_out, 0, Places(at.row[last], at.position[last], at.first[last]), b.low, logits)
    vocabulary = logits.shape[1]
    for row in range(logits.shape[0]):
        for i in range(vocabulary):
            b.weights[i] = 2 * logits[row, i] / w.softcap
        _exp(b.weights[:vocabulary], b.work)
        for i in range(vocabulary):
            logits[row, i] = w.softcap * (1 - 2 / (b.weights[i] + 1))


@compiled
def advance(w, state, a, tokens, at, last, logits):
    """A step for each of the tokens (N,); the logits (M, V) after those of the places `last` (M,) among them."""
    for n in range(tokens.shape[0]):
        if not 0 <= tokens[n] < w.tokens.shape[0]:
            raise ValueError("decoder: a token is outside the vocabulary")
    b = _buffers(w, state, a, tokens.shape[0])
    _embed(w, state, tokens, at, b)
    for layer in range(w.scale.shape[0]):
        _enter(w, layer, b)
        _norm(b.x_in, w.scale[layer], b.normed)
        if w.mamba[layer]:
            _mamba_layer(w, state, layer, at, b)
        else:
            _attention_layer(w, state, a, layer, tokens, at, b)
        _leave(w, layer, b)
    _logits(w, a, at, b, last, logits)


@compiled
def embed_only(w, state, a, tokens, at):
    """What later tokens need of the embeddings of these, whose keys and values are set from elsewhere."""
    _embed(w, state, tokens, at, _buffers(w, state, a, tokens.shape[0]))
