"""Statistics of rows of logits on a CPU, in numba. Every jitted function releases the interpreter's lock."""

import math

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.elementary import exp_below
from pgolf.kernels.jit import exact, reordered_inlined
from pgolf.kernels.launch import cdiv
from pgolf.kernels.tensors import check_range
from pgolf.kernels.threads import in_parallel

# Logits of one group of rows: small enough to stay in the cache of one core; and of one block, capped before it is shared.
CACHED_ELEMENTS = 131_072
BLOCK_ELEMENTS = 1 << 22


def forward(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (N, V) in blocks, so that a copy in float32, capped, is never as large as the logits."""
    count, vocabulary = logits.shape
    check_range(targets, 0, vocabulary - 1, "logit_stats: targets")
    check_range(candidates, -1, vocabulary - 1, "logit_stats: candidates")
    lse, entropy, target = (torch.empty(count, dtype=torch.float64) for _ in range(3))
    picked = torch.empty(candidates.shape, dtype=torch.float64)
    per_row = (targets.int().contiguous(), candidates.int().contiguous(), lse, entropy, target, picked)
    block = max(1, BLOCK_ELEMENTS // max(1, vocabulary))
    for begin in range(0, count, block):
        here = slice(begin, begin + block)
        rows = logits[here] if logits.dtype in (torch.float32, torch.float64) else logits[here].float()
        rows = (softcap * torch.tanh(rows / softcap) if softcap else rows).contiguous()
        own = temperature[here] if len(temperature) > 1 else temperature
        _block(rows, own.contiguous(), *(x[here] for x in per_row))
    return lse, entropy, target, picked


def _block(rows: Tensor, temperature: Tensor, *per_row: Tensor) -> None:
    """`per_row`: targets and candidates, then what is filled: lse, entropy, target, picked."""
    count, vocabulary = rows.shape
    single = rows.dtype == torch.float32
    peaks = torch.empty(count) if single else rows.amax(1)
    per_token = len(temperature) > 1
    arrays = [x.numpy() for x in (rows, peaks, *per_row)]
    heat = temperature.numpy()
    share = max(1, cdiv(count, torch.get_num_threads()))
    group = max(1, CACHED_ELEMENTS // vocabulary)

    def sweep(first: int) -> None:
        stop = min(first + share, count)
        for begin in range(first, stop, group):
            here = slice(begin, min(begin + group, stop))
            logits, own_peaks, targets, candidates, *results = (x[here] for x in arrays)
            if single:
                row_maxima(logits, own_peaks)
            logit_stats(logits, own_peaks, targets, candidates, heat[here] if per_token else heat, *results)

    in_parallel(sweep, range(0, count, share))


# ---- in numba


@exact
def row_maxima(rows, peaks):
    """The largest number of each row of rows (N, V) float32, NaN if there is one, into peaks (N,).

    Comparisons of integers fill vector registers: numbers are ordered like their bits, the negative ones' complemented.
    """
    magnitude, infinite = np.int32(0x7FFFFFFF), 0x7F800000
    for i in range(rows.shape[0]):
        bits = rows[i].view(np.int32)
        most, furthest = np.int32(-(2**31)), np.int32(0)
        for j in range(bits.shape[0]):
            most = max(most, np.int32(bits[j] ^ (bits[j] >> np.int32(31) & magnitude)))
            furthest = max(furthest, np.int32(bits[j] & magnitude))
        most = np.int32(most ^ (most >> np.int32(31) & magnitude))
        peaks[i] = most.view(np.float32) if furthest <= infinite else np.float32(np.nan)


@reordered_inlined
def row_sums(row, inverse, peak):
    """Sum of e^(z - peak), and of (z - peak) e^(z - peak), over one row of z = row * inverse."""
    total = 0.0
    weighted = 0.0
    for j in range(row.shape[0]):
        x = max(np.float64(row[j]) * inverse - peak, -706.0)
        e = exp_below(x)
        total += e
        weighted += e * x
    return total, weighted


@exact
def logit_stats(logits, peaks, targets, candidates, temperature, lse, entropy, target, picked):
    """logits (N, V), peaks (N,) their largest, targets (N,), candidates (N, K); lse, entropy, target (N,), picked (N, K)."""
    for i in range(logits.shape[0]):
        row = logits[i]
        inverse = 1.0 / temperature[i if temperature.shape[0] > 1 else 0]
        peak = np.float64(peaks[i]) * inverse
        total, weighted = row_sums(row, inverse, peak)
        log_total = math.log(total)
        lse[i] = peak + log_total
        entropy[i] = log_total - weighted / total
        target[i] = np.float64(row[targets[i]]) * inverse - lse[i]
        for k in range(candidates.shape[1]):
            c = candidates[i, k]
            picked[i, k] = np.float64(row[c]) * inverse - lse[i] if c >= 0 else -np.inf
