"""Hand-written operators, each with a plain-torch reference.

PyTorch's dispatcher picks the backend by device: Triton on CUDA, numba or plain torch on a CPU. Each operator is a folder
of its own (`pgolf.kernels.<operator>`); `python -m pgolf.kernels` prints what every kernel compiles to.
"""

from pgolf.kernels.attention import attention, xsa
from pgolf.kernels.cross_entropy import cross_entropy, linear_cross_entropy
from pgolf.kernels.hedge import BoostedCache, HedgeMixer, OnlineBias
from pgolf.kernels.logit_stats import LogitStats, logit_stats
from pgolf.kernels.lora import lora, lora_adam, lora_initial, lora_reset
from pgolf.kernels.mlp import mlp
from pgolf.kernels.newton_schulz import newton_schulz
from pgolf.kernels.ngram import NgramBackoff, NgramBackoffStream, learn_table
from pgolf.kernels.packed import PackedMatrix, expand, pack, packed_matmul
from pgolf.kernels.rotary import rotary, rotary_table
from pgolf.kernels.scan import scan, scan_step

__all__ = [
    "BoostedCache",
    "HedgeMixer",
    "LogitStats",
    "NgramBackoff",
    "NgramBackoffStream",
    "OnlineBias",
    "PackedMatrix",
    "attention",
    "cross_entropy",
    "expand",
    "learn_table",
    "linear_cross_entropy",
    "logit_stats",
    "lora",
    "lora_adam",
    "lora_initial",
    "lora_reset",
    "mlp",
    "newton_schulz",
    "pack",
    "packed_matmul",
    "rotary",
    "rotary_table",
    "scan",
    "scan_step",
    "xsa",
]
