"""From settings to a network with its initial weights; and what a trainer needs to know of it."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from pgolf.config import ModelSettings
from pgolf.model.mamba import ScanBlock
from pgolf.model.network import Network
from pgolf.model.parts import Block
from pgolf.model.rounding import FakeRounding

TABLES = ("tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight")


def build_model(
    settings: ModelSettings,
    *,
    device="cpu",
    dtype: torch.dtype | None = None,
    seed: int | None = None,
    fake_rounding: FakeRounding | None = None,
) -> Network:
    """A network with its initial weights, drawn on the CPU in float32: a seed means the same numbers on every device.

    dtype   None: float32 on a CPU; on CUDA bfloat16 for activations and embedding tables, float32 for the rest.
            bfloat16 asks for the latter anywhere; float32 and float64 mean everything.
    device  "meta" gives shapes without weights
    seed    None draws from torch's own generator
    fake_rounding  becomes `network.rounding`; `FakeRounding.left_on(settings.training)` is what training left on
    """
    device = torch.device(device)
    network = empty_network(settings)
    network.rounding = fake_rounding
    network.activation = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if device.type != "meta":
        network.to_empty(device="cpu")
        _initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    for name, parameter in network.named_parameters():
        small = torch.promote_types(network.activation, torch.float32)
        parameter.data = parameter.data.to(device, network.activation if name in TABLES else small)
    return network


def empty_network(settings: ModelSettings) -> Network:
    with torch.device("meta"):
        return Network(settings)


@torch.no_grad()
def _initialise(network: Network, generator: torch.Generator | None) -> None:
    settings = network.settings
    layers = len(settings.attention_layers)

    def orthogonal(matrix: Tensor, gain: float = 1.0) -> None:
        nn.init.orthogonal_(matrix, gain, generator=generator)

    def uniform(tensor: Tensor, inputs: int) -> None:
        tensor.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)

    def start(matrix: Tensor) -> None:
        if settings.matrix_start == "orthogonal":
            orthogonal(matrix)
        else:
            uniform(matrix, matrix.shape[1])

    def normal(table: Tensor, std: float) -> None:
        nn.init.normal_(table, 0.0, std, generator=generator)

    normal(network.tok_emb.weight, settings.embedding_std)
    for matrix in (*network.qo_bank[:layers], *network.kv_bank, *network.mlp_up_bank):
        start(matrix)
    network.qo_bank[layers:] = 0
    network.mlp_down_bank.zero_()
    for bank in (network.scan_in_bank, network.scan_state_bank):
        for matrix in () if bank is None else bank:
            start(matrix)
    if network.scan_out_bank is not None:
        network.scan_out_bank.zero_()
    if network.bigram is not None:
        network.bigram.embed.weight.zero_()
        orthogonal(network.bigram.proj.weight, settings.embedding_projection_gain)
        network.bigram.scale.fill_(settings.bigram_scale)
    if network.value_layers:
        normal(network.ve_shared.embed.weight, 0.01)
        orthogonal(network.ve_shared.proj.weight, settings.embedding_projection_gain)
        network.ve_shared.scale.fill_(0.1)
        for scale in network.ve_layer_scales:
            scale.fill_(1)
    if network.smear is not None:
        network.smear.gate.zero_()
    if network.skip_weights is not None:
        network.skip_weights.fill_(1)
    for head in (*network.mtp_heads, *([network.lm_head] if network.lm_head is not None else [])):
        head.weight.zero_()
    # a ModuleList does not say what its modules are
    for block in cast(Iterable[Block | ScanBlock], network.blocks):
        if isinstance(block, ScanBlock):
            mixer = block.mixer
            block.mixer_scale.fill_(1)
            for part in mixer.conv1d.parameters():
                uniform(part, settings.scan_conv)
            dt = torch.empty_like(mixer.dt_bias).uniform_(0.001, 0.1, generator=generator)
            mixer.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
            mixer.A_log.copy_(torch.arange(1, settings.scan_heads + 1).log())
            mixer.D_param.fill_(1)
            if mixer.dt_proj is not None:
                mixer.dt_proj.weight.zero_()
        else:
            block.attn_scale.fill_(1)
            block.mlp_scale.fill_(1)
            block.attn.q_gain.fill_(settings.q_gain)
            if block.attn.vr_lambda is not None:
                block.attn.vr_lambda.copy_(torch.tensor(settings.value_residual_init))
            if block.attn.attn_gate is not None:
                block.attn.attn_gate.weight.zero_()
                block.attn.attn_gate.bias.fill_(settings.gate_bias)
        if block.resid_mix is not None:
            block.resid_mix[0] = 1
            block.resid_mix[1] = 0
        if block.hyper is not None:
            block.hyper.copy_(torch.tensor([1.0, 0.0, 0.3]))
        if block.dtg_gate is not None:
            block.dtg_gate.weight.zero_()
            block.dtg_gate.bias.fill_(2)


def parameter_groups(model: Network) -> dict[str, list[nn.Parameter]]:
    """Every parameter once, by how it is trained: matrix (the banks), projection, token, head, convolution, and scalar (the
    rest)."""
    names = ("matrix", "projection", "token", "scalar", "head", "convolution")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for name, parameter in model.named_parameters():
        if name.endswith("_bank"):
            group = "matrix"
        elif name in ("bigram.proj.weight", "ve_shared.proj.weight"):
            group = "projection"
        elif name in TABLES:
            group = "token"
        elif name.startswith(("mtp_heads.", "lm_head.")):
            group = "head"
        elif name.endswith(".conv1d.weight"):
            group = "convolution"
        else:
            group = "scalar"
        groups[group].append(parameter)
    return groups


def count_parameters(model: Network) -> int:
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
