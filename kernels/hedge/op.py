"""The mixer's operators: statistics of the neural distribution, launch choice, launchers, registration and autograd."""

from typing import NamedTuple

import torch

from pgolf.kernels.hedge import reference
from pgolf.kernels.launch import Launch, capability_of, cdiv, implement
from pgolf.kernels.threads import in_parallel

MOST_CANDIDATES = 16


class NeuralStatistics(NamedTuple):
    """What a mixer needs of softmax(logits / temperature), per token."""

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
            f"neural_statistics: temperature {tuple(temperature.shape)} must hold one number, or one for each {tuple(batch)}"
        )
    count = targets.numel()
    lse, entropy, target, picked = torch.ops.pgolf.hedge_statistics(
        logits.reshape(count, vocabulary),
        targets.reshape(count),
        candidates.reshape(count, candidates.shape[-1]),
        temperature.to(exact).reshape(-1),
    )
    lse, entropy, target = (x.reshape(batch) for x in (lse, entropy, target))
    return NeuralStatistics(lse, entropy, target, picked.reshape(candidates.shape))


def exact_dtype(device) -> torch.dtype:
    """The precision of probabilities: float64 where it is cheap."""
    return torch.float64 if torch.device(device).type == "cpu" else torch.float32


# ---- on a CPU

# Logits of one group of rows: small enough to stay in the cache.
CACHED_ELEMENTS = 131_072


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
    rows = logits.detach().contiguous()
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    single = rows.dtype == torch.float32
    peaks = torch.empty(count) if single else rows.amax(1)
    tensors = (rows, peaks, targets, candidates, temperature.contiguous(), lse, entropy, target, picked)
    arrays = [x.detach().numpy() for x in tensors]
    share = max(1, cdiv(count, torch.get_num_threads()))
    group = max(1, CACHED_ELEMENTS // vocabulary)

    def sweep(first):
        stop = min(first + share, count)
        for begin in range(first, stop, group):
            own = [x[begin : min(begin + group, stop)] if len(x) == count else x for x in arrays]
            if single:
                cpu.peaks_of(*own[:2])
            cpu.statistics(*own)

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

    within(inputs, 0, len(unigram) - 1, "HedgeMixer: inputs")
    within(targets, 0, len(unigram) - 1, "HedgeMixer: targets")
    nll, experts = neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape))
    # one row a window, so that the sums do not depend on how threads share them
    sums = torch.zeros(len(neural), 5, dtype=torch.float64)
    windows = [x.contiguous().numpy() for x in (neural, entropy, inputs.int(), targets.int(), valid)]
    tables = [x.numpy() for x in (unigram, bigram, bigram_total, trigram, trigram_total)]
    rules = (log_weights.double().softmax(0).numpy(), float(tokens), reference.SMOOTHING, reference.TRIGRAM_SMOOTHING)
    results = (nll.numpy(), experts.numpy(), sums.numpy())

    def work(first):
        here = slice(first, first + share)
        scores, losses, totals = results
        cpu.five(*(x[here] for x in windows), *tables, *rules, scores[here], losses[:, here], totals[here])

    share = max(1, cdiv(len(neural), torch.get_num_threads()))
    in_parallel(work, range(0, len(neural), share))
    return nll, experts, sums.sum(0)


def five_ngrams_cpu(tokens, *tables_and_count):
    from pgolf.kernels.hedge import cpu

    *tables, counted = tables_and_count
    within(tokens, 0, len(tables[0]) - 1, "HedgeMixer: tokens")
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

    within(tokens, 0, len(unigram) - 1, "HedgeMixer: tokens")
    cpu.five_count(tokens.int().contiguous().numpy(), unigram.numpy(), *(x.numpy() for x in tables))


def evidence_cpu(tokens, documents, orders, granularity, shared):
    from pgolf.kernels.hedge.trie import Trie

    tokens = tokens.int().contiguous()
    within(tokens, 0, torch.iinfo(torch.int32).max, "NgramBackoff.evidence: tokens")
    if len(tokens) and not (documents[0] == 0 and documents[-1] == len(tokens) and bool((documents.diff() > 0).all())):
        raise ValueError(f"NgramBackoff.evidence: documents must rise from 0 to {len(tokens)}, the number of tokens")
    found = new_evidence(tokens, len(orders))
    starts = torch.zeros(len(tokens), dtype=torch.bool)
    starts[documents[:-1].long()] = True

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
    ends: list[int] = []
    share = documents[-1] / parts
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


# ---- on a GPU. The tables were chosen by reasoning, unmeasured

# Logits in flight per program of the sweep, by compute capability: 32 a thread.
SWEEP_ELEMENTS = {80: 4096, 90: 4096, 100: 4096}
TOKENS_PER_PROGRAM = 256
MULTIPLIER = 0x2C1B3C6D


def launch_statistics(vocabulary: int, capability: int) -> Launch:
    """Several short rows a program, or one long one in steps."""
    tile = SWEEP_ELEMENTS[capability]
    width = min(tile, max(128, next_power(vocabulary)))
    return Launch({"BR": tile // width, "BV": width}, num_warps=tile // 1024, num_stages=2)


def launch_statistics_backward(vocabulary: int, capability: int) -> Launch:
    """Half the forward's tile: rows, their gradients and the candidates' comparisons are alive at once."""
    tile = SWEEP_ELEMENTS[capability] // 2
    width = min(tile, max(128, next_power(vocabulary)))
    return Launch({"BR": tile // width, "BV": width}, num_warps=tile // 512, num_stages=2)


def launch_tokens(capability: int) -> Launch:
    """One token a thread: what a token costs is the latency of its gathers."""
    return Launch({"BN": TOKENS_PER_PROGRAM}, num_warps=TOKENS_PER_PROGRAM // 64, num_stages=1)


def launch_evidence(last: int) -> Launch:
    """One warp, one lane a thread, so that a lane reads what it wrote: the orders of as many documents as fit."""
    orders = next_power(last + 1)
    return Launch({"BD": 32 // orders, "BO": orders}, num_warps=1, num_stages=1)


def launch_online() -> Launch:
    return Launch({}, num_warps=1, num_stages=1)


def next_power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def traffic_statistics(count: int, vocabulary: int, candidates: int, element_size: int) -> tuple[int, int]:
    """Bytes and FLOPs: the logits once; ids, temperature and results besides."""
    return count * (vocabulary * element_size + 8 * candidates + 20), 6 * count * vocabulary


def traffic_statistics_backward(count: int, vocabulary: int, candidates: int, element_size: int) -> tuple[int, int]:
    return count * (2 * vocabulary * element_size + 8 * candidates + 28), (12 + 2 * candidates) * count * vocabulary


def traffic_five(count: int) -> tuple[int, int]:
    """Five gathers in sectors of 32 bytes (three of them random), 17 bytes read and 24 written a token."""
    return count * (5 * 32 + 17 + 24), 60 * count


def traffic_five_count(count: int) -> tuple[int, int]:
    return count * (4 + 5 * 64), 5 * count


def traffic_evidence(count: int, last: int, levels: int) -> tuple[int, int]:
    """A record of 32 bytes read and written twice, and a slot, for each order; 13 bytes written a level."""
    return count * ((last + 1) * 160 + 13 * levels + 4), 0


def traffic_mix(count: int, levels: int) -> tuple[int, int]:
    return count * (13 * levels + 12), count * (14 * levels + 8)


def traffic_online(count: int, levels: int) -> tuple[int, int]:
    return count * (45 * levels + 13), count * (22 * levels + 8)


def compile_cases(capability):
    from pgolf.kernels.compile import Case
    from pgolf.kernels.hedge import gpu

    count = 65_536

    def pointers(kind, *names):
        return {f"p_{name}": f"*{kind}:16" for name in names}

    def sweep(vocabulary, candidates, kind="bf16", backward=False):
        launch = (launch_statistics_backward if backward else launch_statistics)(vocabulary, capability)
        signature = pointers(kind, "logits") | pointers("i32", "targets", "candidates")
        signature |= pointers("fp32", "temperature", "lse", "entropy")
        constants = {"V": vocabulary, "K": candidates}
        if backward:
            signature |= pointers("fp32", "d_lse", "d_entropy", "d_target", "d_picked", "d_rows") | pointers(kind, "d_logits")
        else:
            signature |= pointers("fp32", "target", "picked")
            constants["BK"] = next_power(candidates)
        traffic = (traffic_statistics_backward if backward else traffic_statistics)(
            count, vocabulary, candidates, 4 if kind == "fp32" else 2
        )
        return Case(
            kernel=gpu.hedge_statistics_bwd_kernel if backward else gpu.hedge_statistics_fwd_kernel,
            name=f"statistics_{'bwd' if backward else 'fwd'} {kind}",
            signature=signature | {"count": "i32", "temperature_stride": "i32"},
            constants=constants,
            launch=launch,
            shape=f"N={count} V={vocabulary} K={candidates}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=128,
        )

    def five(vocabulary, counting=False):
        tables = pointers("i32", "unigram", "bigram", "bigram_total", "trigram", "trigram_total")
        if counting:
            signature = pointers("i32", "tokens") | tables | {"count": "i32"}
        else:
            signature = pointers("fp32", "neural", "entropy", "log_weights", "nll", "experts", "sums") | tables
            signature |= pointers("i32", "inputs", "targets") | pointers("i1", "valid")
            signature |= {"count": "i32", "length": "i32", "tokens": "i32", "smoothing": "fp32", "trigram_smoothing": "fp32"}
        traffic = traffic_five_count(32_769) if counting else traffic_five(count)
        return Case(
            kernel=gpu.hedge_five_count_kernel if counting else gpu.hedge_five_fwd_kernel,
            name="five_count" if counting else "five_fwd",
            signature=signature,
            constants={"V": vocabulary, "BUCKETS": 65_536},
            launch=launch_tokens(capability),
            shape=f"N={32_769 if counting else count} V={vocabulary}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=64,
        )

    def evidence(orders, shared=False, grouped=False):
        last = max(orders)
        traffic = traffic_evidence(count, last, len(orders))
        signature = pointers("i32", "tokens", "documents", "top", "count", "total", "records", "table") | pointers(
            "u8", "cell"
        )
        return Case(
            kernel=gpu.hedge_evidence_kernel,
            name=f"evidence{' shared' * shared}{' grouped' * grouped}",
            signature=signature | dict.fromkeys(("count", "documents", "granularity", "multiplier"), "i32"),
            constants=evidence_constants(orders) | {"SHARED": shared, "GROUPED": grouped},
            launch=launch_evidence(last),
            shape=f"N={count} orders={min(orders)}-{last}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=128,
        )

    def mix(levels, online=False):
        signature = pointers("fp32", "target", "candidates", "table", "nll", "share")
        signature |= pointers("u8", "cell") | pointers("i32", "count", "total") | {"count": "i32"}
        if online:
            signature |= (
                pointers("i1", "fresh") | pointers("i32", "visits", "places", "waiting") | pointers("fp32", "posteriors")
            )
            signature |= dict.fromkeys(("floor", "least", "most"), "fp32")
        traffic = (traffic_online if online else traffic_mix)(count, levels)
        return Case(
            kernel=gpu.hedge_mix_online_kernel if online else gpu.hedge_mix_fwd_kernel,
            name="mix_online" if online else "mix_fwd",
            signature=signature,
            constants=mix_constants(levels),
            launch=launch_online() if online else launch_tokens(capability),
            shape=f"N={count} L={levels}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=128,
        )

    four, six = (1, 2, 3, 4), (1, 2, 3, 4, 5, 6)
    return [
        *(sweep(vocabulary, 4) for vocabulary in (256, 1000, 1024, 8192, 65_536)),
        sweep(1024, 0),
        sweep(1024, 16, "fp32"),
        sweep(1024, 10, "fp16"),
        *(sweep(vocabulary, 4, backward=True) for vocabulary in (256, 1000, 1024, 65_536)),
        sweep(1024, 0, backward=True),
        sweep(1024, 16, "fp32", backward=True),
        five(1024),
        five(8192),
        five(1024, counting=True),
        evidence(four),
        evidence(six),
        evidence(six, grouped=True),
        evidence((3, 4, 5, 6), shared=True),
        evidence((0, 16), shared=True, grouped=True),
        mix(4),
        mix(16),
        mix(4, online=True),
    ]


def statistics_triton(logits, targets, candidates, temperature):
    from pgolf.kernels.hedge import gpu

    logits = logits.float() if logits.dtype == torch.float64 else logits
    logits, targets, candidates = logits.contiguous(), targets.int().contiguous(), candidates.int().contiguous()
    temperature = temperature.float().contiguous()
    count, vocabulary = logits.shape
    lse, entropy, target = (logits.new_empty(count, dtype=torch.float32) for _ in range(3))
    picked = logits.new_empty(candidates.shape, dtype=torch.float32)
    if count:
        launch = launch_statistics(vocabulary, capability_of(logits.device))
        gpu.hedge_statistics_fwd_kernel[(cdiv(count, launch.tiles["BR"]),)](
            logits, targets, candidates, temperature, lse, entropy, target, picked, count, int(len(temperature) > 1),
            V=vocabulary, K=candidates.shape[1], BK=next_power(candidates.shape[1]), **launch.options,
        )  # fmt: skip
    return lse, entropy, target, picked


def statistics_backward_triton(logits, targets, candidates, temperature, lse, entropy, *upstream):
    from pgolf.kernels.hedge import gpu

    kind = logits.dtype
    logits = logits.float() if kind == torch.float64 else logits
    logits, targets, candidates = logits.contiguous(), targets.int().contiguous(), candidates.int().contiguous()
    temperature = temperature.float().contiguous()
    count, vocabulary = logits.shape
    d_logits, d_rows = torch.empty_like(logits), torch.empty_like(lse)
    if count:
        launch = launch_statistics_backward(vocabulary, capability_of(logits.device))
        gpu.hedge_statistics_bwd_kernel[(cdiv(count, launch.tiles["BR"]),)](
            logits, targets, candidates, temperature, lse, entropy, *(x.float().contiguous() for x in upstream),
            d_logits, d_rows, count, int(len(temperature) > 1), V=vocabulary, K=candidates.shape[1], **launch.options,
        )  # fmt: skip
    return d_logits.to(kind), d_rows


def five_triton(neural, entropy, inputs, targets, valid, *tables_and_rest):
    from pgolf.kernels.hedge import gpu

    *tables, log_weights, tokens = tables_and_rest
    buckets, vocabulary = tables[3].shape
    scored = [x.contiguous() for x in (neural, entropy, inputs.int(), targets.int(), valid)]
    nll, experts = neural.new_empty(neural.shape), neural.new_empty((5, *neural.shape))
    launch = launch_tokens(capability_of(neural.device))
    blocks = cdiv(neural.numel(), launch.tiles["BN"])
    sums = neural.new_empty((blocks, 5))
    if blocks:
        gpu.hedge_five_fwd_kernel[(blocks,)](
            *scored, *tables, log_weights.log_softmax(0).float(), nll, experts, sums, neural.numel(), neural.shape[1], tokens,
            reference.SMOOTHING, reference.TRIGRAM_SMOOTHING, V=vocabulary, BUCKETS=buckets, **launch.options,
        )  # fmt: skip
    return nll, experts, sums.to(log_weights.dtype).sum(0)


def five_ngrams_triton(tokens, *rest):
    """Nothing: a GPU gathers again for each window, at the speed of the logits' sweep, and needs no running sums."""
    return tokens.new_empty((3, 0), dtype=torch.float32), tokens.new_empty((3, 0), dtype=torch.float32)


def five_windows_triton(neural, entropy, tokens, begins, lengths, scored, probabilities, cumulative, *tables_and_rest):
    width = neural.shape[1]
    tokens = torch.nn.functional.pad(tokens, (0, width))
    inputs = torch.stack([tokens[begin : begin + width] for begin in begins])
    targets = torch.stack([tokens[begin + 1 : begin + 1 + width] for begin in begins])
    places = torch.arange(width, device=tokens.device)
    masks = {length: places < length for length in set(lengths)}
    valid = torch.stack([masks[length] for length in lengths])
    nll, experts, sums = five_triton(neural, entropy, inputs, targets, valid, *tables_and_rest)
    spans = [(row, slice(length - kept, length)) for row, (length, kept) in enumerate(zip(lengths, scored, strict=True))]
    kept_nll, kept_experts = ([x[..., row, span] for row, span in spans] for x in (nll, experts))
    return torch.cat(kept_nll), torch.cat(kept_experts, 1), sums


def five_count_triton(tokens, *tables):
    from pgolf.kernels.hedge import gpu

    tokens = tokens.int().contiguous()
    buckets, vocabulary = tables[3].shape
    launch = launch_tokens(capability_of(tokens.device))
    if len(tokens):
        grid = (cdiv(len(tokens), launch.tiles["BN"]),)
        gpu.hedge_five_count_kernel[grid](tokens, *tables, len(tokens), V=vocabulary, BUCKETS=buckets, **launch.options)


def evidence_constants(orders):
    return {"ORDERS": sum(1 << order for order in orders), "LAST": max(orders), "LEVELS": len(orders)}


def evidence_triton(tokens, documents, orders, granularity, shared, multiplier=MULTIPLIER):
    from pgolf.kernels.hedge import gpu

    tokens, documents = tokens.int().contiguous(), documents.int().contiguous()
    count, last = len(tokens), max(orders)
    found = new_evidence(tokens, len(orders))
    if count == 0:
        return tuple(found)
    edges = count * (last + 1) + len(documents)
    if edges >= 1 << 31:
        raise ValueError(
            f"NgramBackoff.evidence: {count} tokens with orders up to {last} are too many at once; give fewer documents"
        )
    # the first token of all has nothing before it
    for x, nothing in zip(found, (-1, 0, 0, 0), strict=True):
        x[0] = nothing
    records = tokens.new_empty(edges * 8)
    table = tokens.new_full((count * (last + 1) * 2,), -1)
    launch = launch_evidence(last)
    programs = 1 if shared else cdiv(len(documents) - 1, launch.tiles["BD"])
    gpu.hedge_evidence_kernel[(programs,)](
        tokens, documents, *found, records, table, count, len(documents) - 1, granularity, multiplier,
        **evidence_constants(orders), SHARED=shared, GROUPED=granularity > 1, **launch.options,
    )  # fmt: skip
    return tuple(found)


def mix_constants(levels):
    return {"CUTS": reference.Q_CUTS, "N_CELLS": reference.N_CELLS, "LEVELS": levels}


def mix_triton(target, candidates, cell, count, total, table):
    from pgolf.kernels.hedge import gpu

    rows = [x.contiguous() for x in (target.float(), candidates.float(), cell, count, total, table.float())]
    nll, share = torch.empty_like(rows[0]), torch.empty_like(rows[0])
    launch = launch_tokens(capability_of(target.device))
    if len(target):
        grid = (cdiv(len(target), launch.tiles["BN"]),)
        gpu.hedge_mix_fwd_kernel[grid](*rows, nll, share, len(target), **mix_constants(cell.shape[1]), **launch.options)
    return nll, share


def mix_online_triton(target, candidates, cell, count, total, fresh, table, visits, places, posteriors, waiting, floor):
    from pgolf.kernels.hedge import gpu

    rows = [x.contiguous() for x in (target.float(), candidates.float(), cell, count, total, fresh)]
    nll, share = torch.empty_like(rows[0]), torch.empty_like(rows[0])
    gpu.hedge_mix_online_kernel[(1,)](
        *rows, table, visits, places, posteriors, waiting, nll, share, len(target), floor,
        reference.LEAST_WEIGHT, reference.MOST_WEIGHT, **mix_constants(cell.shape[1]), **launch_online().options,
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
    if tokens.device.type != "cpu":
        return five_ngrams_triton(tokens)
    return tokens.new_empty((3, len(tokens)), dtype=torch.float64), tokens.new_empty((3, len(tokens) + 1), dtype=torch.float64)


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
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature)"
    " -> (Tensor lse, Tensor entropy, Tensor target, Tensor picked)",
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
for name, on_cpu, on_gpu in (
    ("statistics", statistics_cpu, statistics_triton),
    ("statistics_backward", statistics_backward_cpu, statistics_backward_triton),
    ("five", five_cpu, five_triton),
    ("five_ngrams", five_ngrams_cpu, five_ngrams_triton),
    ("five_windows", five_windows_cpu, five_windows_triton),
    ("five_count", five_count_cpu, five_count_triton),
    ("evidence", evidence_cpu, evidence_triton),
    ("mix", mix_cpu, mix_triton),
    ("mix_online", mix_online_cpu, mix_online_triton),
):
    implement(f"pgolf::hedge_{name}", "CPU", on_cpu)
    implement(f"pgolf::hedge_{name}", "CUDA", on_gpu)
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
