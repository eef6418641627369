"""Low-rank adapters, one set for each document of a batch, and the one place where a matrix meets its adapter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.operators import Operators

SITES = ("q", "k", "v", "o", "up", "down", "head")


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

        targets  any of q, k, v, o, up, down, head, and mlp for up and down
        alpha    the adapters' output is scaled by alpha / rank; 0: not scaled
        dtype    of the factors
        """
        from pgolf.kernels.lora import lora_initial

        sites = [site for target in targets for site in (("up", "down") if target == "mlp" else (target,))]
        if unknown := sorted(set(sites) - set(SITES)):
            raise ValueError(f"adapters: no target {unknown[0]!r}; there are {', '.join(SITES)} and mlp")
        dim, values, hidden = settings.dim, settings.kv_heads * settings.head_dim, settings.mlp_hidden
        shapes = {
            "q": (dim, dim), "k": (values, dim), "v": (values, dim), "o": (dim, dim),
            "up": (hidden, dim), "down": (dim, hidden), "head": (settings.vocab_size, dim),
        }  # fmt: skip
        factors, initial = {}, {}
        for number, site in enumerate(SITES):
            if site not in sites:
                continue
            for layer in range(1 if site == "head" else len(settings.virtual_layers)):
                out, width = shapes[site]
                start = lora_initial(rank, width, seed=(seed * len(SITES) + number) * 1000 + layer, dtype=dtype, device=device)
                a = start.expand(documents, -1, -1).clone().requires_grad_()
                b = torch.zeros(documents, out, rank, dtype=dtype, device=device, requires_grad=True)
                factors[site, layer], initial[site, layer] = (a, b), start
        return cls(factors, initial, alpha / rank if alpha else 1.0)

    def parameters(self) -> list[Tensor]:
        return [factor for pair in self.factors.values() for factor in pair]


class Projector:
    """x W^T for one executed layer, with that layer's adapter added where there is one.

    input_hook  sees (site, layer, x) of every product before it is made
    """

    def __init__(
        self,
        operators: Operators,
        adapters: Adapters | None,
        layer: int,
        input_hook: Callable[[str, int, Tensor], None] | None = None,
    ):
        self.operators, self.adapters, self.layer, self.input_hook = operators, adapters, layer, input_hook

    def plain(self, *sites: str) -> bool:
        """Whether these sites are nothing but their matrices, so that a fused operator may take them."""
        adapted = self.adapters is not None and any((site, self.layer) in self.adapters.factors for site in sites)
        return not adapted and self.input_hook is None

    def __call__(self, site: str, x: Tensor, weight: Tensor) -> Tensor:
        if self.input_hook is not None:
            self.input_hook(site, self.layer, x)
        if self.adapters is None or (site, self.layer) not in self.adapters.factors:
            return F.linear(x, weight)
        return self.operators.lora(x, weight, *self.adapters.factors[site, self.layer], self.adapters.scale)
