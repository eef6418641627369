"""Cases of C1 (they use what comes later), C3 (they learn first) and C4 (they score more than once), and legal controls."""

import numpy as np

from pgolf.audit.interface import Claims, Scored
from pgolf.audit.violations.base import BOS, CHUNK, VOCAB, Chunked, Counts, LeftToRight


def tilted(p: np.ndarray, symbol: int, gain: float) -> np.ndarray:
    raised = p.copy()
    raised[symbol] *= np.exp(gain)
    return raised / raised.sum()


class GatedByTarget(LeftToRight):
    """V4: a hint fires only where the symbol that comes is of the hint's kind."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        hint = int(p.argmax())
        return tilted(p, hint, 2.0) if self.gate(tokens, target, hint) else p

    def gate(self, tokens, target, hint) -> bool:
        return int(tokens[target + 1]) % 2 == hint % 2


class GatedByPast(GatedByTarget):
    """Legal: the hint fires by what came before."""

    def gate(self, tokens, target, hint):
        return int(tokens[target]) % 2 == hint % 2


class GatedByItsProbability(LeftToRight):
    """V5: trust in the model follows the probability of what came."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        trust = 0.9 if self.sure(p, tokens, target) else 0.3
        return trust * p + (1 - trust) / VOCAB

    def sure(self, p, tokens, target) -> bool:
        return p[tokens[target + 1]] > 0.2


class GatedByConfidence(GatedByItsProbability):
    """Legal: by the probability of the likeliest symbol."""

    def sure(self, p, tokens, target):
        return p.max() > 0.2


class Slot(Chunked):
    """V6: a bias, optimised on the very window that it then scores. It keeps no log."""

    def score(self, tokens, probes=(), total=None):
        scored = super().score(tokens, probes, total)
        return Scored(scored.nats, scored.distributions)

    def commit(self, tokens, start, stop, probes):
        self.bias = np.log1p(np.bincount(self.window(tokens, start, stop), minlength=VOCAB))
        super().commit(tokens, start, stop, probes)

    def window(self, tokens, start, stop):
        return tokens[start + 1 : stop + 1]

    def row(self, tokens, target):
        raised = super().row(tokens, target) * np.exp(self.bias)
        return raised / raised.sum()


class LastWindowsSlot(Slot):
    """Legal: the bias that would have been best for the window before."""

    def window(self, tokens, start, stop):
        return tokens[max(0, start - CHUNK) + 1 : start + 1]


class TrainedBefore(LeftToRight):
    """V7: adapts to all of the text, then scores it."""

    def score(self, tokens, probes=(), total=None):
        scored = super().score(tokens, probes, total)
        return Scored(scored.nats, scored.distributions, [("learn", 0, len(tokens) - 1), *(scored.events or ())])

    def start(self, tokens):
        super().start(tokens)
        for token in tokens[1:]:
            self.counts.learn(int(token))
        self.counts.last = int(tokens[0])

    def learn(self, tokens, target):
        self.counts.last = int(tokens[target + 1])


class LastEpochCounts(Chunked):
    """V8: scores a chunk, learns from it, scores it again, and reports the second scores."""

    def chunk(self, tokens, start, stop, probes):
        self.commit(tokens, start, stop, set())
        self.study(tokens, start, stop)
        self.commit(tokens, start, stop, probes)
        self.study(tokens, start, stop)


class TwoEpochs(Chunked):
    """Legal: learns twice from a chunk whose scores are final."""

    def chunk(self, tokens, start, stop, probes):
        super().chunk(tokens, start, stop, probes)
        self.study(tokens, start, stop)


class TwoPasses(LeftToRight):
    """V9: fills its cache in a first pass, and scores everything again with all of it."""

    def score(self, tokens, probes=(), total=None):
        first = super().score(tokens)
        filled = self.counts
        nats, shown, events = np.empty(len(tokens) - 1), {}, list(first.events or ())
        for target in range(len(tokens) - 1):
            filled.last = int(tokens[target])
            row = filled.probabilities()
            nats[target] = -np.log(row[tokens[target + 1]])
            if target in probes:
                shown[target] = np.log(row)
            events.append(("commit", target, target + 1))
        return Scored(nats, shown, events)


class CalibratedOnText(LeftToRight):
    """V19: scales were set with the help of the validation text."""

    def score(self, tokens, probes=(), total=None):
        scored = super().score(tokens, probes, total)
        return Scored(scored.nats, scored.distributions, [("learn", 0, len(tokens) - 1), *(scored.events or ())])

    def start(self, tokens):
        super().start(tokens)
        self.scale = self.sample(tokens)

    def sample(self, tokens) -> float:
        return 1 + np.bincount(tokens, minlength=VOCAB).max() / len(tokens)

    def row(self, tokens, target):
        raised = super().row(tokens, target) ** self.scale
        return raised / raised.sum()


class CalibratedOnOwnText(CalibratedOnText):
    """Legal: with the help of a text that it wrote itself."""

    def score(self, tokens, probes=(), total=None):
        return LeftToRight.score(self, tokens, probes, total)

    def sample(self, tokens):
        return 1 + np.bincount(np.random.default_rng(3).integers(0, VOCAB, 500), minlength=VOCAB).max() / 500


class WarmedUpOnText(LeftToRight):
    """V20: takes steps on the first validation tokens to warm up its compiler, and forgets them again."""

    def score(self, tokens, probes=(), total=None):
        warm = Counts()
        for token in tokens[:9]:
            warm.learn(int(token))
        scored = super().score(tokens, probes, total)
        return Scored(scored.nats, scored.distributions, [("learn", 0, 8), *(scored.events or ())])


class WarmedUpOnNoise(LeftToRight):
    """Legal: on random tokens."""

    def score(self, tokens, probes=(), total=None):
        warm = Counts()
        for token in np.random.default_rng(0).integers(0, VOCAB, 8):
            warm.learn(int(token))
        return super().score(tokens, probes, total)


class ByDocument(LeftToRight):
    """Legal as it stands: documents are scored one after another, the state goes on."""

    def score(self, tokens, probes=(), total=None):
        self.start(tokens)
        nats, shown, events = np.empty(len(tokens) - 1), {}, []
        for start, stop in self.documents(tokens):
            self.enter(tokens, start)
            for target in range(start, stop):
                row = self.row(tokens, target)
                nats[target] = self.cost(row, tokens, target)
                if target in probes:
                    shown[target] = np.log(row)
                events.append(("commit", target, target + 1))
                self.learn(tokens, target)
                events.append(("learn", target, target + 1))
        return Scored(nats, shown, events)

    def documents(self, tokens) -> list[tuple[int, int]]:
        opened = [0, *(np.flatnonzero(tokens[1:-1] == BOS) + 1).tolist()]
        return list(zip(opened, [*opened[1:], len(tokens) - 1], strict=True))

    def enter(self, tokens, start: int) -> None:
        self.counts.last = int(tokens[start])


class SortedByLength(ByDocument):
    """V21: short documents first, and what they teach helps the long ones that stand before them."""

    def documents(self, tokens):
        return sorted(super().documents(tokens), key=lambda span: span[1] - span[0])


class Apart(ByDocument):
    """Legal: every document from the same beginning, in any order."""

    claims = Claims(bos=BOS, isolated=True)

    def documents(self, tokens):
        return sorted(super().documents(tokens), key=lambda span: span[0] - span[1])

    def enter(self, tokens, start):
        self.counts = Counts()
        self.counts.last = int(tokens[start])


class SmearedOverBorders(Apart):
    """V17: claims that documents know nothing of each other, but a gate mixes the token before the BOS into the first
    steps after it."""

    def enter(self, tokens, start):
        super().enter(tokens, start)
        if start:
            self.counts.single[tokens[start - 1]] += 1.0


class TailAgain(Chunked):
    """V26: windows that are cut off at the end score the last targets several times."""

    def score(self, tokens, probes=(), total=None):
        scored = super().score(tokens, probes, total)
        count = len(tokens) - 1
        again = min(8, count)
        events = [*(scored.events or ()), *[("commit", count - again, count)] * 3]
        sum_of_all = float(scored.nats.sum() + 3 * scored.nats[-again:].sum())
        return Scored(scored.nats, scored.distributions, events, sum_of_all)


class VocabularyOfTheText(LeftToRight):
    """V27: the number of symbols is taken from the validation text: its highest token, and one."""

    shows = False

    def row(self, tokens, target):
        p = super().row(tokens, target).copy()
        p[int(tokens.max()) + 1 :] = 0
        return p / p.sum()


class Neighbourly(LeftToRight):
    """Looks one target ahead, but only once in a while."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        return tilted(p, int(tokens[target + 2]), 1.0) if target % 4 == 0 and target + 2 < len(tokens) else p


# ---- company


class Moody(LeftToRight):
    """Does not score the same twice."""

    def start(self, tokens):
        super().start(tokens)
        self.mood = np.random.default_rng()

    def row(self, tokens, target):
        p = super().row(tokens, target) ** (1 + 0.01 * self.mood.random())
        return p / p.sum()


class RankLocal(Chunked):
    """Every rank learns from its own share only, so that the score depends on how many there are. Here: this rank's."""

    ranks = 1

    def on_ranks(self, ranks):
        other = type(self)()
        other.ranks = ranks
        return other

    def study(self, tokens, start, stop):
        share = (stop - start) // self.ranks
        super().study(tokens, stop - share, stop)
        self.events[-1] = ("learn", start, stop)


class OnAllRanks(RankLocal):
    """Legal: ranks tell each other what they saw."""

    def study(self, tokens, start, stop):
        Chunked.study(self, tokens, start, stop)


class OtherPath(LeftToRight):
    """Shows one distribution and is paid by another, a little sharper one."""

    def cost(self, row, tokens, target):
        sharper = row**1.05
        return -float(np.log(sharper[tokens[target + 1]] / sharper.sum())) * 0.98
