"""Causal attention with exclusive self-attention (XSA) and a per-head gate; and XSA alone, to stand behind another core."""

from pgolf.kernels.attention.op import attention, xsa

__all__ = ["attention", "xsa"]
