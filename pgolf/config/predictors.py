"""[evaluation.temperature] and [evaluation.mixer]: what stands beside the network in a scored distribution."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pgolf.config.checks import SettingsError, between, nearest


class PredictorEntry(NamedTuple):
    """Where a predictor's class is: a module of pgolf/evaluation/predictors/, imported only by runs that name it."""

    module: str
    cls: str


# The list of predictors that evaluation.mixer.honest can name. Each class has a `create(vocab, mixer, ngram_table)`.
HONEST_PREDICTORS = {
    "ngram_backoff": PredictorEntry("ngram_backoff", "NgramBackoffPredictor"),
    "boost": PredictorEntry("tilt", "BoostPredictor"),
    "bias": PredictorEntry("bias", "BiasPredictor"),
    "tilt": PredictorEntry("tilt", "TiltPredictor"),
    "ngrams": PredictorEntry("ngrams", "NgramsPredictor"),
    "context_mixing": PredictorEntry("context_mixing", "ContextMixingPredictor"),
}
# of each published mixture, the honest predictor that is left of it when its probabilities are made to sum to one
HONEST_COUNTERPARTS = {"hedge": "ngrams", "boost": "boost"}


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
    """Normalised predictors, scored in this order: ngram_backoff, boost, bias, tilt, ngrams, context_mixing. The last is
    the run's score."""
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
    primer_tokens: int = 1_000_000
    """Training tokens at most that the artifact carries for context_mixing to read before it scores, on the scoring clock."""

    def validate(self) -> None:
        between(0, 1 << 26, "evaluation.mixer", self, "primer_tokens")
        for name in self.honest:
            if name not in HONEST_PREDICTORS:
                hint = nearest(name, HONEST_PREDICTORS) or f"; there are {', '.join(HONEST_PREDICTORS)}"
                raise SettingsError(f"evaluation.mixer.honest names {name!r}{hint}")
