"""Matrices of 4- to 8-bit codes, packed without waste, and their products."""

from pgolf.kernels.packed.op import PackedMatrix, expand, pack, packed_matmul

__all__ = ["PackedMatrix", "expand", "pack", "packed_matmul"]
