"""Context mixing over the bytes of each token, with the network's distribution as one input (pgolf.evaluation.mixing)."""

import copy
import time
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from pgolf.evaluation.mixing.model import Model, append, begin, cost_of, follow, learn, new_model, probabilities, row_of
from pgolf.evaluation.mixing.tree import Tree, cumulate, token_tree
from pgolf.evaluation.predictors.base import Decisions, Predictor, Span
from pgolf.evaluation.primer import Primer
from pgolf.evaluation.statistics import Statistics

# tables of 2^n slots and runs, by the bytes that they are for
LEAST_SLOTS, MOST_SLOTS, LEAST_RUNS, MOST_RUNS = 16, 23, 20, 26
# tokens whose time is taken
PROBED = 8192


class ContextMixingPredictor(Predictor):
    """p(token) = the product of p(bit) along the token's path through the tree of all tokens' bytes. Each p(bit) mixes, in
    the logistic domain, what 44 contexts of bytes, words, lines and tokens have seen, three matches, and the network.

    Nothing is learnt before a token is known, so the probability of any token can be asked for: about 20 decisions for one,
    V - 1 for the whole row. Before the stream's first token it reads the primer's text, without a network.
    """

    name = "context_mixing"
    needs_logits = True
    document_local = False
    local_candidates = False

    def __init__(self, primer: Primer):
        self.primer = primer

    @classmethod
    def create(cls, vocab, mixer, ngram_table=None):
        """Without a primer a token's bytes are those of its number."""
        return cls(Primer([number.to_bytes(3, "big") for number in range(vocab)], np.empty(0, np.int64)))

    def primed_with(self, primer):
        return ContextMixingPredictor(primer)

    def __deepcopy__(self, memo):
        """Primer and tree are never changed."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, memo)
        other.before = self.before.copy()
        return other

    @cached_property
    def tree(self):
        return tree_of(tuple(self.primer.pieces))

    @cached_property
    def model(self):
        """After the primer."""
        return copy.deepcopy(primed(tuple(self.primer.pieces), self.primer.tokens.tobytes()))

    @cached_property
    def before(self):
        return np.zeros(len(self.primer.pieces) + 1)

    def begin(self, token):
        self._reserve(1)
        for byte in self.primer.pieces[token]:
            append(self.model, byte)

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        self._reserve(len(span))
        nats = np.empty(len(span))
        follow(self.model, self.tree, span.targets.astype(np.int64), np.ascontiguousarray(statistics.logits), nats)
        return nats

    def predict(self, log_probs):
        cumulate(self.tree, log_probs, self.before)
        row = np.empty(len(log_probs))
        row_of(self.model, self.tree, self.before, True, row)
        return row

    def decisions(self, log_probs):
        cumulate(self.tree, log_probs, self.before)
        begin(self.model)
        return Decisions(self._probability, self.tree)

    def observe(self, token, start=False):
        """The token after a `predict` or `decisions`."""
        self._reserve(1)
        cost_of(self.model, self.tree, token, self.before, True)
        learn(self.model, self.tree, token)

    def distributions(self, span, statistics, at, log_probs):
        predictor, done, rows = copy.deepcopy(self), 0, []
        for place, row in zip(at, log_probs, strict=True):
            if done < place:
                predictor.score(span[done:place], statistics[done:place])
                done = place
            rows.append(predictor.predict(row))
        return np.stack(rows)

    def _probability(self, node: int, step: int) -> float:
        said = np.empty(1, np.float32)
        probabilities(self.model, self.tree, np.array([node]), step, 0, self.before, True, said)
        return float(said[0])

    def _reserve(self, tokens):
        """Room for the bytes of so many tokens, beside those of the paths on which the model looks ahead."""
        needed = int(self.model.states[0, 0]) + (tokens + 2) * int(self.tree.depth.max()) + 64
        if needed > len(self.model.text):
            self.model = self.model._replace(text=np.concatenate([self.model.text, np.zeros(needed, np.uint8)]))


@lru_cache(2)
def tree_of(pieces: tuple[bytes, ...]) -> Tree:
    return token_tree(pieces)


@lru_cache(1)
def primed(pieces: tuple[bytes, ...], text: bytes) -> Model:
    """A model that has read the text (its tokens as int64). An audit begins many streams with it: whoever goes on takes a
    copy."""
    tokens, tree = np.frombuffer(text, np.int64), tree_of(pieces)
    size = int(np.diff(tree.first)[tokens].sum())
    bits = size.bit_length()
    slots, runs = min(max(bits + 1, LEAST_SLOTS), MOST_SLOTS), min(max(bits + 4, LEAST_RUNS), MOST_RUNS)
    model = new_model(tree, size + (1 << 16), runs, slots)
    read(model, tree, tokens)
    return model


def read(model: Model, tree: Tree, tokens: np.ndarray) -> None:
    """Learn from tokens without a network."""
    follow(model, tree, tokens, np.empty((0, len(tree.leaf)), np.float32), np.empty(len(tokens)))


def seconds_per_token(pieces: Sequence[bytes], tokens: np.ndarray) -> float:
    """What reading takes with the largest tables, measured on the end of the text after numba has compiled."""
    tree, part = tree_of(tuple(pieces)), tokens[-PROBED:].astype(np.int64)
    model = new_model(tree, 2 * int(np.diff(tree.first)[part].sum()), MOST_RUNS, MOST_SLOTS)
    # the first time numba compiles, and the tables get their memory
    for _ in range(2):
        begun = time.perf_counter()
        read(model, tree, part)
        seconds = time.perf_counter() - begun
    return seconds / max(len(part), 1)
