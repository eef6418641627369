"""Score a validation stream: which passes, in which order, and the results they leave.

first pass    non-overlapping windows: cheap, and it measures the machine's speed
main pass     sliding windows, or documents, with all that the settings ask for: adaptation, temperature, predictors
plain pass    sliding windows with the fixed network, which the adapted one is compared with; only if there is time
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pgolf.budget import Budget
from pgolf.config import EvaluationSettings
from pgolf.distributed import World
from pgolf.evaluation.metric import Score, score_of
from pgolf.evaluation.observer import Observer
from pgolf.evaluation.planner import OutOfTime, Planner, Steady
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.published import Published
from pgolf.evaluation.predictors.selection import bases_of, main_predictor, predictors_of, tail_of, wants_main_pass
from pgolf.evaluation.predictors.temperature import Plain, Temperature, policy
from pgolf.evaluation.scoring_pass import DocumentScores, ScoringPass, make_adapter, span_chunk_tokens
from pgolf.evaluation.statistics import gathered
from pgolf.evaluation.stream import Ledger, ScoredStream, document_bounds, document_starts
from pgolf.evaluation.top_predictions import TopPredictions, excerpts

if TYPE_CHECKING:
    from pgolf.evaluation.predictors.ngram_backoff import Learnt
    from pgolf.evaluation.primer import Primer


@dataclass(frozen=True)
class Result:
    """One way of scoring the stream: its score, what its pass took, and the nats of each target."""

    score: Score
    seconds: float
    nats: np.ndarray
    base: str = ""
    """The result that its gain is taken over."""
    targets: np.ndarray | None = None
    """The targets that the nats belong to, where some count more than once."""


@dataclass
class Evaluation:
    results: dict[str, Result] = field(default_factory=dict)
    main: str = ""
    """The run's score: the last code length in the settings' order."""
    plan: dict = field(default_factory=dict)
    gave_up: dict = field(default_factory=dict)
    traces: list[dict] = field(default_factory=list)
    adaptation_steps: int = 0
    top_predictions: TopPredictions = field(default_factory=TopPredictions)
    ledger: Ledger | None = None
    """What the main pass did, in order."""


class PassResult(NamedTuple):
    nats: dict[str, np.ndarray]
    """Of every target, by each predictor's name."""
    ledger: Ledger
    """In which order spans were committed and learnt from."""
    traces: list[dict] = []
    adaptation_steps: int = 0


def evaluate(
    model,
    tokens: np.ndarray,
    byte_table,
    settings: EvaluationSettings,
    *,
    bos: int,
    budget: Budget | None = None,
    ngram_table: "Learnt | None" = None,
    primer: "Primer | None" = None,
    replay: dict | None = None,
    device="cpu",
    world: World | None = None,
    report: Callable[[str, float], None] = lambda name, share: None,
) -> Evaluation:
    """All results for `tokens` that the settings ask for, within what is left of the budget.

    ngram_table   what the n-gram back-off begins with
    primer        what the context mixing reads first
    replay        the `plan` of an earlier evaluation, to be followed exactly instead of the clock
    report        is told the name of a pass and the share done
    """
    budget = budget or Budget(settings.seconds)
    # a fiftieth of the clock at most
    stretches = excerpts(document_starts(tokens, bos), len(tokens) - 1, settings.top_predictions)
    observer = TopPredictions(stretches, settings.seconds / 50, budget.clock.now)
    scorer = Scorer(
        model, tokens, byte_table, settings, bos=bos, ngram_table=ngram_table, primer=primer, budget=budget, device=device,
        world=world, report=report, observer=observer,
    )  # fmt: skip
    unhurried = Steady(budget.clock, scorer.targets, settings.window)
    scorer.warm_up()
    first = [Plain("non_overlapping")]
    begun = budget.elapsed()
    passed = scorer.plain(first, unhurried)
    results = Results(scorer.bytes_per_target)
    results.add(first, passed, budget.elapsed() - begun)
    evaluation = Evaluation(results.table, results.main, top_predictions=observer)

    planner = Planner(
        budget,
        targets=scorer.targets,
        window=settings.window,
        stride=settings.stride,
        epochs=settings.adaptation.epochs if settings.adaptation.method == "chunks" else 0,
        seconds_per_window=unhurried.forward(),
        replay=replay,
        agree=scorer.agreed,
    )
    if wants_main_pass(settings):
        temperature = policy(settings.temperature)
        predictors = scorer.predictors(temperature)
        begun = budget.elapsed()
        main = scorer.main(predictors, temperature, planner, passed.nats["non_overlapping"])
        seconds = budget.elapsed() - begun
        evaluation.ledger, evaluation.traces, evaluation.adaptation_steps = main.ledger, main.traces, main.adaptation_steps
        if settings.adaptation.method != "none" and settings.sliding:
            plain_pass(scorer, planner, results)
        results.add(predictors, main, seconds)
    evaluation.main, evaluation.plan, evaluation.gave_up = results.main, planner.record(), planner.gave_up()
    return evaluation


def plain_pass(scorer: "Scorer", planner: Planner, results: "Results") -> None:
    """The fixed network in sliding windows, if there is time."""
    settings, budget = scorer.settings, scorer.budget
    if not planner.affords("sliding", settings.stride):
        return
    predictors = [Plain("sliding"), *tail_of("sliding", settings, scorer.vocab, scorer.targets)]
    steady = Steady(
        budget.clock,
        scorer.targets,
        settings.stride,
        first=planner.forward(),
        within=None if planner.replaying else budget,
        agree=scorer.agreed,
    )
    begun = budget.elapsed()
    try:
        passed = scorer.plain(predictors, steady)
    except OutOfTime:
        planner.abandon("sliding")
    else:
        results.add(predictors, passed, budget.elapsed() - begun)


class Scorer:
    """The passes over one stream.

    observer       watches every pass but the warm-up
    total_targets  of the whole stream, where `tokens` are only its beginning: what schedules over the chunks are told
    """

    def __init__(
        self,
        model,
        tokens: np.ndarray,
        byte_table,
        settings: EvaluationSettings,
        *,
        bos: int,
        ngram_table: "Learnt | None" = None,
        primer: "Primer | None" = None,
        budget: Budget | None = None,
        device="cpu",
        world: World | None = None,
        report: Callable[[str, float], None] = lambda name, share: None,
        observer: Observer | None = None,
        total_targets: int = 0,
    ):
        self.model, self.tokens, self.byte_table, self.settings = model.eval(), tokens, byte_table, settings
        self.bos, self.ngram_table, self.primer, self.device, self.report = bos, ngram_table, primer, device, report
        self.budget, self.world, self.observer = budget or Budget(settings.seconds), world or World(), observer or Observer()
        self.vocab, self.targets = model.settings.vocab_size, len(tokens) - 1
        self.total_targets = total_targets
        self.bytes_per_target = byte_table.count(tokens[:-1], tokens[1:])

    def agreed(self, decision: tuple) -> tuple:
        """The first rank's decision, on every rank."""
        if self.world.size == 1:
            return decision
        box = [decision]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def predictors(self, temperature: Temperature | None) -> list[Predictor]:
        return predictors_of(self.settings, self.vocab, self.targets, temperature, self.ngram_table, self.device, self.primer)

    # ---- passes

    def warm_up(self) -> None:
        """Compile and load what the first windows and their predictors would wait for, because their time is taken as a
        measure of the machine. Two windows of one repeated token."""
        settings, targets = self.settings, self.settings.window + self.settings.stride
        temperature = policy(settings.temperature)
        predictors = predictors_of(settings, self.vocab, targets, temperature, device=self.device)
        repeated = np.zeros(targets + 1, np.uint16)
        tried = self._pass(predictors, repeated, temperature, observer=Observer(), progress=lambda share: None)
        tried.run(Steady(self.budget.clock, targets, settings.stride))

    def plain(self, predictors: Sequence[Predictor], steady: Steady) -> PassResult:
        """The fixed network at one stride."""
        scoring = self._pass(predictors, self.tokens)
        return PassResult(scoring.run(steady), scoring.stream.ledger)

    def main(
        self,
        predictors: Sequence[Predictor],
        temperature: Temperature | None,
        planner: Planner,
        fallback_nats: np.ndarray | None = None,
    ) -> PassResult:
        """With adaptation, by documents or between chunks; `fallback_nats` stand where a planner runs out of time."""
        if self.settings.adaptation.method == "lora":
            return self._by_documents(predictors, temperature, planner)
        scoring = self._pass(
            predictors,
            self.tokens,
            temperature,
            adapter=make_adapter(self.model, self.settings, self.byte_table, self.world),
            chunk_tokens=span_chunk_tokens(self.settings),
            fallback_nats=fallback_nats,
        )
        return PassResult(scoring.run(planner), scoring.stream.ledger, scoring.traces, scoring.steps)

    def _by_documents(self, predictors: Sequence[Predictor], temperature: Temperature | None, planner: Planner) -> PassResult:
        """Adapters for each document."""
        from pgolf.evaluation.adaptation.lora import score_documents

        stream, world = ScoredStream(self.tokens), self.world
        documents = DocumentScores(predictors, bos=self.bos, temperature=temperature, observer=self.observer)
        score_documents(
            self.model,
            stream,
            document_bounds(self.tokens, self.bos),
            self.settings.lora,
            documents,
            window=self.settings.window,
            planner=planner,
            rank=world.rank,
            world=world.size,
            progress=lambda share: self.report("adapted", share),
            now=self.budget.clock.now,
        )
        planner.plain_documents = gathered(planner.plain_documents, world.size)
        return PassResult(documents.scores(self.tokens, world.size), stream.ledger)

    def _pass(
        self, predictors: Sequence[Predictor], tokens: np.ndarray, temperature: Temperature | None = None, **options
    ) -> ScoringPass:
        defaults: dict = {
            "observer": self.observer,
            "total_targets": self.total_targets,
            "progress": lambda share: self.report(predictors[0].name, share),
        }
        return ScoringPass(
            self.model,
            tokens,
            predictors,
            bos=self.bos,
            window=self.settings.window,
            batch=self.settings.batch,
            temperature=temperature,
            device=self.device,
            rank=self.world.rank,
            world=self.world.size,
            **defaults | options,
        )


class Results:
    """The table of results, in the order in which passes add to it."""

    def __init__(self, bytes_per_target: np.ndarray):
        self.bytes_per_target = bytes_per_target
        self.table: dict[str, Result] = {}
        self.main = ""

    def add(self, predictors: Sequence[Predictor], passed: PassResult, seconds: float) -> None:
        bases = bases_of(predictors, self.table) if self.table else {}
        for predictor in predictors:
            nats, targets = passed.nats[predictor.name], None
            if isinstance(predictor, Published) and predictor.repeated:
                again = [np.arange(start, start + len(repeated)) for start, repeated in predictor.repeated]
                targets = np.concatenate([np.arange(len(nats)), *again])
                nats = np.concatenate([nats, *[repeated for _, repeated in predictor.repeated]])
            counted = self.bytes_per_target if targets is None else self.bytes_per_target[targets]
            score = score_of(nats, counted, legal=predictor.legal)
            self.table[predictor.name] = Result(score, seconds, nats, bases.get(predictor.name, ""), targets)
        if main := main_predictor(predictors):
            self.main = main.name
