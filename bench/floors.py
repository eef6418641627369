"""The least traffic of each kernel at a preset's shapes, by the kernel's name: what a profile is held against."""

import re

from pgolf.config import Settings
from pgolf.kernels.attention import launch as attention
from pgolf.kernels.cross_entropy import launch as cross_entropy
from pgolf.kernels.mlp import launch as mlp
from pgolf.kernels.rotary import launch as rotary

ELEMENT = 2


def training_floors(settings: Settings, tokens: int) -> dict[str, tuple[int, int]]:
    """(bytes, FLOPs) of one launch for `tokens` tokens of training, as the operators' docstrings count them."""
    model, length = settings.model, settings.training.sequence_length
    heads = (model.heads, model.kv_heads, model.head_dim, ELEMENT)
    pairs = tokens // length * length * (length + 1) // 2
    shape = (tokens, model.dim, model.mlp_hidden)
    return {
        "attention_fwd_kernel": attention.traffic_attention_fwd(tokens, pairs, *heads, xsa=True),
        "attention_bwd_prepare_kernel": attention.traffic_attention_bwd_prepare(tokens, *heads, xsa=True),
        "attention_bwd_kv_kernel": attention.traffic_attention_bwd_kv(tokens, pairs, *heads, xsa=True),
        "attention_bwd_q_kernel": attention.traffic_attention_bwd_q(tokens, pairs, *heads),
        "xsa_fwd_kernel": attention.traffic_xsa(tokens, *heads, "forward"),
        "xsa_bwd_kernel": attention.traffic_xsa(tokens, *heads, "backward"),
        "rotary_fwd_kernel": rotary.traffic_rotary(tokens, *heads, "forward"),
        "rotary_bwd_kernel": rotary.traffic_rotary(tokens, *heads, "backward"),
        "cross_entropy_fwd_kernel": cross_entropy.traffic_forward(tokens, model.vocab_size, ELEMENT),
        "cross_entropy_bwd_kernel_rescale": cross_entropy.traffic_rescale(tokens, model.vocab_size, ELEMENT),
        "mlp_fwd_kernel_up": mlp.traffic_up(*shape),
        "mlp_fwd_kernel_down": mlp.traffic_down(tokens, model.mlp_hidden, model.dim),
        "mlp_bwd_kernel_hidden": mlp.traffic_hidden(tokens, model.mlp_hidden, model.dim),
        "mlp_bwd_kernel_w_down": mlp.traffic_w_down(tokens, model.mlp_hidden, model.dim, parts=1),
    }


def kernel_of(name: str, floors: dict) -> str | None:
    """The entry that a profiler's name belongs to: some of Triton's versions append what an argument was specialised to."""
    plain = re.sub(r"_\d\w*$", "", re.split(r"[(<]", name)[0].strip())
    return plain if plain in floors else None
