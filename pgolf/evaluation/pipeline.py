"""One pass over a stream: windows through the model, statistics to every reader, scores committed, then learning.

    for each span:  open -> candidates -> forward -> statistics -> readers score -> commit -> readers and adapter learn

Two ways to adapt plug in here. An `Adapter` learns between chunks of one stream. Documents with adapters of their own
(pgolf.evaluation.adaptation.lora) run their own loop and hand each scored span to a `Collector`.
"""

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from pgolf.evaluation.readers.base import Reader, Span
from pgolf.evaluation.statistics import Statistics, gathered, join, statistics_of
from pgolf.evaluation.stream import Opened


class Adapter(Protocol):
    """Learns from committed chunks. Its model is its own: nobody else scores with those weights."""

    chunk_tokens: int
    """Targets of one chunk."""

    @property
    def model(self):
        """With the weights that training left; where no average is kept, the ones that score as well."""

    def scoring_model(self) -> AbstractContextManager:
        """Gives the model with the weights that score (an average, where one is kept), in evaluation mode."""

    def learn(self, tokens: np.ndarray, index: int, total: int, epochs: int) -> int:
        """Train on chunk `index` of `total`: `tokens` are its targets and the token before them, all of them committed.

        `epochs` is what the clock allows, at most the settings' number and at least one. All ranks call it with the
        same arguments. Returns the optimiser steps taken. Never called for the last chunk.
        """


class Collector:
    """Takes the statistics of documents that are scored side by side, in any order, at their places in the stream.

        for each document's stream:
            opened = stream.open(stop)
            stream.commit(collector.take(opened, logits))      # logits (opened.stop - opened.start, V) of its targets

    Documents are committed under one reading. Readers come later, in the stream's order: `in_order` gives what was
    collected, on every rank.
    """

    def __init__(self, readers: list[Reader], vocab: int, *, temperature=None, bos: int, name: str = "adapted"):
        self.readers, self.vocab, self.temperature, self.bos, self.name = readers, vocab, temperature, bos, name
        self._found: list[tuple[int, Statistics]] = []
        self._documents: dict[int, list[Reader]] = {}

    def take(self, opened: Opened, logits: torch.Tensor) -> dict[str, np.ndarray]:
        """The scores to commit for the opened targets of one document, whose earlier targets were taken before."""
