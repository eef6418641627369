"""The submissions' network once more, in float64 and plain torch, straight from a state dict with their names.

Written from the formulas alone, for comparison: it shares no code with the package, loops over layers and heads where a
loop is the shortest way to say it, and finds out from the names which parts a network has.
"""

import math

import torch


def matrices(state, layer):
    """(q, k, v, o, up, down) of a physical layer, from banks or from per-layer names."""
    if "qo_bank" in state:
        n = state["mlp_up_bank"].shape[0]
        qo, kv = state["qo_bank"], state["kv_bank"]
        return qo[layer], kv[layer], kv[n + layer], qo[n + layer], state["mlp_up_bank"][layer], state["mlp_down_bank"][layer]
    b = f"blocks.{layer}."
    names = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    return tuple(state[f"{b}{name}.weight"] for name in names)


def norm(x, eps):
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def turn(x, base, dims):
    """x (T, d), its first `dims` dimensions turned by position; dimension j goes with dimension j + dims / 2."""
    length, half = x.shape[0], dims // 2
    result = x.clone()
    for j in range(half):
        angle = torch.arange(length, dtype=torch.float64) * base ** (-2 * j / dims)
        a, b = x[:, j], x[:, j + half]
        result[:, j] = a * torch.cos(angle) + b * torch.sin(angle)
        result[:, j + half] = b * torch.cos(angle) - a * torch.sin(angle)
    return result


def wrap32(number):
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def logits(
    state,
    tokens,
    *,
    heads=8,
    kv_heads=4,
    order=None,
    xsa_from=7,
    value_layers=(9, 10),
    rotary_dims=16,
    base=10_000.0,
    reference_length=1024,
    slope=0.5,
    softcap=30.0,
    layer_scale=True,
    unet=True,
    hyper_last=0,
    eps=2**-23,
):
    """Softcapped logits (T, V), float64, of one sequence: a list of token numbers.

    order: the physical layer behind each executed one. eps: that of the precision of the network compared with.
    """
    state = {name: tensor.double() for name, tensor in state.items()}
    length = len(tokens)
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    order = list(range(layers)) if order is None else order
    width = state["tok_emb.weight"].shape[1]
    size = width // heads
    if length > reference_length:
        base = base * (length / reference_length) ** (rotary_dims / (rotary_dims - 2))

    x = state["tok_emb.weight"][tokens]
    if "bigram.scale" in state:
        table = state["bigram.embed.weight"]
        count = table.shape[0]
        rows = [count - 1]
        for t in range(1, length):
            rows.append((wrap32(36313 * tokens[t]) ^ wrap32(27191 * tokens[t - 1])) % (count - 1))
        x = x + state["bigram.scale"] * (table[rows] @ state["bigram.proj.weight"].T)
    x = norm(x, eps)
    if "smear.gate" in state:
        g = 1 / (1 + torch.exp(-state["smear.gate"]))
        before = torch.zeros_like(x)
        before[1:] = x[:-1]
        x = (1 - g) * x + g * before
    x0 = x

    encoders = len(order) // 2 if unet else 0
    stack = []
    entered_before = x0
    first_v = None
    for i, physical in enumerate(order):
        own = f"blocks.{i}."
        q_w, k_w, v_w, o_w, up_w, down_w = matrices(state, physical)
        if i >= encoders and stack:
            x = x + state["skip_weights"][i - encoders] * stack.pop()
        entered = x
        if own + "resid_mix" in state:
            m = state[own + "resid_mix"]
            x = m[0] * x + m[1] * x0
        if i >= len(order) - hyper_last:
            w = state[own + "hyper"]
            x = w[0] * x + w[2] * entered_before
        entered_before = entered
        x_in = x
        c = 1 / math.sqrt(i + 1) if layer_scale else 1.0

        u = c * norm(x_in, eps)
        q, k, v = u @ q_w.T, u @ k_w.T, u @ v_w.T
        if i in value_layers:
            shared = state["ve_shared.scale"] * (state["ve_shared.embed.weight"][tokens] @ state["ve_shared.proj.weight"].T)
            v = v + state[f"ve_layer_scales.{list(value_layers).index(i)}"] * shared
        if own + "attn.vr_lambda" in state:
            if i == 0:
                first_v = v
            else:
                l0, l1 = state[own + "attn.vr_lambda"]
                v = l0 * first_v + l1 * v
        columns = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            qh = turn(norm(q[:, h * size : (h + 1) * size], eps), base, rotary_dims) * state[own + "attn.q_gain"][h]
            kg = turn(norm(k[:, g * size : (g + 1) * size], eps), base, rotary_dims)
            vg = v[:, g * size : (g + 1) * size]
            scores = qh @ kg.T / math.sqrt(size)
            scores = scores + torch.full_like(scores, -math.inf).triu(1)
            y = torch.softmax(scores, dim=-1) @ vg
            if i >= xsa_from:
                unit = vg / vg.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                y = y - (y * unit).sum(dim=-1, keepdim=True) * unit
            if own + "attn.attn_gate.weight" in state:
                z = u @ state[own + "attn.attn_gate.weight"][h] + state[own + "attn.attn_gate.bias"][h]
                y = y * (1 / (1 + torch.exp(-z)))[:, None]
            columns.append(y)
        x = x_in + state[own + "attn_scale"] * (torch.cat(columns, dim=-1) @ o_w.T)

        z = (c * norm(x, eps)) @ up_w.T
        h = torch.where(z > 0, z, slope * z)
        x = x + state[own + "mlp_scale"] * ((h * h) @ down_w.T)
        if own + "dtg_gate.weight" in state:
            g = 1 / (1 + torch.exp(-(x_in.detach() @ state[own + "dtg_gate.weight"].T + state[own + "dtg_gate.bias"])))
            x = x_in + g * (x - x_in)
        if i < encoders:
            stack.append(x)

    head = state["lm_head.weight"] if "lm_head.weight" in state else state["tok_emb.weight"]
    return softcap * torch.tanh(norm(x, eps) @ head.T / softcap)
