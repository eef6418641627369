"""Low-rank adapters (LoRA, arXiv:2106.09685), one set for each document of a batch, and where a matrix meets its adapter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.layers import executed_layers
from pgolf.model.operators import Operators
from pgolf.model.parameters import ADAPTED, adapter_shapes

InputHook = Callable[[str, int, Tensor], None]


@dataclass(eq=False)
class Adapters:
    """Factors A (documents, rank, in) and B (documents, out, rank) for pairs (site, executed layer); the head's layer is 0.

    Row b of a batch uses document b's. A matrix W with an adapter gives x W^T + scale (x A^T) B^T.
    """

    factors: dict[tuple[str, int], tuple[Tensor, Tensor]]
    initial: dict[tuple[str, int], Tensor]
    """The A, (rank, in), that every document of a site starts from."""
    scale: float = 1.0

    @classmethod
    def create(
        cls,
        settings: ModelSettings,
        documents: int,
        rank: int,
        targets: Sequence[str],
        *,
        alpha: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Adapters":
        """Adapters that change nothing yet: A uniform in +-1/sqrt(in), the same for every document; B zero.

        targets  sites of `parameters.ADAPTED`, and mlp for up and down
        alpha    the adapters' output is scaled by alpha / rank; 0: not scaled
        dtype    of the factors
        """
        from pgolf.kernels.lora import lora_initial

        sites = [site for target in targets for site in (("up", "down") if target == "mlp" else (target,))]
        if unknown := sorted(set(sites) - set(ADAPTED)):
            raise ValueError(f"adapters: no target {unknown[0]!r}; there are {', '.join(ADAPTED)} and mlp")
        executed = len(executed_layers(settings))
        factors, initial = {}, {}
        for number, (site, (out, width)) in enumerate(adapter_shapes(settings).items()):
            for layer in range(0 if site not in sites else 1 if site == "head" else executed):
                draw = (seed * len(ADAPTED) + number) * 1000 + layer
                start = lora_initial(rank, width, seed=draw, dtype=dtype, device=device)
                a = start.expand(documents, -1, -1).clone().requires_grad_()
                b = torch.zeros(documents, out, rank, dtype=dtype, device=device, requires_grad=True)
                factors[site, layer], initial[site, layer] = (a, b), start
        return cls(factors, initial, alpha / rank if alpha else 1.0)

    def parameters(self) -> list[Tensor]:
        return [factor for pair in self.factors.values() for factor in pair]


class Projector:
    """x W^T for one executed layer, with that layer's adapter added where there is one.

    matrices    its W by site, (out, in), in the activations' dtype
    input_hook  sees (site, layer, x) of every product before it is made
    """

    def __init__(
        self,
        operators: Operators,
        matrices: Mapping[str, Tensor],
        adapters: Adapters | None = None,
        layer: int = 0,
        input_hook: InputHook | None = None,
    ):
        self.operators, self.matrices, self.adapters = operators, matrices, adapters
        self.layer, self.input_hook = layer, input_hook

    def plain(self, *sites: str) -> bool:
        """Whether these sites are nothing but their matrices, so that a fused operator may take them."""
        adapted = self.adapters is not None and any((site, self.layer) in self.adapters.factors for site in sites)
        return not adapted and self.input_hook is None

    def __call__(self, site: str, x: Tensor) -> Tensor:
        if self.input_hook is not None:
            self.input_hook(site, self.layer, x)
        if self.adapters is None or (site, self.layer) not in self.adapters.factors:
            return F.linear(x, self.matrices[site])
        return self.operators.lora(x, self.matrices[site], *self.adapters.factors[site, self.layer], self.adapters.scale)

    def beside(self, site: str, x: Tensor, y: Tensor) -> Tensor:
        """y, a sublayer's output for x, with what an adapter beside it adds."""
        if self.adapters is None or (site, self.layer) not in self.adapters.factors:
            return y
        return y + self.operators.lora(x, None, *self.adapters.factors[site, self.layer], self.adapters.scale)
