"""Two published mixers: #688's five experts weighted by Hedge, and #1014's boosted counts with an online bias."""

from pgolf.kernels.hedge.boost import BoostedCache, OnlineBias
from pgolf.kernels.hedge.mixer import ChunkScores, HedgeMixer

__all__ = ["BoostedCache", "ChunkScores", "HedgeMixer", "OnlineBias"]
