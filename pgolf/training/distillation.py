"""Distillation, as #687's script has it: a deeper teacher is trained first, then the network on its predictions too.

    loss = cross-entropy + WEIGHT T^2 KL(teacher || network),   both softmaxes at temperature T (arXiv:1503.02531),
    the divergence averaged over tokens

The teacher is the network with TEACHER_LAYERS more blocks, trained by AdamW alone on the averaged gradients of all ranks,
so that every rank has the same teacher. It takes distillation_share of the clock, warmdown included, and keeps no average.
The network reads on where the teacher stopped.

Memory: the teacher's weights and, while it is trained, two moments of each; and of every micro-batch two tables (B, T, V) of
log-probabilities in float32, which is why the vocabulary's size matters here.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.config import ModelSettings, TrainingSettings
from pgolf.distributed import World
from pgolf.model.network import Network
from pgolf.training.optimisers import Assigned, Optimisers
from pgolf.training.train_step import TrainStep, names_of

TEACHER_LAYERS = 2
TEACHER_RATE = 1e-3
TEACHER_DECAY = 0.04
TEACHER_CLIP = 1.0
TEMPERATURE = 2.0
WEIGHT = 0.5


def teacher_shape(model: ModelSettings) -> ModelSettings:
    return replace(model, layers=model.layers + TEACHER_LAYERS)


def teacher_of(model: Network, options: TrainingSettings, world: World) -> TrainStep:
    """A network of that shape with what trains it: nothing but AdamW, whatever the options ask for the network."""
    own = replace(options, clip=TEACHER_CLIP, clip_scope="global")
    groups, assigned = {"teacher": list(model.parameters())}, {"teacher": Assigned("adamw", TEACHER_RATE, TEACHER_DECAY)}
    return TrainStep(model, Optimisers(groups, names_of(model), own, world, assigned=assigned), world)


def distilled_loss(network: Network, teacher: Network) -> Callable[..., Tensor]:
    """The network's loss beside that teacher, as `TrainStep` takes it."""

    def loss(tokens: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            theirs = F.log_softmax(teacher.logits(tokens) / TEMPERATURE, -1)
        hidden = network.hidden(tokens)
        ours = F.log_softmax(network.head(hidden) / TEMPERATURE, -1)
        divergence = F.kl_div(ours, theirs, reduction="sum", log_target=True) / targets.numel()
        own = network.loss(tokens, targets, weights=weights, hidden=hidden)
        return own + WEIGHT * TEMPERATURE**2 * divergence

    return loss
