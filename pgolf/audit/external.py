"""External scorers: every call is made in a process of its own, which sees the scorer's files and nothing of the audit.

ScorerProcess is one such process. ExternalScorer is the scorer as a subject of the trials (Subject in trials.py).
"""

import importlib.util
import json
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from pgolf.audit.interface import SECONDS_LIMIT, SIZE_LIMIT, AuditError, Claims, Scored, SeedRun
from pgolf.audit.sandbox import Observed, Sandbox, View
from pgolf.evaluation.stream import StreamError

RUNNER = Path(__file__).with_name("runner.py")
# what a process may take to load, and for one call beside the audit's own clock
LOADING_SECONDS, CALL_SECONDS = 120.0, 600.0
LONGEST_LINE = 1 << 26
LARGEST_ARRAY = 1 << 33
CODE = (".py", ".so", ".pyd")
KINDS = {"<f8", "<i8", "|u1"}


class ScorerFailed(AuditError):
    """The scorer raised an exception or its process ended; in one line."""


class ScorerSlow(ScorerFailed):
    """The scorer gave no answer in time."""


class ScorerProcess:
    """A scorer in a fresh process. Nothing that it gives is believed before its shape is checked."""

    def __init__(self, name: str, view: View):
        self._sandbox = Sandbox([sys.executable, "-u", str(RUNNER), name], view)
        assert self._sandbox.process.stdin and self._sandbox.process.stdout
        self._requests, self._answers = self._sandbox.process.stdin, self._sandbox.process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._buffer = bytearray()

    def describe(self) -> dict:
        return self._ask({"do": "describe"}, {}, LOADING_SECONDS)[0]

    def score(
        self, tokens: np.ndarray, probes: Sequence[int] = (), total: int | None = None, ranks: int = 1,
        seconds: float = CALL_SECONDS,
    ) -> Scored:  # fmt: skip
        request = {"do": "score", "probes": [int(probe) for probe in probes], "total": total, "ranks": ranks}
        answer, arrays = self._ask(request, {"tokens": np.asarray(tokens, dtype=np.int64)}, seconds)
        try:
            rows = zip(arrays["targets"].tolist(), arrays["rows"], answer["sizes"], strict=True)
            events = answer["events"]
            return Scored(
                arrays["nats"],
                {target: row[:size] for target, row, size in rows},
                None if events is None else [(str(kind), int(start), int(stop)) for kind, start, stop in events],
                answer["total"],
                {name.split(" ", 1)[1]: values for name, values in arrays.items() if name.startswith("remarkable ")},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ScorerFailed(f"the scorer's answer cannot be read: {error}") from None

    def begin(self) -> None:
        self._ask({"do": "begin"}, {})

    def step(self, token: int) -> np.ndarray:
        """(V,) log-probabilities of what comes after this token."""
        return self._ask({"do": "step", "token": int(token)}, {})[1]["row"]

    def ask(self, name: str, **arrays: np.ndarray):
        answer, returned = self._ask({"do": "ask", "name": name}, arrays)
        return returned["value"] if returned else answer["value"]

    def close(self) -> Observed:
        self._sandbox.close()
        return self._sandbox.observed()

    def __enter__(self) -> "ScorerProcess":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    # ---- messages, as in runner.py

    def _ask(self, request: dict, arrays: dict[str, np.ndarray], seconds: float = CALL_SECONDS) -> tuple[dict, dict]:
        described = [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()]
        self._deadline = time.monotonic() + seconds
        try:
            self._requests.write(json.dumps({**request, "arrays": described}).encode() + b"\n")
            for values in arrays.values():
                self._requests.write(values.tobytes())
            self._requests.flush()
        except OSError:
            pass  # it has ended; what it said last is still to be read
        try:
            answer = json.loads(self._line())
            results = {name: self._array(kind, shape) for name, kind, shape in answer.pop("arrays")}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ScorerFailed(f"the scorer's answer cannot be read: {error}") from None
        if "error" in answer:
            if answer.get("kind") == "StreamError":
                raise StreamError(answer["error"].partition(": ")[2])
            raise ScorerFailed(str(answer["error"])[:300])
        return answer, results

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LONGEST_LINE:
                raise ScorerFailed("the scorer's answer is longer than any score")
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _array(self, kind: str, shape: list[int]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.float64)) * np.dtype(kind).itemsize
        if kind not in KINDS or not 0 <= size <= LARGEST_ARRAY:
            raise ScorerFailed("the scorer's answer holds an array of an unexpected kind")
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return np.frombuffer(data, dtype=kind).reshape(shape)

    def _more(self) -> None:
        ready, _, _ = select.select([self._answers], [], [], max(0.0, self._deadline - time.monotonic()))
        if not ready:
            raise ScorerSlow("the scorer gave no answer in time")
        chunk = os.read(self._answers.fileno(), 1 << 20)
        if not chunk:
            self._sandbox.process.wait()
            raise ScorerFailed(f"the scorer's process ended: {self._sandbox.complaint()}")
        self._buffer += chunk


class Processes:
    """Fresh processes of one scorer, and what they were seen doing.

    name      FILE.py:NAME or MODULE:NAME, as runner.py loads it
    files     what it may see beside installed libraries
    by_steps  whether it only goes token by token
    steps     whether it can, so that replays and decoding need not begin anew for every token
    """

    def __init__(
        self, name: str, files: Sequence[str], *, vocab: int, claims: Claims, by_steps: bool = False, steps: bool = False
    ):
        self.name, self.vocab, self.claims, self.by_steps, self.steps = name, vocab, claims, by_steps, steps
        self.sizes = {path: size_of(path) for path in files}
        # a folder that is too large for the rules is not shown at all
        self.view = View(tuple(path for path, size in self.sizes.items() if size <= SIZE_LIMIT))
        self.seen: set[str] = set()
        self.connected: set[str] = set()

    def start(self) -> ScorerProcess:
        """A fresh process; hand it to `finish`."""
        return ScorerProcess(self.name, self.view)

    def finish(self, process: ScorerProcess) -> None:
        observed = process.close()
        self.seen.update(observed.opened)
        self.connected.update(observed.connected)


class ExternalScorer(Processes):
    """One predictor, which another process loads by its name.

    As a subject of the trials it makes all calls in one process, which is not that of the claim or of any replay.
    """

    results = {"score": True}

    def __init__(self, name: str):
        located_name, code = located(name)
        # it is told nothing yet, so it may see everything: its claims say which files it needs
        self._describing = ScorerProcess(located_name, View(code, everything=True))
        self._trying: ScorerProcess | None = None
        try:
            self.described = self._describing.describe()
            vocab = self.described["vocab"]
            if not isinstance(vocab, int) or vocab < 2:
                raise AuditError("it has no `vocab`, the number of its symbols")
            if not self.described["whole"] and not self.described["steps"]:
                raise AuditError("it has neither score(tokens, probes, total) nor, as a class, predict() and observe(token)")
            claims = self._claims()
        except AuditError as error:
            self._describing.close()
            raise AuditError(f"{name} is no scorer: {error}") from None
        named = [os.path.abspath(path) for path in claims.may_read or ()]
        by_steps, steps = not self.described["whole"], self.described["steps"]
        super().__init__(located_name, (*code, *named), vocab=vocab, claims=claims, by_steps=by_steps, steps=steps)

    def close(self) -> None:
        self._describing.close()
        if self._trying is not None:
            self.finish(self._trying)
            self._trying = None

    # ---- a subject of trials

    def score(self, tokens, probes=(), total=None, ranks: int = 1) -> dict[str, Scored]:
        if self._trying is None:
            self._trying = self.start()
        return {"score": whole_stream(self._trying, self.by_steps, tokens, probes, total, ranks)}

    def on_ranks(self, ranks: int) -> "Spread | None":
        return Spread(self, ranks) if self.described["ranks"] and not self.by_steps else None

    def _claims(self) -> Claims:
        """What it says of itself; its functions are asked in the process that described it. Limits are the challenge's."""
        known = {one.name for one in fields(Claims)}
        plain = {name: value for name, value in self.described["claims"].items() if name in known}
        functions = [name for name in self.described["functions"] if name in known]
        try:
            plain["seeds"] = tuple(SeedRun(**one) for one in plain.get("seeds", ()))
            made = replace(Claims(**plain), **{name: self._function(name) for name in functions})
            return replace(
                made,
                size_limit=min(made.size_limit, SIZE_LIMIT),
                train_limit=min(made.train_limit, SECONDS_LIMIT),
                score_limit=min(made.score_limit, SECONDS_LIMIT),
            )
        except TypeError as error:
            raise AuditError(f"its claims cannot be read: {error}") from None

    def _function(self, name: str):
        if name == "bytes_of":
            return lambda tokens: self._describing.ask(name, tokens=np.asarray(tokens, np.int64))
        if name == "decode":
            return lambda tokens: self._describing.ask(name, tokens=np.asarray(tokens, np.int64)).tobytes()
        return lambda: [bytes.fromhex(one) for one in self._describing.ask(name, tokens=np.empty(0, np.int64))]


class Spread:
    """An external scorer on several ranks."""

    def __init__(self, scorer: ExternalScorer, ranks: int):
        self.scorer, self.ranks = scorer, ranks
        self.vocab, self.claims, self.results = scorer.vocab, scorer.claims, scorer.results

    def score(self, tokens, probes=(), total=None) -> dict[str, Scored]:
        return self.scorer.score(tokens, probes, total, self.ranks)


def whole_stream(
    process: ScorerProcess, by_steps: bool, tokens, probes=(), total=None, ranks: int = 1, seconds: float = CALL_SECONDS
) -> Scored:
    """Score a stream in a process. A scorer that goes by steps is sent a token after its distribution was received."""
    if not by_steps:
        return process.score(tokens, probes, total, ranks, seconds)
    wanted, rows = set(probes), {}
    nats, events = np.empty(len(tokens) - 1), []
    process.begin()
    for target, (token, after) in enumerate(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)):
        row = process.step(token)
        if target in wanted:
            rows[target] = row
        nats[target] = -row[after] if after < len(row) else np.inf
        events += [("commit", target, target + 1), ("learn", target, target + 1)]
    return Scored(nats, rows, events)


# ---- files


def located(name: str) -> tuple[str, tuple[str, ...]]:
    """The name with the file's whole path, and the files of the scorer's own code."""
    where, _, what = name.rpartition(":")
    if not where or not what:
        raise AuditError(f"{name!r} names no scorer; write MODULE:NAME or FILE.py:NAME")
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            raise AuditError(f"there is no file {path}")
        return f"{path}:{what}", code_beside(path)
    try:
        spec = importlib.util.find_spec(where.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise AuditError(f"there is no module {where!r} for the scorer {name}")
    origin = Path(spec.origin).resolve()
    if origin.name == "__init__.py":
        return name, (str(origin.parent),)
    return name, code_beside(origin)


def code_beside(path: Path) -> tuple[str, ...]:
    """A scorer's file, and the modules beside it that it may import."""
    others = [other for other in sorted(path.parent.iterdir()) if other != path]
    modules = [other for other in others if other.suffix in CODE or (other / "__init__.py").is_file()]
    return tuple(str(one) for one in (path, *modules))


def size_of(path: str) -> int:
    """Bytes in a file or a folder; beyond the challenge's limit it is not worth counting on."""
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
            if total > SIZE_LIMIT:
                return total
    return total
