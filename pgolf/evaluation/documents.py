"""Where the documents of a stream begin."""

import numpy as np


def document_bounds(tokens: np.ndarray, bos: int) -> list[int]:
    """The first targets of all documents but the first, for `ScoredStream.split`. A document predicts its own tokens and,
    as its last target, the BOS of the next one."""
    return document_starts(tokens, bos)[1:].tolist()


def document_starts(tokens: np.ndarray, bos: int) -> np.ndarray:
    """The first target of every document."""
    return np.concatenate([[0], np.flatnonzero(tokens[1:-1] == bos) + 1])
