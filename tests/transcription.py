"""The submissions' network once more, in plain torch, straight from a state dict with their per-layer or banked names.

Written from the formulas alone, for comparison: it shares no code with the package, and finds out from the names which parts
a network has. What the names do not say is in `facts`, as tests.model.common.facts gives it; project, where it is there,
is applied to the projections of bigram and value embeddings. Everything stays in the dtype of the weights; gradients flow.
"""

import math

import torch


def logits(state, tokens, facts=None, eps=2**-23):
    """Softcapped logits (T, V), float64, of one sequence: a list of token numbers. eps: that of the network's precision."""
    state = {name: tensor.double() for name, tensor in state.items()}
    return forward(state, torch.tensor([tokens]), SEEDS | (facts or {}) | {"eps": eps})[0]


# the submissions' own, where a test does not say another
SEEDS = {
    "heads": 8, "kv_heads": 4, "order": list(range(11)), "xsa_from": 7, "value_layers": (9, 10), "rotary_dims": 16,
    "base": 10_000.0, "reference_length": 1024, "slope": 0.5, "softcap": 30.0, "layer_scale": True, "unet": True,
    "hyper_from": 99, "loops": False, "lanes_from": 0, "gate_scale": 1.0, "bos": 1, "document_bos": -1,
}  # fmt: skip


def per_layer(state):
    """Slices of banks under their layers' names."""
    if "qo_bank" not in state:
        return state
    n = state["mlp_up_bank"].shape[0]
    rest = {name: tensor for name, tensor in state.items() if not name.endswith("_bank")}
    for layer in range(n):
        own = f"blocks.{layer}."
        rest[own + "attn.c_q.weight"], rest[own + "attn.proj.weight"] = state["qo_bank"][layer], state["qo_bank"][n + layer]
        rest[own + "attn.c_k.weight"], rest[own + "attn.c_v.weight"] = state["kv_bank"][layer], state["kv_bank"][n + layer]
        rest[own + "mlp.fc.weight"], rest[own + "mlp.proj.weight"] = state["mlp_up_bank"][layer], state["mlp_down_bank"][layer]
    return rest


def wrap32(number):
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def bigram_rows(tokens, count):
    rows = torch.full_like(tokens, count - 1)
    for row, own in zip(rows, tokens.tolist(), strict=True):
        for t in range(1, len(own)):
            row[t] = (wrap32(36313 * own[t]) ^ wrap32(27191 * own[t - 1])) % (count - 1)
    return rows


def norm(x, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def turn(x, base, dims, first):
    """x (B, T, H, d), its first `dims` dimensions turned by position; dimension j goes with dimension j + dims / 2."""
    half = dims // 2
    result = x.clone()
    for j in range(half):
        angle = torch.arange(first, first + x.shape[1], dtype=torch.float64) * base ** (-2 * j / dims)
        cos, sin = torch.cos(angle).to(x.dtype)[:, None], torch.sin(angle).to(x.dtype)[:, None]
        a, b = x[..., j], x[..., j + half]
        result[..., j] = a * cos + b * sin
        result[..., j + half] = b * cos - a * sin
    return result


def mixer(w, own, n):
    """The state-space sublayer: n (B, T, D) -> (B, T, D), one head and one token after the other."""
    rows, length = n.shape[:2]
    raw, gate = (n @ w[own + "mixer.in_proj.weight"].T).chunk(2, -1)
    taps, bias = w[own + "mixer.conv1d.weight"], w[own + "mixer.conv1d.bias"]
    value = []
    for t in range(length):
        total = bias.expand(rows, -1)
        for back in range(min(taps.shape[2], t + 1)):
            total = total + taps[:, 0, taps.shape[2] - 1 - back] * raw[:, t - back]
        value.append(total)
    value = torch.stack(value, 1)
    value = value * sigmoid(value)
    enter, leave = n @ w[own + "mixer.B_proj.weight"].T, n @ w[own + "mixer.C_proj.weight"].T
    raw_dt = w[own + "mixer.dt_bias"].expand(rows, length, -1)
    if own + "mixer.dt_proj.weight" in w:
        raw_dt = raw_dt + n @ w[own + "mixer.dt_proj.weight"].T
    heads = len(w[own + "mixer.A_log"])
    size, width = enter.shape[-1] // heads, value.shape[-1] // heads
    columns = []
    for h in range(heads):
        v = value[..., h * width : (h + 1) * width]
        b, c = enter[..., h * size : (h + 1) * size], leave[..., h * size : (h + 1) * size]
        dt = torch.log1p(torch.exp(raw_dt[..., h]))
        decay = torch.exp(-torch.exp(w[own + "mixer.A_log"][h]) * dt)
        memory = torch.zeros(rows, size, width, dtype=n.dtype)
        outputs = []
        for t in range(length):
            memory = decay[:, t, None, None] * memory + dt[:, t, None, None] * b[:, t, :, None] * v[:, t, None]
            outputs.append((c[:, t, :, None] * memory).sum(1) + w[own + "mixer.D_param"][h] * v[:, t])
        columns.append(torch.stack(outputs, 1))
    return (torch.cat(columns, -1) * gate * sigmoid(gate)) @ w[own + "mixer.out_proj.weight"].T


def forward(state, tokens, facts, fresh=0, past=None, seen=None):
    """Softcapped logits (B, T, V) of tokens (B, T).

    fresh   positions before this one are not computed, but what attention sees of them is in `past`, for each block
    seen    a dict that takes each block's keys and values
    """
    w = per_layer(state)
    rows, length = tokens.shape
    new = length - fresh
    heads, groups, order, dims = facts["heads"], facts["kv_heads"], facts["order"], facts["rotary_dims"]
    width = w["tok_emb.weight"].shape[1]
    size = width // heads
    eps = facts.get("eps", torch.finfo(w["tok_emb.weight"].dtype).eps)
    project = facts.get("project", lambda weight: weight)
    base = facts["base"]
    if length > facts["reference_length"]:
        base = base * (length / facts["reference_length"]) ** (dims / (dims - 2))

    x = w["tok_emb.weight"][tokens]
    if "smear_lambda" in w:
        raw, inputs = x, w["smear_gate.weight"].shape[1]
        for t in range(1, length):
            share = w["smear_lambda"] * sigmoid(raw[:, t, :inputs] @ w["smear_gate.weight"][0])[:, None]
            share = torch.where(tokens[:, t, None] == facts["bos"], torch.zeros_like(share), share)
            x = torch.cat([x[:, :t], (raw[:, t] + share * raw[:, t - 1])[:, None], x[:, t + 1 :]], 1)
    if "bigram.scale" in w:
        table = w["bigram.embed.weight"]
        x = x + w["bigram.scale"] * (table[bigram_rows(tokens, len(table))] @ project(w["bigram.proj.weight"]).T)
    x = norm(x, eps)
    if "smear.gate" in w:
        g = sigmoid(w["smear.gate"])
        x = (1 - g) * x + g * torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    x = x0 = entered_before = x[:, fresh:]
    if facts["value_layers"]:
        shared = w["ve_shared.embed.weight"][tokens] @ project(w["ve_shared.proj.weight"]).T
        shared = (w["ve_shared.scale"] * shared)[:, fresh:]

    before = 0 if past is None else past[0][0].shape[1]
    future = torch.ones(new, before + new, dtype=torch.bool).triu(1 + before)
    future = future.expand(rows, 1, new, before + new).clone()
    if facts.get("document_bos", -1) >= 0:
        for row in range(rows):
            for t in range(1, length):
                if tokens[row, t] == facts["document_bos"]:
                    future[row, :, t:, :t] = True
    encoders = len(order) // 2 if facts["unet"] else 0
    stack, first_v, lane = [], None, None
    for i, physical in enumerate(order):
        # passes of a loop share what belongs to a layer, those of a recurrence only its matrices
        own_number = physical if facts["loops"] else i
        b, m = f"blocks.{own_number}.", f"blocks.{physical}."
        if lane is None and 0 < facts["lanes_from"] <= physical:
            lane = x
        if i >= encoders and stack:
            skip = w["skip_weights"][i - encoders] * stack.pop()
            x = skip + sigmoid(w["skip_gates"][i - encoders]) * (x - skip) if "skip_gates" in w else x + skip
        entered = x
        if b + "resid_mix" in w:
            x = w[b + "resid_mix"][0] * x + w[b + "resid_mix"][1] * x0
        if own_number >= facts["hyper_from"]:
            x = w[b + "hyper"][0] * x + w[b + "hyper"][2] * entered_before
        entered_before, x_in = entered, x
        c = 1 / math.sqrt(own_number + 1) if facts["layer_scale"] else 1.0
        u = c * norm(x_in, eps)
        if b + "mixer_scale" in w:
            x = x_in + w[b + "mixer_scale"] * mixer(w, m, u)
        else:
            q = (u @ w[m + "attn.c_q.weight"].T).view(rows, new, heads, size)
            k = (u @ w[m + "attn.c_k.weight"].T).view(rows, new, groups, size)
            v = u @ w[m + "attn.c_v.weight"].T
            if own_number in facts["value_layers"]:
                v = v + w[f"ve_layer_scales.{list(facts['value_layers']).index(own_number)}"] * shared
            v = v.view(rows, new, groups, size)
            if b + "attn.vr_lambda" in w:
                if i == 0:
                    first_v = v
                else:
                    v = w[b + "attn.vr_lambda"][0] * first_v + w[b + "attn.vr_lambda"][1] * v
            q = turn(norm(q, eps), base, dims, fresh) * w[b + "attn.q_gain"][:, None]
            k, own = turn(norm(k, eps), base, dims, fresh), v.repeat_interleave(heads // groups, 2)
            if seen is not None:
                seen[i] = k.detach(), v.detach()
            if past is not None:
                k, v = torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1)
            k, v = k.repeat_interleave(heads // groups, 2), v.repeat_interleave(heads // groups, 2)
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(size)
            y = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(future, -math.inf).softmax(-1), v)
            if own_number >= facts["xsa_from"]:
                unit = own / own.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                y = y - (y * unit).sum(-1, keepdim=True) * unit
            if b + "attn.attn_gate.weight" in w:
                y = y * sigmoid(u @ w[b + "attn.attn_gate.weight"].T + w[b + "attn.attn_gate.bias"])[..., None]
            if b + "attn.attn_gate_w" in w:
                some = u[..., : w[b + "attn.attn_gate_w"].shape[1]]
                y = y * sigmoid(facts["gate_scale"] * (some @ w[b + "attn.attn_gate_w"].T))[..., None]
            attended = w[b + "attn_scale"] * (y.reshape(rows, new, width) @ w[m + "attn.proj.weight"].T)
            read = x_in + attended if lane is None else lane
            h = c * norm(read, eps) @ w[m + "mlp.fc.weight"].T
            h = torch.where(h > 0, h, facts["slope"] * h)
            added = w[b + "mlp_scale"] * ((h * h) @ w[m + "mlp.proj.weight"].T)
            if lane is None:
                x = read + added
            else:
                (r_a, r_b), ((p_aa, p_ab), (p_ma, p_mb)) = (
                    w["parallel_resid_lambdas"][physical], w["parallel_post_lambdas"][physical]
                )  # fmt: skip
                x, lane = r_a * entered + p_aa * attended + p_ma * added, r_b * lane + p_ab * attended + p_mb * added
        if b + "dtg_gate.weight" in w:
            g = sigmoid(x_in.detach() @ w[b + "dtg_gate.weight"].T + w[b + "dtg_gate.bias"])
            x = x_in + g * (x - x_in)
        if i < encoders:
            stack.append(x)
    if lane is not None:
        x = (x + lane) / 2
    head = w.get("lm_head.weight", w["tok_emb.weight"])
    return facts["softcap"] * torch.tanh(norm(x, eps) @ head.T / facts["softcap"])
