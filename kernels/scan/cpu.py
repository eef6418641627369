"""The scan on a CPU, in numba: token by token. States are small, so that this costs fewer operations than the products of
chunks, and all of them run along a head's width, in vector registers. No interpreter's lock is held."""

import math

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.jit import reordered
from pgolf.kernels.scan.launch import CHUNK
from pgolf.kernels.scan.op import empty_states


def scan(v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the state before each chunk."""
    y, states = torch.empty(v.shape, dtype=dt.dtype), empty_states(v, b.shape[3])
    _forward(*_arrays(dt.dtype, v, b, c, dt, log_decay), CHUNK, y.numpy(), states.numpy())
    return y.to(v.dtype), states


def scan_backward(
    dy: Tensor, v: Tensor, b: Tensor, c: Tensor, dt: Tensor, log_decay: Tensor, states: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of v, b, c, dt and log_decay."""
    given = v, b, c, dt, log_decay
    gradients = [torch.zeros(x.shape, dtype=dt.dtype) for x in given]
    _backward(*_arrays(dt.dtype, dy, *given, states), CHUNK, *(x.numpy() for x in gradients))
    return tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, given, strict=True))


def _arrays(kind: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().to(kind).contiguous().numpy() for x in tensors]


@reordered
def _forward(v, b, c, dt, log_decay, chunk, y, states):
    """y (B, T, H, P), and the state before each chunk, (B, H, chunks, S, P)."""
    batch, length, heads, width = v.shape
    size, group = b.shape[3], heads // b.shape[2]
    state = np.empty((size, width), v.dtype)
    for i in range(batch):
        for head in range(heads):
            state[:] = 0
            for t in range(length):
                if t % chunk == 0:
                    states[i, head, t // chunk] = state
                decay, step, value, out = math.exp(log_decay[i, t, head]), dt[i, t, head], v[i, t, head], y[i, t, head]
                out[:] = 0
                for s in range(size):
                    row, enters, leaves = state[s], step * b[i, t, head // group, s], c[i, t, head // group, s]
                    for p in range(width):
                        row[p] = decay * row[p] + enters * value[p]
                        out[p] += leaves * row[p]


@reordered
def _backward(dy, v, b, c, dt, log_decay, states, chunk, dv, db, dc, d_dt, d_log_decay):
    """Chunk by chunk from the last: its states once more, then its tokens backwards. db and dc must hold zeros."""
    batch, length, heads, width = v.shape
    size, group = b.shape[3], heads // b.shape[2]
    seen = np.empty((chunk + 1, size, width), v.dtype)
    back = np.empty((size, width), v.dtype)
    for i in range(batch):
        for head in range(heads):
            back[:] = 0
            g = head // group
            for number in range(states.shape[2] - 1, -1, -1):
                start = number * chunk
                stop = min(start + chunk, length)
                seen[0] = states[i, head, number]
                for t in range(start, stop):
                    decay, step, value = math.exp(log_decay[i, t, head]), dt[i, t, head], v[i, t, head]
                    for s in range(size):
                        before, after, enters = seen[t - start, s], seen[t - start + 1, s], step * b[i, t, g, s]
                        for p in range(width):
                            after[p] = decay * before[p] + enters * value[p]
                for t in range(stop - 1, start - 1, -1):
                    decay, step, value = math.exp(log_decay[i, t, head]), dt[i, t, head], v[i, t, head]
                    slope, d_value = dy[i, t, head], dv[i, t, head]
                    d_value[:] = 0
                    d_step, d_decay = v.dtype.type(0), v.dtype.type(0)
                    for s in range(size):
                        before, after, row = seen[t - start, s], seen[t - start + 1, s], back[s]
                        enters, leaves = b[i, t, g, s], c[i, t, g, s]
                        d_leaves, d_enters, kept = v.dtype.type(0), v.dtype.type(0), v.dtype.type(0)
                        for p in range(width):
                            now = row[p] + leaves * slope[p]
                            d_leaves += after[p] * slope[p]
                            d_enters += now * value[p]
                            kept += now * before[p]
                            d_value[p] += step * enters * now
                            row[p] = decay * now
                        dc[i, t, g, s] += d_leaves
                        db[i, t, g, s] += step * d_enters
                        d_step += enters * d_enters
                        d_decay += kept
                    d_dt[i, t, head] = d_step
                    d_log_decay[i, t, head] = decay * d_decay
