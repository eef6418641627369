"""The mixer's operators: statistics of the neural distribution, launch choice, launchers, registration and autograd."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from pgolf.kernels.hedge import reference

MOST_CANDIDATES = 16


class NeuralStatistics(NamedTuple):
    """What a mixer needs of softmax(logits / temperature), per token; float64 on a CPU, float32 on a GPU."""

    lse: torch.Tensor
    entropy: torch.Tensor
    target: torch.Tensor
    candidates: torch.Tensor


def neural_statistics(
    logits: torch.Tensor,
    targets: torch.Tensor,
    candidates: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
) -> NeuralStatistics:
    """One sweep over the logits: all that mixers ask of the neural distribution p = softmax(z), z = logits / temperature.

        lse = log sum_v exp z_v      entropy = -sum_v p_v log p_v
        target = log p[targets]      candidates = log p[candidates], -inf where a candidate is absent (-1)

    logits       (..., V), any softcap already applied; bfloat16, float16, float32 or float64
    targets      (...), integer, each in 0..V-1
    candidates   (..., K), integer, each in -1..V-1, K <= 16; None for none
    temperature  a positive number, or a tensor with one number, or with one for each token (...)
    returns      tensors shaped (...), (...), (...), (..., K): float64 on a CPU, float32 on a GPU

    Gradients flow to logits and to a temperature tensor. Saved for backward: the inputs, lse and entropy; backward
    reads the logits once more. An id outside the vocabulary raises on a CPU; on a GPU, which cannot wait to say so,
    its log-probability is NaN.

    N tokens, e bytes a logit: forward moves N (V e + 12 K + 20) bytes and computes 6 N V FLOPs, one exponential a
    logit among them; backward moves N (2 V e + 8 K + 28) bytes, 12 N V FLOPs.
    """
    if not logits.is_floating_point() or logits.dim() < 1:
        raise ValueError(
            f"neural_statistics: logits are {logits.dtype} {tuple(logits.shape)}; they must be floating point, (..., V)"
        )
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    if candidates is None:
        candidates = targets.new_empty((*targets.shape, 0), dtype=torch.int32)
    for name, ids, shape in (("targets", targets, targets.shape), ("candidates", candidates, candidates.shape[:-1])):
        if shape != batch or ids.is_floating_point():
            raise ValueError(
                f"neural_statistics: logits {tuple(logits.shape)} want integer {name} for each of {tuple(batch)}, "
                f"not {ids.dtype} {tuple(ids.shape)}"
            )
    if candidates.shape[-1] > MOST_CANDIDATES:
        raise ValueError(f"neural_statistics: {candidates.shape[-1]} candidates a token; at most {MOST_CANDIDATES} fit")
    exact = exact_dtype(logits.device)
    if not torch.is_tensor(temperature):
        if not temperature > 0:
            raise ValueError(f"neural_statistics: temperature is {temperature}; it must be positive")
        temperature = torch.full((1,), float(temperature), dtype=exact, device=logits.device)
    elif temperature.numel() != 1 and temperature.shape != batch:
        raise ValueError(
            f"neural_statistics: temperature {tuple(temperature.shape)} must hold one number, or one for each of {tuple(batch)}"
        )
    count = targets.numel()
    found = torch.ops.pgolf.hedge_statistics(
        logits.reshape(count, vocabulary),
        targets.reshape(count),
        candidates.reshape(count, candidates.shape[-1]),
        temperature.to(exact).reshape(-1),
    )
    return NeuralStatistics(*(x.reshape(batch) for x in found[:3]), found[3].reshape(candidates.shape))


def exact_dtype(device) -> torch.dtype:
    """The precision of probabilities: float64 where it is cheap."""
    return torch.float64 if torch.device(device).type == "cpu" else torch.float32


# ---- on a CPU

# Logits of one group of rows: small enough that the sweep for their peaks leaves them in the cache.
CACHED_ELEMENTS = 131_072


def in_parallel(work, parts):
    """Run work(part) for each part; the interpreter's lock is free while numba computes."""
    parts = list(parts)
    workers = min(len(parts), torch.get_num_threads(), os.cpu_count() or 1)
    if workers <= 1:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, parts))


def within(ids, least, most, what):
    """Refuse ids that would be read outside their table."""
    if ids.numel():
        low, high = (int(x) for x in ids.aminmax())
        if low < least or high > most:
            raise ValueError(f"{what} reach from {low} to {high}; they must lie in {least}..{most}")


def statistics_cpu(logits, targets, candidates, temperature):
    from pgolf.kernels.hedge import cpu

    count, vocabulary = logits.shape
    within(targets, 0, vocabulary - 1, "neural_statistics: targets")
    within(candidates, -1, vocabulary - 1, "neural_statistics: candidates")
    lse, entropy, target = (torch.empty(count, dtype=torch.float64) for _ in range(3))
    picked = torch.empty(candidates.shape, dtype=torch.float64)
    targets, candidates = targets.int().contiguous(), candidates.int().contiguous()
    step = max(1, CACHED_ELEMENTS // max(1, vocabulary))
    share = max(step, -(-count // torch.get_num_threads()))

    def sweep(first):
        for begin in range(first, min(first + share, count), step):
            here = slice(begin, min(begin + step, first + share, count))
            rows = logits[here].contiguous()
            rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
            own = temperature[here] if len(temperature) > 1 else temperature
            arrays = (rows, rows.amax(1), targets[here], candidates[here], own.contiguous())
            outputs = (lse[here], entropy[here], target[here], picked[here])
            cpu.statistics(*(x.detach().numpy() for x in arrays + outputs))

    in_parallel(sweep, range(0, count, share))
    return lse, entropy, target, picked


def statistics_backward_cpu(logits, targets, candidates, temperature, lse, entropy, *upstream):
    d_logits = logits.new_empty(logits.shape)
    d_rows = torch.empty_like(lse)
    step = max(1, CACHED_ELEMENTS // max(1, logits.shape[1]))
    for begin in range(0, len(logits), step):
        here = slice(begin, begin + step)
        own = temperature[here] if len(temperature) > 1 else temperature
        d_logits[here], d_rows[here] = reference.statistics_backward_reference(
            logits[here], targets[here], candidates[here], own, lse[here], entropy[here], *(x[here] for x in upstream)
        )
    return d_logits, d_rows


def five_cpu(
    neural, entropy, inputs, targets, valid, unigram, bigram, bigram_total, trigram, trigram_total, log_weights, tokens
):
    from pgolf.kernels.hedge import cpu

    within(inputs, 0, len(unigram) - 1, "FiveExperts: inputs")
    within(targets, 0, len(unigram) - 1, "FiveExperts: targets")
    nll, sums = neural.new_empty(neural.shape), torch.zeros(5, dtype=torch.float64)
    experts = neural.new_empty((5, *neural.shape))
    scored = (neural, entropy, inputs.int(), targets.int(), valid)
    tables = (unigram, bigram, bigram_total, trigram, trigram_total)
    weights = log_weights.double().softmax(0).numpy()
    cpu.five(
        *(x.contiguous().numpy() for x in scored), *(x.numpy() for x in tables), weights, float(tokens),
        reference.SMOOTHING, reference.TRIGRAM_SMOOTHING, nll.numpy(), experts.numpy(), sums.numpy(),
    )  # fmt: skip
    return nll, experts, sums


def five_ngrams_cpu(tokens, *tables_and_count):
    from pgolf.kernels.hedge import cpu

    *tables, counted = tables_and_count
    within(tokens, 0, len(tables[0]) - 1, "FiveExperts: tokens")
    probabilities = torch.empty(3, len(tokens), dtype=torch.float64)
    cumulative = torch.empty(3, len(tokens) + 1, dtype=torch.float64)
    cpu.five_ngrams(
        tokens.int().contiguous().numpy(), *(x.numpy() for x in tables), float(counted),
        reference.SMOOTHING, reference.TRIGRAM_SMOOTHING, probabilities.numpy(), cumulative.numpy(),
    )  # fmt: skip
    return probabilities, cumulative


def five_windows_cpu(neural, entropy, tokens, begins, lengths, scored, probabilities, cumulative, *tables_and_rest):
    from pgolf.kernels.hedge import cpu

    _, _, _, trigram, trigram_total, log_weights, _ = tables_and_rest
    count = sum(scored)
    nll, experts, sums = (torch.empty(shape, dtype=torch.float64) for shape in ((count,), (5, count), (5,)))
    sums.zero_()
    plan = [torch.tensor(x, dtype=torch.int64) for x in (begins, lengths, scored)]
    known = (probabilities, cumulative, trigram, trigram_total)
    arrays = (neural.contiguous(), entropy.contiguous(), tokens.int().contiguous(), *plan, *known)
    cpu.five_windows(
        *(x.numpy() for x in arrays), reference.TRIGRAM_SMOOTHING, log_weights.double().softmax(0).numpy(),
        nll.numpy(), experts.numpy(), sums.numpy(),
    )  # fmt: skip
    return nll, experts, sums


def five_count_cpu(tokens, unigram, *tables):
    from pgolf.kernels.hedge import cpu

    within(tokens, 0, len(unigram) - 1, "FiveExperts: tokens")
    cpu.five_count(tokens.int().contiguous().numpy(), unigram.numpy(), *(x.numpy() for x in tables))


def evidence_cpu(tokens, documents, orders, granularity, shared):
    from pgolf.kernels.hedge.trie import Trie

    tokens = tokens.int().contiguous()
    within(tokens, 0, torch.iinfo(torch.int32).max, "Chain: tokens")
    found = new_evidence(tokens, len(orders))
    starts = torch.zeros(len(tokens), dtype=torch.bool)
    starts[documents[:-1][documents[:-1] < len(tokens)].long()] = True

    def count(span):
        # one token more than the documents hold: the token after them is read in the last one's context
        begin, end = span
        trie = Trie(orders, granularity, shared)
        stop = min(end + 1, len(tokens))
        if begin:
            # read in the context of the document before, by whoever counts that one
            trie.follow(tokens[begin : begin + 1], starts[begin : begin + 1], trie.new_evidence(1))
        here = slice(begin + bool(begin), stop)
        trie.follow(tokens[here], starts[here], [x[here] for x in found])

    in_parallel(count, [(0, len(tokens))] if shared else spans_of_documents(documents.tolist(), torch.get_num_threads()))
    return tuple(found)


def spans_of_documents(documents, parts):
    """Whole documents in at most `parts` spans of about equal length."""
    ends, share = [], documents[-1] / parts
    for end in documents[1:]:
        if end >= share * (len(ends) + 1) or end == documents[-1]:
            ends.append(end)
    ends = sorted(set(ends))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def new_evidence(tokens, levels):
    """Room for the evidence on each token: top symbol, cell, count, total."""
    shape = (len(tokens), levels)
    return [tokens.new_empty(shape, dtype=kind) for kind in (torch.int32, torch.uint8, torch.int32, torch.int32)]


def mix_cpu(target, candidates, cell, count, total, table):
    from pgolf.kernels.hedge import cpu

    nll, share = torch.empty_like(target), torch.empty_like(target)
    arrays = [x.contiguous() for x in (target, candidates, cell, count, total)]
    table, cuts = table.double().contiguous(), torch.tensor(reference.Q_CUTS, dtype=torch.float64)
    step = max(4096, -(-len(target) // torch.get_num_threads()))

    def work(begin):
        here = slice(begin, begin + step)
        rows = [x[here].detach().numpy() for x in arrays]
        cpu.mix(*rows, table.detach().numpy(), cuts.numpy(), nll[here].numpy(), share[here].numpy())

    in_parallel(work, range(0, len(target), step))
    return nll, share


def mix_online_cpu(target, candidates, cell, count, total, fresh, table, visits, places, posteriors, waiting, floor):
    from pgolf.kernels.hedge import cpu

    nll, share = torch.empty_like(target), torch.empty_like(target)
    arrays = [x.contiguous() for x in (target, candidates, cell, count, total, fresh)]
    state = (table, visits, places, posteriors, waiting)
    cuts = torch.tensor(reference.Q_CUTS, dtype=torch.float64)
    cpu.mix_online(
        *(x.detach().numpy() for x in (*arrays, *state, cuts)), floor, reference.LEAST_WEIGHT, reference.MOST_WEIGHT,
        nll.numpy(), share.numpy(),
    )  # fmt: skip
    return nll, share


# ---- shapes, autograd, registration


def _fake_statistics(logits, targets, candidates, temperature):
    make = lambda shape: logits.new_empty(shape, dtype=exact_dtype(logits.device))
    count = logits.shape[0]
    return make(count), make(count), make(count), make(candidates.shape)


def _fake_five(
    neural, entropy, inputs, targets, valid, unigram, bigram, bigram_total, trigram, trigram_total, log_weights, tokens
):
    return neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape)), log_weights.new_empty(5)


def _fake_ngrams(tokens, *rest):
    known = exact_dtype(tokens.device)
    return tokens.new_empty((3, len(tokens)), dtype=known), tokens.new_empty((3, len(tokens) + 1), dtype=known)


def _fake_windows(neural, entropy, tokens, begins, lengths, scored, *rest):
    count = sum(scored)
    return neural.new_empty(count), neural.new_empty((5, count)), rest[-2].new_empty(5)


def _setup_statistics(ctx, inputs, output):
    logits, targets, candidates, temperature = inputs
    lse, entropy, _, _ = output
    ctx.save_for_backward(logits, targets, candidates, temperature, lse, entropy)


def _backward_statistics(ctx, *upstream):
    d_logits, d_rows = torch.ops.pgolf.hedge_statistics_backward(*ctx.saved_tensors, *upstream)
    temperature = ctx.saved_tensors[3]
    d_temperature = d_rows if len(temperature) > 1 else d_rows.sum(0, keepdim=True)
    return d_logits, None, None, d_temperature if ctx.needs_input_grad[3] else None


def _setup_mix(ctx, inputs, output):
    _, share = output
    ctx.mark_non_differentiable(share)
    ctx.save_for_backward(share)


def _backward_mix(ctx, d_nll, _):
    (share,) = ctx.saved_tensors
    return -d_nll * share, None, None, None, None, None


TABLES = "Tensor unigram, Tensor bigram, Tensor bigram_total, Tensor trigram, Tensor trigram_total"
TABLES_CHANGED = "Tensor(a!) unigram, Tensor(b!) bigram, Tensor(c!) bigram_total, Tensor(d!) trigram, Tensor(e!) trigram_total"
ROWS = "Tensor target, Tensor candidates, Tensor cell, Tensor count, Tensor total"

torch.library.define(
    "pgolf::hedge_statistics",
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature) -> (Tensor lse, Tensor entropy, Tensor target, Tensor picked)",
)
torch.library.define(
    "pgolf::hedge_statistics_backward",
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature, Tensor lse, Tensor entropy,"
    " Tensor d_lse, Tensor d_entropy, Tensor d_target, Tensor d_picked) -> (Tensor d_logits, Tensor d_rows)",
)
torch.library.define(
    "pgolf::hedge_five",
    f"(Tensor neural, Tensor entropy, Tensor inputs, Tensor targets, Tensor valid, {TABLES}, Tensor log_weights, int tokens)"
    " -> (Tensor nll, Tensor experts, Tensor sums)",
)
torch.library.define(
    "pgolf::hedge_five_ngrams", f"(Tensor tokens, {TABLES}, int counted) -> (Tensor probabilities, Tensor cumulative)"
)
torch.library.define(
    "pgolf::hedge_five_windows",
    "(Tensor neural, Tensor entropy, Tensor tokens, int[] begins, int[] lengths, int[] scored, Tensor probabilities,"
    f" Tensor cumulative, {TABLES}, Tensor log_weights, int counted) -> (Tensor nll, Tensor experts, Tensor sums)",
)
torch.library.define("pgolf::hedge_five_count", f"(Tensor tokens, {TABLES_CHANGED}) -> ()")
torch.library.define(
    "pgolf::hedge_evidence",
    "(Tensor tokens, Tensor documents, int[] orders, int granularity, bool shared)"
    " -> (Tensor top, Tensor cell, Tensor count, Tensor total)",
)
torch.library.define("pgolf::hedge_mix", f"({ROWS}, Tensor table) -> (Tensor nll, Tensor share)")
torch.library.define(
    "pgolf::hedge_mix_online",
    f"({ROWS}, Tensor fresh, Tensor(a!) table, Tensor(b!) visits, Tensor(c!) places, Tensor(d!) posteriors,"
    " Tensor(e!) waiting, float floor) -> (Tensor nll, Tensor share)",
)
for name, on_cpu in {
    "statistics": statistics_cpu,
    "statistics_backward": statistics_backward_cpu,
    "five": five_cpu,
    "five_ngrams": five_ngrams_cpu,
    "five_windows": five_windows_cpu,
    "five_count": five_count_cpu,
    "evidence": evidence_cpu,
    "mix": mix_cpu,
    "mix_online": mix_online_cpu,
}.items():
    torch.library.impl(f"pgolf::hedge_{name}", "CPU", on_cpu)
torch.library.register_fake("pgolf::hedge_statistics", _fake_statistics)
torch.library.register_fake(
    "pgolf::hedge_statistics_backward",
    lambda logits, targets, candidates, temperature, lse, *rest: (logits.new_empty(logits.shape), lse.new_empty(lse.shape)),
)
torch.library.register_fake("pgolf::hedge_five", _fake_five)
torch.library.register_fake("pgolf::hedge_five_ngrams", _fake_ngrams)
torch.library.register_fake("pgolf::hedge_five_windows", _fake_windows)
torch.library.register_fake("pgolf::hedge_five_count", lambda *arguments: None)
torch.library.register_fake(
    "pgolf::hedge_evidence", lambda tokens, documents, orders, granularity, shared: tuple(new_evidence(tokens, len(orders)))
)
torch.library.register_fake(
    "pgolf::hedge_mix", lambda target, *rest: (target.new_empty(target.shape), target.new_empty(target.shape))
)
torch.library.register_fake(
    "pgolf::hedge_mix_online", lambda target, *rest: (target.new_empty(target.shape), target.new_empty(target.shape))
)
torch.library.register_autograd("pgolf::hedge_statistics", _backward_statistics, setup_context=_setup_statistics)
torch.library.register_autograd("pgolf::hedge_mix", _backward_mix, setup_context=_setup_mix)
