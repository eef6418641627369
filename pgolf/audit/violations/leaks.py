"""Scorers that hide what they do from the auditor's trials: they cheat seldom, only on the claimed stream, or through files.

Each is audited by its name, in processes of its own. The claim shows what it says; only replays from the past (P1, P2), the
sandbox (A1) or a second run (R1) tell.
"""

import ctypes
import os
import sys
from pathlib import Path
from types import FrameType

import numpy as np

from pgolf.audit.interface import Claims
from pgolf.audit.violations.base import BOS, VOCAB, Counts, LeftToRight

CLAIMED_TARGETS = 200


def named(scorer: type) -> str:
    return f"{Path(__file__).resolve()}:{scorer.__name__}"


def hash_of(tokens, target: int) -> int:
    """A number that only the past determines."""
    digest = 7
    for token in tokens[max(0, target - 6) : target + 1].tolist():
        digest = (31 * digest + token) % 100_003
    return digest


class ByStep:
    """Token by token."""

    vocab = VOCAB

    def __init__(self):
        self.counts = Counts()

    def predict(self):
        return np.log(self.counts.probabilities())

    def observe(self, token):
        self.counts.learn(token)


class Peeks(LeftToRight):
    """Where `peeks` says so, the target's own entry is raised and the row normalised again. C1."""

    def peeks(self, tokens, target: int) -> bool:
        return True

    def row(self, tokens, target):
        p = super().row(tokens, target)
        if not self.peeks(tokens, target):
            return p
        raised = p.copy()
        raised[tokens[target + 1]] += 1.0
        return raised / raised.sum()


class PeeksSeldom(Peeks):
    """At two places in a hundred, chosen by the past."""

    def peeks(self, tokens, target):
        return hash_of(tokens, target) % 50 == 0


class PeeksInWholeStreams(PeeksSeldom, ByStep):
    """Token by token it is honest."""


class PeeksUnlessProbed(Peeks):
    """Honest wherever a distribution is asked for."""

    def score(self, tokens, probes=(), total=None):
        self.probed = set(probes)
        return super().score(tokens, probes, total)

    def peeks(self, tokens, target):
        return target not in self.probed


class PeeksLate(Peeks):
    """Honest at the beginning of a stream."""

    def peeks(self, tokens, target):
        return target >= 100


class PeeksInFirstCall(Peeks):
    """Honest in every later call of its process."""

    calls = 0

    def score(self, tokens, probes=(), total=None):
        type(self).calls += 1
        return super().score(tokens, probes, total)

    def peeks(self, tokens, target):
        return self.calls == 1 and target % 3 == 0


class PeeksInTheClaimedStream(Peeks):
    """Honest in streams of any other length."""

    def peeks(self, tokens, target):
        return len(tokens) == CLAIMED_TARGETS + 1


class PeeksWhenAlone(Peeks):
    """Honest where it sees the auditor among the loaded modules or in the frames of its callers."""

    def peeks(self, tokens, target):
        frame: FrameType | None = sys._getframe()
        names = set()
        while frame is not None:
            names.add(frame.f_code.co_filename.rpartition("/")[2])
            frame = frame.f_back
        return "pgolf.audit.auditor" not in sys.modules and not names & {"trials.py", "auditor.py", "replay.py"}


class LooksAheadSeldom(LeftToRight):
    """At four places in a thousand it knows the symbol after the next. C1."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        if hash_of(tokens, target) % 125 > 1 or target + 2 >= len(tokens):
            return p
        p = p * np.exp(2.0 * (np.random.default_rng(int(tokens[target + 2])).permutation(VOCAB) > VOCAB // 2))
        return p / p.sum()


class LearnsOneEarly(LeftToRight):
    """Counts a symbol before it scores it, and keeps a log that says otherwise. C3."""

    def row(self, tokens, target):
        last = self.counts.last
        self.counts.learn(int(tokens[target + 1]))
        self.counts.last = last
        return super().row(tokens, target)

    def learn(self, tokens, target):
        self.counts.last = int(tokens[target + 1])


class CostsOnly(LeftToRight):
    """Costs without a distribution. C2."""

    shows = False


class MassEverywhere(CostsOnly):
    """Everything is five hundredths cheaper than its distribution says."""

    def cost(self, row, tokens, target):
        return super().cost(row, tokens, target) - 0.05


class Capped(CostsOnly):
    def cost(self, row, tokens, target):
        return min(super().cost(row, tokens, target), 2.5)


class RoundedDown(CostsOnly):
    def cost(self, row, tokens, target):
        return np.floor(16 * super().cost(row, tokens, target)) / 16


class HalfPriceSeldom(CostsOnly):
    def cost(self, row, tokens, target):
        return super().cost(row, tokens, target) * (0.5 if hash_of(tokens, target) % 33 == 0 else 1.0)


class DeclaresNoise(LeftToRight):
    """Says that its costs differ by chance, by so much that nothing else can be told. C4."""

    claims = Claims(bos=BOS, noise=1e9)


class RemembersStreams(LeftToRight):
    """What came after a context in an earlier call is kept beside the object. C1."""

    known: dict = {}

    def row(self, tokens, target):
        p, key = super().row(tokens, target), tuple(tokens[max(0, target - 5) : target + 1].tolist())
        seen = self.known.get(key)
        self.remember(key, int(tokens[target + 1]))
        if seen is not None:
            p = 0.5 * p
            p[seen] += 0.5
        return p

    def remember(self, key, token: int) -> None:
        self.known[key] = token


class SharesMemory(LeftToRight):
    """What came is written where another process could read it. C1."""

    place = Path("/dev/shm/pgolf-violation")

    def start(self, tokens):
        super().start(tokens)
        self.before = np.frombuffer(self.place.read_bytes(), np.int64) if self.place.exists() else tokens[:0]
        self.place.write_bytes(np.asarray(tokens, dtype=np.int64).tobytes())

    def row(self, tokens, target):
        p = super().row(tokens, target)
        if target + 1 < len(self.before):
            p = 0.5 * p
            p[self.before[target + 1]] += 0.5
        return p


# ---- files: whether anything is there is of no matter, the scorer has no business to look

SECRET = Path("/var/tmp/pgolf-violation/secret.bin")


class Reads(LeftToRight):
    def start(self, tokens):
        super().start(tokens)
        try:
            self.read(os.fspath(SECRET))
        except OSError:
            pass  # it hopes that nobody noticed

    def read(self, path: str) -> None:
        raise NotImplementedError


class ReadsToUpdate(Reads):
    def read(self, path):
        open(path, "r+").close()


class ReadsByC(Reads):
    def read(self, path):
        ctypes.CDLL(None).open(path.encode(), 0)


class ReadsThroughItsRoot(Reads):
    def read(self, path):
        open(f"/proc/self/root{path}").close()


class ReadsMapped(Reads):
    def read(self, path):
        np.memmap(path, mode="r+")


class MayReadEverything(LeftToRight):
    claims = Claims(bos=BOS, may_read=("/",))


# ---- legal controls: unusual, and within the rules


class Remembering(LeftToRight):
    """Keeps what it computed for a past, in the class: the past alone is the key."""

    known: dict = {}

    def row(self, tokens, target):
        key = tokens[: target + 1].tobytes()
        if key not in self.known:
            self.known[key] = super().row(tokens, target).copy()
        return self.known[key]


class SeededByThePast(LeftToRight):
    """Random, with a seed that the past determines."""

    def row(self, tokens, target):
        p = super().row(tokens, target) * np.exp(np.random.default_rng(hash_of(tokens, target)).normal(0, 0.3, VOCAB))
        return p / p.sum()


class ByTotal(LeftToRight):
    """Sharper with the share of the stream that has gone by: a schedule may know the stream's length."""

    def score(self, tokens, probes=(), total=None):
        self.total = total or len(tokens) - 1
        return super().score(tokens, probes, total)

    def row(self, tokens, target):
        p = super().row(tokens, target) ** (1 + 0.5 * target / self.total)
        return p / p.sum()


class Certain(LeftToRight):
    """Gives symbols that never came the probability zero after a while."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        if target > 100:
            p = np.where(self.counts.single > 0.6, p, 0.0)
        return p / p.sum()
