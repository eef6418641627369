"""The network whose parts are switched by config, its initial weights, its checkpoints, its adapters and its decoder."""

from pgolf.model.adapters import Adapters
from pgolf.model.build import build_model, count_parameters, parameter_groups
from pgolf.model.cache import KVCachedNetwork
from pgolf.model.checkpoint import import_checkpoint, rebank, submission_state, unbank, untie
from pgolf.model.decoder import Decoder
from pgolf.model.network import Network
from pgolf.model.per_layer import PerLayerNetwork

__all__ = [
    "Adapters",
    "Decoder",
    "KVCachedNetwork",
    "Network",
    "PerLayerNetwork",
    "build_model",
    "count_parameters",
    "import_checkpoint",
    "parameter_groups",
    "rebank",
    "submission_state",
    "unbank",
    "untie",
]
