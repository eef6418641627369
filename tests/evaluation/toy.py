"""A small causal model and a text with something to learn, for tests of scoring."""

from types import SimpleNamespace

import numpy as np
import torch

BOS = 1


class Toy:
    """Logits from the last two tokens, in float64. `on_forward` hears how many windows are forwarded."""

    def __init__(self, vocab=24, seed=0, strength=2.5, on_forward=lambda windows: None):
        generator = torch.Generator().manual_seed(seed)
        self.settings = SimpleNamespace(vocab_size=vocab, softcap=None)
        self.table = torch.randn(vocab, 12, generator=generator, dtype=torch.float64)
        self.out = strength * torch.randn(12, vocab, generator=generator, dtype=torch.float64) / 12**0.5
        self.on_forward = on_forward

    def eval(self):
        return self

    def hidden(self, tokens):
        self.on_forward(len(tokens))
        states = self.table[tokens]
        before = torch.zeros_like(states)
        before[:, 1:] = states[:, :-1]
        return torch.tanh(states + 0.5 * before)

    def raw_logits(self, hidden):
        return hidden @ self.out

    def logits(self, tokens):
        return self.raw_logits(self.hidden(tokens))


class Bytes:
    """Three bytes a token, none for BOS."""

    def count(self, previous, targets):
        return np.where(np.asarray(targets) == BOS, 0, 3).astype(np.int16)


def text(count, vocab=24, seed=0, document=170):
    """Documents of a Markov chain with few successors, some phrases of which come back."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(2, vocab, (vocab, 3))
    phrase = rng.integers(2, vocab, 30)
    tokens = [BOS]
    while len(tokens) < count + 1:
        if rng.random() < 1 / document:
            tokens.append(BOS)
        elif rng.random() < 0.03:
            tokens.extend(phrase)
        else:
            tokens.append(successors[tokens[-1], min(rng.geometric(0.6) - 1, 2)])
    found = np.array(tokens[: count + 1], dtype=np.uint16)
    found.setflags(write=False)
    return found
