"""Adapters for each document, trained while it is scored: each chunk with what its document's earlier chunks have taught.

This is the per-document LoRA of PR #77 of openai/parameter-golf. Documents do not influence each other, so neither their
order nor what is scored beside them matters. They lie in batches of similar length. For every chunk of a batch: one forward
pass, from which the chunk is scored, and the gradient of the same pass and an Adam step, which change the next chunk's
scores. Further passes repeat it.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgolf.config import LoraSettings
from pgolf.errors import PgolfError
from pgolf.evaluation.adaptation.windows import Given, Windows, compute
from pgolf.evaluation.stream import OpenSpan, ScoredStream
from pgolf.kernels.cross_entropy import cross_entropy
from pgolf.kernels.lora import lora_adam, lora_reset
from pgolf.model import Adapters, KVCachedNetwork, Network
from pgolf.model.cache import Past


class Scores(Protocol):
    def take(self, opened: Sequence[OpenSpan], logits: Tensor, softcap: float) -> list[dict[str, np.ndarray]]:
        """The scores to commit for the opened targets of each document, the first of its row of raw logits (rows, T, V)."""


class Planner(Protocol):
    """Decides on the way which batches can still afford adapters, and is told what they took."""

    def adapts(self, documents: list[int], tokens: int, tokens_after: int) -> bool: ...

    def documents_done(self, tokens: int, seconds: float, adapted: bool) -> None: ...


class Batch(NamedTuple):
    """Documents scored side by side, longest first, and whether the settings give them adapters."""

    documents: tuple[int, ...]
    adapted: bool


def batches_of(lengths: Sequence[int], settings: LoraSettings, ranks: int = 1) -> list[list[Batch]]:
    """Each rank's batches in the order it scores them: documents without adapters first, then the longest. Ranks take
    turns down the list of lengths, so that they have about the same to do."""

    def adapted(document: int) -> bool:
        # as the submissions count: the targets and the token before them
        tokens = lengths[document] + 1
        return settings.passes > 0 and settings.minimum_tokens <= tokens <= (settings.maximum_tokens or tokens)

    queue = sorted(range(len(lengths)), key=lambda document: (-lengths[document], document))
    kinds = [[d for d in queue if not adapted(d)], [d for d in queue if adapted(d)]]
    plans: list[list[Batch]] = []
    for rank in range(ranks):
        mine = [(kind[rank::ranks], bool(number)) for number, kind in enumerate(kinds)]
        size = settings.batch_documents
        plans.append([Batch(tuple(some[i : i + size]), has) for some, has in mine for i in range(0, len(some), size)])
    return plans


def score_documents(
    model: Network,
    stream: ScoredStream,
    bounds: Sequence[int],
    settings: LoraSettings,
    scores: Scores,
    *,
    window: int = 0,
    planner: Planner | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Score this rank's documents of a stream that is split at `bounds`. What they cost is in the stream's ledger, and
    what `scores` has made of it."""
    documents = stream.split(list(bounds))
    scorer = LoraScorer(model, settings, window=window)
    plan = batches_of([len(document) for document in documents], settings, world)[rank]
    done, total = 0, sum(len(documents[i]) for batch in plan for i in batch.documents)
    for batch in plan:
        some = [documents[i] for i in batch.documents]
        size = sum(map(len, some))
        adapted = batch.adapted
        if adapted and planner:
            adapted = planner.adapts([document.first for document in some], size, total - done - size)
        begun = now()
        scorer.score(some, scores, adapted=adapted)
        if planner:
            planner.documents_done(size, now() - begun, adapted)
        done += size
        progress(done / total)


def chunk_after(at: int, settings: LoraSettings, adapted: bool) -> int:
    """Targets of the chunk that begins at target `at` of a document. Without adapters it has nothing to wait for, so the
    first is a whole window."""
    return settings.context_tokens if not adapted and not at else settings.chunk_tokens


class LoraScorer:
    """Scores batches of documents, each from the same start.

    window  rotary frequencies are those of windows of this many tokens, as in training; 0: of context_tokens
    """

    def __init__(self, model: Network, settings: LoraSettings, *, window: int = 0):
        if not 0 < settings.chunk_tokens <= settings.context_tokens:
            raise PgolfError(
                f"lora.chunk_tokens {settings.chunk_tokens} must be from 1 to context_tokens {settings.context_tokens}"
            )
        self.settings = settings
        self.network = KVCachedNetwork(model, window or settings.context_tokens)
        self.capacity = 0

    def score(self, documents: Sequence[ScoredStream], scores: Scores, *, adapted: bool) -> None:
        """All targets of these documents, longest first, which are committed chunk by chunk."""
        trainer = self._trainer(len(documents)) if adapted else None
        floor = trainer.floor if trainer else len(self.network.layers)
        windows = Windows(self.network, floor, self.settings.context_tokens, self.settings.refresh_tokens)
        active, at = list(documents), 0
        while active:
            stop = at + chunk_after(at, self.settings, adapted)
            going_on = [document for document in active if len(document) > stop]
            opened = [document.open(min(document.first + stop, document.last)) for document in active]
            windows.open(opened, [document.first for document in active], stop)
            if trainer and going_on:
                targets = np.stack([one.targets(one.start, one.stop) for one in opened[: len(going_on)]]).astype(np.int64)
                logits = trainer.step(windows, torch.from_numpy(targets))
            else:
                with torch.no_grad():
                    logits = windows.logits(trainer.adapters(len(active)) if trainer else None)
            for document, nats in zip(active, scores.take(opened, logits, self.network.settings.softcap), strict=True):
                document.commit(nats)
            if trainer and going_on:
                for document in going_on:
                    document.learn(document.first + at, document.first + stop)
                for _ in range(self.settings.passes - 1):
                    trainer.step(windows, torch.from_numpy(targets))
            windows.keep(len(going_on))
            active, at = going_on, stop

    def _trainer(self, documents: int) -> "LoraTrainer":
        if documents > self.capacity:
            self.capacity = max(documents, self.settings.batch_documents)
            self._kept = LoraTrainer(self.network, self.settings, self.capacity)
        self._kept.reset(documents)
        return self._kept


def whole_graph(step: Callable) -> Callable:
    """The step compiled, its gradients and its optimiser included."""
    compiled = torch.compile(step, fullgraph=True, dynamic=False)

    def run(*given):
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return compiled(*given)

    return run


class LoraTrainer:
    """The adapters of up to `capacity` documents, and their optimiser."""

    def __init__(self, network: KVCachedNetwork, settings: LoraSettings, capacity: int):
        self.settings, self.softcap, self.network = settings, network.settings.softcap, network
        whole = Adapters.create(
            network.settings,
            capacity,
            settings.rank,
            settings.targets,
            alpha=settings.alpha,
            dtype=network.dtype,
            device=network.device,
        )
        executed = len(network.layers)
        lowest = executed - settings.layers if settings.layers else 0
        self.sites = [site for site in whole.factors if site[0] == "head" or site[1] >= lowest]
        self.floor = min((layer for name, layer in self.sites if name != "head"), default=executed)
        self.initial = {site: whole.initial[site] for site in self.sites}
        self.scale = whole.scale
        self.factors = [factor.detach() for site in self.sites for factor in whole.factors[site]]
        self.first = [torch.zeros_like(factor) for factor in self.factors] if settings.betas[0] else []
        self.second = [torch.zeros_like(factor) for factor in self.factors]
        self.steps = torch.zeros(capacity, dtype=torch.int32, device=self.second[0].device)
        self.static = network.device.type == "cuda"
        """Steps come in few shapes, so that each is compiled once."""
        self._compiled = whole_graph(self._step) if self.static else self._step

    def reset(self, documents: int) -> None:
        """Start the first documents afresh."""

        def some(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor[:documents] for tensor in tensors]

        lora_reset(
            some(self.factors[::2]),
            some(self.factors[1::2]),
            list(self.initial.values()),
            some(self.first),
            some(self.second),
            self.steps[:documents],
        )

    def adapters(self, documents: int) -> Adapters:
        """As they are now, over the same memory, as leaves of a new graph."""
        leaves = iter([factor[:documents].detach().requires_grad_() for factor in self.factors])
        return Adapters(dict(zip(self.sites, zip(leaves, leaves, strict=True), strict=True)), self.initial, self.scale)

    def step(self, windows: Windows, targets: Tensor) -> Tensor:
        """One step of the first documents, as many as have targets (documents, n): their chunk, all of which is open. Returns
        the raw logits (rows, n, V) that it began with: what they score, the step has not changed."""
        rows, learning = len(windows.places), len(targets)
        with torch.enable_grad():
            given = windows.given(len(self.steps) if self.static else 0)
        learns = torch.arange(len(given.tokens)) < learning
        padded = F.pad(targets, (0, 0, 0, len(given.tokens) - learning))
        logits, seen = self._compiled(given, padded.to(windows.device), learns.to(windows.device))
        windows.keep_keys(given, seen)
        return logits[:rows]

    def _step(self, given: Given, targets: Tensor, learns: Tensor) -> tuple[Tensor, Past]:
        """Forward, the scored positions, backward and Adam: one graph on a GPU."""
        adapters = self.adapters(len(targets))
        logits, seen = compute(self.network, self.floor, given, adapters)
        nats = cross_entropy(logits, targets, softcap=self.softcap, reduction="none")
        leaves = adapters.parameters()
        # a mean for each document, summed: no document feels how many others there are
        gradients = torch.autograd.grad(torch.where(learns, nats.mean(1), 0).sum(), leaves)
        rows = len(targets)
        lora_adam(
            [factor[:rows] for factor in self.factors],
            gradients,
            [tensor[:rows] for tensor in self.first],
            [tensor[:rows] for tensor in self.second],
            self.steps[:rows],
            lr=self.settings.lr,
            betas=self.settings.betas,
            eps=self.settings.eps,
            weight_decay=self.settings.weight_decay,
            active=learns,
        )
        return logits.detach(), seen
