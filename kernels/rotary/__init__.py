"""QK-norm, partial rotary embedding and per-head query gain in one pass."""

from pgolf.kernels.rotary.op import rotary, rotary_table

__all__ = ["rotary", "rotary_table"]
