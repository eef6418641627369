"""The optimisers of one network: Muon for matrices, AdamW for the rest, and the clip that both share."""

from collections.abc import Mapping, Sequence

import torch

from pgolf.config import TrainingSettings
from pgolf.distributed import World
from pgolf.training.muon import Muon, ParallelMuon, RoundRobinMuon


class Optimisers:
    """
    group        what                                      optimiser
    matrix       the banks of matrices in the layers       Muon, muon_lr
    projection   bigram and value-embedding projections    AdamW, scalar_lr; Muon with muon_projections
    token        embedding tables                          AdamW, token_lr
    head         output matrices of their own              AdamW, token_lr
    scalar       everything small                          AdamW, scalar_lr

    clip_scope says which gradient clip_norm looks at. "global": the average over the ranks, so the curve does not
    depend on their number. "local": each rank's own, before averaging, as #549 does; shorter vectors are clipped less,
    so there the curve does depend on it. iterate_in is the precision of Muon's iterations, where not the device's own.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[torch.nn.Parameter]],
        names: dict[torch.nn.Parameter, str],
        settings: TrainingSettings,
        world: World,
        iterate_in: torch.dtype | None = None,
    ):
        self.settings, self.world, self.names = settings, world, names
        matrices, projections = list(groups["matrix"]), list(groups["projection"])
        scalars = list(groups["scalar"])
        if settings.muon_projections:
            matrices += projections
        else:
            scalars += projections
        layout = ParallelMuon if settings.parallel_muon else RoundRobinMuon
        self.muon: Muon = layout(
            matrices,
            weight_decay=settings.muon_weight_decay,
            iterations=settings.muon_iterations,
            coefficients=settings.muon_coefficients,
            world=world,
            iterate_in=iterate_in,
        )
        tables = [*groups["token"], *groups.get("head", ())]
        self.small = tables + scalars
        self.adam = torch.optim.AdamW(
            [
                {"params": tables, "lr": settings.token_lr, "base_lr": settings.token_lr},
                {"params": scalars, "lr": settings.scalar_lr, "base_lr": settings.scalar_lr},
            ],
            betas=settings.adam_betas,
            eps=settings.adam_eps,
            weight_decay=settings.adam_weight_decay,
            fused=True,
        )

    def step(self, multiplier: float, momentum: float) -> torch.Tensor:
        """Clip, average over the ranks and update everything. Returns the gradient norm before the clip, on the device."""
        small = [parameter.grad for parameter in self.small if parameter.grad is not None]
        local = self.settings.clip_scope == "local"
        if local:
            matrices = [parameter.grad for parameter in self.muon.parameters if parameter.grad is not None]
            norm = self._clip(matrices + small, [])
        self.muon.start()
        averaging = self.world.start_average(small)
        for pending in averaging:
            pending.wait()
        if not local:
            norm = self._clip(small, self.muon.reduced())
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * multiplier
        self.adam.step()
        self.muon.step(self.settings.muon_lr * multiplier, momentum)
        return norm

    def zero_grad(self) -> None:
        for parameter in (*self.muon.parameters, *self.small):
            parameter.grad = None

    def _clip(self, whole: list[torch.Tensor], shared: list[torch.Tensor]) -> torch.Tensor:
        """Scale gradients to the clip's norm at most. `whole` ones are all here, `shared` ones are one rank's part."""
        square = self.world.sum(_square_norm(shared)) if shared else 0
        norm = (_square_norm(whole) + square).sqrt()
        if self.settings.clip:
            factor = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(whole + shared, factor)
        return norm

    def reset(self) -> None:
        """As if no step had been taken."""
        self.muon.reset()
        self.adam.state.clear()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, by the parameters' names; collective: every rank must ask."""
        tensors = {
            f"muon.{self.names[parameter]}": momentum
            for parameter, momentum in zip(self.muon.parameters, self.muon.gather_momentum(), strict=True)
        }
        for parameter in self.small:
            # asking for the state of one that never had a gradient must not make one
            for key, value in self.adam.state.get(parameter, {}).items():
                tensors[f"adam.{self.names[parameter]}.{key}"] = value
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`; any number of ranks may have written it."""
        self.reset()
        self.muon.scatter_momentum([tensors[f"muon.{self.names[parameter]}"] for parameter in self.muon.parameters])
        for parameter in self.small:
            prefix = f"adam.{self.names[parameter]}."
            found = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            if found:
                # AdamW counts steps on the device, in float32, and averages in the parameter's own dtype
                self.adam.state[parameter] = {key: value.clone().to(parameter.device) for key, value in found.items()}


def _square_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """On a CPU in float64: ranks add up their parts in another order than one rank does, and a last bit that differs is a
    step of another length, which rounding to bfloat16 makes larger."""
    kind = torch.float64 if tensors[0].device.type == "cpu" else torch.float32
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=kind)).square().sum()
