"""Counts of what followed which context, in hash tables that grow; what the sparse predictors look up. numba, on a CPU.

A slot is free where its key is 0. Sizes are powers of two, at most half full, probed one after another.
"""

import numpy as np
from numba import njit

SMALLEST = 1 << 12
# contexts beyond this many are not counted any more: what was seen first stays (about 50 bytes a context)
MOST_CONTEXTS = 1 << 27

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
STEP = np.uint64(0xD6E8FEB86659FD93)


@njit(nogil=True, cache=True)
def find(keys, key):
    """The slot that holds the key, or the free one where it belongs."""
    mask = np.uint64(keys.shape[0] - 1)
    slot = (key * MULTIPLIER) >> np.uint64(20) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(nogil=True, cache=True)
def extend(h, token):
    """The key of a context that reaches one token further back. Never 0."""
    h = (h ^ np.uint64(token + 1)) * STEP
    return (h ^ (h >> np.uint64(31))) | np.uint64(1)


@njit(nogil=True, cache=True)
def move(old_keys, old_values, keys, values):
    for i in range(old_keys.shape[0]):
        if old_keys[i] != 0:
            slot = find(keys, old_keys[i])
            keys[slot] = old_keys[i]
            values[slot] = old_values[i]


@njit(nogil=True, cache=True)
def look_up(history, end, lengths, keys, values, top, count, total):
    """For each length of context before history[end]: its most frequent successor, that one's count, and all counts."""
    h, level = np.uint64(0), 0
    for back in range(1, lengths[-1] + 1):
        known = end - back >= 0 and history[end - back] >= 0
        if known:
            h = extend(h, history[end - back])
        if back == lengths[level]:
            slot = find(keys, h) if known else np.uint64(0)
            if known and keys[slot] == h:
                top[level], count[level], total[level] = values[slot, 0], values[slot, 1], values[slot, 2]
            else:
                top[level], count[level], total[level] = -1, 0, 0
            level += 1
        if not known:
            h = np.uint64(0)


@njit(nogil=True, cache=True)
def add(history, end, lengths, keys, values, pair_keys, pair_values, used, most):
    """Count history[end] after each of its contexts. The first successor to reach a count stays on top."""
    h, level = np.uint64(0), 0
    y = history[end]
    for back in range(1, lengths[-1] + 1):
        if end - back < 0 or history[end - back] < 0:
            return
        h = extend(h, history[end - back])
        if back != lengths[level]:
            continue
        level += 1
        slot = find(keys, h)
        if keys[slot] == 0:
            if used[0] >= most:
                continue
            keys[slot] = h
            values[slot, 0], values[slot, 1], values[slot, 2] = -1, 0, 0
            used[0] += 1
        pair = extend(h, y)
        place = find(pair_keys, pair)
        if pair_keys[place] == 0:
            pair_keys[place], pair_values[place, 0] = pair, 0
            used[1] += 1
        pair_values[place, 0] += 1
        values[slot, 2] += 1
        if pair_values[place, 0] > values[slot, 1]:
            values[slot, 0], values[slot, 1] = y, pair_values[place, 0]


@njit(nogil=True, cache=True)
def read(history, begin, lengths, keys, values, pair_keys, pair_values, used, most, top, count, total):
    for end in range(begin, history.shape[0]):
        i = end - begin
        look_up(history, end, lengths, keys, values, top[i], count[i], total[i])
        add(history, end, lengths, keys, values, pair_keys, pair_values, used, most)


class TopCounts:
    """For each context length: the context's most frequent successor so far, its count, and how often anything came.

    Contexts are told apart by 64-bit keys and may reach over the beginning of a document.
    """

    def __init__(self, lengths: tuple[int, ...], most: int = MOST_CONTEXTS):
        self.lengths, self.most = np.array(lengths, dtype=np.int64), most
        self.recent = np.full(lengths[-1], -1, dtype=np.int32)
        self.keys, self.values = np.zeros(SMALLEST, np.uint64), np.zeros((SMALLEST, 3), np.int32)
        self.pair_keys, self.pair_values = np.zeros(SMALLEST, np.uint64), np.zeros((SMALLEST, 1), np.int32)
        self.used = np.zeros(2, dtype=np.int64)

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
        """Top, its count and the total (n, levels) before each token; each is counted before the next is looked at."""
        self._reserve(len(tokens) * len(self.lengths))
        history = np.concatenate([self.recent, tokens.astype(np.int32)])
        counts = tuple(np.empty((len(tokens), len(self.lengths)), np.int32) for _ in range(3))
        tables = (self.keys, self.values, self.pair_keys, self.pair_values)
        read(history, len(self.recent), self.lengths, *tables, self.used, self.most, *counts)
        self.recent = history[len(history) - len(self.recent) :].copy()
        return counts

    def peek(self) -> tuple[np.ndarray, ...]:
        """The same (levels,) before the token that comes next."""
        counts = tuple(np.empty(len(self.lengths), np.int32) for _ in range(3))
        look_up(self.recent, len(self.recent), self.lengths, self.keys, self.values, *counts)
        return counts

    def _reserve(self, more: int) -> None:
        self.keys, self.values = roomy(self.keys, self.values, min(self.used[0] + more, self.most))
        self.pair_keys, self.pair_values = roomy(self.pair_keys, self.pair_values, self.used[1] + more)


def roomy(keys: np.ndarray, values: np.ndarray, needed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same table, with room for so many keys."""
    if 2 * needed <= len(keys):
        return keys, values
    size = 1 << int(2 * needed - 1).bit_length()
    wider = np.zeros(size, keys.dtype), np.zeros((size, values.shape[1]), values.dtype)
    move(keys, values, *wider)
    return wider
