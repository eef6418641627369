"""What can be audited: anything that turns a stream of tokens into what each of them cost.

    class Mine:
        vocab = 1024
        def score(self, tokens, probes=(), total=None) -> Scored: ...

or, token by token, a class of which a new object is made for every stream:

    class Mine:
        vocab = 1024
        def predict(self) -> (V,) log-probabilities      # of the next token, which it has not seen
        def observe(self, token): ...                    # the token that came; the stream's first one comes before any predict

`python -m pgolf.run audit --scorer FILE_OR_MODULE:NAME` and `audit(...)` take either. A class that has both is claimed by the
first and replayed by the second, which bounds what is not earned of the whole claim, not only of its beginning.

The first form has to give the whole distribution at every target in `probes`, and to work on a prefix of a stream: a replay
asks for one target with nothing but a random symbol after its past, and `total` still says how long the whole stream is. What
it gives may depend on the tokens before the target, on `total` and on its own files, on nothing else.

An external scorer runs in fresh processes that see the Python code beside it, the files and folders named in `may_read` (16 MB
at most) and installed libraries; /tmp is empty, there is no network, and only its arrays come out.

What a submission says beside its scores (bytes, seconds, files, documents) goes into its `claims`; what it does not claim
cannot be checked, and the test says so. The limits are the challenge's: a claim can tighten them, not loosen them.

Positions are those of targets: target i is token i + 1 of a stream, and is predicted from tokens 0..i.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pgolf.errors import PgolfError

# the challenge's
SIZE_LIMIT = 16_000_000
SECONDS_LIMIT = 600.0
# of the noise that a scorer may declare: below the 0.005 nats by which a record must be better
NOISE_CAP = 0.0049


class AuditError(PgolfError):
    """Something that cannot be audited, in one line."""


@dataclass(frozen=True)
class Scored:
    """What a scorer says of one stream of n targets."""

    nats: np.ndarray
    """(n,) float64: the cost of each target"""
    distributions: Mapping[int, np.ndarray] = field(default_factory=dict)
    """At each probed target, (V,): the log-probability of every symbol, of which the target's cost was read off. Without
    them nothing proves the costs, and the audit fails."""
    events: Sequence[tuple] | None = None
    """What happened, in order: ("commit", start, stop) when the costs of targets start..stop-1 became final, and
    ("learn", start, stop) when these targets changed any state that scores. None: it keeps no log."""
    total: float | None = None
    """The sum that is reported, if it is another than that of `nats`."""
    remarkable: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers of each target, by name, whose extremes are worth a look: entropies, weights of experts."""


class Scorer(Protocol):
    vocab: int

    def score(self, tokens: np.ndarray, probes: Sequence[int] = (), total: int | None = None) -> Scored:
        """`probes` are targets whose whole distribution is wanted. `total` is how many targets the stream would have had:
        a schedule may know the length of a stream. None: as many as there are."""


@dataclass(frozen=True)
class SeedRun:
    """One run of several with different seeds."""

    seed: int
    configuration: str
    """The same text for the same settings, hardware included."""
    score: float


@dataclass(frozen=True)
class Claims:
    """What a submission says of itself. None or empty: nothing, and the test does not apply."""

    bytes_of: Callable[[np.ndarray], np.ndarray] | None = None
    """The bytes that each target of a stream is counted for, (n,)."""
    decode: Callable[[np.ndarray], bytes] | None = None
    """The text of tokens: the yardstick for `bytes_of`."""
    original_bytes: int = 0
    """Bytes of the documents that the validation stream was made from."""
    bos: int | None = None
    """The token that opens documents."""
    isolated: bool = False
    """Documents are said to know nothing of each other."""
    across: Sequence[str] = ()
    """Predictors that do learn from one document to the next."""
    noise: float = 0.0
    """By how many nats the same target may differ between two runs of the same; NOISE_CAP at most."""
    may_read: Sequence[str] | None = None
    """The files that are open to it while it scores, beside installed libraries and its own code; folders count for all in
    them."""
    artifact_files: Sequence[str] = ()
    code_files: Sequence[str] = ()
    uncounted_bytes: int = 0
    """Of those files, what the rules do not count."""
    claimed_bytes: int | None = None
    """What the submission reports as its size."""
    size_limit: int = SIZE_LIMIT
    train_seconds: float | None = None
    train_limit: float = SECONDS_LIMIT
    train_parts: Mapping[str, float] = field(default_factory=dict)
    """Everything that training's seconds must cover: steps, calibration, rounding."""
    score_seconds: float | None = None
    score_limit: float = SECONDS_LIMIT
    score_parts: Mapping[str, float] = field(default_factory=dict)
    """Everything that happened between the scorer's start and its figure: loading, compiling, hints, scoring."""
    scored_targets: int | None = None
    """How many targets the reported score is over."""
    stream_targets: int | None = None
    """How many there are in the validation text."""
    training_documents: Callable[[], Iterable[bytes]] | None = None
    """Hashes of them."""
    validation_documents: Callable[[], Iterable[bytes]] | None = None
    canonical_documents: Callable[[], Iterable[bytes]] | None = None
    """Those that the validation text is meant to consist of, in their order; None: whatever it consists of."""
    canonical_count: int = 0
    """How many documents the validation text is meant to have."""
    shared_passages: Callable[[], float | None] | None = None
    """The share of the validation text in passages that also stand in a training document; None: it was not looked through."""
    documents_note: str = ""
    """Which part of the training documents was looked at, if not all."""
    seeds: Sequence[SeedRun] = ()


class Stepwise:
    """A scorer made of a class that goes token by token: that it commits before it learns is the auditor's doing."""

    def __init__(self, make: Callable, vocab: int, claims: Claims | None = None):
        self.make, self.vocab, self.claims = make, vocab, claims or Claims()

    def score(self, tokens, probes=(), total=None) -> Scored:
        predictor, wanted = self.make(), set(probes)
        predictor.observe(int(tokens[0]))
        nats, distributions, events = np.empty(len(tokens) - 1), {}, []
        for target, token in enumerate(tokens[1:].tolist()):
            log_probs = np.asarray(predictor.predict(), dtype=np.float64)
            if target in wanted:
                distributions[target] = log_probs.copy()
            nats[target] = -log_probs[token] if token < len(log_probs) else np.inf
            predictor.observe(token)
            events += [("commit", target, target + 1), ("learn", target, target + 1)]
        return Scored(nats, distributions, events)


def as_scorer(scorer, name: str = "the scorer") -> Scorer:
    """Whatever implements one of the two interfaces, as one that scores whole streams."""
    made = scorer() if isinstance(scorer, type) and hasattr(scorer, "score") else scorer
    if not isinstance(getattr(made, "vocab", None), int):
        raise AuditError(f"{name} has no `vocab`, the number of its symbols")
    if hasattr(made, "score"):
        return made
    if callable(made) and hasattr(made, "predict") and hasattr(made, "observe"):
        return Stepwise(made, made.vocab, getattr(made, "claims", None))
    raise AuditError(f"{name} has neither score(tokens, probes, total) nor, as a class, predict() and observe(token)")


def claims_of(scorer) -> Claims:
    return getattr(scorer, "claims", None) or Claims()
