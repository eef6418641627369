"""[evaluation]: the scoring clock, windows, and what scores them."""

from dataclasses import dataclass, field

from pgolf.config.adaptation import AdaptationSettings, LoraSettings
from pgolf.config.checks import SettingsError, above, at_least, between
from pgolf.config.predictors import MixerSettings, TemperatureSettings


@dataclass(frozen=True)
class EvaluationSettings:
    seconds: float = 600.0
    """The scoring clock: loading, compiling, adapting and mixing included."""
    window: int = 2048
    """Tokens of one scoring window."""
    stride: int = 64
    """Tokens a window adds to the last one."""
    batch: int = 32
    """Windows scored at once."""
    published_tail: bool = False
    """Also give the submissions' figure, which scores the last tokens of the stream several times."""
    sliding: bool = True
    """Score plain sliding windows too."""
    max_tokens: int = 0
    """Score only this many validation tokens, marked as partial; 0: all."""
    whole_windows: bool = False
    """Score a whole number of windows, as the challenge's scripts do: at most window - 1 targets at the stream's end are left
    out."""
    top_predictions: int = 256
    """Tokens of each of two documents before which the likeliest tokens are kept for the report; 0: of none."""
    adaptation: AdaptationSettings = field(default_factory=AdaptationSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    temperature: TemperatureSettings = field(default_factory=TemperatureSettings)
    mixer: MixerSettings = field(default_factory=MixerSettings)

    def scored_targets(self, targets: int) -> int:
        """How many of a stream's targets are scored, from its beginning."""
        count = min(self.max_tokens or targets, targets)
        return count // self.window * self.window or count if self.whole_windows else count

    def validate(self) -> None:
        """Raise one line for the first value that nothing can be scored with."""
        at_least(0, "evaluation", self, "max_tokens", "top_predictions")
        between(1, 1 << 17, "evaluation", self, "window", "batch")
        above(0, "evaluation", self, "seconds")
        if not 0 < self.stride <= self.window:
            raise SettingsError(f"evaluation.stride {self.stride} must be from 1 to the window's {self.window}")
        for section in (self.adaptation, self.lora, self.mixer):
            section.validate()
        if self.mixer.published == "boost" and self.temperature.method == "online":
            # a decoder's spans are those of the score alone, so the temperature would be learnt at other places
            raise SettingsError(
                "evaluation.mixer.published boost ends spans with its batches, between which an online temperature learns: "
                "choose another evaluation.temperature.method"
            )
