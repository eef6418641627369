"""What may watch a scoring pass: the top predictions that a report shows, and the audit."""

from collections.abc import Sequence

import numpy as np

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.predictors.temperature import Temperature
from pgolf.evaluation.statistics import Statistics
from pgolf.evaluation.windows import Window


class Observer:
    """Called at every span of a scoring pass, in the stream's order. It has no influence on any score. This one ignores
    all it is told; subclasses override what they need.

        before_span -> [forward, predictors score -> before_windows ...] -> commit -> after_span
    """

    def wanted(self, targets: np.ndarray) -> np.ndarray:
        """Indices into `targets` (n,), positions in the stream, of those whose logits `after_span` is to be given."""
        return np.empty(0, np.int64)

    def before_span(self, predictors: Sequence[Predictor], temperature: Temperature | None, start: int, stop: int) -> None:
        """Targets start..stop-1 are scored next, by predictors that move on with them: copy what must stay as it is."""

    def before_windows(self, predictor: Predictor, span: Span, windows: Sequence[Window], statistics: Statistics) -> None:
        """A published mixture, whose weights move within a span, scores these windows of it next."""

    def after_span(self, span: Span, statistics: Statistics, columns: dict[str, slice]) -> None:
        """The span is committed. `statistics.kept_logits` are those of its wanted targets; columns[name] are the candidates
        that predictor asked for."""
