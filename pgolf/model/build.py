"""From settings to a network with its initial weights; a second network over its memory; the groups of its parameters."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from pgolf.config import ModelSettings
from pgolf.model.blocks import AttentionBlock
from pgolf.model.mamba import Mamba2Block
from pgolf.model.network import Network
from pgolf.model.parameters import GROUPS, parameter
from pgolf.model.rounding import FakeRounding


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
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        Initialiser(settings, generator).fill(network)
    for name, tensor in network.named_parameters():
        small = torch.promote_types(network.activation, torch.float32)
        tensor.data = tensor.data.to(device, network.activation if parameter(name).group == "token" else small)
    return network


def empty_network(settings: ModelSettings) -> Network:
    with torch.device("meta"):
        return Network(settings)


def shared_view(model: Network) -> Network:
    """Another network over the same memory, without the heads that only training uses: an update of one is an update of
    the other, while requires_grad is set on each alone."""
    view = empty_network(model.settings)
    view.activation, view.operators, view.rounding = model.activation, model.operators, model.rounding
    view.looped = model.looped
    view.mtp_heads = nn.ModuleList()
    state = {name: tensor for name, tensor in model.state_dict().items() if parameter(name).packed}
    view.load_state_dict(state, assign=True)
    return view


class Initialiser:
    """Initial weights, drawn from one generator in a fixed order: first matrices, then what else a network has."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator | None):
        self.settings, self.generator = settings, generator

    @torch.no_grad()
    def fill(self, network: Network) -> None:
        self._matrices(network)
        self._embeddings(network)
        if network.skip_weights is not None:
            network.skip_weights.fill_(1)
        if network.skip_gates is not None:
            network.skip_gates.zero_()
        if network.parallel_post_lambdas is not None and network.parallel_resid_lambdas is not None:
            network.parallel_post_lambdas.fill_(1)
            network.parallel_resid_lambdas.fill_(1.1)
        for head in (*network.mtp_heads, *([network.lm_head] if network.lm_head is not None else [])):
            head.weight.zero_()
        # a ModuleList does not say what its modules are
        for block in cast(Iterable[AttentionBlock | Mamba2Block], network.blocks):
            if isinstance(block, Mamba2Block):
                block.mixer.reset(self.settings, self.generator)
            else:
                block.attn.reset(self.settings)
            block.reset(self.settings)

    # ---- how single tensors start

    def orthogonal(self, matrix: Tensor, gain: float = 1.0) -> None:
        nn.init.orthogonal_(matrix, gain, generator=self.generator)

    def normal(self, table: Tensor, std: float) -> None:
        nn.init.normal_(table, 0.0, std, generator=self.generator)

    def uniform(self, tensor: Tensor, inputs: int) -> None:
        tensor.uniform_(-(inputs**-0.5), inputs**-0.5, generator=self.generator)

    def matrix(self, matrix: Tensor) -> None:
        if self.settings.matrix_start == "orthogonal":
            self.orthogonal(matrix)
        else:
            self.uniform(matrix, matrix.shape[1])

    # ---- which start how

    def _matrices(self, network: Network) -> None:
        """What writes into the residual stream starts at zero, so that every block starts as the identity."""
        layers = len(self.settings.attention_layers)
        self.normal(network.tok_emb.weight, self.settings.embedding_std)
        for matrix in (*network.qo_bank[:layers], *network.kv_bank, *network.mlp_up_bank):
            self.matrix(matrix)
        network.qo_bank[layers:] = 0
        network.mlp_down_bank.zero_()
        for bank in (network.scan_in_bank, network.scan_state_bank):
            for matrix in () if bank is None else bank:
                self.matrix(matrix)
        if network.scan_out_bank is not None:
            network.scan_out_bank.zero_()

    def _embeddings(self, network: Network) -> None:
        settings = self.settings
        if network.bigram is not None:
            network.bigram.embed.weight.zero_()
            self.orthogonal(network.bigram.proj.weight, settings.embedding_projection_gain)
            network.bigram.scale.fill_(settings.bigram_scale)
        if settings.value_embedding_layers:
            self.normal(network.ve_shared.embed.weight, 0.01)
            self.orthogonal(network.ve_shared.proj.weight, settings.embedding_projection_gain)
            network.ve_shared.scale.fill_(0.1)
            for scale in network.ve_layer_scales:
                scale.fill_(1)
        if network.smear is not None:
            network.smear.gate.zero_()
        if network.smear_gate is not None and network.smear_lambda is not None:
            network.smear_gate.weight.zero_()
            network.smear_lambda.zero_()


def parameter_groups(model: Network) -> dict[str, list[nn.Parameter]]:
    """Every parameter once, by how it is trained: matrix (the banks), projection, token, head, and scalar (the rest)."""
    groups: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, tensor in model.named_parameters():
        groups[parameter(name).group].append(tensor)
    return groups


def count_parameters(model: Network) -> int:
    return sum(math.prod(tensor.shape) for tensor in model.parameters())
