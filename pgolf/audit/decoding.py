"""The proof by decoding for external scorers: the beginning of the claimed stream as bits, and back.

Whoever encodes and whoever decodes asks a fresh process of the scorer for the same distributions: of a scorer that can go by
steps one after another, of any other by prefixes with an arbitrary last symbol. The decoder is given the bits, the first token
and two numbers; the process that it asks is told no token before it was decoded.
"""

import math
import time
from collections.abc import Callable

import constriction
import numpy as np

from pgolf.audit.external import Processes, ScorerFailed, ScorerProcess
from pgolf.audit.replay import Claim
from pgolf.evaluation.codec.coding import PRECISION, SLACK_BITS, CodecError, model_of


class Asked:
    """A process of the scorer as the predictor of one token after another."""

    def __init__(self, process: ScorerProcess, steps: bool, vocab: int, first: int, total: int):
        self.process, self.steps, self.vocab, self.total = process, steps, vocab, total
        self.known = [first]
        if steps:
            process.begin()

    def predict(self) -> np.ndarray:
        """(V,) log-probabilities of the next token; the stream's known tokens are all that the process was told."""
        if self.steps:
            row = self.process.step(self.known[-1])
        else:
            target = len(self.known) - 1
            scored = self.process.score(np.array([*self.known, 0]), [target], self.total)
            row = scored.distributions.get(target, np.empty(0))
        if row.shape != (self.vocab,) or np.isnan(row).any():
            raise ScorerFailed(f"at target {len(self.known) - 1:,} it shows no distribution")
        return row

    def observe(self, token: int) -> None:
        self.known.append(int(token))


def encode(scorer: Processes, tokens: np.ndarray, count: int, progress: Callable[[float], None]) -> bytes:
    process, coder = scorer.start(), constriction.stream.queue.RangeEncoder()
    try:
        asked = Asked(process, scorer.steps, scorer.vocab, int(tokens[0]), len(tokens) - 1)
        for done, token in enumerate(tokens[1 : count + 1].tolist()):
            coder.encode(token, model_of(asked.predict()))
            asked.observe(token)
            progress(done / count)
    finally:
        scorer.finish(process)
    return coder.get_compressed().astype("<u4").tobytes()


def decode(
    scorer: Processes, code: bytes, first: int, count: int, total: int, progress: Callable[[float], None]
) -> np.ndarray:
    process = scorer.start()
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(code, "<u4").astype(np.uint32))
    try:
        asked = Asked(process, scorer.steps, scorer.vocab, first, total)
        for done in range(count):
            asked.observe(coder.decode(model_of(asked.predict())))
            progress(done / count)
    finally:
        scorer.finish(process)
    return np.array(asked.known[1:])


def prove(scorer: Processes, claim: Claim, count: int, progress: Callable[[float], None] = lambda share: None) -> dict:
    """Code the first `count` tokens of a claim and decode them again, beside what the claim says that they cost."""
    begun = time.perf_counter()
    count = min(count, claim.targets)
    claimed = float(claim.nats[:count].sum()) / math.log(2)
    first = int(claim.tokens[0])
    proof = {"result": "score", "tokens": count, "claimed_bits": claimed if math.isfinite(claimed) else None, "said": ""}
    try:
        code = encode(scorer, claim.tokens, count, lambda share: progress(share / 2))
        back = decode(scorer, code, first, count, claim.targets, lambda share: progress((1 + share) / 2))
    except (ScorerFailed, CodecError, AssertionError) as error:
        return {**proof, "equal": False, "real_bits": None, "passed": False, "said": str(error)}
    # the first token, how many follow, and of how many
    header_bits = 8 * sum((max(number, 1).bit_length() + 6) // 7 for number in (first, count, claim.targets))
    equal = np.array_equal(back, claim.tokens[1 : count + 1])
    # the coder counts in units of 2^-24 and gives every symbol at least one
    allowed = claimed + header_bits + SLACK_BITS + count * scorer.vocab * 2.0**-PRECISION / math.log(2)
    real = 8 * len(code) + header_bits
    return {
        **proof,
        "equal": bool(equal),
        "code_bits": 8 * len(code),
        "header_bits": header_bits,
        "real_bits": real,
        "passed": bool(equal and real <= allowed),
        "seconds": time.perf_counter() - begun,
    }
