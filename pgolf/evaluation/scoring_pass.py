"""One pass over a stream: windows through the network, statistics to every predictor, scores committed, then learning.

    for each span:  open -> candidates -> forward -> statistics -> predictors score -> commit -> adapter learns

Two ways to adapt plug in here. An `Adapter` learns between chunks of one stream. Documents with adapters of their own
(pgolf.evaluation.adaptation.lora) are scored by a loop of their own, which hands each span to `DocumentScores`.
"""

import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

from pgolf.config import EvaluationSettings
from pgolf.config.adaptation import CHUNK_ADAPTERS
from pgolf.distributed import World
from pgolf.evaluation.observer import Observer
from pgolf.evaluation.planner import Planner, Steady
from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.published import Published
from pgolf.evaluation.predictors.temperature import Temperature, policy
from pgolf.evaluation.statistics import Statistics, gathered, join, statistics_of
from pgolf.evaluation.stream import OpenSpan, ScoredStream
from pgolf.evaluation.windows import Window, begins_span, share, targets_per_span, windows_from
from pgolf.kernels.threads import in_parallel

# how many tokens before a window the hashes of #1014 reach
CONTEXT_BEFORE_WINDOW = 16


class Adapter(Protocol):
    """Learns from committed chunks, on a model of its own: no other pass scores with those weights."""

    chunk_tokens: int
    """Targets of one chunk."""

    @property
    def model(self):
        """With the weights that training left; where no average is kept, the ones that score as well."""

    def scoring_model(self) -> AbstractContextManager:
        """Gives the model with the weights that score (an average, where one is kept), in evaluation mode."""

    def learn(self, tokens: np.ndarray, index: int, total: int, epochs: int) -> int:
        """Train on chunk `index` of `total`: `tokens` are its targets and the token before them, all of them committed.

        `epochs` is what the clock allows, at most the settings' number and at least one. All ranks call it with the
        same arguments. Returns the optimiser steps taken. Never called for the last chunk.
        """


def make_adapter(model, settings: EvaluationSettings, byte_table, world: World | None = None) -> Adapter | None:
    """What learns between chunks, if the settings want that; its module is imported only then."""
    if settings.adaptation.method not in CHUNK_ADAPTERS:
        return None
    module, cls = CHUNK_ADAPTERS[settings.adaptation.method]
    adapter = getattr(importlib.import_module(f"pgolf.evaluation.adaptation.{module}"), cls)
    return adapter(model, settings.adaptation, sequence_length=settings.window, byte_table=byte_table, world=world)


def span_chunk_tokens(settings: EvaluationSettings) -> int:
    """Targets of a chunk, where spans end with chunks because something learns between them; 0: they do not."""
    temperature = policy(settings.temperature)
    by_chunks = (
        settings.adaptation.method in CHUNK_ADAPTERS
        or settings.mixer.published == "hedge"
        or (temperature is not None and temperature.calibrates)
    )
    return settings.adaptation.chunk_tokens if by_chunks else 0


class ScoringPass:
    """The network's statistics over one stream, in sliding windows, and all predictors of them.

    chunk_tokens   spans end with these chunks (of the first target that a window scores); 0: spans of a few thousand targets
    fallback_nats  of all targets by an earlier pass, for a planner that runs out of time
    observer       watches every span
    total_targets  of the whole stream, where `tokens` are only its beginning: how many chunks schedules are told of
    """

    def __init__(
        self,
        model,
        tokens: np.ndarray,
        predictors: Sequence[Predictor],
        *,
        bos: int,
        window: int,
        batch: int,
        temperature: Temperature | None = None,
        adapter: Adapter | None = None,
        chunk_tokens: int = 0,
        fallback_nats: np.ndarray | None = None,
        observer: Observer | None = None,
        total_targets: int = 0,
        device="cpu",
        rank: int = 0,
        world: int = 1,
        progress: Callable[[float], None] = lambda share: None,
    ):
        self.model, self.predictors, self.bos, self.window, self.batch = model, predictors, bos, window, batch
        self.temperature, self.adapter = temperature, adapter
        self.fallback_nats = np.full(len(tokens) - 1, np.nan) if fallback_nats is None else fallback_nats
        self.chunk_tokens = adapter.chunk_tokens if adapter else chunk_tokens
        self.device, self.rank, self.world, self.progress = device, rank, world, progress
        self.observer = observer or Observer()
        self.stream = ScoredStream(tokens)
        self.chunks = -(-(total_targets or len(self.stream)) // self.chunk_tokens) if self.chunk_tokens else 0
        self.learnt = 0
        self.steps = 0
        self.published = [predictor for predictor in predictors if isinstance(predictor, Published)]
        for predictor in self.published:
            predictor.observer = self.observer
        self.batchwise = next((predictor for predictor in self.published if predictor.batchwise), None)
        self.traces: list[dict] = []
        self._columns = columns_of(predictors)

    def run(self, planner: Planner | Steady) -> dict[str, np.ndarray]:
        """The nats of every target by every predictor's name."""
        stream, now = self.stream, planner.clock.now
        if len(stream):
            first = int(stream.learn(0, 0)[0])
            for predictor in self.predictors:
                predictor.begin(first)
        while stream.cursor < len(stream):
            decision = planner.next(stream.cursor, self._about_to(planner.wanted.stride))
            if not decision.stride:
                self._fall_back()
                break
            windows = self._next_windows(decision.stride)
            self.observer.before_span(self.predictors, self.temperature, stream.cursor, windows[-1].stop)
            begun = now()
            span, opened = self._open(windows)
            candidates = [predictor.candidates(span) for predictor in self.predictors]
            counted = now()
            statistics = self._statistics(opened, windows, np.concatenate(candidates, 1))
            forwarded = now()
            scores = {p.name: p.score(span, statistics.of_candidates(self._columns[p.name])) for p in self.predictors}
            stream.commit(scores)
            if self.temperature:
                self.temperature.learn(statistics)
            planner.scored(len(windows), len(span), forwarded - counted, now() - forwarded + counted - begun)
            self.observer.after_span(span, statistics, self._columns)
            self._trace()
            self._learn(planner)
            self.progress(stream.cursor / len(stream))
        return stream.ledger.finished()

    # ---- which windows

    def _about_to(self, stride: int) -> int:
        """Where the next span will end, more or less."""
        at = self.stream.cursor
        size = self.chunk_tokens or self._targets_per_span(stride)
        return min(len(self.stream), max(at + 1, (at // size + 1) * size))

    def _targets_per_span(self, stride: int) -> int:
        if self.batchwise:
            return self.batch * stride
        return targets_per_span(self.batch, stride, self.world)

    def _next_windows(self, stride: int) -> list[Window]:
        """Of one span; at the stream's end also those that only the published rule has."""
        at, targets = self.stream.cursor, len(self.stream)
        windows: list[Window] = []
        for window in windows_from(at, targets, self.window, stride):
            if windows and self._begins_span(windows, window, stride):
                break
            windows.append(window)
        if self.published and windows[-1].stop == targets:
            windows += self.published[0].further_windows(windows[-1])
        return windows

    def _begins_span(self, before: list[Window], window: Window, stride: int) -> bool:
        if self.batchwise and not self.chunk_tokens:
            return len(self.batchwise.batches([*before, window])) > 1
        return begins_span(before[0].score_from, window, self.chunk_tokens, self._targets_per_span(stride))

    # ---- one span

    def _open(self, windows: list[Window]) -> tuple[Span, OpenSpan]:
        start, stop = self.stream.cursor, max(window.stop for window in windows)
        opened = self.stream.open(stop)
        targets = opened.targets(start, stop).astype(np.int32)
        base = max(0, min(window.start for window in windows) - CONTEXT_BEFORE_WINDOW)
        context = np.concatenate([opened.inputs(base, stop), opened.targets(stop - 1, stop)]).astype(np.int32)
        return Span(start, targets, targets == self.bos, windows, context, base), opened

    def _statistics(self, opened: OpenSpan, windows: list[Window], candidates: np.ndarray) -> Statistics:
        """Each rank forwards its share of the windows; all ranks have all statistics in the end."""
        parts = []
        with self.adapter.scoring_model() if self.adapter else nullcontext(self.model) as model:
            for batch in self.batchwise.batches(windows) if self.batchwise else [windows]:
                if self.batchwise:
                    self.batchwise.open_batch(batch)
                mine = list(self._forward(model, opened, share(batch, self.rank, self.world), candidates))
                parts.append(join(gathered(mine, self.world)))
                if self.batchwise:
                    self.batchwise.close_batch(self.batchwise.kept(parts[-1]))
        return join(parts)

    @torch.inference_mode()
    def _forward(self, model, opened: OpenSpan, windows: Sequence[Window], candidates: np.ndarray) -> Iterator[Statistics]:
        for at in range(0, len(windows), self.batch):
            group = windows[at : at + self.batch]
            # all windows have one length: what stands after a shorter one's end cannot reach back to its targets
            inputs = np.zeros((len(group), self.window), np.int64)
            for row, window in zip(inputs, group, strict=True):
                row[: window.stop - window.start] = opened.inputs(window.start, window.stop)
            hidden = model.hidden(torch.from_numpy(inputs).to(self.device))
            # first windows and last ones score other numbers of targets, so rows are gathered flat
            places = [np.arange(w.score_from, w.stop) - w.start + i * self.window for i, w in enumerate(group)]
            logits = opened_logits(model, hidden, torch.from_numpy(np.concatenate(places)).to(self.device))
            targets = np.concatenate([opened.targets(w.score_from, w.stop) for w in group])
            asked = np.concatenate([candidates[w.score_from - opened.start : w.stop - opened.start] for w in group])
            kept = self.observer.wanted(np.concatenate([np.arange(w.score_from, w.stop) for w in group]))
            statistics = statistics_of(
                logits,
                targets,
                asked,
                softcap=model.settings.softcap,
                temperature=self.temperature,
                whole_rows=any(predictor.needs_logits for predictor in self.predictors),
                kept=kept,
            )
            if self.published:
                statistics = replace(statistics, by_window=self._by_window(model, opened, group, hidden))
            yield statistics

    def _by_window(self, model, opened: OpenSpan, group: Sequence[Window], hidden: torch.Tensor) -> list[dict]:
        """What the published mixtures need of each window, one window at a time: whole windows of logits are large."""
        by_window = []
        for states, window in zip(hidden, group, strict=True):
            wanting = [predictor for predictor in self.published if predictor.wants(window)]
            if wanting:
                targets = np.zeros(self.window, np.int64)
                targets[: window.stop - window.start] = opened.targets(window.start, window.stop)
                logits, softcap = model.raw_logits(states), model.settings.softcap
            by_window.append({p.name: p.of_window(logits, targets, softcap, self.temperature) for p in wanting})
        return by_window

    def _fall_back(self) -> None:
        """Out of time: the first pass's scores stand for the rest of the stream, under every predictor."""
        opened = self.stream.open(len(self.stream))
        self.stream.commit({predictor.name: self.fallback_nats[opened.start :] for predictor in self.predictors})

    def _trace(self) -> None:
        weights = {predictor.name: trace for predictor in self.predictors if (trace := predictor.trace())}
        if weights:
            self.traces.append({"target": self.stream.cursor, **weights})

    def _learn(self, planner: Planner | Steady) -> None:
        """From every chunk that has become final, but not from the last one: nothing is scored after it."""
        now = planner.clock.now
        final = min(self.stream.cursor // self.chunk_tokens, self.chunks - 1) if self.chunks else 0
        epochs = planner.epochs_now((final - self.learnt) * self.chunk_tokens) if self.learnt < final else 0
        while self.learnt < final:
            start = self.learnt * self.chunk_tokens
            tokens = self.stream.learn(start, start + self.chunk_tokens)
            if self.adapter and epochs:
                begun = now()
                self.steps += self.adapter.learn(tokens, self.learnt, self.chunks, epochs)
                planner.learnt(self.chunk_tokens, epochs, now() - begun)
            if self.temperature:
                model = self.adapter.model if self.adapter else self.model
                self.temperature.calibrate(self._logits_of(model), tokens, self.window)
            self.learnt += 1

    def _logits_of(self, model) -> Callable[[np.ndarray], torch.Tensor]:
        return lambda rows: model.logits(torch.from_numpy(rows).to(self.device))


def opened_logits(model, hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Raw logits (n, V) of the scored positions alone, `places` (n,) in states (B, T, D) laid end to end."""
    return model.raw_logits(hidden.flatten(0, 1)[places])


def columns_of(predictors: Sequence[Predictor]) -> dict[str, slice]:
    """Where each predictor's candidates stand among those of all."""
    ends = np.cumsum([predictor.num_candidates for predictor in predictors]).tolist()
    return {
        predictor.name: slice(end - predictor.num_candidates, end) for predictor, end in zip(predictors, ends, strict=True)
    }


class Unfinished(NamedTuple):
    """A document of which more is to come."""

    first: int
    """Its first target."""
    copies: list[Predictor]


class DocumentScores:
    """Scores of documents that are forwarded side by side, in any order.

        for each document's stream:
            opened = stream.open(stop)
            (nats,) = scores.take([opened], logits, softcap)      # raw logits (1, T, V) of its targets
            stream.commit(nats)

    Documents are committed under one name. The predictors run later, in the stream's order: `scores` gives all of theirs, on
    every rank. Candidates are asked of document-local predictors only, so a copy for each document names them; documents share
    a CPU's threads. Counts for logits on a GPU are made there, of all documents side by side and of each anew for every chunk:
    what each chunk adds is too little to be worth a table that is kept.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        *,
        bos: int,
        temperature: Temperature | None = None,
        name: str = "adapted",
        observer: Observer | None = None,
    ):
        self.predictors, self.bos, self.temperature, self.name = predictors, bos, temperature, name
        self.observer = observer or Observer()
        self._columns = columns_of(predictors)
        self._asking = [predictor for predictor in predictors if predictor.num_candidates]
        self._statistics: list[tuple[int, Statistics]] = []
        """With the first target of each."""
        self._unfinished: dict[int, Unfinished] = {}
        """By the target at which each document goes on."""

    def take(
        self, opened: Sequence[OpenSpan], logits: torch.Tensor, softcap: float | None = None
    ) -> list[dict[str, np.ndarray]]:
        """The scores to commit for the opened targets of each document, whose earlier targets were taken before. All
        documents' statistics are computed in one call and read back together."""
        spans = []
        for one in opened:
            targets = one.targets(one.start, one.stop).astype(np.int32)
            spans.append(Span(one.start, targets, targets == self.bos))
        kept = [self.observer.wanted(np.arange(one.start, one.stop)) for one in opened]
        begins = np.cumsum([0, *map(len, spans)])
        statistics = statistics_of(
            torch.cat([row[: len(span)] for row, span in zip(logits, spans, strict=True)]),
            np.concatenate([span.targets for span in spans]),
            self.candidates(opened, spans, logits.device),
            softcap=softcap,
            temperature=self.temperature,
            kept=np.concatenate([begin + places for begin, places in zip(begins, kept, strict=False)]),
        )
        scores, read = [], 0
        for one, span, begin, places in zip(opened, spans, begins, kept, strict=False):
            part = statistics[begin : begin + len(span)]
            if statistics.kept_logits is not None and len(places):
                part = replace(part, kept_logits=statistics.kept_logits[read : read + len(places)])
                read += len(places)
            self._statistics.append((one.start, part))
            scores.append({self.name: part.nats})
        return scores

    def candidates(self, opened: Sequence[OpenSpan], spans: Sequence[Span], device: torch.device) -> torch.Tensor | None:
        """(targets, K) int32 of all open targets, document after document; None where no predictor asks for any."""
        if not self._asking:
            return None
        documents = []
        for one, span in zip(opened, spans, strict=True):
            waiting = self._unfinished.pop(one.start, None)
            documents.append(waiting or Unfinished(one.start, self._begun(one, device)))
            if not span.starts[-1]:
                self._unfinished[one.stop] = documents[-1]
        if device.type == "cuda":
            texts = [
                np.append(one.inputs(document.first, one.start + 1), span.targets)
                for one, span, document in zip(opened, spans, documents, strict=True)
            ]
            sizes = [len(span) for span in spans]
            return torch.cat([predictor.candidates_of(texts, sizes, device) for predictor in self._asking], 1)

        def asked(document: tuple[Unfinished, Span]) -> np.ndarray:
            return np.concatenate([copy.candidates(document[1]) for copy in document[0].copies], 1)

        return torch.from_numpy(np.concatenate(in_parallel(asked, zip(documents, spans, strict=True))))

    def _begun(self, opened: OpenSpan, device: torch.device) -> list[Predictor]:
        """Copies, for one document, of the predictors that ask for candidates, where they are asked."""
        copies = [copy.deepcopy(predictor) for predictor in self._asking] if device.type != "cuda" else []
        for predictor in copies:
            predictor.begin(int(opened.inputs(opened.start, opened.start + 1)[0]))
        return copies

    def scores(self, tokens: np.ndarray, world: int = 1) -> dict[str, np.ndarray]:
        """The nats of every target of the stream by every predictor."""
        stream = ScoredStream(tokens)
        for predictor in self.predictors:
            predictor.begin(int(tokens[0]))
        for start, statistics in sorted(gathered(self._statistics, world), key=lambda part: part[0]):
            opened = stream.open(start + len(statistics.nats))
            targets = opened.targets(opened.start, opened.stop).astype(np.int32)
            span = Span(start, targets, targets == self.bos)
            self.observer.before_span(self.predictors, self.temperature, start, opened.stop)
            scores = {}
            for predictor in self.predictors:
                predictor.candidates(span)
                scores[predictor.name] = predictor.score(span, statistics.of_candidates(self._columns[predictor.name]))
            stream.commit(scores)
            self.observer.after_span(span, statistics, self._columns)
        return stream.ledger.finished()
