"""[model]: the network. Stored in the artifact, so a name here is part of the file format."""

from dataclasses import dataclass
from typing import Literal

from pgolf.config.checks import SettingsError, above, at_least


@dataclass(frozen=True)
class ModelSettings:
    vocab_size: int = 1024
    """Entries of the token alphabet."""
    layers: int = 11
    """Physical blocks."""
    dim: int = 512
    """Width of the residual stream."""
    heads: int = 8
    """Query heads."""
    kv_heads: int = 4
    """Key and value heads; divides the query heads."""
    mlp_hidden: int = 1536
    """Hidden width of the MLP."""
    mlp_slope: float = 0.5
    """Slope of the leaky ReLU below zero, before squaring."""
    rotary_dims: int = 16
    """How many dimensions of each head are rotated."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies at the reference length."""
    rope_reference_length: int = 1024
    """Longer sequences raise the base by (length / this)^(r / (r - 2))."""
    q_gain: float = 1.5
    """Initial gain of each query head, applied after the rotation."""
    softcap: float = 30.0
    """Logits are softcap * tanh(logits / softcap)."""
    tied: bool = True
    """The output matrix is the token embedding."""
    embedding_std: float = 0.005
    """Standard deviation of the initial token embedding."""
    smear: bool = True
    """SmearGate: each position takes a learnt share of its predecessor's embedding."""
    bigram_buckets: int = 2048
    """Rows of the hashed bigram embedding; 0 leaves it out."""
    bigram_dim: int = 128
    """Width of the bigram embedding before its projection."""
    bigram_scale: float = 0.05
    """Where the scale of the bigram embedding starts."""
    value_embedding_layers: tuple[int, ...] = (9, 10)
    """Executed layers whose values get the shared value embedding."""
    value_embedding_dim: int = 128
    """Width of the value embedding before its projection."""
    embedding_projection_gain: float = 1.0
    """Gain of the orthogonal start of the bigram and value-embedding projections."""
    xsa_last: int = 4
    """Exclusive self-attention on the last n executed layers."""
    value_residual: bool = False
    """Later layers mix their values with the first layer's: v = l0 v0 + l1 v."""
    value_residual_init: tuple[float, float] = (0.5, 0.5)
    """Where (l0, l1) start."""
    gated_attention: bool = False
    """Each head is scaled by a sigmoid gate of the sublayer's input."""
    gate_bias: float = 4.0
    """Where the gate's bias starts."""
    unet_skips: bool = True
    """The first half of the layers feeds the second half, last to first."""
    resid_mix: bool = True
    """Each block starts from a learnt mix of the stream and the embedding."""
    layer_scale: bool = True
    """Sublayer inputs are scaled by 1 / sqrt(layer + 1)."""
    recurrence: tuple[int, ...] = ()
    """Physical layers that run a second time, right after their last one; small parameters stay separate."""
    hyper_layers: int = 0
    """Hyper-connections on the top n blocks."""
    dtg: bool = False
    """Dynamic token gate around each block."""
    mtp_heads: int = 0
    """Extra heads that predict further tokens in training; never packed."""
    mtp_weight: float = 0.2
    """Weight of their loss."""
    matrix_start: Literal["orthogonal", "uniform"] = "orthogonal"
    """How matrices that do not start at zero start: orthogonal, or uniform in +-1 / sqrt(inputs)."""
    scan_layers: tuple[int, ...] = ()
    """Layers that are Mamba-2 blocks instead of attention and MLP; the other scan settings are about them."""
    scan_expansion: int = 2
    """Their inner width, in widths of the residual stream."""
    scan_heads: int = 8
    """Heads of a state-space layer, each with a decay of its own."""
    scan_state: int = 8
    """Size of a head's state: it holds this many values of the head's width."""
    scan_conv: int = 4
    """Tokens that the convolution before the scan sees."""
    scan_input_dt: bool = False
    """The step size depends on the token, as in Mamba-2; off: it is one for each head, and the decay one of time alone."""
    loop_layers: tuple[int, ...] = ()
    """Neighbouring physical layers that run loop_passes times, one after another; all their parameters are shared."""
    loop_passes: int = 3
    """How often they run; training may begin with once, see training.loop_start."""
    skip_gates: bool = False
    """A skip s joins as s + sigmoid(gate) (x - s), channel by channel, instead of x + s."""
    lanes_from: int = 0
    """From this physical layer on attention reads one residual lane, the MLP another, and both write into both; 0: never."""
    gate_inputs: int = 0
    """Each head is scaled by sigmoid(gate_scale W u) of the first n channels of the sublayer's input; 0: it is not."""
    gate_scale: float = 1.0
    """See gate_inputs."""
    smear_inputs: int = 0
    """Each token's embedding takes a share of its predecessor's, gated by its own first n channels; 0: it does not."""
    smear_bos: int = 1
    """A document's first token, which takes none of its predecessor's embedding; -1: every token does."""
    document_bos: int = -1
    """A document's first token, which attention goes no further back than; -1: it goes through the whole window."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The physical layers with attention and MLP."""
        return tuple(layer for layer in range(self.layers) if layer not in self.scan_layers)

    @property
    def scan_width(self) -> int:
        """Inner width of a state-space layer."""
        return self.scan_expansion * self.dim

    @property
    def virtual_layers(self) -> tuple[int, ...]:
        """The physical layer that each executed layer uses."""
        if self.loop_layers:
            first, last = self.loop_layers[0], self.loop_layers[-1]
            return (*range(first), *self.loop_layers * self.loop_passes, *range(last + 1, self.layers))
        if not self.recurrence:
            return tuple(range(self.layers))
        turn = max(self.recurrence) + 1
        return (*range(turn), *self.recurrence, *range(turn, self.layers))

    def validate(self) -> None:
        """Raise one line for the first value, or combination of values, that describes no network."""
        at_least(1, "model", self, "layers", "dim", "heads", "kv_heads", "mlp_hidden", "rope_reference_length")
        at_least(0, "model", self, "rotary_dims", "xsa_last", "hyper_layers", "mtp_heads", "bigram_buckets")
        at_least(1, "model", self, "scan_expansion", "scan_heads", "scan_state", "scan_conv")
        above(0, "model", self, "softcap", "rope_base")
        if self.bigram_buckets:
            at_least(1, "model", self, "bigram_dim")
        if self.value_embedding_layers:
            at_least(1, "model", self, "value_embedding_dim")
        if self.bigram_buckets == 1:
            raise SettingsError("model.bigram_buckets is 1; it must be 0 (none) or at least 2")
        if not 0 <= self.mlp_slope <= 1:
            raise SettingsError(f"model.mlp_slope is {self.mlp_slope}; it must be from 0 to 1")
        if not 1 <= self.vocab_size <= 65_536:
            raise SettingsError(f"model.vocab_size {self.vocab_size} does not fit the shards' 16-bit tokens")
        if self.dim % self.heads:
            raise SettingsError(f"model.dim {self.dim} is no multiple of model.heads {self.heads}")
        if self.heads % self.kv_heads:
            raise SettingsError(f"model.heads {self.heads} is no multiple of model.kv_heads {self.kv_heads}")
        if self.rotary_dims % 2 or self.rotary_dims > self.head_dim:
            raise SettingsError(f"model.rotary_dims {self.rotary_dims} must be even, at most the head's {self.head_dim}")
        at_least(0, "model", self, "lanes_from", "gate_inputs", "smear_inputs")
        for name in ("gate_inputs", "smear_inputs"):
            if getattr(self, name) > self.dim:
                raise SettingsError(f"model.{name} {getattr(self, name)} is more than model.dim, {self.dim}")
        if self.gate_inputs and self.gated_attention:
            raise SettingsError("model.gate_inputs and model.gated_attention are two gates for the same heads; choose one")
        self._validate_layer_lists()
        self._validate_loop()
        if self.lanes_from:
            self._validate_lanes()
        if self.scan_layers:
            self._validate_scan()

    def _validate_layer_lists(self) -> None:
        for name in ("recurrence", "value_embedding_layers"):
            if min(getattr(self, name), default=0) < 0:
                raise SettingsError(f"model.{name} names layer {min(getattr(self, name))}; the first one is 0")
        if self.recurrence and max(self.recurrence) >= self.layers:
            raise SettingsError(f"model.recurrence names layer {max(self.recurrence)}, but there are {self.layers}")
        executed = len(self.virtual_layers)
        if len(set(self.value_embedding_layers)) < len(self.value_embedding_layers):
            raise SettingsError("model.value_embedding_layers names a layer twice")
        for layer in self.value_embedding_layers:
            if layer >= executed:
                raise SettingsError(f"model.value_embedding_layers names layer {layer}, but {executed} are executed")

    def _validate_loop(self) -> None:
        at_least(1, "model", self, "loop_passes")
        if not self.loop_layers:
            return
        first, last = self.loop_layers[0], self.loop_layers[-1]
        if self.loop_layers != tuple(range(first, last + 1)) or first < 0 or last >= self.layers:
            raise SettingsError(
                f"model.loop_layers {list(self.loop_layers)} must be neighbouring layers in order, from 0 to {self.layers - 1}"
            )
        if self.recurrence:
            raise SettingsError("model.loop_layers and model.recurrence are two ways to repeat layers; choose one")

    def _validate_lanes(self) -> None:
        if self.lanes_from >= self.layers:
            raise SettingsError(f"model.lanes_from {self.lanes_from} is no layer: there are 0 to {self.layers - 1}")
        if self.dtg:
            raise SettingsError("model.dtg gates one residual stream, but model.lanes_from asks for two; choose one")
        if max(self.scan_layers, default=-1) >= self.lanes_from:
            raise SettingsError(
                "model.lanes_from needs attention and MLP in its layers, but model.scan_layers names one of them"
            )
        for order in (self.virtual_layers, range(self.layers)):
            if self.unet_skips and any(layer >= self.lanes_from for layer in order[: len(order) // 2]):
                raise SettingsError(
                    f"model.lanes_from {self.lanes_from} is in the first half of the layers, whose skips have one lane"
                )

    def _validate_scan(self) -> None:
        for layer in self.scan_layers:
            if not 0 <= layer < self.layers:
                raise SettingsError(f"model.scan_layers names layer {layer}, but there are 0 to {self.layers - 1}")
        if len(set(self.scan_layers)) < len(self.scan_layers):
            raise SettingsError("model.scan_layers names a layer twice")
        if not self.attention_layers:
            raise SettingsError("model.scan_layers names every layer; one at least must have attention")
        if self.scan_width % self.scan_heads:
            raise SettingsError(
                f"model.scan_heads {self.scan_heads} does not divide scan_expansion x dim, {self.scan_expansion} x {self.dim}"
            )
        if self.document_bos >= 0:
            raise SettingsError(
                "model.document_bos keeps documents apart in attention, but a state of model.scan_layers goes on"
            )
        for name in ("recurrence", "value_residual"):
            if getattr(self, name):
                raise SettingsError(f"model.{name} needs attention in every layer, but model.scan_layers names some without")
        for layer in self.value_embedding_layers:
            if layer in self.scan_layers:
                raise SettingsError(
                    f"model.value_embedding_layers names layer {layer}, which model.scan_layers leaves no values"
                )
