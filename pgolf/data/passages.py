"""Passages that texts share: for a split into training and validation that have none in common, and to state what a split
that was made otherwise has.

A passage is `PASSAGE` bytes, anywhere, within one document. Whole-document deduplication does not see them: licences, help
texts and copied docstrings stand in documents that differ elsewhere.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numba import njit

PASSAGE = 64
# Winnowing (Schleimer, Wilkerson and Aiken, SIGMOD 2003): the least hash of every `WINDOW` neighbouring grams of `GRAM` bytes.
# Two documents that share GRAM + WINDOW - 1 = PASSAGE bytes are sure to share a fingerprint, for a ninth of the memory.
GRAM, WINDOW = 48, 17
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no byte is lost


@njit(cache=True)
def _gram_hashes(data, width, base):
    """A polynomial hash modulo 2^64 of every `width` neighbouring bytes, mixed so that its high bits are worth as much."""
    count = len(data) - width + 1
    hashes = np.empty(max(count, 0), np.uint64)
    leaving = np.uint64(1)
    for _ in range(width):
        leaving *= base
    rolling = np.uint64(0)
    for place in range(len(data)):
        rolling = rolling * base + np.uint64(data[place]) + np.uint64(1)
        if place >= width:
            rolling -= leaving * (np.uint64(data[place - width]) + np.uint64(1))
        if place >= width - 1:
            mixed = (rolling ^ (rolling >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
            hashes[place - width + 1] = mixed ^ (mixed >> np.uint64(29))
    return hashes


@njit(cache=True)
def _winnowed(hashes, window):
    """The least of every `window` neighbouring hashes, each place once."""
    kept = np.empty(len(hashes), np.uint64)
    count, last = 0, -1
    for end in range(min(window, len(hashes)) - 1, len(hashes)):
        least = max(0, end - window + 1)
        for place in range(least + 1, end + 1):
            if hashes[place] <= hashes[least]:
                least = place
        if least != last:
            kept[count], last = hashes[least], least
            count += 1
    return kept[:count]


@njit(cache=True)
def _mark_covered(is_match, width, covered):
    """Marks the bytes of every window that matches."""
    reach = 0
    for place in range(len(is_match)):
        if is_match[place]:
            for byte in range(max(place, reach), place + width):
                covered[byte] = True
            reach = place + width


def _bytes_of(text: str | bytes) -> np.ndarray:
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


def groups_by_passage(documents: Iterable[str]) -> np.ndarray:
    """For each document the number of its group: the first one that it shares a passage with, directly or through others."""
    fingerprints, owners = [], []
    for number, document in enumerate(documents):
        mine = np.unique(_winnowed(_gram_hashes(_bytes_of(document), GRAM, BASE), WINDOW))
        fingerprints.append(mine)
        owners.append(np.full(len(mine), number, np.int32))
    count = len(fingerprints)
    if not count:
        return np.zeros(0, np.int32)
    prints, holders = np.concatenate(fingerprints), np.concatenate(owners)
    order = np.lexsort((holders, prints))
    prints, holders = prints[order], holders[order]
    same = prints[1:] == prints[:-1]
    return _joined(count, holders[:-1][same], holders[1:][same])


@njit(cache=True)
def _joined(count, left, right):
    """Connected components of 0 to count - 1 under the pairs, each named by its least member."""
    parent = np.arange(count).astype(np.int32)
    for pair in range(len(left)):
        a, b = left[pair], right[pair]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for member in range(count):
        root = parent[member]
        while parent[root] != root:
            root = parent[root]
        parent[member] = root
    return parent


def shared_bytes(validation: Sequence[bytes], training: Iterable[bytes], passage: int = PASSAGE) -> int:
    """Bytes of validation documents in passages of at least so many bytes that also stand in a training document."""
    windows = [_gram_hashes(_bytes_of(document), passage, BASE) for document in validation]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *windows]))
    if not len(wanted):
        return 0
    met = np.zeros(len(wanted), bool)
    for document in training:
        hashes = _gram_hashes(_bytes_of(document), passage, BASE)
        place = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        met[place[wanted[place] == hashes]] = True
    total = 0
    for document, hashes in zip(validation, windows, strict=True):
        covered = np.zeros(len(document), bool)
        _mark_covered(met[np.searchsorted(wanted, hashes)], passage, covered)
        total += int(covered.sum())
    return total
