"""exp and log in float64, in forms that numba vectorises.

They are not reassociated: the rounding below would be optimised away. numba caches a compiled caller by the caller's own
file, so after a change here delete the `__pycache__` folders of the operators that use it.
"""

import numpy as np

from pgolf.kernels.jit import contracted_inlined


@contracted_inlined
def exp_below(x: float) -> float:
    """e^x for x <= 0, relative error under 1e-12; what is smaller than 1e-306 becomes 1e-306."""
    x = max(x, -706.0)
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    k = shifted - 6755399441055744.0
    r = (x - k * 0.693145751953125) - k * 1.4286068203094172e-06
    p = 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # the low bits of the shifted number hold k: into the exponent with it
    bits = np.float64(p).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)
    return np.int64(bits).view(np.float64)


@contracted_inlined
def log_normal(x: float) -> float:
    """log x for positive x that is neither denormal nor infinite, absolute error under 1e-12."""
    bits = np.float64(x).view(np.int64)
    # the exponent that leaves a mantissa between sqrt(1/2) and sqrt(2)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (k << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1 / 15.0
    p = p * z + 1 / 13.0
    p = p * z + 1 / 11.0
    p = p * z + 1 / 9.0
    p = p * z + 1 / 7.0
    p = p * z + 1 / 5.0
    p = p * z + 1 / 3.0
    p = p * z + 1.0
    return np.float64(k) * 0.6931471805599453 + 2.0 * s * p
