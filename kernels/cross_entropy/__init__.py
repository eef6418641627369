"""Softcapped cross-entropy: loss and gradient from one pass over the logits."""

from pgolf.kernels.cross_entropy.op import cross_entropy, linear_cross_entropy

__all__ = ["cross_entropy", "linear_cross_entropy"]
