"""A network whose matrices are parameters of their own."""

from torch import Tensor, nn

from pgolf.model.build import shared_view
from pgolf.model.network import Network
from pgolf.model.parameters import slice_names


class PerLayerNetwork(nn.Module):
    """A view of a network, over the same memory. Every slice of a bank is a parameter here, so that it can
    be left out of the gradient, of its norm and of the optimiser. Heads that only training uses are left behind."""

    def __init__(self, model: Network):
        super().__init__()
        self.network = shared_view(model)
        self.slices = slice_names(model.settings)
        for bank in self.slices:
            self.register_module(bank, nn.ParameterList(getattr(self.network, bank).detach().unbind()))

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Every parameter, the matrices under their per-layer names in a checkpoint."""
        weights = {name: tensor for name, tensor in self.network.named_parameters() if name not in self.slices}
        for bank, names in self.slices.items():
            weights |= dict(zip(names, getattr(self, bank), strict=True))
        return weights

    def loss(self, tokens: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
        """`Network.loss`, whose gradients reach the slices."""
        matrices = self.network.matrices({bank: list(getattr(self, bank)) for bank in self.slices})
        return self.network.loss(tokens, targets, weights=weights, hidden=self.network.hidden(tokens, matrices=matrices))

    forward = loss
