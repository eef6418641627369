"""A bank's values as the artifact has them, codes times scales: what a network on a GPU reads in their place."""

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pgolf.kernels.packed import expand, pack
from pgolf.model.network import Network
from pgolf.model.parameters import slice_names


class PackedBank:
    """Codes of 4 to 8 bits and a scale for each row, slice below slice, for as long as they are the bank's values."""

    def __init__(self, bank: nn.Parameter, codes: Tensor, scales: Tensor):
        bits = max(4, int(codes.abs().max()).bit_length() + 1)
        self.matrix = pack(codes, scales, bits).to(bank.device)
        self.bank, self.version = weakref.ref(bank), bank._version

    def slices(self, bank: Tensor | Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor] | None:
        """The bank's slices, with the bits of those that are cast from it. None for a copy of it, which is made to be changed,
        and once it has changed itself."""
        if self.bank() is not bank or bank._version != self.version:
            return None
        return expand(self.matrix, dtype).view(bank.shape).unbind()


def pack_banks(model: Network, rounded: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Give the network its banks' codes: `rounded` has codes and scales of the matrices that are nothing else."""
    for bank, names in slice_names(model.settings).items():
        if all(name in rounded for name in names):
            parameter = getattr(model, bank)
            codes, scales = (torch.cat(part) for part in zip(*(rounded[name] for name in names), strict=True))
            model.packed[bank] = PackedBank(parameter, codes, scales)
