"""Probabilities as logits in 1/256, by tables from exact arithmetic, and what weighs and moves them."""

from decimal import Decimal

import numpy as np

from pgolf.kernels.jit import exact_inlined

f32, i32 = np.float32, np.int32

# logits of at most so many 1/256
WIDEST = 3071
# of x - WIDEST - 1, in 1/256
SQUASH = np.array([1 / (1 + (-Decimal(x - WIDEST - 1) / 256).exp()) for x in range(2 * WIDEST + 3)]).astype(f32)
STRETCH = np.array(
    [int((((x := Decimal(n) + Decimal("0.5")) / (4096 - x)).ln() * 256).to_integral_value()) for n in range(4096)], i32
)


@exact_inlined
def squash(logit):
    return SQUASH[logit + WIDEST + 1]


@exact_inlined
def stretch(p):
    return STRETCH[int(p * f32(4096))]


@exact_inlined
def product(weights, at, x):
    """Of a row of weights that begins at `at` with the inputs, in integers: any order gives the same."""
    total = i32(0)
    for j in range(len(x)):
        total += i32(i32(weights[at + j] * x[j]) >> i32(10))
    return total


@exact_inlined
def towards(p, goal, rate, least):
    """p moves towards the goal, but stays `least` away from 0 and 1."""
    return min(max(p + (goal - p) * rate, least), f32(1) - least)
