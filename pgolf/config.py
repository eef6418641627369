"""Every setting, typed, with its meaning; presets (one TOML a system), environment names and scales.

Order of precedence: preset file, then the environment names that competitors already use, then flags.
A field's docstring is its line in `--help`.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pgolf.errors import PgolfError

PRESETS = Path(__file__).parent / "presets"


class SettingsError(PgolfError):
    """A setting that cannot be used: one line that says which, and what would be right."""


@dataclass(frozen=True)
class DataSettings:
    path: str = ""
    """Folder with shards (challenge format). Empty: the built-in corpus, made from this Python's own documentation."""
    tokenizer: str = ""
    """SentencePiece model the shards were made with. Empty: the one in the data folder."""
    loader: Literal["sequential", "coprime"] = "sequential"
    """sequential: one stream through the sorted shards. coprime: blocks of many shards at coprime strides."""
    held_out_tokens: int = 0
    """Tokens at the end of the training text (at most a tenth of its last shard) that training leaves out; the weights of
    the honest n-gram back-off are learnt on them when the run is packed. 0: none, and the n-gram back-off starts without."""


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
        if not self.recurrence:
            return tuple(range(self.layers))
        turn = max(self.recurrence) + 1
        return (*range(turn), *self.recurrence, *range(turn, self.layers))


@dataclass(frozen=True)
class TrainingSettings:
    seconds: float = 600.0
    """The training clock, calibration and rounding included."""
    reserve: float = 0.0
    """Seconds kept back at the end of the clock for calibration and rounding."""
    steps: int = 0
    """A fixed number of steps; the schedule then counts steps instead of seconds. 0: the clock decides."""
    batch_tokens: int = 786_432
    """Tokens of one step, over all ranks."""
    sequence_length: int = 2048
    """Tokens of one training sequence."""
    micro_batches: int = 8
    """Parts of one step; the number of ranks must divide it, and each rank accumulates its share."""
    precision: Literal["auto", "native", "float32"] = "auto"
    """native: activations in bfloat16 on CUDA and on CPUs with instructions for it, in float32 elsewhere. auto: the same, but
    float32 on a CPU for a fixed number of steps, so that any number of ranks and threads finds the same curve."""
    warmup_steps: int = 20
    """Untimed steps that compile everything and leave no trace."""
    muon_lr: float = 0.025
    """Learning rate of the attention and MLP matrices."""
    muon_momentum: float = 0.99
    """Momentum of Muon after its ramp."""
    muon_momentum_start: float = 0.92
    """Momentum of Muon at the first step."""
    muon_momentum_steps: int = 1500
    """Length of the ramp, in steps."""
    muon_weight_decay: float = 0.04
    """Decoupled weight decay of Muon."""
    muon_iterations: int = 5
    """Newton-Schulz iterations."""
    muon_coefficients: Literal["classic", "polar_express"] = "classic"
    """Coefficients of the Newton-Schulz polynomial."""
    muon_projections: bool = False
    """Train the bigram and value-embedding projections with Muon instead of AdamW."""
    parallel_muon: bool = True
    """Banks are sharded over ranks (reduce-scatter, update, all-gather); off: whole matrices go round-robin."""
    token_lr: float = 0.035
    """Learning rate of the embedding tables."""
    scalar_lr: float = 0.025
    """Learning rate of gains, scales, gates and other small tensors."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW."""
    adam_weight_decay: float = 0.04
    """Decoupled weight decay of AdamW."""
    clip: float = 0.3
    """Gradient norm limit; 0 switches clipping off."""
    clip_scope: Literal["local", "global"] = "local"
    """local: each rank clips its own gradient before averaging. global: the average is clipped."""
    warmdown_steps: int = 3500
    """The learning rate falls linearly to zero over the last n steps (by the clock: n average steps)."""
    warmdown_share: float = 0.0
    """If above zero, the length of that fall as a share of the clock instead."""
    ema_decay: float = 0.997
    """Decay of the averaged weights; 0 switches the average off."""
    ema_minimum_steps: int = 0
    """Shorter runs export their last weights instead of the average."""
    swa_every: int = 50
    """A snapshot every n steps once the schedule is below swa_threshold; 0 switches it off."""
    swa_threshold: float = 0.2
    """Where snapshots begin."""
    lawa_every: int = 0
    """A snapshot every n steps into a queue; 0 switches it off."""
    lawa_length: int = 10
    """Length of that queue."""
    export: Literal["raw", "ema", "swa", "lawa"] = "ema"
    """Which weights become the artifact."""
    qat_threshold: float = 0.0
    """Quantisation-aware training once the schedule is below this; 0 switches it off."""
    qat_clip: int = 31
    """Largest code of the fake rounding: 31 for six bits, 15 for five."""
    qat_quantile: float = 1.0
    """Row clip of the fake rounding as a quantile of |w|; 1 is the maximum."""
    qat_banks: bool = False
    """Fake-round the attention and MLP matrices too, not only the two small projections (all that #549 reached)."""
    qat_soft_round: bool = False
    """A differentiable rounding that hardens along the schedule, instead of straight-through."""
    qat_soft_to_hard: bool = False
    """Hard rounding, whose gradient favours weights between two codes once the schedule is below 0.02 (#687's code lost that
    gradient and was straight-through)."""
    crown_q: float = 0.0
    """Weight of the CROWN-Q penalty; 0 switches it off."""
    crown_q_form: Literal["sum", "mean"] = "sum"
    """sum: mean over columns, summed over rows (#745). mean: mean over the matrix, step size detached (#953)."""
    crown_q_banks: bool = False
    """Penalise the attention and MLP matrices too."""
    distillation_share: float = 0.0
    """Share of the clock, or of the steps, that trains a teacher with two more blocks first; the network then learns from its
    opinion too. 0 switches it off."""
    burst_epochs: int = 0
    """Passes over the last steps' text when the schedule has ended, at a tenth of the rates and inside the clock: the schedule
    ends early by as much. 0 switches them off."""
    complement_alpha: float = 0.0
    """Down-weight tokens that training bigrams predict well, by up to this share; 0 switches it off."""
    validate_every: int = 0
    """The loss on a little validation text every n steps, off the clock and for people to watch; 0: never."""
    checkpoint_seconds: float = 60.0
    """Longest loss when a run is killed."""


@dataclass(frozen=True)
class ArtifactSettings:
    limit: int = 16_000_000
    """Bytes allowed for model and code together."""
    matrix_bits: int = 6
    """Bits of attention and MLP matrices."""
    embedding_bits: int = 8
    """Bits of the embedding tables."""
    rounding: Literal["percentile", "quantile", "sdclip", "gptq-published", "gptq", "gptq-sdclip"] = "percentile"
    """How matrices are rounded: percentile search, one high quantile as embeddings are, k-sigma clipping, GPTQ as #688 wrote
    it, or GPTQ as it is meant, with either clip."""
    small_tensor: int = 65_536
    """Tensors with at most this many weights are kept in float16."""
    scale_floor: bool = True
    """Row clips are never below 1.0, as in the submissions; off: scales follow the row."""
    scale_steps: int = 0
    """Row scales are powers of 2^(1/n), which cost fewer bytes; 0: any float16."""
    clip_scale: float = 1.0
    """Factor on every row's clip: larger steps, fewer bytes."""
    sdclip_sigmas: float = 12.85
    """Clip of a matrix's row in standard deviations, for sdclip and gptq-sdclip."""
    sdclip_embedding_sigmas: float = 20.0
    """Clip of an embedding's row in standard deviations, for the same."""
    gptq_embedding: bool = False
    """GPTQ for the output matrix too; lookups have no inputs to calibrate with."""
    calibration: Literal["train", "generated"] = "train"
    """Where GPTQ's activations come from: training data inside the clock, or text the model writes itself."""
    calibration_sequences: int = 128
    """Sequences for calibration."""
    damping: float = 0.01
    """Share of the mean diagonal added to GPTQ's Hessian."""
    prune: float = 0.0
    """Share of smallest weights of each large tensor set to zero before rounding."""
    prune_ones: float = 0.0
    """Share of the codes +1 and -1 set to zero after rounding, the cheapest first."""
    lqer_rank: int = 0
    """Rank of a low-rank correction of the rounding error; 0 leaves it out."""
    lqer_tensors: int = 3
    """How many tensors get it: those with the largest error."""
    compressor: Literal["zstd", "lzma", "entropy"] = "zstd"
    """zstd 22 or lzma 6 over whole bytes, or the entropy coder with a model of each value."""
    fit: bool = False
    """Search bits, clip and pruning, in this order, for the setting that uses the limit."""


@dataclass(frozen=True)
class AdaptationSettings:
    """Score-first training on chunks of already scored validation tokens."""

    method: Literal["none", "chunks", "lora"] = "none"
    """none; chunks: the whole model learns after each chunk; lora: adapters for each document."""
    chunk_tokens: int = 32_768
    """Tokens scored before each training phase."""
    epochs: int = 3
    """Passes over a scored chunk."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the adaptation."""
    lr: float = 0.002
    """Base learning rate; follows a cosine over chunks."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    cosine: bool = True
    """Learning rate times 0.5 (1 + cos(pi i / (chunks - 1)))."""
    ramp: float = 0.0
    """Learning rate times 1 + ramp * min(i / (0.3 chunks), 1)."""
    output_lr: float = 1.0
    """Factor for attention and MLP output projections."""
    input_lr: float = 1.0
    """Factor for MLP input projections."""
    freeze_first: int = 0
    """Blocks at the start that stay fixed."""
    train_last: int = 0
    """If above zero, only the last n blocks and all scales learn."""
    byte_weighted: bool = False
    """Each token's loss is weighted by its bytes."""
    polyak: float = 0.0
    """Decay of an average of the adapted weights, which then does the scoring; 0 switches it off."""
    polyak_in_place: bool = False
    """#1014's form: the average replaces the weights after every chunk."""
    clip: float = 1.0
    """Gradient norm limit."""
    batch_sequences: int = 32
    """Sequences of one adaptation step, over all ranks."""
    training_mode: bool = True
    """Adapt in training mode, where fake rounding of the small projections stays on."""
    untie: bool = False
    """Give repeated layers weights of their own before adapting."""


@dataclass(frozen=True)
class LoraSettings:
    """Adapters for each document, trained on its already scored tokens."""

    rank: int = 8
    """Rank of every adapter."""
    targets: tuple[str, ...] = ("q", "v", "head")
    """Which of q, k, v, o, mlp, head get adapters."""
    layers: int = 0
    """Only the last n executed layers, and the head, get adapters; 0: all layers."""
    alpha: float = 0.0
    """Adapter output is scaled by alpha / rank; 0: not scaled."""
    lr: float = 0.01
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Betas of Adam."""
    eps: float = 1e-10
    """Epsilon of Adam."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    chunk_tokens: int = 256
    """Tokens scored before each update."""
    context_tokens: int = 1024
    """Longest window a chunk is scored in."""
    refresh_tokens: int = -1
    """Tokens before a chunk that are computed anew with it; what attention sees of those before them is kept as it was when
    they were last computed, with the adapters of that time. -1: the whole window anew, as the submissions do."""
    passes: int = 1
    """Updates on each chunk after it was scored."""
    batch_documents: int = 64
    """Documents adapted side by side."""
    minimum_tokens: int = 0
    """Shorter documents are scored without adapters. The submissions' 512 saves time, but no decoder knows a length
    beforehand: with more than a chunk, or a maximum, the scores are no code lengths."""
    maximum_tokens: int = 0
    """Longer documents are scored without adapters; 0: no limit."""

    @property
    def foresees(self) -> bool:
        """Whether a document's length decides how its beginning is scored. The first chunk has learnt nothing anyway."""
        return self.minimum_tokens > self.chunk_tokens + 1 or self.maximum_tokens > 0


@dataclass(frozen=True)
class TemperatureSettings:
    method: Literal["none", "fixed", "entropy", "grid", "online"] = "none"
    """fixed: one value. entropy: #688's, by the model's entropy. grid: #953's. online: learnt from committed tokens."""
    value: float = 1.0
    """Where it starts."""


@dataclass(frozen=True)
class MixerSettings:
    published: Literal["none", "hedge", "boost"] = "none"
    """The submission's own mixture, for comparison, marked not legal: #688's five experts or #1014's logit boost."""
    honest: tuple[str, ...] = ()
    """Normalised mixers scored beside it: chain, boost, bias, tilt, ngrams."""
    orders: int = 4
    """Levels of the document-local n-gram back-off."""
    online_weights: bool = True
    """Learn the n-gram back-off's weights while scoring; off: only the table in the artifact."""
    granularity: int = 8
    """Counts and weights are fresh to within this many tokens."""
    eta: float = 0.1
    """Step of the published Hedge weights."""
    bias_lr: float = 0.0
    """Step of #1014's online bias; 0 switches it off."""
    ranks: int = 8
    """Processes that the submission ran on: its published mixture had weights of their own on each."""


@dataclass(frozen=True)
class EvaluationSettings:
    seconds: float = 600.0
    """The scoring clock: loading, compiling, adapting and mixing included."""
    window: int = 2048
    """Tokens of one scoring window."""
    stride: int = 64
    """Tokens a window adds to the last one."""
    batch: int = 32
    """Windows scored at once."""
    published_tail: bool = False
    """Also give the submissions' figure, which scores the last tokens of the stream several times."""
    sliding: bool = True
    """Score plain sliding windows too."""
    max_tokens: int = 0
    """Score only this many validation tokens, marked as partial; 0: all."""
    words: int = 256
    """Tokens of each of two documents for which the report shows what was expected before them; 0 leaves that out."""
    adaptation: AdaptationSettings = field(default_factory=AdaptationSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    temperature: TemperatureSettings = field(default_factory=TemperatureSettings)
    mixer: MixerSettings = field(default_factory=MixerSettings)


@dataclass(frozen=True)
class Settings:
    preset: str = "quick"
    description: str = ""
    seed: int = 1337
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    artifact: ArtifactSettings = field(default_factory=ArtifactSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)


# ---- presets


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str, *, cuda: bool = False) -> Settings:
    """The settings of one preset. A file may hold a second, larger choice under [cuda], taken where there is a GPU."""
    if name not in preset_names():
        raise SettingsError(f"no preset {name!r}{nearest(name, preset_names())}; there are {', '.join(preset_names())}")
    try:
        table = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"preset {name}: {error}") from None
    larger = table.pop("cuda", {})
    settings = from_table(table, Settings(preset=name), f"preset {name}")
    return from_table(larger, settings, f"preset {name}, [cuda]") if cuda else settings


def from_table(table: dict, base, where: str):
    """`base` with the values of a (nested) table laid over it; every key and type is checked."""
    hints = typing.get_type_hints(type(base))
    changes = {}
    for key, value in table.items():
        if key not in hints:
            raise SettingsError(f"{where}: no setting {key!r}{nearest(key, hints)}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise SettingsError(f"{where}: {key} is a section, not a value")
            changes[key] = from_table(value, current, f"{where}, [{key}]")
        else:
            changes[key] = _checked(value, hints[key], f"{where}: {key}")
    return dataclasses.replace(base, **changes)


def to_table(settings) -> dict:
    return dataclasses.asdict(settings)


def changed(settings, base) -> dict:
    """The (nested) table of what differs from `base`: laid over it by `from_table`, it gives `settings`."""
    table = {}
    for item in dataclasses.fields(settings):
        value, before = getattr(settings, item.name), getattr(base, item.name)
        if dataclasses.is_dataclass(value):
            value, before = changed(value, before), {}
        if value != before:
            table[item.name] = value
    return table


def scoring_table(settings: Settings) -> dict:
    """What a scorer has to know beside the weights, as it differs from the defaults: how to score, and what rounding
    training has left on in the network."""
    table = changed(settings, Settings())
    kept = {"evaluation": table.get("evaluation", {})}
    if settings.training.qat_threshold:
        rounding = {name: value for name, value in table["training"].items() if name.startswith("qat_")}
        kept["training"] = rounding
    return kept


def to_toml(settings: Settings) -> str:
    """The same settings as a TOML text that `from_table` reads back unchanged."""
    lines: list[str] = []

    def section(table: dict, path: str) -> None:
        if path:
            lines.append(f"\n[{path}]")
        for key, value in table.items():
            if not isinstance(value, dict):
                lines.append(f"{key} = {_toml_value(value)}")
        for key, value in table.items():
            if isinstance(value, dict):
                section(value, f"{path}.{key}" if path else key)

    section(to_table(settings), "")
    return "\n".join(lines) + "\n"


def read_toml(path: Path) -> Settings:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; is this a run folder?") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    return from_table(table, Settings(), str(path))


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return repr(value)


def _checked(value, hint, where: str):
    """The value as the hinted type, or an error that names what was wanted. Whole numbers pass as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            options = ", ".join(map(str, arguments))
            raise SettingsError(f"{where} is {value!r}{nearest(str(value), arguments)}; it can be {options}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where} is {value!r}, but a list is wanted")
        if arguments[-1] is Ellipsis:
            return tuple(_checked(item, arguments[0], where) for item in value)
        if len(value) != len(arguments):
            raise SettingsError(f"{where} has {len(value)} entries, but {len(arguments)} are wanted")
        return tuple(_checked(item, kind, where) for item, kind in zip(value, arguments, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(kind for kind in arguments if kind is not type(None))
    if type(value) is not hint:
        raise SettingsError(f"{where} is {value!r}, but {_a(hint)} is wanted")
    return value


def _a(kind) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, str(kind))


def nearest(name: str, known) -> str:
    """The end of an error line: the known name that comes closest, if one does."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- the environment names of the challenge's scripts

ENVIRONMENT = {
    "SEED": "seed",
    "DATA_PATH": "data.path",
    "TOKENIZER_PATH": "data.tokenizer",
    "VOCAB_SIZE": "model.vocab_size",
    "NUM_LAYERS": "model.layers",
    "MODEL_DIM": "model.dim",
    "NUM_HEADS": "model.heads",
    "NUM_KV_HEADS": "model.kv_heads",
    "ROPE_BASE": "model.rope_base",
    "ROPE_DIMS": "model.rotary_dims",
    "QK_GAIN_INIT": "model.q_gain",
    "LOGIT_SOFTCAP": "model.softcap",
    "TIED_EMBED_INIT_STD": "model.embedding_std",
    "BIGRAM_VOCAB_SIZE": "model.bigram_buckets",
    "BIGRAM_DIM": "model.bigram_dim",
    "XSA_LAST_N": "model.xsa_last",
    "VALUE_RESIDUAL": "model.value_residual",
    "GATED_ATTENTION": "model.gated_attention",
    "MTP_NUM_HEADS": "model.mtp_heads",
    "MAX_WALLCLOCK_SECONDS": "training.seconds",
    "ITERATIONS": "training.steps",
    "TRAIN_BATCH_TOKENS": "training.batch_tokens",
    "TRAIN_SEQ_LEN": "training.sequence_length",
    "WARMUP_STEPS": "training.warmup_steps",
    "WARMDOWN_ITERS": "training.warmdown_steps",
    "MATRIX_LR": "training.muon_lr",
    "TIED_EMBED_LR": "training.token_lr",
    "SCALAR_LR": "training.scalar_lr",
    "MUON_MOMENTUM": "training.muon_momentum",
    "MUON_MOMENTUM_WARMUP_START": "training.muon_momentum_start",
    "MUON_MOMENTUM_WARMUP_STEPS": "training.muon_momentum_steps",
    "MUON_WD": "training.muon_weight_decay",
    "MUON_BACKEND_STEPS": "training.muon_iterations",
    "ADAM_WD": "training.adam_weight_decay",
    "GRAD_CLIP_NORM": "training.clip",
    "EMA_DECAY": "training.ema_decay",
    "LATE_QAT_THRESHOLD": "training.qat_threshold",
    "SOFT_ROUND_QAT": "training.qat_soft_round",
    "EVAL_SEQ_LEN": "evaluation.window",
    "EVAL_STRIDE": "evaluation.stride",
    "TTT_LR": "evaluation.adaptation.lr",
    "TTT_EPOCHS": "evaluation.adaptation.epochs",
    "TTT_CHUNK_TOKENS": "evaluation.adaptation.chunk_tokens",
    "TTT_MOMENTUM": "evaluation.adaptation.momentum",
    "TTT_GRAD_CLIP": "evaluation.adaptation.clip",
}


def from_environment(settings: Settings, environment=os.environ) -> Settings:
    """`settings` with the challenge's environment names laid over them."""
    table: dict = {}
    for name, path in ENVIRONMENT.items():
        if not environment.get(name):
            continue
        *sections, key = path.split(".")
        owner = settings
        inner = table
        for section in sections:
            owner = getattr(owner, section)
            inner = inner.setdefault(section, {})
        inner[key] = _parsed(environment[name], typing.get_type_hints(type(owner))[key], f"environment variable {name}")
    return from_table(table, settings, "environment")


def _parsed(text: str, kind, where: str):
    if kind is bool:
        if text.lower() not in ("0", "1", "true", "false"):
            raise SettingsError(f"{where} is {text!r}, but 0 or 1 is wanted")
        return text.lower() in ("1", "true")
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{where} is {text!r}, but {_a(kind)} is wanted") from None


# ---- scales


def at_scale(settings: Settings, scale: str) -> Settings:
    """`tiny` keeps every mechanism of a preset and shrinks dimensions, tokens and budgets to fit two CPU cores."""
    if scale == "full":
        return settings
    if scale != "tiny":
        raise SettingsError(f"no scale {scale!r}{nearest(scale, ('full', 'tiny'))}; there are full, tiny")
    model, training, evaluation = settings.model, settings.training, settings.evaluation
    heads = min(model.heads, 4)
    dim = 16 * heads
    kv_heads = max(1, heads * model.kv_heads // model.heads)
    window = min(evaluation.window, 256)
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, held_out_tokens=min(settings.data.held_out_tokens, 8192)),
        model=dataclasses.replace(
            model,
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            mlp_hidden=dim * model.mlp_hidden // model.dim,
            rotary_dims=max(2, (dim // heads) * model.rotary_dims // model.head_dim // 2 * 2),
            rope_reference_length=model.rope_reference_length // 8,
            bigram_buckets=min(model.bigram_buckets, 1024),
            bigram_dim=min(model.bigram_dim, 32),
            value_embedding_dim=min(model.value_embedding_dim, 32),
            scan_heads=min(model.scan_heads, 4),
        ),
        training=dataclasses.replace(
            training,
            seconds=min(training.seconds, 30.0),
            reserve=min(training.reserve, 5.0),
            batch_tokens=training.micro_batches * 256,
            sequence_length=256,
            warmup_steps=1,
            muon_momentum_steps=100,
            warmdown_steps=0,
            warmdown_share=0.5,
            ema_decay=min(training.ema_decay, 0.97),
            swa_every=min(training.swa_every, 5),
        ),
        artifact=dataclasses.replace(
            settings.artifact,
            small_tensor=512,
            calibration_sequences=min(settings.artifact.calibration_sequences, 16),
        ),
        evaluation=dataclasses.replace(
            evaluation,
            seconds=min(evaluation.seconds, 60.0),
            window=window,
            stride=min(evaluation.stride, 64),
            max_tokens=8 * 2048,
            adaptation=dataclasses.replace(evaluation.adaptation, chunk_tokens=2048, batch_sequences=4),
            lora=dataclasses.replace(
                evaluation.lora, chunk_tokens=64, context_tokens=window, batch_documents=8, minimum_tokens=64
            ),
        ),
    )


# ---- checks that need several settings at once


def _check_ranges(model: ModelSettings) -> None:
    """Every number of the network within what it can mean."""
    least = dict.fromkeys(("layers", "dim", "heads", "kv_heads", "mlp_hidden", "rope_reference_length"), 1)
    least |= dict.fromkeys(("rotary_dims", "xsa_last", "hyper_layers", "mtp_heads", "bigram_buckets"), 0)
    least |= {"bigram_dim": 1} if model.bigram_buckets else {}
    least |= {"value_embedding_dim": 1} if model.value_embedding_layers else {}
    for name, bound in least.items():
        if getattr(model, name) < bound:
            raise SettingsError(f"model.{name} is {getattr(model, name)}; it must be at least {bound}")
    if model.bigram_buckets == 1:
        raise SettingsError("model.bigram_buckets is 1; it must be 0 (none) or at least 2")
    for name in ("softcap", "rope_base"):
        if not getattr(model, name) > 0:
            raise SettingsError(f"model.{name} is {getattr(model, name)}; it must be above 0")
    if not 0 <= model.mlp_slope <= 1:
        raise SettingsError(f"model.mlp_slope is {model.mlp_slope}; it must be from 0 to 1")
    for name in ("recurrence", "value_embedding_layers"):
        if min(getattr(model, name), default=0) < 0:
            raise SettingsError(f"model.{name} names layer {min(getattr(model, name))}; the first one is 0")


def _check_scan(model: ModelSettings) -> None:
    """State-space layers, and what goes together with them."""
    for name in ("scan_expansion", "scan_heads", "scan_state", "scan_conv"):
        if getattr(model, name) < 1:
            raise SettingsError(f"model.{name} is {getattr(model, name)}; it must be at least 1")
    if not model.scan_layers:
        return
    for layer in model.scan_layers:
        if not 0 <= layer < model.layers:
            raise SettingsError(f"model.scan_layers names layer {layer}, but there are 0 to {model.layers - 1}")
    if len(set(model.scan_layers)) < len(model.scan_layers):
        raise SettingsError("model.scan_layers names a layer twice")
    if not model.attention_layers:
        raise SettingsError("model.scan_layers names every layer; one at least must have attention")
    if model.scan_width % model.scan_heads:
        raise SettingsError(
            f"model.scan_heads {model.scan_heads} does not divide scan_expansion x dim, {model.scan_expansion} x {model.dim}"
        )
    for name in ("recurrence", "value_residual"):
        if getattr(model, name):
            raise SettingsError(f"model.{name} needs attention in every layer, but model.scan_layers names some without")
    for layer in model.value_embedding_layers:
        if layer in model.scan_layers:
            raise SettingsError(f"model.value_embedding_layers names layer {layer}, which model.scan_layers leaves no values")


def check(settings: Settings) -> None:
    """Raise one line for the first combination that cannot work."""
    model, training, evaluation = settings.model, settings.training, settings.evaluation
    _check_ranges(model)
    _check_scan(model)
    if evaluation.adaptation.method == "lora" and model.scan_layers:
        raise SettingsError(
            "evaluation.adaptation.method = 'lora' keeps keys and values of earlier tokens, which the state-space layers of "
            "model.scan_layers have none of; it can be none or chunks"
        )
    if model.dim % model.heads:
        raise SettingsError(f"model.dim {model.dim} is no multiple of model.heads {model.heads}")
    if model.heads % model.kv_heads:
        raise SettingsError(f"model.heads {model.heads} is no multiple of model.kv_heads {model.kv_heads}")
    if model.rotary_dims % 2 or model.rotary_dims > model.head_dim:
        raise SettingsError(f"model.rotary_dims {model.rotary_dims} must be even, at most the head's {model.head_dim}")
    if model.recurrence and max(model.recurrence) >= model.layers:
        raise SettingsError(f"model.recurrence names layer {max(model.recurrence)}, but there are {model.layers}")
    if not 1 <= model.vocab_size <= 65_536:
        raise SettingsError(f"model.vocab_size {model.vocab_size} does not fit the shards' 16-bit tokens")
    executed = len(model.virtual_layers)
    if len(set(model.value_embedding_layers)) < len(model.value_embedding_layers):
        raise SettingsError("model.value_embedding_layers names a layer twice")
    for layer in model.value_embedding_layers:
        if layer >= executed:
            raise SettingsError(f"model.value_embedding_layers names layer {layer}, but {executed} are executed")
    if settings.data.held_out_tokens < 0:
        raise SettingsError(f"data.held_out_tokens {settings.data.held_out_tokens} must not be negative")
    part = training.batch_tokens / training.micro_batches / training.sequence_length
    if part != int(part) or part < 1:
        raise SettingsError(
            f"training.batch_tokens {training.batch_tokens} is no multiple of micro_batches x sequence_length "
            f"{training.micro_batches} x {training.sequence_length}"
        )
    if training.reserve >= training.seconds and not training.steps:
        raise SettingsError(f"training.reserve {training.reserve} leaves nothing of {training.seconds} seconds")
    if not 0 < evaluation.stride <= evaluation.window:
        raise SettingsError(f"evaluation.stride {evaluation.stride} must be from 1 to the window's {evaluation.window}")
    for name in ("matrix_bits", "embedding_bits"):
        if not 2 <= getattr(settings.artifact, name) <= 8:
            raise SettingsError(f"artifact.{name} {getattr(settings.artifact, name)} is outside 2 to 8")
    for name in ("prune", "prune_ones"):
        if not 0 <= getattr(settings.artifact, name) <= 1:
            raise SettingsError(f"artifact.{name} {getattr(settings.artifact, name)} is no share from 0 to 1")
    for name in ("clip_scale", "sdclip_sigmas", "sdclip_embedding_sigmas"):
        if not 0 < getattr(settings.artifact, name) < 1e4:
            raise SettingsError(f"artifact.{name} {getattr(settings.artifact, name)} must be above 0 and below 10,000")
    for name in ("small_tensor", "scale_steps", "lqer_rank", "lqer_tensors", "damping", "calibration_sequences"):
        if not 0 <= getattr(settings.artifact, name) <= 1e9:
            raise SettingsError(f"artifact.{name} {getattr(settings.artifact, name)} must not be negative")
    if not 0 <= training.distillation_share < 1:
        raise SettingsError(f"training.distillation_share {training.distillation_share} must be from 0 to below 1")
    taught = round(training.distillation_share * training.steps)
    if training.steps and training.distillation_share and not 0 < taught < training.steps:
        raise SettingsError(
            f"training.distillation_share {training.distillation_share} of {training.steps} steps leaves the teacher {taught} "
            f"and the network {training.steps - taught}"
        )
    if not 0 <= training.burst_epochs <= 4:
        # five passes over the last fifth of a schedule would leave nothing of it
        raise SettingsError(f"training.burst_epochs {training.burst_epochs} must be from 0 to 4")
    if not 0 <= training.complement_alpha <= 1:
        raise SettingsError(f"training.complement_alpha {training.complement_alpha} is no share from 0 to 1")
    if training.complement_alpha and model.vocab_size > 16_384:
        raise SettingsError(
            f"training.complement_alpha counts pairs in a table of model.vocab_size {model.vocab_size} squared; "
            f"16,384 is the most"
        )
    if training.qat_soft_round and training.qat_soft_to_hard:
        raise SettingsError("training.qat_soft_round and qat_soft_to_hard are two forms of one rounding; choose one")
    for name in ("qat_soft_round", "qat_soft_to_hard"):
        if getattr(training, name) and not training.qat_threshold:
            raise SettingsError(f"training.{name} acts only below training.qat_threshold, which is 0; set both")
