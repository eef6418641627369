"""Exclusive self-attention on a CPU, in numba: one sweep over the heads of a span of tokens, in float32.

Heads are (tokens, groups, heads of a group, d), values (tokens, groups, d); gates (tokens, groups, heads of a group), or none
of them at all.
"""

import numpy as np

from pgolf.kernels.jit import reordered, reordered_inlined


@reordered_inlined
def dot(x, y):
    total = np.float32(0)
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@reordered
def exclude(heads, values, gates, least):
    """heads <- gate * (y - (y . v) / max(|v|^2, least) v)."""
    for t in range(heads.shape[0]):
        for g in range(heads.shape[1]):
            v = values[t, g]
            inverse = np.float32(1) / max(dot(v, v), least)
            for h in range(heads.shape[2]):
                y, gate = heads[t, g, h], gates[t, g, h] if gates.shape[0] else np.float32(1)
                along = dot(y, v) * inverse
                for j in range(y.shape[0]):
                    y[j] = gate * (y[j] - along * v[j])


@reordered
def exclude_backward(grad, heads, values, gates, least, d_values, d_gates):
    """grad <- the gradient of the heads; those of the values and the gates go where the last arguments say."""
    for t in range(heads.shape[0]):
        for g in range(heads.shape[1]):
            v, d_v = values[t, g], d_values[t, g]
            square = dot(v, v)
            inverse = np.float32(1) / max(square, least)
            d_v[:] = 0
            for h in range(heads.shape[2]):
                y, dz = heads[t, g, h], grad[t, g, h]
                along, back = dot(y, v) * inverse, dot(dz, v)
                if gates.shape[0]:
                    d_gates[t, g, h] = dot(dz, y) - along * back
                    back *= gates[t, g, h]
                    for j in range(dz.shape[0]):
                        dz[j] *= gates[t, g, h]
                back *= inverse
                # where |v|^2 is as good as zero, the quotient's denominator has no slope
                own = 2 * along * back if square >= least else np.float32(0)
                for j in range(dz.shape[0]):
                    d_v[j] += own * v[j] - along * dz[j] - back * y[j]
                    dz[j] -= back * v[j]
