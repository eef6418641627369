"""The vocabulary as a binary tree: which bytes may come next, bit by bit, and whether the token ends.

A token is the sequence of decisions that leads to it. At a place (the bytes of a token so far) that is a token and the
beginning of longer ones, first: does it end here? Then the next byte's bits, most significant first, without those that the
bytes which may follow have in common. V tokens take V - 1 decisions in all, numbered in depth-first order.
"""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pgolf.kernels.jit import exact

# the shift of a decision that is no bit: does the token end
END = 8


class Tree(NamedTuple):
    child: np.ndarray  # (V - 1, 2): the next decision, or -1 - token
    part: np.ndarray  # (V - 1,): the byte's bits that are decided, behind a leading 1; 0 for an end
    shift: np.ndarray  # (V - 1,): which bit, 7 to 0, or END
    place: np.ndarray  # (V - 1,)
    bounds: np.ndarray  # (V - 1, 3): leaves [b0, b1) lie under 0, [b1, b2) under 1
    parent: np.ndarray  # (places,): the place one byte before
    byte: np.ndarray  # (places,): the byte that leads here
    depth: np.ndarray  # (places,): bytes so far
    leaf: np.ndarray  # (V,): the token's number in depth-first order
    start: np.ndarray  # (V + 1,): where a token's decisions begin in `path`
    path: np.ndarray
    bit: np.ndarray  # what is decided there
    first: np.ndarray  # (V + 1,): where a token's bytes begin in `bytes`
    bytes: np.ndarray


class _Builder:
    def __init__(self, pieces: Sequence[bytes]):
        self.pieces = pieces
        self.decisions: list[list[int]] = []
        """Of each: left and right child, part, shift, place, and the three bounds."""
        self.places: list[tuple[int, int, int]] = []
        self.leaf = np.zeros(len(pieces), np.int64)
        self.leaves = 0

    def token(self, token: int) -> int:
        self.leaf[token] = self.leaves
        self.leaves += 1
        return -1 - token

    def decision(self, zeros, ones, part: int, shift: int, place: int) -> int:
        number = len(self.decisions)
        row = [0, 0, part, shift, place, self.leaves, 0, 0]
        self.decisions.append(row)
        row[0], row[6] = zeros(), self.leaves
        row[1], row[7] = ones(), self.leaves
        return number

    def ends(self, tokens: list[int], place: int) -> int:
        """Tokens of the same bytes, such as the control pieces, which have none."""
        if len(tokens) == 1:
            return self.token(tokens[0])
        return self.decision(lambda: self.token(tokens[0]), lambda: self.ends(tokens[1:], place), 0, END, place)

    def at_place(self, tokens: list[int], parent: int, byte: int, depth: int) -> int:
        place = len(self.places)
        self.places.append((parent, byte, depth))
        ends = [token for token in tokens if len(self.pieces[token]) == depth]
        longer = [token for token in tokens if len(self.pieces[token]) > depth]
        if not longer:
            return self.ends(ends, place)
        if not ends:
            return self.bits(longer, place, 7, 1)
        return self.decision(lambda: self.bits(longer, place, 7, 1), lambda: self.ends(ends, place), 0, END, place)

    def bits(self, tokens: list[int], place: int, shift: int, part: int) -> int:
        depth = self.places[place][2]
        if shift < 0:
            return self.at_place(tokens, place, part & 255, depth + 1)
        ones = [token for token in tokens if self.pieces[token][depth] >> shift & 1]
        zeros = [token for token in tokens if not self.pieces[token][depth] >> shift & 1]
        if not zeros or not ones:
            return self.bits(tokens, place, shift - 1, 2 * part + bool(ones))
        return self.decision(
            lambda: self.bits(zeros, place, shift - 1, 2 * part),
            lambda: self.bits(ones, place, shift - 1, 2 * part + 1),
            part, shift, place,
        )  # fmt: skip


def token_tree(pieces: Sequence[bytes]) -> Tree:
    """pieces: the bytes of each token, of which there are at least two."""
    builder, limit = _Builder(pieces), sys.getrecursionlimit()
    # two frames a decision on the way to the longest token
    sys.setrecursionlimit(max(limit, 1000 + 40 * (max(map(len, pieces)) + 1) + 4 * len(pieces)))
    try:
        builder.at_place(list(range(len(pieces))), 0, 0, 0)
    finally:
        sys.setrecursionlimit(limit)
    table = np.array(builder.decisions, np.int64)
    paths: list[list[tuple[int, int]]] = [[] for _ in pieces]
    waiting: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    while waiting:
        number, path = waiting.pop()
        for bit in (0, 1):
            child, longer = int(table[number, bit]), [*path, (number, bit)]
            if child < 0:
                paths[-1 - child] = longer
            else:
                waiting.append((child, longer))
    flat = np.array([step for path in paths for step in path], np.int64)
    parent, byte, depth = np.array(builder.places, np.int64).T
    return Tree(
        child=table[:, :2].copy(), part=table[:, 2].copy(), shift=table[:, 3].copy(), place=table[:, 4].copy(),
        bounds=table[:, 5:].copy(), parent=parent.copy(), byte=byte.copy(), depth=depth.copy(), leaf=builder.leaf,
        start=_offsets(paths), path=flat[:, 0].copy(), bit=flat[:, 1].copy(), first=_offsets(pieces),
        bytes=np.frombuffer(b"".join(pieces) + b"\0", np.uint8).copy(),
    )  # fmt: skip


def _offsets(parts: Sequence) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


@exact
def cumulate(tree, logits, before):
    """Of softmax(logits): the probability of all leaves before each."""
    peak = logits[0]
    for v in range(len(tree.leaf)):
        peak = max(peak, logits[v])
    for v in range(len(tree.leaf)):
        before[tree.leaf[v] + 1] = math.exp(np.float64(logits[v]) - np.float64(peak))
    for v in range(len(tree.leaf)):
        before[v + 1] += before[v]
    total = before[len(tree.leaf)]
    for v in range(len(tree.leaf)):
        before[v + 1] /= total
