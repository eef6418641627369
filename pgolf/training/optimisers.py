"""The optimisers of one network: which one each group of parameters gets, at which rate, and the clip that all share.

To add one: a class with the methods of `Optimiser`, a line in OPTIMISERS, and its groups in `assignment`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch

from pgolf.config import TrainingSettings
from pgolf.distributed import Pending, World
from pgolf.training.muon import Muon, ParallelMuon, RoundRobinMuon


class Assigned(NamedTuple):
    """How a group of parameters is trained."""

    optimiser: str
    """A name of OPTIMISERS."""
    lr: float
    """Its learning rate where the schedule stands at 1."""
    weight_decay: float = 0.0
    """Decoupled."""


def assignment(settings: TrainingSettings) -> dict[str, Assigned]:
    """The optimiser and rate of each group of `parameter_groups`. A group that is not named keeps its initial values."""
    decay = settings.adam_weight_decay
    muon = Assigned("muon", settings.muon_lr, settings.muon_weight_decay)
    tables = Assigned("adamw", settings.token_lr, decay if settings.token_weight_decay < 0 else settings.token_weight_decay)
    scalars = Assigned("adamw", settings.scalar_lr, decay)
    projections = muon if settings.muon_projections else scalars
    assigned = {"matrix": muon, "token": tables, "head": tables, "scalar": scalars, "projection": projections}
    return assigned | ({"convolution": scalars} if settings.train_convolutions else {})


class Optimiser(Protocol):
    """Updates some parameters on one or many ranks. A step is start, averaged, step, in this order.

    Made by (parameters, assigned, settings, world, precision): what is assigned to each parameter, and the dtype in which
    matrices are multiplied where that is not the device's own.
    """

    parameters: Sequence[torch.nn.Parameter]
    sharded: bool
    """Whether each rank holds a part of the averaged gradients, or all of them."""

    def start(self) -> None:
        """Begin to average the gradients over the ranks."""

    def averaged(self) -> list[torch.Tensor]:
        """Wait for the averages that this rank holds. The clip changes them in place."""

    def step(self, multiplier: float, momentum: float) -> None:
        """Update, every rate times the multiplier. Those without a scheduled momentum ignore `momentum`."""

    def reset(self) -> None:
        """As if no step had been taken."""

    def state(self) -> list[dict[str, torch.Tensor]]:
        """What the next step depends on, for each parameter; collective, and the same on any number of ranks."""

    def restore(self, state: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """The inverse of `state`."""


class AdamW:
    """Adam with decoupled weight decay, arXiv:1711.05101; every rank updates all parameters from the averaged gradients."""

    sharded = False

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        assigned: Sequence[Assigned],
        settings: TrainingSettings,
        world: World,
        precision: torch.dtype | None = None,
    ):
        self.parameters, self.world = parameters, world
        members: dict[Assigned, list[torch.nn.Parameter]] = {}
        for parameter, one in zip(parameters, assigned, strict=True):
            members.setdefault(one, []).append(parameter)
        groups = [
            {"params": mine, "lr": one.lr, "base_lr": one.lr, "weight_decay": one.weight_decay}
            for one, mine in members.items()
        ]
        self.adam = torch.optim.AdamW(groups, betas=settings.adam_betas, eps=settings.adam_eps, fused=True)
        self._averaging: list[Pending] = []

    def start(self) -> None:
        self._averaging = self.world.start_average(_gradients(self.parameters))

    def averaged(self) -> list[torch.Tensor]:
        for pending in self._averaging:
            pending.wait()
        self._averaging = []
        return _gradients(self.parameters)

    def step(self, multiplier: float, momentum: float) -> None:
        self.averaged()
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        self.adam.step()

    def reset(self) -> None:
        self.adam.state.clear()

    def state(self) -> list[dict[str, torch.Tensor]]:
        # asking for the state of a parameter that never had a gradient must not make one
        return [dict(self.adam.state.get(parameter, {})) for parameter in self.parameters]

    def restore(self, state: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self.reset()
        for parameter, kept in zip(self.parameters, state, strict=True):
            if kept:
                # AdamW counts steps on the device, in float32, and keeps moments in the parameter's own dtype
                self.adam.state[parameter] = {key: value.clone().to(parameter.device) for key, value in kept.items()}


def _muon(
    parameters: Sequence[torch.nn.Parameter],
    assigned: Sequence[Assigned],
    settings: TrainingSettings,
    world: World,
    precision: torch.dtype | None = None,
) -> Muon:
    layout = ParallelMuon if settings.parallel_muon else RoundRobinMuon
    return layout(
        parameters,
        rates=[one.lr for one in assigned],
        row_norm=settings.muon_row_norm,
        weight_decay=settings.muon_weight_decay,
        iterations=settings.muon_iterations,
        coefficients=settings.muon_coefficients,
        world=world,
        iterate_in=precision,
    )


OPTIMISERS: dict[str, Callable[..., Any]] = {"muon": _muon, "adamw": AdamW}


class Optimisers:
    """All parameters of a network, each with its optimiser.

    groups      the parameters, as `parameter_groups` gives them; names: what a checkpoint calls each
    assigned    the groups' optimisers and rates, if not those of the settings
    clip_scope  which gradient clip_norm looks at. "global": the average over the ranks, so the curve does not depend on
                their number. "local": each rank's own, before averaging, as #549 does; shorter vectors are clipped less,
                so there the curve does depend on it
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[torch.nn.Parameter]],
        names: Mapping[torch.nn.Parameter, str],
        settings: TrainingSettings,
        world: World,
        *,
        assigned: Mapping[str, Assigned] | None = None,
        precision: torch.dtype | None = None,
    ):
        self.settings, self.world, self.names = settings, world, names
        self.assigned = {group: one for group, one in (assigned or assignment(settings)).items() if groups.get(group)}
        self.by_name: dict[str, Optimiser] = {}
        for optimiser in dict.fromkeys(one.optimiser for one in self.assigned.values()):
            mine = [(group, one) for group, one in self.assigned.items() if one.optimiser == optimiser]
            parameters = [parameter for group, _ in mine for parameter in groups[group]]
            each = [one for group, one in mine for _ in groups[group]]
            self.by_name[optimiser] = OPTIMISERS[optimiser](parameters, each, settings, world, precision)

    def rates(self) -> dict[str, float]:
        """Each group's learning rate where the schedule stands at 1, named for people."""
        return {f"{group} ({one.optimiser})": one.lr for group, one in self.assigned.items()}

    def step(self, multiplier: float, momentum: float) -> torch.Tensor:
        """Clip, average over the ranks and update everything. Returns the gradient norm before the clip, on the device."""
        optimisers = list(self.by_name.values())
        local = self.settings.clip_scope == "local"
        if local:
            norm = self._clip([gradient for one in optimisers for gradient in _gradients(one.parameters)], [])
        for one in optimisers:
            one.start()
        if not local:
            whole = [gradient for one in optimisers if not one.sharded for gradient in one.averaged()]
            shared = [gradient for one in optimisers if one.sharded for gradient in one.averaged()]
            norm = self._clip(whole, shared)
        # the whole ones first: sharded gradients may still be on their way
        for one in sorted(optimisers, key=lambda one: one.sharded):
            one.step(multiplier, momentum)
        return norm

    def zero_grad(self) -> None:
        for parameter in self.names:
            parameter.grad = None

    def _clip(self, whole: list[torch.Tensor], shared: list[torch.Tensor]) -> torch.Tensor:
        """Scale gradients to the clip's norm at most. `whole` ones are all here, `shared` ones are one rank's part."""
        squares = [_square_norm(whole)] if whole else []
        squares += [self.world.sum(_square_norm(shared))] if shared else []
        norm = reduce(torch.add, squares).sqrt()
        if self.settings.clip:
            factor = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(whole + shared, factor)
        return norm

    def reset(self) -> None:
        for one in self.by_name.values():
            one.reset()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, by the parameters' names; collective: every rank must ask."""
        return {
            f"{name}.{self.names[parameter]}.{key}": value
            for name, one in self.by_name.items()
            for parameter, kept in zip(one.parameters, one.state(), strict=True)
            for key, value in kept.items()
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`; any number of ranks may have written it."""
        for name, one in self.by_name.items():
            prefixes = [f"{name}.{self.names[parameter]}." for parameter in one.parameters]
            one.restore([
                {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)} for prefix in prefixes
            ])  # fmt: skip


def _gradients(parameters) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _square_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """On a CPU in float64: ranks add up their parts in another order than one rank does, and a last bit that differs is a
    step of another length, which rounding to bfloat16 makes larger."""
    kind = torch.float64 if tensors[0].device.type == "cpu" else torch.float32
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=kind)).square().sum()
