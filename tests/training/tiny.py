"""A network and a stream small enough to train in milliseconds."""

import dataclasses

import torch

from pgolf.config import ModelSettings, Settings, TrainingSettings
from pgolf.training.loop import train

VOCABULARY = 60

MODEL = ModelSettings(
    vocab_size=VOCABULARY,
    layers=3,
    dim=32,
    heads=2,
    kv_heads=1,
    mlp_hidden=56,
    rotary_dims=8,
    bigram_buckets=96,
    bigram_dim=12,
    value_embedding_layers=(1, 2),
    value_embedding_dim=8,
    xsa_last=2,
    value_residual=True,
)
TRAINING = TrainingSettings(
    steps=8,
    batch_tokens=4 * 2 * 16,
    sequence_length=16,
    micro_batches=4,
    precision="float32",
    warmup_steps=0,
    muon_momentum_steps=5,
    warmdown_steps=0,
    warmdown_share=0.5,
    clip_scope="global",
    ema_decay=0.8,
)


def tiny(seed: int = 7, model: dict | None = None, **training) -> Settings:
    return Settings(
        seed=seed,
        model=dataclasses.replace(MODEL, **(model or {})),
        training=dataclasses.replace(TRAINING, **training),
    )


class Stream:
    """Tokens that mostly follow a fixed rule, so that there is something to learn; a pure function of its place."""

    def __init__(self, settings: Settings, rank: int = 0, size: int = 1):
        options = settings.training
        self.rows = options.batch_tokens // options.sequence_length // options.micro_batches
        self.length, self.rank, self.size, self.seed = options.sequence_length, rank, size, settings.seed
        self.asked: list[tuple[int, int]] = []

    def batch(self, step: int, micro: int):
        self.asked.append((step, micro))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step * 1_009 + micro * self.size + self.rank)
        start = torch.randint(VOCABULARY, (self.rows, 1), generator=generator)
        noise = torch.randint(3, (self.rows, self.length + 1), generator=generator)
        tokens = (start + 7 * torch.arange(self.length + 1) + noise) % VOCABULARY
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def run(settings: Settings, folder, stream=None, **options):
    """One training on a CPU: the result and the events."""
    events: list[dict] = []
    result = train(settings, stream or Stream(settings), folder=folder, device="cpu", log=events.append, **options)
    return result, events


def losses(events: list[dict]) -> list[float]:
    return [event["loss"] for event in events if event["kind"] == "step"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class FakeTime:
    """A clock that moves when told to."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


class SlowStream(Stream):
    """Every batch takes a known time."""

    def __init__(self, settings, time, seconds):
        super().__init__(settings)
        self.time, self.seconds = time, seconds

    def batch(self, step, micro):
        self.time.time += self.seconds
        return super().batch(step, micro)
