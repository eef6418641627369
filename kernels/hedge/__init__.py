"""The mixer: statistics of the neural distribution, n-gram experts, and three ways to mix them."""

from pgolf.kernels.hedge.boost import BoostedCache, OnlineBias
from pgolf.kernels.hedge.chain import Chain, ChainStream, Evidence, learn_table
from pgolf.kernels.hedge.five import FiveExperts, FiveScores
from pgolf.kernels.hedge.op import NeuralStatistics, neural_statistics

__all__ = [
    "BoostedCache",
    "Chain",
    "ChainStream",
    "Evidence",
    "FiveExperts",
    "FiveScores",
    "NeuralStatistics",
    "OnlineBias",
    "learn_table",
    "neural_statistics",
]
