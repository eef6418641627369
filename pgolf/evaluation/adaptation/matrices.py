"""A network whose matrices are parameters of their own, and which of its weights learn, at which rate."""

import torch
from torch import Tensor, nn

from pgolf.config import AdaptationSettings
from pgolf.model import Network
from pgolf.model.checkpoint import BANKS, slice_names

OUTPUT_PROJECTIONS = (".attn.proj.weight", ".mlp.proj.weight", ".mixer.out_proj.weight")
INPUT_PROJECTIONS = (".mlp.fc.weight",)
FURTHER_TABLES = ("bigram.embed.weight", "ve_shared.embed.weight")
MATRICES = tuple("." + suffix for suffixes in BANKS.values() for suffix in suffixes)


class Unstacked(Network):
    """A network over another's memory: what one learns, the other has learnt. Every slice of a bank is a parameter of its
    own here, so that it can be left out of the gradient, of its norm and of the optimiser. Heads that only training uses
    are left behind."""

    def __init__(self, model: Network):
        with torch.device("meta"):
            super().__init__(model.settings)
        self.activation, self.operators, self.rounding = model.activation, model.operators, model.rounding
        self.mtp_heads = nn.ModuleList()
        state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mtp_heads.")}
        self.load_state_dict(state, assign=True)
        self.slices = slice_names(model.settings)
        for bank in self.slices:
            slices = getattr(self, bank).detach().unbind()
            delattr(self, bank)
            setattr(self, bank, nn.ParameterList(slices))

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Every parameter, the matrices under the submissions' per-layer names."""
        weights = {}
        for name, parameter in self.named_parameters():
            bank, _, number = name.partition(".")
            if bank in self.slices:
                name = self.slices[bank][int(number)]
            weights[name] = parameter
        return weights

    def _slices(self, bank) -> tuple[Tensor, ...]:
        rounding = self.rounding if self.training else None
        matrices = bank if rounding is None else [rounding(matrix, "bank") for matrix in bank]
        return tuple(matrix.to(self.activation) for matrix in matrices)


def learns(name: str, settings: AdaptationSettings, order: tuple[int, ...]) -> bool:
    """Whether a weight is trained. `order` has the physical layer of each executed block.

    freeze_first  nothing of the first n blocks moves
    train_last    of the rest of the network only scales (and an untied head) move with the last n blocks

    A matrix that several blocks share belongs to all of them: it is fixed if one of them is.
    """
    owner, _, rest = name.partition(".")
    everywhere = not settings.train_last or "scale" in name or owner == "lm_head"
    if owner != "blocks":
        return everywhere
    number = int(rest.partition(".")[0])
    blocks = [block for block, layer in enumerate(order) if layer == number] if name.endswith(MATRICES) else [number]
    if min(blocks) < settings.freeze_first:
        return False
    return everywhere or min(blocks) >= len(order) - settings.train_last


def rate_factor(name: str, settings: AdaptationSettings) -> float:
    """By role: what writes into the residual stream, what feeds the MLP, the two further tables, and everything else."""
    if name.endswith(OUTPUT_PROJECTIONS):
        return settings.output_lr
    if name in FURTHER_TABLES:
        return settings.table_lr
    return settings.input_lr if name.endswith(INPUT_PROJECTIONS) else 1.0
