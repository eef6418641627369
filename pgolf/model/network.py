"""The network: tokens in, logits or a loss out. Its parts are switched by ModelSettings.

    x = norm(token embedding + bigram embedding), smeared;  x0 = x
    encoder layers push what they put out; decoder layers first add a weighted pop
    logits = softcap tanh(norm(x) W^T / softcap),  W the token embedding if tied

Attention and MLP matrices live in four banks, one slice a physical layer; those of state-space layers, where there are
some, in three more. An executed ("virtual") layer looks its slice up, so depth recurrence is a list of indices; everything
small belongs to the executed layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.config import ModelSettings
from pgolf.model.adapters import Adapters, Projector
from pgolf.model.mamba import ScanBlock, ScanMatrices
from pgolf.model.operators import OPERATORS, Operators
from pgolf.model.parts import Block, HashedPairs, Matrices, SharedValues, SmearGate, previous, rms_norm, rotary_tables


class Network(nn.Module):
    """Built by `build_model`.

    activation  dtype of the residual stream; weights are cast to it where they are used
    operators   "kernels", or "reference" for their plain-torch forms (slower), or an Operators of one's own
    rounding    in training mode, (weight, role) -> the weight to use instead; role "bank" for the slices of the banks,
                "projection" for those of the bigram and value embeddings. May be set at any time.
    input_hook  sees (site, executed layer, input) of every product with a matrix: sites q, k, v, o, up, down, or mixer_in,
                mixer_b, mixer_c, mixer_out; and with layer 0 head, bigram and values
    """

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.settings = settings
        self.activation = torch.float32
        self.operators = "kernels"
        self.rounding: Callable[[Tensor, str], Tensor] | None = None
        self.input_hook: Callable[[str, int, Tensor], None] | None = None
        self.virtual_layers = settings.virtual_layers
        layers, dim, values = len(settings.attention_layers), settings.dim, settings.kv_heads * settings.head_dim
        scans, inner = len(settings.scan_layers), settings.scan_width
        executed = len(self.virtual_layers)
        self.encoders = executed // 2 if settings.unet_skips else 0

        self.tok_emb = nn.Embedding(settings.vocab_size, dim)
        self.bigram = HashedPairs(settings.bigram_buckets, settings.bigram_dim, dim) if settings.bigram_buckets else None
        self.smear = SmearGate(dim) if settings.smear else None
        self.qo_bank = nn.Parameter(torch.empty(2 * layers, dim, dim))
        self.kv_bank = nn.Parameter(torch.empty(2 * layers, values, dim))
        self.mlp_up_bank = nn.Parameter(torch.empty(layers, settings.mlp_hidden, dim))
        self.mlp_down_bank = nn.Parameter(torch.empty(layers, dim, settings.mlp_hidden))
        entries = settings.scan_heads * settings.scan_state
        self.scan_in_bank = nn.Parameter(torch.empty(scans, 2 * inner, dim)) if scans else None
        self.scan_state_bank = nn.Parameter(torch.empty(2 * scans, entries, dim)) if scans else None
        self.scan_out_bank = nn.Parameter(torch.empty(scans, dim, inner)) if scans else None
        self.skip_weights = nn.Parameter(torch.empty(self.encoders, dim)) if self.encoders else None
        kinds = [ScanBlock if physical in settings.scan_layers else Block for physical in self.virtual_layers]
        self.blocks = nn.ModuleList(kind(settings, layer) for layer, kind in enumerate(kinds))
        self.value_layers = {layer: i for i, layer in enumerate(settings.value_embedding_layers)}
        if self.value_layers:
            self.ve_shared = SharedValues(settings.vocab_size, settings.value_embedding_dim, values)
            self.ve_layer_scales = nn.ParameterList(torch.empty(1) for _ in self.value_layers)
        self.lm_head = None if settings.tied else nn.Linear(dim, settings.vocab_size, bias=False)
        self.mtp_heads = nn.ModuleList(nn.Linear(dim, settings.vocab_size, bias=False) for _ in range(settings.mtp_heads))

    # ---- what callers use

    def hidden(self, tokens: Tensor, adapters: Adapters | None = None) -> Tensor:
        """The final, normed states of tokens (B, T): (B, T, D) in the activations' dtype."""
        operators, matrices = self._operators(), self._matrices()
        table = rotary_tables(self.settings, tokens.shape[1], tokens.device, self.activation)
        extra_values = self._extra_values(tokens)
        x = self._embed(tokens)
        x0 = before = x
        first_values = None
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if self.skip_weights is not None and layer >= self.encoders and skips:
                x = x + self.skip_weights[layer - self.encoders].to(x.dtype) * skips.pop()
            entered = x
            project = Projector(operators, adapters, layer, self.input_hook)
            x, values = block(x, x0, before, matrices[layer], extra_values.get(layer), first_values, table, project)
            before = entered
            first_values = values if layer == 0 else first_values
            if layer < self.encoders:
                skips.append(x)
        return rms_norm(x)

    def head(self, hidden: Tensor, adapters: Adapters | None = None) -> Tensor:
        """Softcapped logits of states (..., D), in float32 or float64."""
        raw = self._raw_logits(hidden, adapters)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return self.settings.softcap * torch.tanh(raw / self.settings.softcap)

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
        reduction: str = "mean",
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of the softcapped logits; in training mode with the further heads' mean, weighted, added.
        A caller who has the final states of these tokens gives them along."""
        operators = self._operators()
        hidden = self.hidden(tokens) if hidden is None else hidden

        def cross_entropy(raw: Tensor, skip: int) -> Tensor:
            """Against the targets `skip` places on; where the row ends, there is nothing to predict."""
            ahead = F.pad(targets[:, skip:], (0, skip), value=-100)
            share = None if weights is None else F.pad(weights[:, skip:], (0, skip))
            return operators.cross_entropy(raw, ahead, softcap=self.settings.softcap, weights=share, reduction=reduction)

        loss = cross_entropy(self._raw_logits(hidden), 0)
        # a head is a matrix and nothing else
        further = list(self.mtp_heads.parameters())[: tokens.shape[1] - 1] if self.training else []
        if further:
            losses = [cross_entropy(F.linear(hidden, head.to(hidden.dtype)), skip) for skip, head in enumerate(further, 1)]
            loss = loss + self.settings.mtp_weight * sum(losses) / len(losses)
        return loss

    forward = loss

    # ---- how it works

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self.tok_emb(tokens).to(self.activation)
        if self.bigram is not None:
            pairs = self.bigram.embed(self.bigram.buckets(tokens)).to(x.dtype)
            x = x + self.bigram.scale.to(x.dtype) * self._projected("bigram", pairs, self.bigram)
        x = rms_norm(x)
        return x if self.smear is None else self.smear(x, previous(x))

    def _extra_values(self, tokens: Tensor) -> dict[int, Tensor]:
        """What each executed layer adds to its values."""
        if not self.value_layers:
            return {}
        rows = self.ve_shared.embed(tokens).to(self.activation)
        shared = self.ve_shared.scale.to(rows.dtype) * self._projected("values", rows, self.ve_shared)
        return {layer: self.ve_layer_scales[i].to(rows.dtype) * shared for layer, i in self.value_layers.items()}

    def output_matrix(self) -> Tensor:
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def _raw_logits(self, hidden: Tensor, adapters: Adapters | None = None) -> Tensor:
        project = Projector(self._operators(), adapters, 0, self.input_hook)
        return project("head", hidden, self.output_matrix().to(hidden.dtype))

    def _operators(self) -> Operators:
        if isinstance(self.operators, Operators):
            return self.operators
        if self.operators not in OPERATORS:
            raise ValueError(f"model.operators is {self.operators!r}; it can be {' or '.join(OPERATORS)}")
        return OPERATORS[self.operators]

    def _matrices(self) -> list[Matrices | ScanMatrices]:
        """Each executed layer's slices. Cast and unbound bank by bank: the gradients of slices taken one by one would
        each be as large as the bank."""
        qo, kv, up, down = map(self._slices, (self.qo_bank, self.kv_bank, self.mlp_up_bank, self.mlp_down_bank))
        n = len(up)
        found: dict[int, Matrices | ScanMatrices] = {
            layer: Matrices(qo[i], kv[i], kv[n + i], qo[n + i], up[i], down[i])
            for i, layer in enumerate(self.settings.attention_layers)
        }
        scans = [bank for bank in (self.scan_in_bank, self.scan_state_bank, self.scan_out_bank) if bank is not None]
        if scans:
            into, state, out = map(self._slices, scans)
            n = len(into)
            for i, layer in enumerate(sorted(self.settings.scan_layers)):
                found[layer] = ScanMatrices(into[i], state[i], state[n + i], out[i])
        return [found[layer] for layer in self.virtual_layers]

    def _slices(self, bank: Tensor) -> tuple[Tensor, ...]:
        if self.training and self.rounding is not None:
            return tuple(self.rounding(matrix, "bank").to(self.activation) for matrix in bank.unbind())
        return bank.to(self.activation).unbind()

    def _projected(self, site: str, rows: Tensor, owner: HashedPairs | SharedValues) -> Tensor:
        weight = owner.proj.weight
        if self.training and self.rounding is not None:
            weight = self.rounding(weight, "projection")
        return Projector(self._operators(), None, 0, self.input_hook)(site, rows, weight.to(self.activation))
