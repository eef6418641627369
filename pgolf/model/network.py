"""The network: tokens in, logits or a loss out. Its parts are switched by ModelSettings.

    x = norm(token embedding + bigram embedding), smeared;  x0 = x
    the first half of the layers push their outputs, the second half first add a weighted pop (as in a U-Net)
    logits = softcap tanh(norm(x) W^T / softcap),  W the token embedding if tied

Attention and MLP matrices live in four banks, one slice a physical layer; those of state-space layers, where there are
some, in three more. An executed ("virtual") layer looks its slice up, so depth recurrence is a list of indices; everything
small belongs to the executed layer. `layers.executed_layers` describes them, `parameters.TABLE` their tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.adapters import Adapters, InputHook, Projector
from pgolf.model.blocks import AttentionBlock
from pgolf.model.documents import within_documents
from pgolf.model.layers import Layer, executed_layers
from pgolf.model.mamba import Mamba2Block
from pgolf.model.operators import OPERATORS, Operators
from pgolf.model.parameters import BANKS, bank_shapes
from pgolf.model.parts import (
    BigramEmbedding,
    SmearGate,
    TokenSmearGate,
    ValueEmbedding,
    previous,
    rms_norm,
    rotary_tables,
    softcapped,
)
from pgolf.model.stream import LayerContext, Stream

if TYPE_CHECKING:
    from pgolf.model.packed_bank import PackedBank

Matrices = list[dict[str, Tensor]]
"""For each executed layer its matrices by site, (out, in), in the activations' dtype."""
AttentionOf = Callable[[Layer, Callable[..., Tensor]], Callable[..., Tensor]]


def operator_of(layer: Layer, operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator as it is: attention to the same tokens."""
    return operator


class Network(nn.Module):
    """Built by `build_model`.

    activation  dtype of the residual stream; weights are cast to it where they are used
    operators   "kernels", or "reference" for their plain-torch forms (slower), or an Operators of one's own
    looped      whether looped layers run all their passes, or one: two graphs for a compiler. May be set at any time.
    rounding    in training mode, (weight, role) -> the weight to use instead; role "bank" for the slices of the banks,
                "projection" for those of the bigram and value embeddings. May be set at any time.
    packed      banks whose codes are read in evaluation mode, fewer bytes for the same bits, as long as they are its values
    input_hook  sees (site, executed layer, input) of every product with a matrix, by the sites of `parameters.TABLE`;
                head, bigram and values come with layer 0
    """

    qo_bank: nn.Parameter
    kv_bank: nn.Parameter
    mlp_up_bank: nn.Parameter
    mlp_down_bank: nn.Parameter
    scan_in_bank: nn.Parameter | None
    scan_state_bank: nn.Parameter | None
    scan_out_bank: nn.Parameter | None

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.settings = settings
        self.activation = torch.float32
        self.operators = "kernels"
        self.rounding: Callable[[Tensor, str], Tensor] | None = None
        self.input_hook: InputHook | None = None
        self.looped = True
        self.packed: dict[str, PackedBank] = {}
        self._layers = {looped: executed_layers(settings, looped=looped) for looped in (False, True)}
        dim, values = settings.dim, settings.kv_heads * settings.head_dim
        skips = sum(layer.skip is not None for layer in self.layers)

        self.tok_emb = nn.Embedding(settings.vocab_size, dim)
        self.bigram = BigramEmbedding(settings.bigram_buckets, settings.bigram_dim, dim) if settings.bigram_buckets else None
        self.smear = SmearGate(dim) if settings.smear else None
        self.smear_gate = TokenSmearGate(settings.smear_inputs, settings.smear_bos) if settings.smear_inputs else None
        self.smear_lambda = nn.Parameter(torch.empty(1)) if settings.smear_inputs else None
        shapes = bank_shapes(settings)
        for bank in BANKS:
            self.register_parameter(bank, nn.Parameter(torch.empty(shapes[bank])) if bank in shapes else None)
        self.skip_weights = nn.Parameter(torch.empty(skips, dim)) if skips else None
        self.skip_gates = nn.Parameter(torch.empty(skips, dim)) if skips and settings.skip_gates else None
        lanes = settings.layers if settings.lanes_from else 0
        self.parallel_post_lambdas = nn.Parameter(torch.empty(lanes, 2, 2)) if lanes else None
        self.parallel_resid_lambdas = nn.Parameter(torch.empty(lanes, 2)) if lanes else None
        owners = {layer.block: layer for layer in self.layers}
        self.blocks = nn.ModuleList(
            (Mamba2Block if layer.mamba else AttentionBlock)(settings, layer) for layer in owners.values()
        )
        if settings.value_embedding_layers:
            self.ve_shared = ValueEmbedding(settings.vocab_size, settings.value_embedding_dim, values)
            self.ve_layer_scales = nn.ParameterList(torch.empty(1) for _ in settings.value_embedding_layers)
        self.lm_head = None if settings.tied else nn.Linear(dim, settings.vocab_size, bias=False)
        self.mtp_heads = nn.ModuleList(nn.Linear(dim, settings.vocab_size, bias=False) for _ in range(settings.mtp_heads))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The executed layers."""
        return self._layers[self.looped]

    # ---- what callers use

    def hidden(self, tokens: Tensor, adapters: Adapters | None = None, matrices: Matrices | None = None) -> Tensor:
        """The final, normed states of tokens (B, T): (B, T, D) in the activations' dtype.

        matrices  those to use instead of the banks', as `matrices()` gives them
        """
        rotary = rotary_tables(self.settings, tokens.shape[1], tokens.device, self.activation)
        bos = self.settings.document_bos
        stream = self.run_layers(
            self.embed(tokens),
            tokens,
            self.layers,
            rotary,
            adapters=adapters,
            matrices=matrices,
            attention_of=within_documents(tokens, bos) if bos >= 0 else operator_of,
        )
        return rms_norm(stream.leaving())

    def head(self, hidden: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Softcapped logits of states (..., D), in float32 or float64."""
        return softcapped(self.raw_logits(hidden, adapters), self.settings.softcap)

    def logits(self, tokens: Tensor, *, adapters: Adapters | None = None, positions: Tensor | slice | None = None) -> Tensor:
        """Softcapped logits (B, T, V), or of some positions only: a slice, or indices (B, P) for each row."""
        hidden = self.hidden(tokens, adapters)
        if isinstance(positions, slice):
            hidden = hidden[:, positions]
        elif positions is not None:
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.head(hidden, adapters)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        weights: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of the softcapped logits; in training mode the mean of the further heads' is added, weighted.
        A caller who has the final states of these tokens already passes them as `hidden`."""
        operators = self._operators()
        hidden = self.hidden(tokens) if hidden is None else hidden

        def cross_entropy(head: Tensor, skip: int) -> Tensor:
            """Against the targets `skip` places on; where the row ends, there is nothing to predict."""
            ahead = F.pad(targets[:, skip:], (0, skip), value=-100)
            share = None if weights is None else F.pad(weights[:, skip:], (0, skip))
            matrix = head.to(hidden.dtype)
            return operators.linear_cross_entropy(hidden, matrix, ahead, softcap=self.settings.softcap, weights=share)

        if self.input_hook is not None:
            self.input_hook("head", 0, hidden)
        loss = cross_entropy(self.output_matrix(), 0)
        # multi-token prediction, arXiv:2404.19737; a head is a matrix and nothing else
        further = list(self.mtp_heads.parameters())[: tokens.shape[1] - 1] if self.training else []
        if further:
            losses = [cross_entropy(head, skip) for skip, head in enumerate(further, 1)]
            loss = loss + self.settings.mtp_weight * sum(losses) / len(losses)
        return loss

    forward = loss

    # ---- the steps of a forward pass

    def embed(self, tokens: Tensor) -> Stream:
        """What enters the first layer. A position's embedding depends on its token and the two before it."""
        x = self.tok_emb(tokens).to(self.activation)
        if self.smear_gate is not None:
            x = x + self.smear_gate(x, tokens, self.smear_lambda) * previous(x)
        if self.bigram is not None:
            pairs = self.bigram.embed(self.bigram.buckets(tokens)).to(x.dtype)
            x = x + self.bigram.scale.to(x.dtype) * self._projected("bigram", pairs, self.bigram)
        x = rms_norm(x)
        return Stream.of(x if self.smear is None else self.smear(x, previous(x)))

    def run_layers(
        self,
        stream: Stream,
        tokens: Tensor,
        layers: Sequence[Layer],
        rotary: tuple[Tensor, Tensor],
        *,
        adapters: Adapters | None = None,
        matrices: Matrices | None = None,
        attention_of: AttentionOf = operator_of,
    ) -> Stream:
        """What leaves the last of `layers`, which `stream` enters, for tokens (B, T) at the positions of `rotary`.

        attention_of  (layer, the operator) -> the attention to use, which may see more keys and values than these tokens'
        """
        operators = self._operators()
        matrices = self.matrices() if matrices is None else matrices
        value_embeddings = self._value_embeddings(tokens, layers)
        for layer in layers:
            if layer.lanes and stream.lane is None:
                stream = stream._replace(lane=stream.x)
            if layer.skip is not None:
                stream = self._with_skip(stream, layer.skip)
            context = LayerContext(
                layer,
                Projector(operators, matrices[layer.index], adapters, layer.index, self.input_hook),
                rotary,
                None if layer.value_embedding is None else value_embeddings[layer.value_embedding],
                attention_of(layer, operators.attention),
                self._lane_factors(layer),
            )
            stream = self.blocks[layer.block](stream, context)
            if layer.pushes:
                stream = stream._replace(skips=(*stream.skips, stream.x))
        return stream

    def matrices(self, slices: Mapping[str, Sequence[Tensor]] | None = None) -> Matrices:
        """Each executed layer's matrices, as they are used. Cast and unbound bank by bank: the gradients of slices taken one
        by one would each be as large as the bank.

        slices  a bank's slices, for each bank, where they are tensors of their own
        """
        banks = {bank: getattr(self, bank) for bank in BANKS if getattr(self, bank) is not None} if slices is None else slices
        matrices: Matrices = [{} for _ in self.layers]
        for bank, whole in banks.items():
            packed = None if self.training or bank not in self.packed else self.packed[bank].slices(whole, self.activation)
            tensors, parts = packed or self._cast(whole), BANKS[bank]
            count = len(tensors) // len(parts)
            for part, row in enumerate(parts):
                for layer in self.layers:
                    if layer.mamba == row.mamba:
                        matrices[layer.index][row.site] = tensors[part * count + layer.slot]
        return matrices

    def output_matrix(self) -> Tensor:
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    # ---- how it works

    def _cast(self, bank: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        if self.training and self.rounding is not None:
            return [self.rounding(matrix, "bank").to(self.activation) for matrix in bank]
        if isinstance(bank, Tensor):
            return bank.to(self.activation).unbind()
        return [matrix.to(self.activation) for matrix in bank]

    def _with_skip(self, stream: Stream, row: int) -> Stream:
        """The stream with the last output that was pushed, weighted by a row of `skip_weights`: added to it, or, with gates
        (as in PR #1855 of openai/parameter-golf), mixed with it channel by channel."""
        assert self.skip_weights is not None
        x, kind = stream.x, stream.x.dtype
        skip = self.skip_weights[row].to(kind) * stream.skips[-1]
        if self.skip_gates is None:
            x = x + skip
        else:
            x = skip + torch.sigmoid(self.skip_gates[row]).to(kind) * (x - skip)
        return stream._replace(x=x, skips=stream.skips[:-1])

    def _lane_factors(self, layer: Layer) -> tuple[Tensor, Tensor] | None:
        if self.parallel_resid_lambdas is None or self.parallel_post_lambdas is None or not layer.lanes:
            return None
        return self.parallel_resid_lambdas[layer.physical], self.parallel_post_lambdas[layer.physical]

    def _value_embeddings(self, tokens: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
        """What the layers with a value embedding add to their values, each (B, T, Dkv)."""
        if all(layer.value_embedding is None for layer in layers):
            return []
        rows = self.ve_shared.embed(tokens).to(self.activation)
        shared = self.ve_shared.scale.to(rows.dtype) * self._projected("values", rows, self.ve_shared)
        return [scale.to(rows.dtype) * shared for scale in self.ve_layer_scales]

    def raw_logits(self, hidden: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Logits of states (..., D) before the softcap, in the activations' dtype."""
        matrices = {"head": self.output_matrix().to(hidden.dtype)}
        return Projector(self._operators(), matrices, adapters, input_hook=self.input_hook)("head", hidden)

    def _projected(self, site: str, rows: Tensor, owner: BigramEmbedding | ValueEmbedding) -> Tensor:
        weight = owner.proj.weight
        if self.training and self.rounding is not None:
            weight = self.rounding(weight, "projection")
        return Projector(self._operators(), {site: weight.to(self.activation)}, input_hook=self.input_hook)(site, rows)

    def _operators(self) -> Operators:
        if isinstance(self.operators, Operators):
            return self.operators
        if self.operators not in OPERATORS:
            raise ValueError(f"model.operators is {self.operators!r}; it can be {' or '.join(OPERATORS)}")
        return OPERATORS[self.operators]
