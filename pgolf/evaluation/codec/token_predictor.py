"""The run's score, one target at a time: first the whole distribution, then the token that came.

The scorer knows its text and reads a span of windows at once. A decoder does not, so here the same windows, the same
learning and the same mixer go step by step, in an order that needs no token before it is known. Whoever encodes walks
through the very same steps, so that both sides have the same bits at every one.
"""

from dataclasses import replace

import numpy as np
import torch

from pgolf.config import EvaluationSettings
from pgolf.evaluation.codec.plan import Plan
from pgolf.evaluation.planner import Decision
from pgolf.evaluation.predictors.base import Decisions, Predictor
from pgolf.evaluation.predictors.ngram_backoff import Learnt
from pgolf.evaluation.predictors.selection import main_predictor, predictors_of, wants_main_pass
from pgolf.evaluation.predictors.temperature import Plain, Temperature, policy
from pgolf.evaluation.scoring_pass import make_adapter, span_chunk_tokens
from pgolf.evaluation.statistics import Statistics, heat_of
from pgolf.evaluation.windows import Window, begins_span, targets_per_span, windows_from
from pgolf.model import Decoder


def coded_settings(settings: EvaluationSettings) -> EvaluationSettings:
    """What the run's score is computed with. Where a document's length decides how it is scored, that pass gives no code
    lengths, and the score is that of the fixed network."""
    if settings.adaptation.method != "lora" or not settings.lora.foresees:
        return settings
    fixed = EvaluationSettings()
    return replace(settings, adaptation=fixed.adaptation, temperature=fixed.temperature, mixer=fixed.mixer)


def coded_predictor(
    settings: EvaluationSettings, vocab: int, targets: int, ngram_table: Learnt | None = None, primer=None
) -> Predictor:
    """The run's score: the main predictor of these settings, as it stands before a stream."""
    predictors: list[Predictor] = [Plain("non_overlapping")]
    if wants_main_pass(settings):
        predictors += predictors_of(settings, vocab, targets, policy(settings.temperature), ngram_table, primer=primer)
    main = main_predictor(predictors)
    assert main is not None  # the first one is always a code length
    return main


class StreamPredictor:
    """The main predictor over the network in the scorer's windows.

    first     the stream's first token, which is not scored
    targets   how many tokens follow
    plan      what the clock decided while they were scored
    """

    def __init__(
        self, model, settings: EvaluationSettings, byte_table, predictor: Predictor, *, bos: int, first: int, targets: int,
        plan: Plan,
    ):  # fmt: skip
        self.bos, self.predictor = bos, predictor
        self.neural = ChunkwiseNetwork(model, settings, byte_table, first, targets, plan)
        predictor.begin(first)

    def predict(self) -> np.ndarray | Decisions:
        """The next token's distribution: its log-probabilities (V,), or its decisions where the predictor makes it of some."""
        log_probs = self.neural.predict()
        if self.neural.first_pass_stands:
            return log_probs
        return self.predictor.decisions(log_probs) or self.predictor.predict(log_probs)

    def observe(self, token: int) -> None:
        """The token that came after a `predict`."""
        self.neural.observe(token)
        if not self.neural.first_pass_stands:
            self.predictor.observe(token, start=token == self.bos)


class History:
    """The tokens so far. A stream's own word for its length is not worth memory before they have come."""

    def __init__(self, first: int):
        self._tokens = np.full(4096, first, np.int64)
        self.known = 0
        """Targets that have come."""

    def add(self, token: int) -> None:
        self.known += 1
        if self.known == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self.known] = token

    def since(self, start: int) -> np.ndarray:
        """The tokens before target `start`'s, and all that came after them."""
        return self._tokens[start : self.known + 1]


def log_softmax(logits: torch.Tensor, temperature: Temperature | None) -> np.ndarray:
    """(R, V) log-probabilities: what `log_probabilities` computes, each row alone."""
    raised = logits.double().numpy()
    if temperature:
        raised = raised / np.reshape(np.asarray(heat_of(temperature, logits), np.float64), (-1, 1))
    raised = raised - raised.max(1, keepdims=True)
    return raised - np.log(np.exp(raised).sum(1, keepdims=True))


class ChunkwiseNetwork:
    """The network in the scorer's windows, which learns from every chunk that has become final, if it is to adapt.

    Whatever chunks and spans are for the scorer they are here, so that the same weights and the same temperature stand
    behind every target. No clock is asked: stride and epochs are what the settings want, or what the plan says.
    """

    def __init__(self, model, settings: EvaluationSettings, byte_table, first: int, targets: int, plan: Plan):
        self.model, self.settings, self.plan = model, settings, plan
        # of the stream that was scored
        self.targets = plan.targets or targets
        self.history = History(first)
        self.temperature = policy(settings.temperature)
        self.adapter = make_adapter(model, settings, byte_table)
        self.chunk_tokens = span_chunk_tokens(settings)
        self.chunks = -(-self.targets // self.chunk_tokens) if self.chunk_tokens else 0
        self.learnt = 0
        self.wanted = wanted_by(settings)
        self.of_span: list[tuple[float, float]] = []
        self.first_pass_stands = False
        """From here on each target costs what non-overlapping windows of the fixed network say."""
        self._decoder()
        self._begin_span(0)

    def predict(self) -> np.ndarray:
        known = self.history.known
        if known == self.window.stop:
            self._next_window()
        if known == self.window.score_from:
            self.decoder.reset()
            logits = self.decoder.prefill(torch.from_numpy(self.history.since(self.window.start)[None]))
        else:
            logits = self.decoder.step(torch.from_numpy(self.history.since(known)))
        self.log_probs = log_softmax(logits, None if self.first_pass_stands else self.temperature)[0]
        return self.log_probs

    def observe(self, token: int) -> None:
        if self.temperature and self.temperature.learns:
            entropy = -float(np.exp(self.log_probs) @ self.log_probs)
            self.of_span.append((self.log_probs[token], entropy))
        self.history.add(token)

    def _decoder(self) -> None:
        """One with the weights as they are now."""
        if self.adapter is None or self.first_pass_stands:
            self.decoder = Decoder(self.model, 1, self.settings.window)
        else:
            with self.adapter.scoring_model() as model:
                self.decoder = Decoder(model, 1, self.settings.window)

    # ---- spans, as in ScoringPass

    def _begin_span(self, start: int) -> None:
        self.span_begun, self.decision = start, self.plan.decision(start, self.wanted)
        length = self.settings.window
        self.windows = windows_from(start, self.targets, length, self.decision.stride or length)
        self.window = next(self.windows, Window(0, 0, 0))
        if not self.decision.stride and not self.first_pass_stands:
            self.first_pass_stands = True
            self._decoder()
            begin = start // length * length
            self.window = Window(begin, min(begin + length, self.targets), start)
            self.windows = windows_from(self.window.stop, self.targets, length, length)

    def _next_window(self) -> None:
        window = next(self.windows)
        most = targets_per_span(self.settings.batch, self.decision.stride)
        if self.first_pass_stands or not begins_span(self.span_begun, window, self.chunk_tokens, most):
            self.window = window
            return
        self._learn_temperature()
        while self.learnt < self._final_chunks():
            self._learn_from_chunk()
            self.learnt += 1
        self._begin_span(window.score_from)

    def _final_chunks(self) -> int:
        return min(self.history.known // self.chunk_tokens, self.chunks - 1) if self.chunks else 0

    def _learn_temperature(self) -> None:
        if self.temperature and self.of_span:
            target, entropy = np.array(self.of_span).T
            self.temperature.learn(Statistics(-target, target, entropy, np.empty((len(target), 0))))
            self.of_span = []

    def _learn_from_chunk(self) -> None:
        start = self.learnt * self.chunk_tokens
        tokens = self.history.since(start)[: self.chunk_tokens + 1]
        if self.adapter and self.decision.epochs:
            self.adapter.learn(tokens, self.learnt, self.chunks, self.decision.epochs)
            self._decoder()
        if self.temperature:
            model = self.adapter.model if self.adapter else self.model
            self.temperature.calibrate(lambda rows: model.logits(torch.from_numpy(rows)), tokens, self.settings.window)


def wanted_by(settings: EvaluationSettings) -> Decision:
    """What every span gets where no clock presses."""
    epochs = settings.adaptation.epochs if settings.adaptation.method == "chunks" else 0
    return Decision(settings.stride if wants_main_pass(settings) else settings.window, epochs)
