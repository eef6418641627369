"""Tokens to bits and back, with what a predictor predicts for each of them. The range coder is constriction's."""

import math
from collections.abc import Callable
from typing import Protocol

import constriction
import numpy as np

from pgolf.errors import PgolfError
from pgolf.evaluation.predictors.base import Decisions

# the coder counts probabilities in 2^-24, and gives every symbol at least one
PRECISION = 24
# its last words may hold this many bits more than what they were written for
SLACK_BITS = 96


class CodecError(PgolfError):
    """A file that cannot be compressed, or a stream that cannot be turned back, in one line."""


class TokenPredictor(Protocol):
    def predict(self) -> np.ndarray | Decisions:
        """The next token's log-probabilities (V,), or its decisions."""

    def observe(self, token: int) -> None:
        """The token that came after a `predict`."""


def silent(share: float) -> None:
    """Progress is not shown."""


class Encoder:
    """Tokens with their distributions to the words of the range coder."""

    def __init__(self):
        self._coder = constriction.stream.queue.RangeEncoder()
        self._spent: list[float] = []

    def put(self, token: int, said: np.ndarray | Decisions) -> None:
        if isinstance(said, Decisions):
            for step, (decision, bit) in enumerate(said.path(token)):
                p = said.probability(decision, step)
                self._coder.encode(bit, model_of_bit(p))
                self._spent.append(-math.log(p if bit else 1 - p))
        else:
            self._coder.encode(token, model_of(said))
            self._spent.append(-said[token])

    def finished(self) -> tuple[bytes, float]:
        """The code, and what its tokens cost by their distributions, in nats."""
        return self._coder.get_compressed().astype("<u4").tobytes(), math.fsum(self._spent)


class Decoder:
    """The inverse. A code that cannot hold `count` tokens is refused, at the latest where it ends."""

    def __init__(self, code: bytes, count: int):
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))
        self._left, self.count, self.done = 8.0 * len(code) + SLACK_BITS, count, 0

    def get(self, said: np.ndarray | Decisions) -> int:
        try:
            token = self._by_decisions(said) if isinstance(said, Decisions) else self._from_row(said)
        except AssertionError:
            raise CodecError("the code is damaged: it stands for no token") from None
        if self._left < 0 or self.done == self.count:
            raise CodecError(
                f"the code ends after {self.done} of {self.count} tokens; it is damaged, or was made for another artifact"
            )
        self.done += 1
        return token

    def _from_row(self, log_probs: np.ndarray) -> int:
        token = int(self._coder.decode(model_of(log_probs)))
        self._spend(math.exp(log_probs[token]))
        return token

    def _by_decisions(self, said: Decisions) -> int:
        decision, step = 0, 0
        while decision >= 0:
            p = said.probability(decision, step)
            bit = int(self._coder.decode(model_of_bit(p)))
            self._spend(p if bit else 1 - p)
            decision, step = int(said.tree.child[decision, bit]), step + 1
        return -1 - decision

    def _spend(self, p: float) -> None:
        """What the coder really spends is no less: it has rounded the probability up by less than one unit."""
        self._left += math.log2(p + 2.0**-PRECISION)


def encode(predictor: TokenPredictor, tokens: np.ndarray, progress: Callable[[float], None] = silent) -> tuple[bytes, float]:
    """The code of the tokens, and what they cost by the predictor's own word, in nats."""
    coder = Encoder()
    for done, token in enumerate(map(int, tokens)):
        coder.put(token, predictor.predict())
        predictor.observe(token)
        progress(done / len(tokens))
    return coder.finished()


def decode(predictor: TokenPredictor, code: bytes, count: int, progress: Callable[[float], None] = silent) -> np.ndarray:
    """The `count` tokens of a code."""
    coder, tokens = Decoder(code, count), []
    for done in range(count):
        tokens.append(coder.get(predictor.predict()))
        predictor.observe(tokens[-1])
        progress(done / count)
    return np.array(tokens, np.int64)


def model_of(log_probs: np.ndarray) -> constriction.stream.model.Categorical:
    """What the coder makes of a distribution. `lazy` is as exact and quicker for a single symbol."""
    if np.isnan(log_probs).any():
        raise CodecError("the artifact's model predicts what is not a number; train and pack the run again")
    return constriction.stream.model.Categorical(np.exp(log_probs), lazy=True)


def model_of_bit(p: float) -> constriction.stream.model.Bernoulli:
    """`p` is the probability of a 1."""
    if not 0 < p < 1:
        raise CodecError("the artifact's model predicts what is not a probability; train and pack the run again")
    return constriction.stream.model.Bernoulli(p, perfect=False)


def believable(count: int, code_bytes: int, vocabulary: int) -> bool:
    """Whether a code of so many bytes can stand for so many tokens. The cheapest leaves one unit to each other symbol."""
    cheapest = (vocabulary - 1) / 2**PRECISION
    return count * cheapest <= 8 * code_bytes + SLACK_BITS
