"""Cases of C2, whose probabilities do not sum to one, and their legal controls."""

import numpy as np

from pgolf.audit.violations.base import VOCAB, Counts, LeftToRight, network, text

BUCKETS = 16
SHARE = 0.5
SHARP = network(2.0)


class HashRatio(LeftToRight):
    """V1: full[h(context, token)] / context[h(context)]: whatever shares a bucket with something frequent is frequent."""

    def start(self, tokens):
        super().start(tokens)
        self.full, self.context = np.zeros(BUCKETS), np.zeros(BUCKETS)

    def place(self, previous: int) -> int:
        return previous * 7 % BUCKETS

    def places(self, previous: int) -> np.ndarray:
        """The buckets of all symbols after `previous`."""
        return (previous * 7 + 5 * np.arange(VOCAB)) % BUCKETS

    def row(self, tokens, target):
        p, previous = super().row(tokens, target), int(tokens[target])
        seen = self.context[self.place(previous)]
        if not seen:
            return p
        return (1 - SHARE) * p + SHARE * np.minimum(self.full[self.places(previous)] / seen, 1)

    def learn(self, tokens, target):
        super().learn(tokens, target)
        previous, token = int(tokens[target]), int(tokens[target + 1])
        self.context[self.place(previous)] += 1
        self.full[self.places(previous)[token]] += 1


class HashRatioHidden(HashRatio):
    """V1 again, but it shows only the cost of what came."""

    shows = False


class BucketRows(HashRatio):
    """Legal: the bucket of the context alone holds a count of every symbol, which its sum divides."""

    def start(self, tokens):
        super().start(tokens)
        self.rows = np.zeros((BUCKETS, VOCAB))

    def row(self, tokens, target):
        p, counts = LeftToRight.row(self, tokens, target), self.rows[self.place(int(tokens[target]))]
        return (1 - SHARE) * p + SHARE * counts / counts.sum() if counts.sum() else p

    def learn(self, tokens, target):
        LeftToRight.learn(self, tokens, target)
        self.rows[self.place(int(tokens[target])), tokens[target + 1]] += 1


class PseudoDirichlet(HashRatioHidden):
    """V2: (n(context, token) + 2 q) / (n(context) + 2) would be a distribution if the first count were not hashed."""

    def row(self, tokens, target):
        p, previous = LeftToRight.row(self, tokens, target), int(tokens[target])
        return (self.full[self.places(previous)] + 2 * p) / (self.context[self.place(previous)] + 2)


class Dirichlet(BucketRows):
    """Legal: the same, over counts that belong together."""

    def row(self, tokens, target):
        p, counts = LeftToRight.row(self, tokens, target), self.rows[self.place(int(tokens[target]))]
        return (counts + 2 * p) / (counts.sum() + 2)


class EntropyExpert(LeftToRight):
    """V3: an expert that gives every symbol e^-H. The network is sure of itself, so that much of it is believed."""

    weight = 0.5

    def row(self, tokens, target):
        p = np.exp(SHARP[tokens[target]])
        return (1 - self.weight) * p + self.weight * np.exp(np.sum(p * np.log(p)))


class EntropyExpertHidden(EntropyExpert):
    shows = False


class UniformExpert(EntropyExpert):
    """Legal: what is left of that expert when its mass is one."""

    def row(self, tokens, target):
        return (1 - self.weight) * np.exp(SHARP[tokens[target]]) + self.weight / VOCAB


class Cheapest(LeftToRight):
    """V10: of two experts, whichever was better afterwards."""

    shows = False

    def cost(self, row, tokens, target):
        token = int(tokens[target + 1])
        return -float(np.log(max(row[token], self.counts.unigrams()[token])))


class Average(LeftToRight):
    """Legal: both experts, weighted beforehand."""

    def row(self, tokens, target):
        return 0.5 * super().row(tokens, target) + 0.5 * self.counts.unigrams()


# ---- bytes: symbols spell one to three letters, and some are the beginning of others

LETTERS = 4
SPELLING = [""] * 2 + [
    "a", "b", "c", "d", "ab", "ac", "ad", "ba", "bc", "bd", "abc", "abd", "bac", "cab", "ca", "cb", "da", "db", "dab", "cad",
    "bad", "dc",
]  # fmt: skip
BYTES = [[ord(letter) - ord("a") for letter in spelling] for spelling in SPELLING]
LENGTHS = np.array([max(len(spelling), 1) for spelling in SPELLING])


class ByteCounts:
    """Frequencies of letters after the last one."""

    def __init__(self):
        self.pairs, self.last = np.full((LETTERS, LETTERS), 0.5), 0

    def walk(self, symbol: int) -> list[float]:
        """The probability of each letter of a symbol."""
        probabilities, last = [], self.last
        for letter in BYTES[symbol]:
            probabilities.append(self.pairs[last, letter] / self.pairs[last].sum())
            last = letter
        return probabilities

    def learn(self, symbol: int) -> None:
        for letter in BYTES[symbol]:
            self.pairs[self.last, letter] += 1
            self.last = letter


class Spelling(LeftToRight):
    def start(self, tokens):
        super().start(tokens)
        self.letters = ByteCounts()

    def learn(self, tokens, target):
        super().learn(tokens, target)
        self.letters.learn(int(tokens[target + 1]))


class SpreadOverBytes(Spelling):
    """V11: the model's p is spread as p^(1/n) over the n letters of a symbol, and each is mixed with the letters' own."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        each = p ** (1 / LENGTHS)
        spread = p.copy()
        for symbol in range(2, VOCAB):
            spread[symbol] = np.prod([0.5 * each[symbol] + 0.5 * q for q in self.letters.walk(symbol)])
        return spread


class MixedAsSymbols(Spelling):
    """Legal: the letters' opinion of whole symbols is normalised over all symbols, and mixed with the model's."""

    def row(self, tokens, target):
        p = super().row(tokens, target)
        spelt = np.array([np.prod(self.letters.walk(symbol)) if BYTES[symbol] else 0.0 for symbol in range(VOCAB)])
        return 0.5 * p + 0.5 * spelt / spelt.sum()


class NoEndOfSymbol(Spelling):
    """V12: the product over the letters, without an end: "a" and "ab" both take the whole of what begins with "a"."""

    shows = False

    def row(self, tokens, target):
        p = super().row(tokens, target)
        first = np.zeros(LETTERS)
        for symbol in range(2, VOCAB):
            first[BYTES[symbol][0]] += p[symbol]
        without_end = p.copy()
        for symbol in range(2, VOCAB):
            without_end[symbol] = first[BYTES[symbol][0]] * np.prod(self.letters.walk(symbol)[1:])
        return without_end


class TrainingOracle(HashRatio):
    """V28: the same ratio from tables that were filled in training and paid for in bytes. Paying does not help."""

    def start(self, tokens):
        super().start(tokens)
        known = text(2000, seed=5)
        for target in range(len(known) - 1):
            HashRatio.learn(self, known, target)
        self.counts = Counts()
        self.counts.learn(int(tokens[0]))


class TrainingCounts(LeftToRight):
    """Legal: counts from training, as a prior."""

    def start(self, tokens):
        super().start(tokens)
        for token in text(2000, seed=5):
            self.counts.learn(int(token))
        self.counts.last = int(tokens[0])


class Wasteful(LeftToRight):
    """Less than one: a code, but part of what it could say it never says."""

    def row(self, tokens, target):
        return 0.911 * super().row(tokens, target)
