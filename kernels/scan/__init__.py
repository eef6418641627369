"""The scan of a state-space model, in chunks; and its step, token by token."""

from pgolf.kernels.scan.op import scan, scan_step

__all__ = ["scan", "scan_step"]
