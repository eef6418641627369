"""Probabilities as logits in 1/256, by tables from exact arithmetic, and what weighs and moves them."""

from decimal import Decimal

import numpy as np

from pgolf.kernels.jit import exact_inlined, exact_merged

f32, i32 = np.float32, np.int32

# logits of at most so many 1/256
WIDEST = 3071
# of x - WIDEST - 1, in 1/256
SQUASH = np.array([1 / (1 + (-Decimal(x - WIDEST - 1) / 256).exp()) for x in range(2 * WIDEST + 3)]).astype(f32)
STRETCH = np.array([round((Decimal(2 * n + 1) / (8191 - 2 * n)).ln() * 256) for n in range(4096)], i32)


@exact_merged
def squash(logit):
    return SQUASH[logit + WIDEST + 1]


@exact_merged
def stretch(p):
    return STRETCH[int(p * f32(4096))]


@exact_inlined
def product(weights, at, x, base, count):
    """Of so many weights from `at` on with inputs from `base` on, in integers: any order gives the same."""
    total = i32(0)
    for j in range(count):
        total += i32(i32(weights[at + j] * x[base + j]) >> i32(10))
    return total


@exact_merged
def towards(p, goal, rate, least):
    """p moves towards the goal, but stays `least` away from 0 and 1."""
    return min(max(p + (goal - p) * rate, least), f32(1) - least)
