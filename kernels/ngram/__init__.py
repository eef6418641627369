"""Document-local n-gram counts, and an interpolated back-off from their orders to the neural distribution."""

from pgolf.kernels.ngram.backoff import FLOOR_FOR_TABLES, Evidence, NgramBackoff, NgramBackoffScores, learn_table
from pgolf.kernels.ngram.stream import NgramBackoffStream

__all__ = [
    "FLOOR_FOR_TABLES",
    "Evidence",
    "NgramBackoff",
    "NgramBackoffScores",
    "NgramBackoffStream",
    "learn_table",
]
