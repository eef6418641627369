"""The mixer: statistics of the neural distribution, n-gram experts, and three ways to mix them."""

from pgolf.kernels.hedge.boost import BoostedCache, OnlineBias
from pgolf.kernels.hedge.five import FiveScores, HedgeMixer
from pgolf.kernels.hedge.ngram_backoff import Evidence, NgramBackoff, NgramBackoffStream, learn_table
from pgolf.kernels.hedge.op import NeuralStatistics, neural_statistics

__all__ = [
    "BoostedCache",
    "NgramBackoff",
    "NgramBackoffStream",
    "Evidence",
    "HedgeMixer",
    "FiveScores",
    "NeuralStatistics",
    "OnlineBias",
    "learn_table",
    "neural_statistics",
]
