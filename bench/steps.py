"""Whole steps of a preset, as the bench, the profiler and the budgets run them: training, adapters, scoring."""

import dataclasses
import time

import numpy as np
import torch
from torch.nn import functional as F

from bench.budgets import DEVICES, ScoringRates
from bench.eager import markov_stream
from pgolf.budget import Budget, phase
from pgolf.config import Settings, at_scale, load_preset
from pgolf.distributed import World
from pgolf.evaluation.evaluate import Scorer
from pgolf.evaluation.planner import Decision, Rate
from pgolf.evaluation.predictors.temperature import policy
from pgolf.kernels import attention, lora_adam
from pgolf.kernels.attention.reference import exclude
from pgolf.model import Adapters, build_model
from pgolf.model.operators import OPERATORS
from pgolf.training import schedule
from pgolf.training.train_step import TrainStep, init_model

BOS = 1


def _attention_by_torch(q, k, v, *, xsa=False, gate=None, **options):
    y = attention(q, k, v, core="sdpa", **options)
    if xsa:
        return exclude(y, v, gate)
    return y if gate is None else (y * gate[..., None]).to(q.dtype)


# what the network is without our operators, for torch.compile to fuse: torch's own attention, plain references
IMPLEMENTATIONS = {
    "kernels": OPERATORS["kernels"],
    "torch": OPERATORS["reference"]._replace(attention=_attention_by_torch),
}


def preset_for(name: str, device: str, *, tiny: bool) -> Settings:
    settings = load_preset(name, cuda=device == "cuda")
    return at_scale(settings, "tiny") if tiny else settings


# ---- training


class TrainingStep:
    """One device's share of a step: an eighth of the batch of a preset that was made for eight devices, and the optimiser's
    whole work. `operators` is "kernels" or "torch"; on a GPU the loss is one compiled graph in either case."""

    def __init__(self, settings: Settings, device: str, operators: str = "kernels"):
        options = settings.training
        torch.manual_seed(settings.seed)
        self.settings, self.device = settings, torch.device(device)
        if device == "cuda":
            torch.set_float32_matmul_precision("high")
        model = init_model(settings.model, settings, self.device)
        model.operators = IMPLEMENTATIONS[operators]
        self.model = model
        self.trained = TrainStep.of(model, options, World(device=self.device))
        self.loss, self.optimisers = self.trained.loss, self.trained.optimisers
        share = DEVICES if options.micro_batches % DEVICES == 0 else 1
        self.micro_steps = options.micro_batches // share
        rows = options.batch_tokens // options.micro_batches // options.sequence_length
        shape = (2, self.micro_steps, rows, options.sequence_length)
        self.tokens, self.targets = torch.randint(settings.model.vocab_size, shape, device=device)

    @property
    def tokens_per_step(self) -> int:
        return self.tokens.numel()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def __call__(self) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for tokens, targets in zip(self.tokens, self.targets, strict=True):
            with phase("forward"):
                loss = self.loss(tokens, targets) / self.micro_steps
            with phase("backward"):
                loss.backward()
            total += loss.detach()
        penalty = self.trained.penalty()
        if penalty is not None:
            penalty.backward()
        with phase("optimiser"):
            self.optimisers.step(1.0, schedule.muon_momentum(self.settings.training, 0))
            self.optimisers.zero_grad()
        return total

    def gradients(self) -> None:
        """A step without the optimiser."""
        for tokens, targets in zip(self.tokens, self.targets, strict=True):
            (self.loss(tokens, targets) / self.micro_steps).backward()
        self.optimisers.zero_grad()

    def forward(self) -> None:
        for tokens, targets in zip(self.tokens, self.targets, strict=True):
            self.loss(tokens, targets)


class AdaptersStep:
    """One step of test-time training: documents side by side with adapters of their own, forward, backward and Adam.

    operators  "kernels"; or "torch": the whole path of plain torch, compiled on a GPU, with torch's fused Adam
    """

    def __init__(self, settings: Settings, device: str, operators: str, *, documents: int, length: int, rank: int):
        torch.manual_seed(settings.seed)
        self.model = build_model(settings.model, device=device, seed=settings.seed).eval().requires_grad_(False)
        self.model.operators, self.options = IMPLEMENTATIONS[operators], settings.evaluation.lora
        self.adapters = Adapters.create(settings.model, documents, rank, ("q", "k", "v", "o", "mlp", "head"), device=device)
        self.leaves = self.adapters.parameters()
        self.tokens, self.targets = torch.randint(settings.model.vocab_size, (2, documents, length), device=device)
        self.first, self.second = ([torch.zeros_like(leaf) for leaf in self.leaves] for _ in range(2))
        self.steps = torch.zeros(documents, dtype=torch.int32, device=device)
        self.loss = torch.compile(self._loss, fullgraph=True, dynamic=False) if device == "cuda" else self._loss
        self.adam = None
        if operators == "torch":
            options = {"lr": self.options.lr, "betas": self.options.betas, "eps": self.options.eps}
            self.adam = torch.optim.Adam(self.leaves, fused=True, **options)

    def _loss(self, tokens, targets):
        logits = self.model.logits(tokens, adapters=self.adapters)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1).sum()

    def __call__(self) -> torch.Tensor:
        loss = self.loss(self.tokens, self.targets)
        if self.adam:
            # backward, not grad: torch's fused Adam takes gradients to be laid out as their parameters, and says nothing
            loss.backward(inputs=self.leaves)
            self.adam.step()
            self.adam.zero_grad()
        else:
            gradients = torch.autograd.grad(loss, self.leaves)
            data = [leaf.detach() for leaf in self.leaves]
            options = {"lr": self.options.lr, "betas": self.options.betas, "eps": self.options.eps}
            lora_adam(data, gradients, self.first, self.second, self.steps, **options)
        return loss.detach()


# ---- scoring


class Stopwatch:
    """Stands for a planner: everything as the settings want it, and the seconds it took. The first span warms up whatever
    compiles on first use, and is left out where there is another."""

    def __init__(self, budget: Budget, stride: int, epochs: int):
        self.budget, self.clock, self.wanted = budget, budget.clock, Decision(stride, epochs)
        self.forward = Rate(0.0)
        self.spans: list[tuple[int, int, float, float]] = []
        self.lessons: list[tuple[int, float]] = []
        self.documents: list[tuple[int, float]] = []
        self.plain_documents: list[int] = []

    def next(self, start: int, stop: int) -> Decision:
        return self.wanted

    def scored(self, windows: int, targets: int, forward: float, result: float) -> None:
        self.spans.append((windows, targets, forward, result))

    def epochs_now(self, targets: int) -> int:
        return self.wanted.epochs

    def learnt(self, targets: int, epochs: int, seconds: float) -> None:
        self.lessons.append((targets * epochs, seconds))

    def adapts(self, documents: list[int], tokens: int, tokens_after: int) -> bool:
        return True

    def documents_done(self, tokens: int, seconds: float, adapted: bool) -> None:
        self.documents.append((tokens, seconds))

    def rates(self) -> dict[str, float]:
        windows, targets, forward, result = map(sum, zip(*_warm(self.spans), strict=True)) if self.spans else (1, 1, 0.0, 0.0)
        return {
            "window": forward / windows,
            "result": result / targets,
            "learning": _rate(self.lessons),
            "adapted_target": _rate(self.documents),
        }


def _warm(samples: list) -> list:
    return samples[1:] if len(samples) > 1 else samples


def _rate(samples: list[tuple[int, float]]) -> float:
    if not samples:
        return 0.0
    units, seconds = map(sum, zip(*_warm(samples), strict=True))
    return seconds / units


class OneByte:
    """A byte table for tokens that stand for nothing."""

    def count(self, tokens: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.ones(len(tokens), np.int64)


def stream_for(settings: Settings, targets: int) -> np.ndarray:
    """A stream with Zipf's frequencies and habits to learn, in documents of about a thousand tokens."""
    tokens = markov_stream(targets + 1, settings.model.vocab_size).numpy().astype(np.uint16)
    tokens[tokens == BOS] = BOS + 1
    tokens[:: 1000 if targets > 5000 else 100] = BOS
    return tokens


def targets_for(settings: Settings, spans: int) -> int:
    """Enough for so many spans of the main pass, and the last chunk, which is never learnt from."""
    options = settings.evaluation
    if options.adaptation.method == "lora":
        return spans * options.lora.batch_documents * options.lora.context_tokens
    chunked = options.adaptation.method == "chunks" or options.mixer.published == "hedge"
    if chunked:
        return (spans + 1) * options.adaptation.chunk_tokens
    return spans * options.batch * options.stride + options.window


def scoring_rates(settings: Settings, device: str, spans: int = 2) -> ScoringRates:
    """What a preset's main pass takes, from some spans of it on random weights, which cost what trained ones do."""
    options = settings.evaluation
    begun = time.perf_counter()
    model = build_model(settings.model, device=device, seed=settings.seed).eval()
    tokens = stream_for(settings, targets_for(settings, spans))
    budget = Budget(1e9)
    scorer = Scorer(model, tokens, OneByte(), options, bos=BOS, budget=budget, device=torch.device(device))
    loading = time.perf_counter() - begun
    begun = time.perf_counter()
    scorer.warm_up()
    warm_up = time.perf_counter() - begun
    watch = Stopwatch(budget, options.stride, options.adaptation.epochs if options.adaptation.method == "chunks" else 0)
    temperature = policy(options.temperature)
    scorer.main(scorer.predictors(temperature), temperature, watch, np.zeros(len(tokens) - 1))
    rates = watch.rates()
    if len(watch.spans) > 1:  # what the first span took beyond its like was compiling
        windows, targets, *seconds = watch.spans[0]
        warm_up += max(0.0, sum(seconds) - windows * rates["window"] - targets * rates["result"])
    return ScoringRates(**rates, loading=loading, warm_up=warm_up)


def with_lora(settings: Settings) -> Settings:
    """The same preset with adapters for each document in place of its own adaptation."""
    evaluation = settings.evaluation
    adaptation = dataclasses.replace(evaluation.adaptation, method="lora")
    temperature = dataclasses.replace(evaluation.temperature, method="none")
    mixer = dataclasses.replace(evaluation.mixer, published="none", honest=())
    evaluation = dataclasses.replace(evaluation, adaptation=adaptation, temperature=temperature, mixer=mixer)
    return dataclasses.replace(settings, evaluation=evaluation)
