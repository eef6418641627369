"""Per-document low-rank adapters over a frozen base, and the optimiser step that trains them while scoring."""

from pgolf.kernels.lora.op import lora
from pgolf.kernels.lora.update import lora_adam, lora_initial, lora_reset

__all__ = ["lora", "lora_adam", "lora_initial", "lora_reset"]
