"""The n-gram back-off's table of weights, learnt when a run is packed, on training text."""

import numpy as np

from pgolf.budget import Clock
from pgolf.config import EvaluationSettings
from pgolf.evaluation.planner import Steady
from pgolf.evaluation.predictors.ngram_backoff import Learnt, NgramBackoffPredictor
from pgolf.evaluation.scoring_pass import ScoringPass


def learn_ngram_table(model, tokens: np.ndarray, settings: EvaluationSettings, *, bos: int, device="cpu") -> Learnt:
    """The back-off's weights after one pass of the packed model over held-out text.

    On text that the model was trained on, the n-gram back-off would seem worth less than it is.
    """
    mixer = settings.mixer
    predictor = NgramBackoffPredictor(model.settings.vocab_size, mixer.orders, mixer.granularity)
    targets = len(tokens) - 1
    # a coarser stride than the score's: the table needs many tokens rather than the last bit of context
    stride = max(settings.stride, settings.window // 8)
    model.eval()
    one_pass = ScoringPass(model, tokens, [predictor], bos=bos, window=settings.window, batch=settings.batch, device=device)
    one_pass.run(Steady(Clock(), targets, stride))
    return predictor.learnt()
