"""The n-gram back-off's table of weights, learnt before the score on text that is not the validation text."""

import numpy as np

from pgolf.budget import Clock
from pgolf.config import EvaluationSettings
from pgolf.evaluation.pipeline import Pass
from pgolf.evaluation.planner import Steady
from pgolf.evaluation.predictors.ngram_backoff import Learnt, NgramBackoffPredictor


def learn_ngram_table(model, tokens: np.ndarray, settings: EvaluationSettings, *, bos: int, device="cpu") -> Learnt:
    """What one pass of the packed model over held-out text teaches the n-gram back-off.

    The text should be none that the model has learnt by heart, or the n-gram back-off will seem worth less than it is.
    """
    mixer = settings.mixer
    predictor = NgramBackoffPredictor(model.settings.vocab_size, mixer.orders, mixer.granularity)
    targets = len(tokens) - 1
    # a coarser stride than the score's: the table needs many tokens rather than the last bit of context
    stride = max(settings.stride, settings.window // 8)
    one_pass = Pass(model.eval(), tokens, [predictor], bos=bos, window=settings.window, batch=settings.batch, device=device)
    one_pass.run(Steady(Clock(), targets, stride))
    return predictor.learnt()
