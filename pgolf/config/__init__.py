"""Every setting, typed, with its meaning: one module a section, each with its own `validate`.

Order of precedence: preset file, then the environment names that competitors already use, then flags.
A field's docstring is its line in `--help-all`.
"""

from pgolf.config.adaptation import AdaptationSettings, LoraSettings
from pgolf.config.artifact import ArtifactSettings
from pgolf.config.checks import SettingsError, nearest
from pgolf.config.data import DataSettings
from pgolf.config.environment import ENVIRONMENT, from_environment
from pgolf.config.evaluation import EvaluationSettings
from pgolf.config.load import (
    changed,
    from_table,
    load_preset,
    preset_names,
    read_toml,
    scoring_table,
    to_table,
    to_toml,
)
from pgolf.config.model import ModelSettings
from pgolf.config.predictors import MixerSettings, TemperatureSettings
from pgolf.config.scales import at_scale
from pgolf.config.settings import Settings
from pgolf.config.training import TrainingSettings

__all__ = [
    "ENVIRONMENT",
    "AdaptationSettings",
    "ArtifactSettings",
    "DataSettings",
    "EvaluationSettings",
    "LoraSettings",
    "MixerSettings",
    "ModelSettings",
    "Settings",
    "SettingsError",
    "TemperatureSettings",
    "TrainingSettings",
    "at_scale",
    "changed",
    "from_environment",
    "from_table",
    "load_preset",
    "nearest",
    "preset_names",
    "read_toml",
    "scoring_table",
    "to_table",
    "to_toml",
]
