"""Batched orthogonalisation by Newton-Schulz iterations, with the symmetric products computed once."""

from pgolf.kernels.newton_schulz.op import newton_schulz

__all__ = ["newton_schulz"]
