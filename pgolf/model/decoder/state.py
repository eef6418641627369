"""The decoder's state: keys, values, scan states, and adapters of each row."""

from typing import NamedTuple

import numpy as np

from pgolf.model.network import Network

TILE = 64


class State(NamedTuple):
    """What is kept of the past of each of B rows, a sequence each. Keys and values come in tiles of positions, used in turn;
    within one, keys have positions last, so that scores are a product like every other."""

    keys: np.ndarray  # (A, B, Hkv, tiles, d, TILE)
    values: np.ndarray  # (A, B, Hkv, tiles, TILE, d)
    scanned: np.ndarray  # (M, B, H, S, I / H)
    window: np.ndarray  # (M, B, K, I), what the convolutions still see: token t in place t mod K
    embedding: np.ndarray  # (B, D), of the last token, normed and not yet smeared
    raw: np.ndarray  # (B, D), the same as its table has it
    token: np.ndarray  # (B,), the last one


class LowRank(NamedTuple):
    """Adapters of every row: y += (x A) B for each adapted site of each executed layer; no layers for a site without."""

    q_in: np.ndarray  # (L or 0, B, D, rank)
    q_out: np.ndarray  # (L or 0, B, rank, D)
    k_in: np.ndarray
    k_out: np.ndarray
    v_in: np.ndarray
    v_out: np.ndarray
    o_in: np.ndarray
    o_out: np.ndarray
    up_in: np.ndarray
    up_out: np.ndarray
    down_in: np.ndarray
    down_out: np.ndarray
    attn_side_in: np.ndarray  # beside a sublayer, from its input to its output
    attn_side_out: np.ndarray
    mlp_side_in: np.ndarray
    mlp_side_out: np.ndarray
    head_in: np.ndarray  # (1 or 0, B, D, rank)
    head_out: np.ndarray


class Places(NamedTuple):
    """Where each of the N tokens stands."""

    row: np.ndarray  # (N,), its sequence
    position: np.ndarray  # (N,), rising for each sequence
    first: np.ndarray  # (N,), the first position that it attends to


class Buffers(NamedTuple):
    """Room for N tokens."""

    x: np.ndarray  # (N, D), the residual stream
    x0: np.ndarray  # (N, D), the embedding that it began as
    x_in: np.ndarray  # (N, D), the stream that the sublayers add to
    lane: np.ndarray  # (N, D), the lane that the MLP reads, where there are two
    prev_stream: np.ndarray  # (N, D), the stream that entered the previous layer
    normed: np.ndarray  # (N, D), a sublayer's input
    added: np.ndarray  # (N, D), its output
    written: np.ndarray  # (N, D), attention's scaled output, where the MLP does not read it
    pushed: np.ndarray  # (L, N, D), outputs that wait for a later layer's skip
    qkv: np.ndarray  # (N, H + 2 Hkv, d)
    first_values: np.ndarray  # (N, Hkv, d), the first layer's
    gates: np.ndarray  # (N, H)
    y: np.ndarray  # (N, H, d), attention's output
    hidden: np.ndarray  # (N, hidden), of the MLP
    entering: np.ndarray  # (N, 2 I + 2 H S), a mixer's products with its input
    scanned: np.ndarray  # (N, I), a mixer's output before W_out
    low: np.ndarray  # (1, rank)
    scores: np.ndarray  # (tiles, H / Hkv, TILE)
    weights: np.ndarray  # float64, exponentials' arguments and results
    work: np.ndarray  # float64, their scratch


def state_of(model: Network, batch: int, length: int) -> State:
    """An empty state for `batch` rows of `length` positions."""
    settings, tiles = model.settings, -(-length // TILE)
    mixers = sum(layer.mamba for layer in model.layers)
    cache = (len(model.layers) - mixers, batch, settings.kv_heads, tiles)
    heads, inner, taps = (settings.scan_heads, settings.scan_width, settings.scan_conv) if mixers else (1, 1, 1)
    return State(
        np.zeros((*cache, settings.head_dim, TILE), np.float32),
        np.zeros((*cache, TILE, settings.head_dim), np.float32),
        np.zeros((mixers, batch, heads, settings.scan_state, inner // heads), np.float32),
        np.zeros((mixers, batch, taps, inner), np.float32),
        np.zeros((batch, settings.dim), np.float32),
        np.zeros((batch, settings.dim), np.float32),
        np.zeros(batch, np.int64),
    )
