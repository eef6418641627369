"""LeakyReLU(slope)^2 between two matrix products, with one stored tensor."""

from pgolf.kernels.mlp.op import mlp

__all__ = ["mlp"]
