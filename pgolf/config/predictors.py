"""[evaluation.temperature] and [evaluation.mixer]: what stands beside the network in a scored distribution."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TemperatureSettings:
    method: Literal["none", "fixed", "entropy", "grid", "online"] = "none"
    """fixed: one value. entropy: #688's, by the model's entropy. grid: #953's. online: learnt from committed tokens."""
    value: float = 1.0
    """Where it starts."""


@dataclass(frozen=True)
class MixerSettings:
    published: Literal["none", "hedge", "boost"] = "none"
    """The submission's own mixture, for comparison, marked not legal: #688's five experts or #1014's logit boost."""
    honest: tuple[str, ...] = ()
    """Normalised mixers scored beside it: chain, boost, bias, tilt, ngrams."""
    orders: int = 4
    """Levels of the document-local n-gram back-off."""
    online_weights: bool = True
    """Learn the n-gram back-off's weights while scoring; off: only the table in the artifact."""
    granularity: int = 8
    """Counts and weights are fresh to within this many tokens."""
    eta: float = 0.1
    """Step of the published Hedge weights."""
    bias_lr: float = 0.0
    """Step of #1014's online bias; 0 switches it off."""
    ranks: int = 8
    """Processes that the submission ran on: its published mixture had weights of their own on each."""
