"""[evaluation.adaptation] and [evaluation.lora]: learning from tokens that are already scored."""

from dataclasses import dataclass
from typing import Literal

# evaluation.adaptation.method -> module and class of pgolf/evaluation/adaptation/ that learns between chunks of the stream;
# imported only by runs that name it
CHUNK_ADAPTERS = {"chunks": ("chunks", "ChunkAdapter")}


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
    table_lr: float = 1.0
    """Factor for the tables of the bigram and value embeddings."""
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
    """Documents of fewer tokens, the next one's BOS included, are scored without adapters. The submissions' 512 saves time,
    but no decoder knows a length beforehand: with more than a chunk, or a maximum, the scores are no code lengths."""
    maximum_tokens: int = 0
    """Documents of more tokens are scored without adapters; 0: no limit."""

    @property
    def foresees(self) -> bool:
        """Whether a document's length decides how its beginning is scored. The first chunk has learnt nothing anyway."""
        return self.minimum_tokens > self.chunk_tokens + 1 or self.maximum_tokens > 0
