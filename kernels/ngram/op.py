"""The n-gram back-off's steps as registered operators: launchers, shapes, registration.

`backoff.py` has the public class. Letters: N tokens, K orders.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.launch import cdiv, implement
from pgolf.kernels.ngram.launch import launch_evidence, launch_mix, launch_mix_online
from pgolf.kernels.ngram.reference import LEAST_WEIGHT, MOST_WEIGHT, N_CELLS, Q_CUTS
from pgolf.kernels.tensors import check_range
from pgolf.kernels.threads import in_parallel


def new_evidence(tokens: Tensor, num_orders: int) -> list[Tensor]:
    """Memory for the evidence on tokens (N,), each (N, K): top symbol, cell, count, total."""
    shape = (len(tokens), num_orders)
    return [tokens.new_empty(shape, dtype=kind) for kind in (torch.int32, torch.uint8, torch.int32, torch.int32)]


# ---- on a CPU


def evidence_cpu(
    tokens: Tensor, documents: Tensor, orders: Sequence[int], granularity: int, shared: bool
) -> tuple[Tensor, ...]:
    from pgolf.kernels.ngram.trie import Trie

    tokens = tokens.int().contiguous()
    check_range(tokens, 0, torch.iinfo(torch.int32).max, "NgramBackoff.evidence: tokens")
    if len(tokens) and not (documents[0] == 0 and documents[-1] == len(tokens) and bool((documents.diff() > 0).all())):
        raise ValueError(f"NgramBackoff.evidence: documents must rise from 0 to {len(tokens)}, the number of tokens")
    evidence = new_evidence(tokens, len(orders))
    starts = np.zeros(len(tokens), dtype=bool)
    starts[documents[:-1].numpy()] = True
    read, rows = tokens.numpy(), [x.numpy() for x in evidence]

    def count(span: tuple[int, int]) -> None:
        # one token more than the documents hold: the token after them is read in the last one's context
        begin, end = span
        trie = Trie(orders, granularity, shared)
        stop = min(end + 1, len(tokens))
        if begin:
            # its evidence comes from the document before, and is written by the thread that counts that one
            trie.follow(read[begin : begin + 1], starts[begin : begin + 1], trie.new_evidence(1))
        here = slice(begin + bool(begin), stop)
        trie.follow(read[here], starts[here], [x[here] for x in rows])

    in_parallel(count, [(0, len(tokens))] if shared else spans_of_documents(documents.tolist(), torch.get_num_threads()))
    return tuple(evidence)


def spans_of_documents(documents: Sequence[int], parts: int) -> list[tuple[int, int]]:
    """Whole documents in at most `parts` spans of about equal length."""
    ends: list[int] = []
    share = documents[-1] / parts
    for end in documents[1:]:
        if end >= share * (len(ends) + 1) or end == documents[-1]:
            ends.append(end)
    ends = sorted(set(ends))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def mix_cpu(
    target: Tensor, candidates: Tensor, cell: Tensor, count: Tensor, total: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.ngram import cpu

    nll, share = torch.empty_like(target), torch.empty_like(target)
    arrays = [x.contiguous() for x in (target, candidates, cell, count, total)]
    table, cuts = table.double().contiguous(), torch.tensor(Q_CUTS, dtype=torch.float64)
    step = max(4096, cdiv(len(target), torch.get_num_threads()))

    def work(begin: int) -> None:
        here = slice(begin, begin + step)
        rows = [x[here].detach().numpy() for x in arrays]
        cpu.mix(*rows, table.detach().numpy(), cuts.numpy(), nll[here].numpy(), share[here].numpy())

    in_parallel(work, range(0, len(target), step))
    return nll, share


def mix_online_cpu(
    target: Tensor,
    candidates: Tensor,
    cell: Tensor,
    count: Tensor,
    total: Tensor,
    group_starts: Tensor,
    table: Tensor,
    visits: Tensor,
    places: Tensor,
    posteriors: Tensor,
    pending: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.ngram import cpu

    nll, share = torch.empty_like(target), torch.empty_like(target)
    arrays = [x.contiguous() for x in (target, candidates, cell, count, total, group_starts)]
    state = (table, visits, places, posteriors, pending)
    cuts = torch.tensor(Q_CUTS, dtype=torch.float64)
    cpu.mix_online(
        *(x.detach().numpy() for x in (*arrays, *state, cuts)), floor, LEAST_WEIGHT, MOST_WEIGHT, nll.numpy(), share.numpy()
    )
    return nll, share


# ---- on a GPU

MULTIPLIER = 0x2C1B3C6D


def evidence_constants(orders: Sequence[int]) -> dict[str, object]:
    """The kernel's constants: bit o of ORDERS says that order o is asked for."""
    return {"ORDERS": sum(1 << order for order in orders), "LAST": max(orders), "NUM_ORDERS": len(orders)}


def mix_constants(num_orders: int) -> dict[str, object]:
    return {"CUTS": Q_CUTS, "N_CELLS": N_CELLS, "NUM_ORDERS": num_orders}


def evidence_triton(
    tokens: Tensor,
    documents: Tensor,
    orders: Sequence[int],
    granularity: int,
    shared: bool,
    multiplier: int = MULTIPLIER,
) -> tuple[Tensor, ...]:
    from pgolf.kernels.ngram import gpu

    tokens, documents = tokens.int().contiguous(), documents.int().contiguous()
    count, last = len(tokens), max(orders)
    evidence = new_evidence(tokens, len(orders))
    if count == 0:
        return tuple(evidence)
    edges = count * (last + 1) + len(documents)
    if edges >= 1 << 31:
        raise ValueError(
            f"NgramBackoff.evidence: {count} tokens with orders up to {last} are too many at once; give fewer documents"
        )
    # the first token of all has nothing before it
    for x, nothing in zip(evidence, (-1, 0, 0, 0), strict=True):
        x[0] = nothing
    records = tokens.new_empty(edges * 8)
    table = tokens.new_full((count * (last + 1) * 2,), -1)
    launch = launch_evidence(last)
    programs = 1 if shared else cdiv(len(documents) - 1, launch.tiles["BD"])
    gpu.ngram_evidence_kernel[(programs,)](
        tokens, documents, *evidence, records, table, count, len(documents) - 1, granularity, multiplier,
        **evidence_constants(orders), SHARED=shared, GROUPED=granularity > 1, **launch.options,
    )  # fmt: skip
    return tuple(evidence)


def mix_triton(
    target: Tensor, candidates: Tensor, cell: Tensor, count: Tensor, total: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.ngram import gpu

    rows = [x.contiguous() for x in (target.float(), candidates.float(), cell, count, total, table.float())]
    nll, share = torch.empty_like(rows[0]), torch.empty_like(rows[0])
    launch = launch_mix()
    if len(target):
        grid = (cdiv(len(target), launch.tiles["BN"]),)
        gpu.ngram_mix_fwd_kernel[grid](*rows, nll, share, len(target), **mix_constants(cell.shape[1]), **launch.options)
    return nll, share


def mix_online_triton(
    target: Tensor,
    candidates: Tensor,
    cell: Tensor,
    count: Tensor,
    total: Tensor,
    group_starts: Tensor,
    table: Tensor,
    visits: Tensor,
    places: Tensor,
    posteriors: Tensor,
    pending: Tensor,
    floor: float,
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.ngram import gpu

    rows = [x.contiguous() for x in (target.float(), candidates.float(), cell, count, total, group_starts)]
    nll, share = torch.empty_like(rows[0]), torch.empty_like(rows[0])
    gpu.ngram_mix_online_kernel[(1,)](
        *rows, table, visits, places, posteriors, pending, nll, share, len(target), floor, LEAST_WEIGHT, MOST_WEIGHT,
        **mix_constants(cell.shape[1]), **launch_mix_online().options,
    )  # fmt: skip
    return nll, share


# ---- shapes, registration


def _fake_mix(target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return target.new_empty(target.shape), target.new_empty(target.shape)


ROWS = "Tensor target, Tensor candidates, Tensor cell, Tensor count, Tensor total"

torch.library.define(
    "pgolf::ngram_evidence",
    "(Tensor tokens, Tensor documents, int[] orders, int granularity, bool shared)"
    " -> (Tensor top, Tensor cell, Tensor count, Tensor total)",
)
torch.library.define("pgolf::ngram_mix", f"({ROWS}, Tensor table) -> (Tensor nll, Tensor share)")
torch.library.define(
    "pgolf::ngram_mix_online",
    f"({ROWS}, Tensor group_starts, Tensor(a!) table, Tensor(b!) visits, Tensor(c!) places, Tensor(d!) posteriors,"
    " Tensor(e!) pending, float floor) -> (Tensor nll, Tensor share)",
)
for name, on_cpu, on_gpu, fake in (
    (
        "evidence",
        evidence_cpu,
        evidence_triton,
        lambda tokens, documents, orders, granularity, shared: tuple(new_evidence(tokens, len(orders))),
    ),
    ("mix", mix_cpu, mix_triton, _fake_mix),
    ("mix_online", mix_online_cpu, mix_online_triton, _fake_mix),
):
    implement(f"pgolf::ngram_{name}", "CPU", on_cpu)
    implement(f"pgolf::ngram_{name}", "CUDA", on_gpu)
    torch.library.register_fake(f"pgolf::ngram_{name}", fake)
