"""Statistics of rows of logits on a CPU, in numba. Every function releases the interpreter's lock."""

import math

import numpy as np

from pgolf.kernels.elementary import exp_below
from pgolf.kernels.jit import exact, reordered_inlined


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
