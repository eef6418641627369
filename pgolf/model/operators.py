"""The hand-written operators that the network is built on, and their plain-torch forms, under the same names."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pgolf.kernels.attention import attention
from pgolf.kernels.attention import reference as attention_reference
from pgolf.kernels.cross_entropy import linear_cross_entropy
from pgolf.kernels.cross_entropy.reference import linear_cross_entropy_reference
from pgolf.kernels.mlp import mlp
from pgolf.kernels.mlp.reference import mlp_reference
from pgolf.kernels.rotary import reference as rotary_reference
from pgolf.kernels.rotary import rotary
from pgolf.kernels.scan import scan
from pgolf.kernels.scan.reference import scan_chunked


class Operators(NamedTuple):
    attention: Callable
    rotary: Callable
    mlp: Callable
    linear_cross_entropy: Callable
    scan: Callable
    plain: bool
    """In plain torch."""

    def lora(self, x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        """Imported where it is called: few networks have adapters."""
        if self.plain:
            from pgolf.kernels.lora.reference import lora_reference

            return lora_reference(x, weight, a, b, scale, None)[0]
        from pgolf.kernels.lora import lora

        return lora(x, weight, a, b, scale)


OPERATORS = {
    "kernels": Operators(attention, rotary, mlp, linear_cross_entropy, scan, False),
    "reference": Operators(
        attention_reference.attention,
        rotary_reference.rotary,
        mlp_reference,
        linear_cross_entropy_reference,
        scan_chunked,
        True,
    ),
}
