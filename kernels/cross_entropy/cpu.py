"""Softcapped cross-entropy and its gradient on a CPU, in numba: three sweeps over a row that stays in the cache."""

import math

import numpy as np

from pgolf.kernels.jit import contracted_inlined, exact, reordered_inlined

SHIFT = np.float32(12_582_912.0)  # 1.5 * 2^23: adding it rounds to a whole number and leaves that in the lowest bits
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87.0), np.float32(20.0)
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)
E3, E4, E5, E6 = (np.float32(1 / math.factorial(n)) for n in (3, 4, 5, 6))
T3, T5, T7, T9 = np.float32(-1 / 3), np.float32(2 / 15), np.float32(-17 / 315), np.float32(62 / 2835)
SMALL = np.float32(0.09)  # the square from which the quotient is the more exact one


@contracted_inlined
def exponential(x):
    """e^x for x < 88 in float32, relative error under 3e-7; what is smaller than e^-87 becomes that."""
    x = max(x, LEAST)
    shifted = x * LOG2E + SHIFT
    k = shifted - SHIFT
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = ((((E6 * r + E5) * r + E4) * r + E3) * r + HALF) * r + ONE
    p = p * r + ONE
    # the low bits of the shifted number hold k: into the exponent with it
    bits = np.float32(p).view(np.int32) + (np.float32(shifted).view(np.int32) << 23)
    return np.int32(bits).view(np.float32)


@contracted_inlined
def hyperbolic_tangent(x):
    e = exponential(TWO * min(x, MOST))
    far = (e - ONE) / (e + ONE)
    square = x * x
    near = x + x * square * (T3 + square * (T5 + square * (T7 + square * T9)))
    return near if square < SMALL else far


@reordered_inlined
def exponentials(row, peak, softcap, slopes):
    """row <- e^(z - peak), slopes <- dz / d logit; gives the sum of the exponentials."""
    total = np.float32(0)
    if softcap > 0:
        inverse = ONE / softcap
        for j in range(row.shape[0]):
            t = hyperbolic_tangent(row[j] * inverse)
            slopes[j] = ONE - t * t
            e = exponential(softcap * t - peak)
            row[j] = e
            total += e
    else:
        for j in range(row.shape[0]):
            e = exponential(row[j] - peak)
            row[j] = e
            total += e
    return total


@exact
def rows(logits, peaks, targets, kept, scale, softcap, z_loss, losses, unscaled, want_gradient):
    """Losses of rows of float32 logits, which are overwritten with their gradient (or, where none is wanted, with what
    was left of it)."""
    slopes = np.ones(logits.shape[1], np.float32)
    for i in range(logits.shape[0]):
        row, target = logits[i], targets[i]
        if not kept[i]:
            losses[i] = unscaled[i] = 0
            row[:] = 0
            continue
        peak, of_target = peaks[i], row[target]
        if softcap > 0:
            peak = softcap * hyperbolic_tangent(peak / softcap)
            of_target = softcap * hyperbolic_tangent(of_target / softcap)
        total = exponentials(row, peak, softcap, slopes)
        lse = math.log(total) + peak
        unscaled[i] = lse - of_target + z_loss * lse * lse
        losses[i] = unscaled[i] * scale[i]
        if want_gradient:
            factor = np.float32(scale[i] * (1 + 2 * z_loss * lse) / total)
            at_target = row[target] * factor - scale[i]
            for j in range(row.shape[0]):
                row[j] = row[j] * factor * slopes[j]
            row[target] = at_target * slopes[target]
