"""[training]: the clock, the batch, the optimisers, averaging, quantisation-aware terms."""

from dataclasses import dataclass
from typing import Literal

from pgolf.config.checks import SettingsError, above, at_least, share


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
    muon_row_norm: bool = False
    """Each row of Muon's update is scaled to norm 1 before it is orthogonalised."""
    muon_iterations: int = 5
    """Newton-Schulz iterations."""
    muon_coefficients: Literal["classic", "polar_express", "polar_express_5"] = "classic"
    """Coefficients of the Newton-Schulz polynomial; polar_express_5 is #1787's table for five iterations."""
    muon_projections: bool = False
    """Train the bigram and value-embedding projections with Muon instead of AdamW."""
    parallel_muon: bool = True
    """Banks are sharded over ranks (reduce-scatter, update, all-gather); off: whole matrices go round-robin."""
    token_lr: float = 0.035
    """Learning rate of the embedding tables."""
    scalar_lr: float = 0.025
    """Learning rate of gains, scales, gates and other small tensors."""
    train_convolutions: bool = True
    """Train the weights of the state-space layers' convolutions; the submission's optimisers took matrices and vectors, so
    that these, of three dimensions, stayed as they began."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW."""
    adam_weight_decay: float = 0.04
    """Decoupled weight decay of AdamW."""
    token_weight_decay: float = -1.0
    """That of the embedding tables, if not the same; -1: the same."""
    clip: float = 0.3
    """Gradient norm limit; 0 switches clipping off."""
    clip_scope: Literal["local", "global"] = "local"
    """local: each rank clips its own gradient before averaging. global: the average is clipped."""
    warmdown_steps: int = 3500
    """The learning rate falls linearly to zero over the last n steps (by the clock: n average steps)."""
    warmdown_share: float = 0.0
    """If above zero, the length of that fall as a share of the clock instead."""
    lr_floor: float = 0.0
    """The learning rate falls no lower than this share of itself."""
    loop_start: float = 0.0
    """Share of the clock, or of the steps, after which model.loop_layers run all their passes; before, they run once."""
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
    export_tables: Literal["float32", "bfloat16"] = "float32"
    """What embedding tables are rounded to before they become the artifact: the submissions keep them in bfloat16 and cast
    their average back to it, which moves some of the codes by one; float32 leaves the average as it is."""
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
    sinks: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where the figures of the run also go, beside its own files; each needs the package of its name."""
    checkpoint_seconds: float = 60.0
    """Longest loss when a run is killed."""

    def validate(self) -> None:
        """Raise one line for the first value, or combination of values, that cannot be trained with."""
        at_least(0, "training", self, "steps", "reserve", "warmup_steps", "clip", "checkpoint_seconds", "validate_every")
        at_least(1, "training", self, "batch_tokens", "sequence_length", "micro_batches")
        above(0, "training", self, "seconds")
        per_micro_batch = self.batch_tokens / self.micro_batches / self.sequence_length
        if per_micro_batch != int(per_micro_batch) or per_micro_batch < 1:
            raise SettingsError(
                f"training.batch_tokens {self.batch_tokens} is no multiple of micro_batches x sequence_length "
                f"{self.micro_batches} x {self.sequence_length}"
            )
        if self.reserve >= self.seconds and not self.steps:
            raise SettingsError(f"training.reserve {self.reserve} leaves nothing of {self.seconds} seconds")
        if not 0 <= self.distillation_share < 1:
            raise SettingsError(f"training.distillation_share {self.distillation_share} must be from 0 to below 1")
        teacher_steps = round(self.distillation_share * self.steps)
        if self.steps and self.distillation_share and not 0 < teacher_steps < self.steps:
            raise SettingsError(
                f"training.distillation_share {self.distillation_share} of {self.steps} steps leaves the teacher "
                f"{teacher_steps} and the network {self.steps - teacher_steps}"
            )
        if not 0 <= self.burst_epochs <= 4:
            # five passes over the last fifth of a schedule would leave nothing of it
            raise SettingsError(f"training.burst_epochs {self.burst_epochs} must be from 0 to 4")
        share("training", self, "complement_alpha", "lr_floor", "loop_start")
        if self.qat_soft_round and self.qat_soft_to_hard:
            raise SettingsError("training.qat_soft_round and qat_soft_to_hard are two forms of one rounding; choose one")
        for name in ("qat_soft_round", "qat_soft_to_hard"):
            if getattr(self, name) and not self.qat_threshold:
                raise SettingsError(f"training.{name} acts only below training.qat_threshold, which is 0; set both")
