"""Score a validation stream: which passes, which predictors, and what they add up to.

first pass    windows side by side: cheap, sure, and a measure of the machine
main pass     sliding windows with everything the settings ask for: adaptation, temperature, mixers
plain pass    sliding windows with the fixed model, to hold the adapted one against; only if there is time
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pgolf.budget import Budget
from pgolf.config import EvaluationSettings, SettingsError, nearest
from pgolf.distributed import World
from pgolf.evaluation.documents import document_bounds, document_starts
from pgolf.evaluation.metric import Score, score_of
from pgolf.evaluation.pipeline import Collector, Pass
from pgolf.evaluation.planner import OutOfTime, Planner, Steady
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.published import Published, PublishedBoost, PublishedHedge, PublishedTail
from pgolf.evaluation.predictors.temperature import Plain, Temperature, Tempered, policy
from pgolf.evaluation.statistics import gathered
from pgolf.evaluation.stream import Ledger, ScoredStream
from pgolf.evaluation.words import Words, excerpts

if TYPE_CHECKING:
    from pgolf.evaluation.predictors.ngram_backoff import Learnt

ADAPTER_SEED = 20_301


@dataclass(frozen=True)
class Result:
    """One way of scoring the stream: its score, what its pass took, and the nats of each target."""

    score: Score
    seconds: float
    nats: np.ndarray
    base: str = ""
    """The reading that it builds on, whose difference to it is its gain."""
    targets: np.ndarray | None = None
    """The targets that the nats belong to, where some count more than once."""


@dataclass
class Evaluation:
    results: dict[str, Result] = field(default_factory=dict)
    plan: dict = field(default_factory=dict)
    gave_up: dict = field(default_factory=dict)
    traces: list[dict] = field(default_factory=list)
    adaptation_steps: int = 0
    words: Words = field(default_factory=Words)
    ledger: Ledger | None = None
    """What the main pass did, in order."""

    @property
    def main(self) -> str:
        """The run's score: the last code length of the order that the settings give, so that nothing is picked afterwards."""
        return [name for name, result in self.results.items() if result.score.legal][-1]


def evaluate(
    model,
    tokens: np.ndarray,
    byte_table,
    settings: EvaluationSettings,
    *,
    bos: int,
    budget: Budget | None = None,
    ngram_table: "Learnt | None" = None,
    replay: dict | None = None,
    device="cpu",
    world: World | None = None,
    report: Callable[[str, float], None] = lambda name, share: None,
) -> Evaluation:
    """All predictors of `tokens` that the settings ask for, within what is left of the budget.

    chain_table   what the n-gram back-off begins with
    replay        the `plan` of an earlier evaluation, to be followed exactly instead of the clock
    report        hears the name of a pass and the share done
    """
    budget, world = budget or Budget(settings.seconds), world or World()
    scorer = Scorer(model, tokens, byte_table, settings, bos, budget, device, world, report)
    unhurried = Steady(scorer.budget.clock, scorer.targets, settings.window)
    scorer.warm_up()
    first = [Plain("non_overlapping")]
    nats, seconds = scorer.timed(lambda: scorer.new_pass(first).run(unhurried))
    scorer.add(first, nats, seconds, {})

    planner = Planner(
        scorer.budget,
        targets=scorer.targets,
        window=settings.window,
        stride=settings.stride,
        epochs=settings.adaptation.epochs if settings.adaptation.method == "chunks" else 0,
        seconds_per_window=unhurried.forward(),
        replay=replay,
        agree=scorer.agreed,
    )
    adapting = settings.adaptation.method != "none"
    temperature = policy(settings.temperature)
    if wants_main_pass(settings):
        predictors = predictors_of(settings, model.settings.vocab_size, scorer.targets, temperature, ngram_table)
        if settings.adaptation.method == "lora":
            nats, seconds = scorer.timed(lambda: scorer.by_documents(predictors, temperature, planner))
        else:
            nats, seconds = scorer.timed(lambda: scorer.sliding(predictors, temperature, planner, nats["non_overlapping"]))
        if adapting and settings.sliding:
            scorer.plain_pass(planner)
        scorer.add(predictors, nats, seconds, bases_of(predictors, scorer.found.results))
    scorer.found.plan, scorer.found.gave_up = planner.record(), planner.gave_up()
    return scorer.found


class Scorer:
    """The passes over one stream, and what they found."""

    def __init__(
        self, model, tokens, byte_table, settings: EvaluationSettings, bos: int, budget: Budget, device, world: World, report
    ):
        self.model, self.tokens, self.byte_table, self.settings = model, tokens, byte_table, settings
        self.bos, self.budget, self.device, self.world, self.report = bos, budget, device, world, report
        self.targets = len(tokens) - 1
        self.bytes_per_target = byte_table.count(tokens[:-1], tokens[1:])
        # a fiftieth of the clock at most
        stretches = excerpts(document_starts(tokens, bos), self.targets, settings.words)
        self.found = Evaluation(words=Words(stretches, settings.seconds / 50, budget.clock.now))

    def timed(self, run: Callable[[], dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], float]:
        begun = self.budget.elapsed()
        return run(), self.budget.elapsed() - begun

    def agreed(self, said: tuple) -> tuple:
        """What the first rank says."""
        if self.world.size == 1:
            return said
        box = [said]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def warm_up(self) -> None:
        """Compile and load what the first windows and their predictors would wait for: that time is taken as a measure of the
        machine. Two windows of one repeated token, which is nobody's text."""
        settings, targets = self.settings, self.settings.window + self.settings.stride
        temperature = policy(settings.temperature)
        predictors = predictors_of(settings, self.model.eval().settings.vocab_size, targets, temperature)
        nothing = {"words": Words(), "progress": lambda share: None}
        tried = self.new_pass(predictors, np.zeros(targets + 1, np.uint16), temperature=temperature, **nothing)
        tried.run(Steady(self.budget.clock, targets, settings.stride))

    def new_pass(self, predictors: Sequence[Predictor], tokens: np.ndarray | None = None, **options) -> Pass:
        about: dict[str, Any] = {"words": self.found.words, "progress": lambda share: self.report(predictors[0].name, share)}
        return Pass(
            self.model,
            self.tokens if tokens is None else tokens,
            predictors,
            bos=self.bos,
            window=self.settings.window,
            batch=self.settings.batch,
            device=self.device,
            rank=self.world.rank,
            world=self.world.size,
            **about | options,
        )

    def sliding(
        self, predictors: Sequence[Predictor], temperature: Temperature | None, planner: Planner, borrowed: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The main pass, with or without adaptation between chunks."""
        settings, adapter = self.settings, None
        by_chunks = settings.mixer.published == "hedge" or settings.temperature.method == "grid"
        if settings.adaptation.method == "chunks":
            from pgolf.evaluation.adaptation.chunks import ChunkAdapter

            adapter = ChunkAdapter(
                self.model,
                settings.adaptation,
                sequence_length=settings.window,
                byte_table=self.byte_table,
                world=self.world,
            )
        main = self.new_pass(
            predictors,
            temperature=temperature,
            adapter=adapter,
            chunk_tokens=settings.adaptation.chunk_tokens if by_chunks else 0,
            borrowed=borrowed,
        )
        nats = main.run(planner)
        self.found.ledger = main.stream.ledger
        self.found.traces, self.found.adaptation_steps = main.traces, main.steps
        return nats

    def by_documents(
        self, predictors: Sequence[Predictor], temperature: Temperature | None, planner: Planner
    ) -> dict[str, np.ndarray]:
        """The main pass, with adapters for each document."""
        from pgolf.evaluation.adaptation.lora import score_documents

        stream, world = ScoredStream(self.tokens), self.world
        self.found.ledger = stream.ledger
        collector = Collector(predictors, bos=self.bos, temperature=temperature, words=self.found.words)
        score_documents(
            self.model,
            stream,
            document_bounds(self.tokens, self.bos),
            self.settings.lora,
            collector,
            window=self.settings.window,
            planner=planner,
            rank=world.rank,
            world=world.size,
            progress=lambda share: self.report("adapted", share),
            now=self.budget.clock.now,
        )
        planner.plain_documents = gathered(planner.plain_documents, world.size)
        return collector.scores(self.tokens, world.size)

    def plain_pass(self, planner: Planner) -> None:
        """The fixed model in sliding windows, if there is time."""
        settings = self.settings
        if not planner.affords("sliding", settings.stride):
            return
        predictors = [Plain("sliding"), *tail_of("sliding", settings, self.model.settings.vocab_size, self.targets)]
        steady = Steady(
            self.budget.clock,
            self.targets,
            settings.stride,
            first=planner.forward(),
            within=None if planner.replaying else self.budget,
            agree=self.agreed,
        )
        try:
            nats, seconds = self.timed(lambda: self.new_pass(predictors).run(steady))
        except OutOfTime:
            planner.abandon("sliding")
        else:
            self.add(predictors, nats, seconds, bases_of(predictors, self.found.results))

    def add(self, predictors: Sequence[Predictor], nats: dict[str, np.ndarray], seconds: float, bases: dict[str, str]) -> None:
        for predictor in predictors:
            column, targets = nats[predictor.name], None
            if isinstance(predictor, Published) and predictor.repeated:
                again = [np.arange(start, start + len(found)) for start, found in predictor.repeated]
                targets = np.concatenate([np.arange(self.targets), *again])
                column = np.concatenate([column, *[found for _, found in predictor.repeated]])
            counted = self.bytes_per_target if targets is None else self.bytes_per_target[targets]
            score = score_of(column, counted, legal=predictor.legal)
            self.found.results[predictor.name] = Result(score, seconds, column, bases.get(predictor.name, ""), targets)


# ---- which predictors


def wants_main_pass(settings: EvaluationSettings) -> bool:
    """Whether the settings ask for more than windows side by side."""
    mixing = settings.mixer.honest or settings.mixer.published != "none"
    return bool(settings.sliding or mixing or settings.adaptation.method != "none" or settings.temperature.method != "none")


def predictors_of(
    settings: EvaluationSettings,
    vocab: int,
    targets: int,
    temperature: Temperature | None,
    ngram_table: "Learnt | None" = None,
) -> list[Predictor]:
    """The plain one first, then those that build on it."""
    mixer, adaptation = settings.mixer, settings.adaptation.method
    plain = "sliding" if adaptation == "none" else "adapted"
    predictors: list[Predictor] = [Plain(plain)]
    if temperature:
        predictors.append(Tempered(temperature))

    # each imported where it is asked for, so that a submission carries no other
    def ngram_backoff() -> Predictor:
        from pgolf.evaluation.predictors.ngram_backoff import NgramBackoffPredictor

        return NgramBackoffPredictor(vocab, mixer.orders, mixer.granularity, ngram_table, mixer.online_weights)

    def boost() -> Predictor:
        from pgolf.evaluation.predictors.tilt import BoostPredictor

        return BoostPredictor()

    def bias() -> Predictor:
        from pgolf.evaluation.predictors.bias import BiasPredictor

        return BiasPredictor(vocab, mixer.granularity)

    def tilt() -> Predictor:
        from pgolf.evaluation.predictors.tilt import TiltPredictor

        return TiltPredictor()

    def ngrams() -> Predictor:
        from pgolf.evaluation.predictors.ngrams import NgramsPredictor

        return NgramsPredictor(vocab)

    honest = {"ngram_backoff": ngram_backoff, "boost": boost, "bias": bias, "tilt": tilt, "ngrams": ngrams}
    for name in mixer.honest:
        if name not in honest:
            hint = nearest(name, honest) or f"; there are {', '.join(honest)}"
            raise SettingsError(f"evaluation.mixer.honest names {name!r}{hint}")
        predictors.append(honest[name]())
    if adaptation == "lora":
        check_documents(settings, predictors)
        for predictor in predictors:
            predictor.legal = predictor.legal and not settings.lora.foresees
        return predictors
    if mixer.published == "none":
        return predictors + tail_of(plain, settings, vocab, targets)
    predictors += tail_of(plain, settings, vocab, targets)
    windows = windows_of(plain, settings, targets)
    if mixer.published == "hedge":
        return [*predictors, PublishedHedge(vocab, mixer.eta, **windows)]
    return [*predictors, PublishedBoost(vocab, mixer.eta, mixer.bias_lr, **windows)]


def windows_of(plain: str, settings: EvaluationSettings, targets: int) -> dict:
    """What the published rules need to know of the windows. Where submissions adapt, they leave out the shortest ones."""
    return {
        "targets": targets,
        "window": settings.window,
        "stride": settings.stride,
        "tail": settings.published_tail,
        "shortest": settings.stride if plain == "adapted" else 1,
        "batch": settings.batch,
        "ranks": settings.mixer.ranks,
    }


def tail_of(plain: str, settings: EvaluationSettings, vocab: int, targets: int) -> list[Predictor]:
    if not settings.published_tail:
        return []
    return [PublishedTail(f"{plain}_published", vocab, **windows_of(plain, settings, targets))]


def check_documents(settings: EvaluationSettings, predictors: Sequence[Predictor]) -> None:
    """What goes together with adapters for each document, which are scored out of order."""
    if settings.temperature.method in ("grid", "online"):
        raise SettingsError(
            f"evaluation.temperature.method {settings.temperature.method} follows the stream, but documents with adapters "
            "are scored side by side; choose fixed or entropy"
        )
    if settings.mixer.published != "none":
        raise SettingsError("evaluation.mixer.published goes by windows, and adaptation.method lora by documents; choose none")
    for predictor in predictors:
        if predictor.wants_rows or (predictor.levels and not predictor.document_local):
            raise SettingsError(f"{predictor.name} follows the stream while it is scored; with lora choose chain or ngrams")


def bases_of(predictors: Sequence[Predictor], known: dict[str, Result]) -> dict[str, str]:
    """The reading that each one is held against."""
    plain, names = predictors[0].name, {predictor.name for predictor in predictors}
    ground = "temperature" if "temperature" in names else plain
    below = "sliding" if plain == "adapted" and "sliding" in known else "non_overlapping"
    return {name: ground for name in names} | {plain: below, "temperature": plain, f"{plain}_published": plain}
