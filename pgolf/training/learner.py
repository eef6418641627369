"""One network and what trains it: its optimisers, its quantisation-aware terms, the average of its weights."""

from collections.abc import Callable, Mapping, Sequence

import torch

from pgolf.config import TrainingSettings
from pgolf.distributed import World
from pgolf.model.network import Network
from pgolf.training.averaging import averaging
from pgolf.training.optimisers import Optimisers
from pgolf.training.quantisation import QuantisationTerms


class Learner:
    """
    groups  the network's parameters by how they are trained, as `parameter_groups` gives them
    loss    (tokens, targets, weights=...) -> what a micro-step minimises; the network's own if not given. Compiled on CUDA
    """

    def __init__(
        self,
        model: Network,
        groups: Mapping[str, Sequence[torch.nn.Parameter]],
        options: TrainingSettings,
        world: World,
        loss: Callable[..., torch.Tensor] | None = None,
    ):
        self.model = model
        model.train()
        self.state = model.state_dict()
        world.broadcast(list(self.state.values()))
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.optimisers = Optimisers(groups, names, options, world, iterate_in=model.activation)
        self.terms = QuantisationTerms(model, groups, options, world.device)
        self.average = averaging(self.state, options)
        self.loss = loss or model.loss
        if world.device.type == "cuda":
            self.loss = torch.compile(self.loss, fullgraph=True, dynamic=False)

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of one that has learnt all it will."""
        return {f"model.{name}": tensor for name, tensor in self.state.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of one that is learning; collective: every rank must ask."""
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


def under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
