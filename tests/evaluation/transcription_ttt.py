"""The submissions' chunked test-time training once more, from their formulas, on per-layer named weights.

Shares no code with the package: the choice of what learns, both optimisers, the clip and the averages are written out here in
plain torch, for one process that sees every rank's sequences; the network is that of tests.transcription.
"""

import math
from itertools import pairwise

import torch

from tests.transcription import forward


def six_bits(weight):
    """Straight through: rounded where it is used, the gradient as if it were not."""
    scale = (weight.detach().abs().amax(1, keepdim=True) / 31).clamp_min(1 / 31)
    rounded = (weight.detach() / scale).round().clamp(-32, 31) * scale
    return weight + (rounded - weight).detach()


def untied(w, order):
    """Repeated layers get copies of the matrices; `order` has the physical layer of each executed one."""
    free = {name: tensor for name, tensor in w.items() if not name.endswith(tuple(SUFFIXES))}
    for executed, layer in enumerate(order):
        for suffix in SUFFIXES:
            free[f"blocks.{executed}.{suffix}"] = w[f"blocks.{layer}.{suffix}"].clone()
    return free


SUFFIXES = ["attn.c_q.weight", "attn.c_k.weight", "attn.c_v.weight", "attn.proj.weight", "mlp.fc.weight", "mlp.proj.weight"]


def chosen(names, submission, layers):
    """What the submission trains: all, or by the substrings its script looks for."""
    last = {"pr688": 2, "pr953": 1}.get(submission)
    if last is None:
        return set(names)
    wanted = [f"blocks.{i}." for i in range(layers - last, layers)] + ["norm", "scale", "lm_head"]
    return {name for name in names if any(part in name for part in wanted)}


def multiplier(name, submission):
    if submission == "pr1014":
        # its groups look for names of another network; of its own banks and tables, only these two are found
        return 0.5 if any(part in name for part in ("c_fc", "wte", "embed")) else 1.0
    if submission != "pr953":
        return 1.0
    if ".mlp.proj." in name or ".attn.proj." in name:
        return 3.0
    return 0.5 if ".mlp.fc." in name else 1.0


RECIPES = {
    "pr549": {"epochs": 3, "rule": "sgd", "lr": 0.002, "momentum": 0.9},
    "pr688": {"epochs": 3, "rule": "adamw", "lr": 1e-4, "adaptive": True, "bytes": True, "polyak": 0.998},
    "pr745": {"epochs": 1, "rule": "sgd", "lr": 0.002, "momentum": 0.9},
    "pr953": {"epochs": 4, "rule": "adamw", "lr": 5e-4, "adaptive": True, "bytes": True, "polyak": 0.998},
    "pr1014": {"epochs": 4, "rule": "sgd", "lr": 0.002, "momentum": 0.95, "in place": 0.998},
}


def adapt(w, chunks, submission, facts, *, length, total, nbytes, ranks=1, batch=32):
    """The weights after the given chunks (lists of tokens, each beginning with the token before its first target) of
    `total`, and the average that would score next (None where there is none)."""
    recipe = RECIPES[submission]
    w = {name: tensor.detach().clone() for name, tensor in w.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in w if name.endswith("mlp_scale"))
    names = sorted(chosen(w, submission, layers))
    for name in names:
        w[name].requires_grad_(True)
    state = {name: [torch.zeros_like(w[name]), torch.zeros_like(w[name])] for name in names}
    shadow = {name: w[name].detach().clone() for name in names} if "polyak" in recipe else None
    slow = None
    count = 0
    for i, chunk in enumerate(chunks):
        rate = recipe["lr"] * 0.5 * (1 + math.cos(math.pi * i / (total - 1)))
        if recipe.get("adaptive"):
            rate *= 1 + 2 * min(i / (0.3 * total), 1)
        sequences = [chunk[s * length : (s + 1) * length + 1] for s in range((len(chunk) - 1) // length)]
        shares = [sequences[len(sequences) * r // ranks : len(sequences) * (r + 1) // ranks] for r in range(ranks)]
        for _ in range(recipe["epochs"]):
            for at in range(0, max(map(len, shares)), batch):
                sums = {name: torch.zeros_like(w[name]) for name in names}
                present = [share[at : at + batch] for share in shares if share[at : at + batch]]
                for rows in present:
                    tokens = torch.tensor(rows)
                    logp = forward(w, tokens[:, :-1], facts).log_softmax(-1)
                    loss = -logp.gather(-1, tokens[:, 1:, None])[..., 0]
                    if recipe.get("bytes"):
                        weight = torch.tensor([[float(nbytes(a, b)) for a, b in pairwise(row)] for row in rows])
                        loss = (weight * loss).sum() / weight.sum()
                    else:
                        loss = loss.mean()
                    gradients = torch.autograd.grad(loss, [w[name] for name in names], allow_unused=True)
                    for name, gradient in zip(names, gradients, strict=True):
                        if gradient is not None:
                            sums[name] += gradient / len(present)
                size = math.sqrt(sum(float((g.double() ** 2).sum()) for g in sums.values()))
                shrink = min(1.0, 1.0 / (size + 1e-6))
                count += 1
                with torch.no_grad():
                    for name in names:
                        g, lr = sums[name] * shrink, rate * multiplier(name, submission)
                        if recipe["rule"] == "sgd":
                            state[name][0] = g if count == 1 else recipe["momentum"] * state[name][0] + g
                            w[name] -= lr * state[name][0]
                        else:
                            m, v = state[name]
                            state[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                            w[name] -= lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8)
                        if shadow is not None:
                            shadow[name] = recipe["polyak"] * shadow[name] + (1 - recipe["polyak"]) * w[name]
        if "in place" in recipe:
            with torch.no_grad():
                now = {name: w[name].clone() for name in names}
                decay = recipe["in place"]
                slow = now if slow is None else {n: decay * slow[n] + (1 - decay) * now[n] for n in names}
                for name in names:
                    w[name].copy_(slow[name])
    averaged = None if shadow is None else {**{n: t.detach() for n, t in w.items()}, **shadow}
    return {name: tensor.detach() for name, tensor in w.items()}, averaged
