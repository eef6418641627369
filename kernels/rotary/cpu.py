"""QK-norm, partial rotation and gain on a CPU, in numba: one sweep over the heads of a span of tokens.

Heads are (tokens, H, d) in float32, overwritten; position t of a span takes the turns of row (first + t) mod length.
"""

import math

import numpy as np

from pgolf.kernels.jit import reordered, reordered_inlined


@reordered_inlined
def inverse_norm(x, eps):
    square = np.float32(0)
    for j in range(x.shape[0]):
        square += x[j] * x[j]
    return np.float32(1 / math.sqrt(square / x.shape[0] + eps))


@reordered_inlined
def turn(x, cos, sin, direction):
    """Turn the first dims of one head, first half against second half."""
    half = cos.shape[0]
    for j in range(half):
        left, right, s = x[j], x[half + j], direction * sin[j]
        x[j] = left * cos[j] + right * s
        x[half + j] = right * cos[j] - left * s


@reordered
def forward(heads, gain, cos, sin, first, eps):
    """heads <- gain * rotated(heads / rms)."""
    length, ahead = cos.shape[0], np.float32(1)
    for t in range(heads.shape[0]):
        position = (first + t) % length
        for h in range(heads.shape[1]):
            x = heads[t, h]
            factor = gain[h] * inverse_norm(x, eps)
            for j in range(x.shape[0]):
                x[j] *= factor
            turn(x, cos[position], sin[position], ahead)


@reordered
def backward(grad, heads, gain, cos, sin, first, eps, d_gain):
    """grad <- the gradient of the heads; d_gain (H,) gets the sums of this span added."""
    length, back = cos.shape[0], np.float32(-1)
    for t in range(heads.shape[0]):
        position = (first + t) % length
        for h in range(heads.shape[1]):
            g, x = grad[t, h], heads[t, h]
            turn(g, cos[position], sin[position], back)
            scale, along = inverse_norm(x, eps), np.float32(0)
            for j in range(x.shape[0]):
                along += g[j] * x[j]
            along *= scale
            d_gain[h] += along
            inward = scale * scale * along / x.shape[0]
            factor = gain[h]
            for j in range(x.shape[0]):
                g[j] = factor * (scale * g[j] - inward * x[j])
