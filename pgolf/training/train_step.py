"""A network together with what updates it: optimisers, quantisation-aware terms, the average of its weights."""

from collections.abc import Callable, Mapping

import torch

from pgolf.config import ModelSettings, Settings, TrainingSettings
from pgolf.distributed import World
from pgolf.model import build_model, parameter_groups
from pgolf.model.network import Network
from pgolf.training.averaging import Average, averaging
from pgolf.training.optimisers import Optimisers
from pgolf.training.quantisation import QuantisationTerms

Loss = Callable[..., torch.Tensor]


class TrainStep:
    """
    loss  (tokens, targets, weights=...) -> what a micro-step minimises; the network's own if not given. Compiled on CUDA
    """

    def __init__(
        self,
        model: Network,
        optimisers: Optimisers,
        world: World,
        *,
        terms: QuantisationTerms | None = None,
        average: Average | None = None,
        loss: Loss | None = None,
    ):
        self.model = model
        model.train()
        self.state = model.state_dict()
        world.broadcast(list(self.state.values()))
        self.optimisers = optimisers
        self.terms = terms
        self.average = average or Average(self.state)
        self.loss = loss or model.loss
        if world.device.type == "cuda":
            self.loss = torch.compile(self.loss, fullgraph=True, dynamic=False)

    @classmethod
    def of(cls, model: Network, options: TrainingSettings, world: World, loss: Loss | None = None) -> "TrainStep":
        """As the settings have it."""
        groups = parameter_groups(model)
        optimisers = Optimisers(groups, names_of(model), options, world, precision=model.activation)
        terms = QuantisationTerms(model, groups, options, world.device) if options.qat_threshold or options.crown_q else None
        return cls(model, optimisers, world, terms=terms, average=averaging(model.state_dict(), options), loss=loss)

    def penalty(self) -> torch.Tensor | None:
        """What is added to a step's loss, once a step and not for every micro-batch."""
        return self.terms.penalty() if self.terms else None

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of a network whose training is over."""
        return {f"model.{name}": tensor for name, tensor in self.state.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of a network in training; collective: every rank must ask."""
        tensors = self.weights()
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimisers.state().items()}
        return tensors | {f"average.{name}": tensor for name, tensor in self.average.state().items()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """By the model's own names."""
        for name, tensor in self.state.items():
            tensor.copy_(weights[name])

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        self.set_weights(under("model.", tensors))
        self.optimisers.restore(under("optimiser.", tensors))
        self.average.restore(under("average.", tensors))


def names_of(model: Network) -> dict[torch.nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def init_model(shape: ModelSettings, settings: Settings, device: torch.device) -> Network:
    """A network with its initial weights, at the run's precision."""
    options, on_cpu = settings.training, device.type == "cpu"
    repeats = options.precision == "auto" and options.steps > 0 and on_cpu
    exact = options.precision == "float32" or repeats
    # None: the device's own choice
    model = build_model(shape, device=device, dtype=torch.float32 if exact else None, seed=settings.seed)
    if on_cpu and not exact and multiplies_bfloat16():
        model.activation = torch.bfloat16
    return model


def multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions; without them bfloat16 is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
