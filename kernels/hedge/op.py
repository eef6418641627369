"""The five-expert mixer's steps as registered operators: launchers, shapes, registration. `mixer.py` has the public class."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.hedge.launch import launch_chunk, launch_tokens
from pgolf.kernels.hedge.reference import SMOOTHING, TRIGRAM_SMOOTHING, hedge_step_reference
from pgolf.kernels.launch import cdiv, implement
from pgolf.kernels.tensors import check_range, exact_dtype

# ---- on a CPU


def chunk_cpu(
    neural: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    windows: list[int],
    shares: list[int],
    batch: int,
    unigram: Tensor,
    bigram: Tensor,
    bigram_total: Tensor,
    trigram: Tensor,
    trigram_total: Tensor,
    log_weights: Tensor,
    counted: int,
    eta: float,
) -> tuple[Tensor, Tensor]:
    """NLL (S,) of the scored positions, and each rank's log-weights before and after its batches (R, batches + 1, 5)."""
    from pgolf.kernels.hedge import cpu

    check_range(tokens, 0, len(unigram) - 1, "HedgeMixer: tokens")
    probabilities = np.empty((3, len(tokens)))
    cumulative = np.empty((3, len(tokens) + 1))
    ids = tokens.int().contiguous().numpy()
    tables = [x.numpy() for x in (unigram, bigram, bigram_total, trigram, trigram_total)]
    cpu.ngrams(ids, *tables, float(counted), SMOOTHING, TRIGRAM_SMOOTHING, probabilities, cumulative)
    plan = np.array(windows, dtype=np.int64).reshape(-1, 3)
    scores, history = np.empty(int(plan[:, 2].sum())), _history(log_weights, shares, batch)
    sources = neural.contiguous().numpy(), entropy.contiguous().numpy()
    done = 0
    for rank, (first, last) in enumerate(zip(shares, shares[1:], strict=False)):
        for i, begin in enumerate(range(first, last, batch)):
            here = slice(begin, min(begin + batch, last))
            begins, lengths, scored = (np.ascontiguousarray(column) for column in plan[here].T)
            stop = done + int(scored.sum())
            sums = np.zeros(5)
            cpu.score_windows(
                *(x[here] for x in sources), ids, begins, lengths, scored, probabilities, cumulative, *tables[3:],
                TRIGRAM_SMOOTHING, history[rank, i].softmax(0).numpy(), scores[done:stop], sums,
            )  # fmt: skip
            history[rank, i + 1] = hedge_step_reference(history[rank, i], torch.from_numpy(sums), int(lengths.sum()), eta)
            done = stop
    return torch.from_numpy(scores), history


def _history(log_weights: Tensor, shares: list[int], batch: int) -> Tensor:
    """Memory for each rank's log-weights (R, batches + 1, 5), the first row of each filled in from (R, 5)."""
    ranks, batches = len(shares) - 1, most_batches(shares, batch)
    history = log_weights.new_zeros(ranks, batches + 1, 5, dtype=torch.float64)
    history[:, 0] = log_weights
    return history


def most_batches(shares: list[int], batch: int) -> int:
    return max(cdiv(last - first, batch) for first, last in zip(shares, shares[1:], strict=False))


def count_cpu(
    tokens: Tensor, unigram: Tensor, bigram: Tensor, bigram_total: Tensor, trigram: Tensor, trigram_total: Tensor
) -> None:
    from pgolf.kernels.hedge import cpu

    check_range(tokens, 0, len(unigram) - 1, "HedgeMixer: tokens")
    tables = (unigram, bigram, bigram_total, trigram, trigram_total)
    cpu.count(tokens.contiguous().numpy(), *(x.numpy().reshape(-1) for x in tables))


# ---- on a GPU


def chunk_triton(
    neural: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    windows: list[int],
    shares: list[int],
    batch: int,
    *tables_and_rest: Any,
) -> tuple[Tensor, Tensor]:
    """One launch, a program a rank: what depends on the batch before is a few numbers, and stays on one multiprocessor."""
    from pgolf.kernels.hedge import gpu

    *tables, log_weights, counted, eta = tables_and_rest
    buckets, vocabulary = tables[3].shape
    rows = torch.tensor(windows, dtype=torch.int32).reshape(-1, 3)
    begins, lengths, scored = rows.unbind(1)
    places = scored.cumsum(0) - scored
    history = _history(log_weights, shares, batch)
    nll = neural.new_empty(int(scored.sum()), dtype=torch.float32)
    spans = []
    for first, last in zip(shares, shares[1:], strict=False):
        here = slice(first, last)
        reach = [int(begins[here].min()) + 1, int((begins[here] + lengths[here]).max()) + 1] if first < last else [0, 0]
        spans.append([first, last, *reach])
    launch = launch_chunk()
    gpu.hedge_chunk_kernel[(len(spans),)](
        neural.float().contiguous(), entropy.float().contiguous(), tokens.int().contiguous(),
        torch.cat([rows, places[:, None]], 1).to(torch.int32).contiguous().to(tokens.device),
        torch.tensor(spans, dtype=torch.int32).to(tokens.device), *tables,
        neural.new_empty((len(spans), 3, len(tokens)), dtype=torch.float32), history, nll, len(tokens), neural.shape[1], batch,
        history.shape[1] - 1, counted, eta, SMOOTHING, TRIGRAM_SMOOTHING, V=vocabulary, BUCKETS=buckets, **launch.options,
    )  # fmt: skip
    return nll, history


def count_triton(tokens: Tensor, *tables: Tensor) -> None:
    from pgolf.kernels.hedge import gpu

    tokens = tokens.int().contiguous()
    buckets, vocabulary = tables[3].shape
    launch = launch_tokens()
    if len(tokens):
        grid = (cdiv(len(tokens), launch.tiles["BN"]),)
        gpu.hedge_count_kernel[grid](tokens, *tables, len(tokens), V=vocabulary, BUCKETS=buckets, **launch.options)


# ---- shapes, registration


def _fake_chunk(
    neural: Tensor, entropy: Tensor, tokens: Tensor, windows: list[int], shares: list[int], batch: int, *tables_and_rest: Any
) -> tuple[Tensor, Tensor]:
    kind = exact_dtype(neural.device)
    history = tables_and_rest[-3].new_empty((len(shares) - 1, most_batches(shares, batch) + 1, 5), dtype=torch.float64)
    return neural.new_empty(sum(windows[2::3]), dtype=kind), history


TABLES = "Tensor unigram, Tensor bigram, Tensor bigram_total, Tensor trigram, Tensor trigram_total"
TABLES_CHANGED = "Tensor(a!) unigram, Tensor(b!) bigram, Tensor(c!) bigram_total, Tensor(d!) trigram, Tensor(e!) trigram_total"

torch.library.define(
    "pgolf::hedge_chunk",
    f"(Tensor neural, Tensor entropy, Tensor tokens, int[] windows, int[] shares, int batch, {TABLES}, Tensor log_weights,"
    " int counted, float eta) -> (Tensor nll, Tensor history)",
)
torch.library.define("pgolf::hedge_count", f"(Tensor tokens, {TABLES_CHANGED}) -> ()")
for name, on_cpu, on_gpu, fake in (
    ("chunk", chunk_cpu, chunk_triton, _fake_chunk),
    ("count", count_cpu, count_triton, lambda *arguments: None),
):
    implement(f"pgolf::hedge_{name}", "CPU", on_cpu)
    implement(f"pgolf::hedge_{name}", "CUDA", on_gpu)
    torch.library.register_fake(f"pgolf::hedge_{name}", fake)
