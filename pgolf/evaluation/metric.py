"""Nats to bits per byte."""

import math
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """One reading of one stream. `bpb` is bits per byte of the original text."""

    nats: float
    tokens: int
    bytes: int
    legal: bool = True

    @property
    def bpb(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def loss(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan

    def as_dict(self) -> dict:
        return {"bpb": self.bpb, "loss": self.loss, **asdict(self)}


def score_of(nats: np.ndarray, bytes_per_target: np.ndarray, legal: bool = True) -> Score:
    """Exact sums (math.fsum), so that the figure does not depend on the order of the parts."""
    return Score(math.fsum(nats), len(nats), int(bytes_per_target.sum()), legal)
