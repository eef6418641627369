"""A finished run as a subject: the very passes and predictors that scored it, on the auditor's streams, from the artifact.

Whole distributions are taken where the scorer itself makes them: the logits are those of the scoring forward pass, and a
copy of each predictor is asked as it stood before the span was scored.
"""

import copy
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pgolf.audit.external import Processes
from pgolf.audit.interface import NOISE_CAP, Claims, Scored
from pgolf.audit.published import boost_row, hedge_row
from pgolf.audit.records import read_plan
from pgolf.budget import Budget, Clock
from pgolf.config import EvaluationSettings, Settings, read_toml
from pgolf.data import load_tokenizer
from pgolf.evaluation.evaluate import PassResult, Scorer
from pgolf.evaluation.load import load_scorer
from pgolf.evaluation.observer import Observer
from pgolf.evaluation.planner import Decision, Planner, Steady
from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.published import Published, PublishedBoost, PublishedHedge
from pgolf.evaluation.predictors.selection import predictors_of
from pgolf.evaluation.predictors.temperature import Plain, Temperature, policy
from pgolf.evaluation.statistics import Statistics, log_probabilities
from pgolf.evaluation.top_predictions import Snapshot, distributions_at
from pgolf.evaluation.windows import Window
from pgolf.folder import RunFolder

# in batches of documents of other lengths, a document is computed in other company
DOCUMENT_NOISE = 2e-4
DEVICE_NOISE = NOISE_CAP


class RunSubject:
    """The predictors of a run.

    predictors   their names; None: all that the settings ask for
    published  the predictor that the submissions published, instead of those that are code lengths
    plan       what the clock decided while the run was scored; None: what the settings ask for
    """

    def __init__(
        self,
        folder: RunFolder,
        results: Sequence[str] | None = None,
        *,
        published: bool = False,
        plan: dict | None = None,
        device="cpu",
    ):
        settings = read_toml(folder.config)
        self.device = torch.device(device)
        self.model, self.ngram_table, artifact, self.primer = load_scorer(folder.artifact, settings, self.device)
        self.vocab = artifact.model_settings.vocab_size
        self.tokenizer = load_tokenizer(folder.artifact, artifact.tokenizer)
        self.table = self.tokenizer.byte_table
        self.published, self.plan = published, plan
        self.settings = settings_of(settings.evaluation, published)
        named = ["published"] if published else results if results is not None else self._all_results()
        self.results = {name: not published for name in named}
        self.claims = Claims(
            bos=self.tokenizer.bos,
            isolated=self.settings.adaptation.method == "lora",
            across=[name for name in named if name != "adapted"],
            noise=noise_of(settings, self.device),
            may_read=(str(folder.config), str(folder.artifact)),
        )

    def _all_results(self) -> list[str]:
        predictors = predictors_of(self.settings, self.vocab, 1, policy(self.settings.temperature), self.ngram_table)
        plain = ["non_overlapping", *(["sliding"] if self.settings.sliding else [])]
        return list(dict.fromkeys([*plain, *(predictor.name for predictor in predictors)]))

    @property
    def least_targets(self) -> int:
        """Targets without which the interesting parts of a scorer never begin: one lesson, and what is scored after it."""
        chunk = self.settings.adaptation.chunk_tokens if self.settings.adaptation.method == "chunks" else 0
        return max(chunk + 2 * self.settings.window, 4 * self.settings.window)

    def score(
        self, tokens: np.ndarray, probes: Sequence[int] = (), total: int | None = None, before: np.ndarray | None = None
    ) -> dict[str, Scored]:
        """`before` are tokens that the published mixer has counted already."""
        return Bench(self, np.asarray(tokens).astype(np.uint16), probes, total, before).results()


def settings_of(settings: EvaluationSettings, published: bool) -> EvaluationSettings:
    """The published mixtures are looked at apart from the others: they need much longer streams."""
    if published:
        return replace(settings, published_tail=False, sliding=False, mixer=replace(settings.mixer, honest=()))
    return replace(settings, published_tail=False, mixer=replace(settings.mixer, published="none"))


def noise_of(settings: Settings, device: torch.device) -> float:
    if device.type != "cpu":
        return DEVICE_NOISE
    return DOCUMENT_NOISE if settings.evaluation.adaptation.method == "lora" else 0.0


class Unhurried(Planner):
    """Asks no clock: what the run's own plan says, and beyond it what the settings ask for."""

    def __init__(self, settings: EvaluationSettings, targets: int, plan: dict | None):
        epochs = settings.adaptation.epochs if settings.adaptation.method == "chunks" else 0
        super().__init__(Budget(1e9), targets=targets, window=settings.window, stride=settings.stride, epochs=epochs)
        plan = plan or {}
        self.decided = {start: Decision(stride, epochs) for start, stride, epochs in plan.get("spans", ())}
        self.plain = set(plan.get("plain_documents", ()))
        self._decision = self.wanted

    def next(self, start: int, stop: int) -> Decision:
        self._decision = self.decided.get(start, self.wanted)
        return self._decision

    def epochs_now(self, targets: int) -> int:
        return self._decision.epochs

    def adapts(self, documents: list[int], tokens: int, tokens_after: int) -> bool:
        return not self.plain.intersection(documents)


class Witness(Observer):
    """The distributions that every predictor committed to at the probed targets."""

    def __init__(self, probes: Sequence[int], targets: int):
        self.probes = np.unique(np.asarray(probes, dtype=np.int64))
        self.distributions: dict[str, dict[int, np.ndarray]] = {}
        self.entropy = np.zeros(targets)
        self._snapshot: Snapshot | None = None
        self._temperature: Temperature | None = None

    def wanted(self, targets: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(targets, self.probes))

    def before_span(self, predictors: Sequence[Predictor], temperature: Temperature | None, start: int, stop: int) -> None:
        self._temperature, self._snapshot = copy.deepcopy(temperature), None
        if len(self.wanted(np.arange(start, stop))):
            self._snapshot = Snapshot.of([p for p in predictors if not isinstance(p, Published)], temperature)

    def after_span(self, span: Span, statistics: Statistics, columns: dict[str, slice]) -> None:
        self.entropy[span.start : span.start + len(span)] = statistics.entropy
        if self._snapshot is None or statistics.kept_logits is None:
            return
        places = self.wanted(span.start + np.arange(len(span)))
        logits = torch.from_numpy(statistics.kept_logits)
        for predictor in self._snapshot.predictors:
            rows = log_probabilities(logits, self._snapshot.temperature if predictor.tempered else None)
            said = distributions_at(predictor, span, statistics.of_candidates(columns[predictor.name]), places, rows)
            self._keep(predictor.name, span.start + places, said)

    def before_windows(self, predictor: Predictor, span: Span, windows: Sequence[Window], statistics: Statistics) -> None:
        """A published mixture changes from window to window, so it is asked when it scores them."""
        if statistics.kept_logits is None:
            return
        probed = span.start + self.wanted(span.start + np.arange(len(span)))
        context, base = span.context, span.context_start
        for window in windows:
            for target in probed[(probed >= window.score_from) & (probed < window.stop)].tolist():
                logits = torch.from_numpy(statistics.kept_logits[np.searchsorted(probed, target)])[None]
                if isinstance(predictor, PublishedHedge):
                    before = int(context[target - 1 - base]) if target > window.start else 0
                    neural = log_probabilities(logits, self._temperature)[0]
                    row = hedge_row(predictor.mixer, neural, before, int(context[target - base]))
                else:
                    assert isinstance(predictor, PublishedBoost) and predictor.cache is not None
                    neural = log_probabilities(logits + predictor.batch_bias)[0]
                    row = boost_row(predictor.cache, context, target + 1 - base, neural)
                self._keep(predictor.name, [target], [row])

    def _keep(self, name: str, targets: Iterable[int], rows: Iterable[np.ndarray]) -> None:
        rows_by_target = self.distributions.setdefault(name, {})
        rows_by_target.update((int(target), np.asarray(row)) for target, row in zip(targets, rows, strict=True))


class Bench:
    """The run's passes over one of the auditor's streams."""

    def __init__(self, subject: RunSubject, tokens: np.ndarray, probes: Sequence[int], total: int | None, before):
        self.subject, self.tokens, self.probes, self.total, self.before = subject, tokens, probes, total, before
        self.targets = len(tokens) - 1
        self.made: dict[str, Scored] = {}

    def scorer(self) -> Scorer:
        """With a witness of its own. Schedules are told how long the whole stream would have been."""
        subject = self.subject
        self.witness = Witness(self.probes, self.targets)
        return Scorer(
            subject.model, self.tokens, subject.table, subject.settings, bos=subject.tokenizer.bos,
            ngram_table=subject.ngram_table, primer=subject.primer, budget=Budget(1e9), device=subject.device,
            observer=self.witness, total_targets=self.total or self.targets,
        )  # fmt: skip

    def results(self) -> dict[str, Scored]:
        subject, settings = self.subject, self.subject.settings
        wanted = subject.results
        fallback_nats = np.full(self.targets, np.nan)
        if "non_overlapping" in wanted or any(span[1] == 0 for span in (subject.plan or {}).get("spans", ())):
            fallback_nats = self.run_plain("non_overlapping", settings.window)
        temperature = policy(settings.temperature)
        scorer = self.scorer()
        predictors = scorer.predictors(temperature)
        for predictor in predictors:
            if self.before is not None and isinstance(predictor, PublishedHedge):
                predictor.mixer.count(torch.from_numpy(self.before.astype(np.int32)))
        if any(predictor.name in wanted for predictor in predictors):
            planner = Unhurried(settings, self.targets, subject.plan)
            self.keep(predictors, scorer.main(predictors, temperature, planner, fallback_nats))
        if "sliding" in wanted and "sliding" not in self.made:
            self.run_plain("sliding", settings.stride)
        return {name: scored for name, scored in self.made.items() if name in wanted}

    def run_plain(self, name: str, stride: int) -> np.ndarray:
        predictors = [Plain(name)]
        passed = self.scorer().plain(predictors, Steady(Clock(), self.targets, stride))
        self.keep(predictors, passed)
        return passed.nats[name]

    def keep(self, predictors: Sequence[Predictor], passed: PassResult) -> None:
        plain = passed.nats[predictors[0].name]
        for predictor in predictors:
            remarkable = {"entropy": self.witness.entropy}
            if predictor is not predictors[0]:
                # where it says something else than the model its weight is large
                remarkable["its part"] = np.abs(passed.nats[predictor.name] - plain)
            self.made[predictor.name] = Scored(
                passed.nats[predictor.name],
                self.witness.distributions.get(predictor.name, {}),
                passed.ledger.events,
                remarkable=remarkable,
            )


# ---- a run as a scorer of its own process


class RunScorer:
    """The results of a run behind the interface of external scorers: costs and distributions are those of the main one, and
    the other results' costs lie beside them in `remarkable`."""

    def __init__(self, path: str, main: str, results: Sequence[str], device: str):
        folder = RunFolder.existing(path)
        self.main = main
        self.subject = RunSubject(folder, results, plan=read_plan(folder.plan), device=device)
        self.vocab = self.subject.vocab

    def score(self, tokens: np.ndarray, probes: Sequence[int] = (), total: int | None = None) -> Scored:
        by_result = self.subject.score(tokens, probes, total)
        others = {name: scored.nats for name, scored in by_result.items() if name != self.main}
        return replace(by_result[self.main], remarkable=others)


def processes_of(subject: RunSubject, folder: RunFolder, place: Path, main: str, results: Sequence[str]) -> Processes:
    """Processes that have a run's artifact, settings and plan, and nothing else of it; `place` is an empty folder."""
    clean = RunFolder(place / "run")
    clean.path.mkdir(parents=True)
    for mine, theirs in ((folder.config, clean.config), (folder.artifact, clean.artifact), (folder.plan, clean.plan)):
        if mine.exists():
            shutil.copyfile(mine, theirs)
    module = place / "scorer.py"
    made = f"RunScorer({str(clean.path)!r}, {main!r}, {list(results)!r}, {str(subject.device)!r})"
    module.write_text(f"from pgolf.audit.runs import RunScorer\n\nscorer = {made}\n")
    files = (str(module), str(clean.path))
    return Processes(f"{module}:scorer", files, vocab=subject.vocab, claims=replace(subject.claims, may_read=files))
