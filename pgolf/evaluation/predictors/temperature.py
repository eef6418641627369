"""Policies of the temperature that logits are divided by: functions of the network's distribution and of committed tokens.

A new policy is a subclass of `Temperature` with a line in `policy`, and a name in TemperatureSettings
(pgolf/config/predictors.py).
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from pgolf.config import TemperatureSettings
from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.statistics import Statistics

GRID = (0.85, 0.90, 0.95, 1.00, 1.05, 1.10, 1.15)
GRID_SEQUENCES = 8


class Temperature:
    """One temperature for all targets; the policies below choose it, or vary it."""

    learns = False
    """It has a `learn`, to be called with every span of the stream."""
    calibrates = False
    """It has a `calibrate`, to be called after every chunk, so that spans have to end with chunks."""

    def __init__(self, value: float):
        self.value = value

    def of(self, entropy: torch.Tensor, vocab: int) -> float | torch.Tensor:
        """For each target (n,), from the entropy of softmax(logits)."""
        return self.value

    def learn(self, statistics: Statistics) -> None:
        """From committed targets."""

    def calibrate(self, logits_of: Callable[[np.ndarray], torch.Tensor], tokens: np.ndarray, length: int) -> None:
        """From a chunk that was just learnt from: `logits_of` inputs (B, T), and its targets and the token before them."""


class ByEntropy(Temperature):
    """#688's: with T0 = `value`, T = 1 - (1 - T0)(1 - H / ln V), kept within 0.9 and 1.05. One switches it off."""

    def of(self, entropy, vocab):
        if self.value == 1.0:
            return 1.0
        return (1 - (1 - self.value) * (1 - entropy / math.log(vocab))).clamp(0.9, 1.05)


class ByGrid(ByEntropy):
    """#953's: T0 is, of seven temperatures, the best one for the first sequences of the last chunk, by the weights that
    have just been trained on it. Causal, and biased towards sharpness."""

    calibrates = True

    @torch.inference_mode()
    def calibrate(self, logits_of, tokens, length):
        count = min(GRID_SEQUENCES, (len(tokens) - 1) // length)
        if not count:
            return
        rows = tokens[: count * length + 1].astype(np.int64)
        logits = logits_of(rows[:-1].reshape(count, length)).flatten(0, 1)
        targets = torch.from_numpy(rows[1:]).to(logits.device)
        losses = [torch.nn.functional.cross_entropy(logits.float() / heat, targets).item() for heat in GRID]
        self.value = GRID[int(np.argmin(losses))]


class Online(Temperature):
    """Learnt from committed targets. With beta = 1 / T, the gradient of -log p(y) by log beta is -log p(y) - H, and its
    expected square is the curvature: so each span moves log beta by Newton's step on everything seen so far."""

    learns = True

    def __init__(self, value: float, doubt: float = 2000.0):
        super().__init__(value)
        self.curvature = doubt

    def learn(self, statistics):
        surplus = -statistics.target - statistics.entropy
        self.curvature += float((surplus**2).sum())
        log_beta = -math.log(self.value) - float(surplus.sum()) / self.curvature
        self.value = math.exp(-min(max(log_beta, -0.5), 0.5))


def policy(settings: TemperatureSettings) -> Temperature | None:
    """None: the logits are used as they are."""
    if settings.method == "none":
        return None
    return {"fixed": Temperature, "entropy": ByEntropy, "grid": ByGrid, "online": Online}[settings.method](settings.value)


class Tempered(Predictor):
    """The neural model with its temperature, and nothing else."""

    name = "temperature"

    def __init__(self, temperature: Temperature):
        self.temperature = temperature

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        return -statistics.target

    def predict(self, log_probs):
        return log_probs

    def trace(self):
        return {"temperature": self.temperature.value}


class Plain(Predictor):
    """The neural model as it is."""

    tempered = False

    def __init__(self, name: str):
        self.name = name

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        return statistics.nats

    def predict(self, log_probs):
        return log_probs
