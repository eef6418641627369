"""All settings of a run, and the combinations of sections that cannot work."""

from dataclasses import dataclass, field

from pgolf.config.artifact import ArtifactSettings
from pgolf.config.checks import SettingsError
from pgolf.config.data import DataSettings
from pgolf.config.evaluation import EvaluationSettings
from pgolf.config.model import ModelSettings
from pgolf.config.training import TrainingSettings


@dataclass(frozen=True)
class Settings:
    preset: str = "quick"
    description: str = ""
    scale: str = "full"
    seed: int = 1337
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    artifact: ArtifactSettings = field(default_factory=ArtifactSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def validate(self) -> None:
        """Raise one line for the first section, or combination of sections, that cannot work."""
        for section in (self.data, self.model, self.training, self.artifact, self.evaluation):
            section.validate()
        if self.evaluation.adaptation.method == "lora" and self.model.scan_layers:
            raise SettingsError(
                "evaluation.adaptation.method = 'lora' keeps keys and values of earlier tokens, which the state-space layers "
                "of model.scan_layers have none of; it can be none or chunks"
            )
        if self.evaluation.adaptation.untie and self.model.loop_layers:
            raise SettingsError(
                "evaluation.adaptation.untie gives repeated layers matrices of their own, but the passes of model.loop_layers "
                "share everything; choose one"
            )
        if self.training.loop_start and not self.model.loop_layers:
            raise SettingsError("training.loop_start is about model.loop_layers, and there are none; set both or neither")
        if self.training.complement_alpha and self.model.vocab_size > 16_384:
            raise SettingsError(
                f"training.complement_alpha counts pairs in a table of model.vocab_size {self.model.vocab_size} squared; "
                f"16,384 is the most"
            )
