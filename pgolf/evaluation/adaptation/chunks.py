"""Score-first training on chunks: the whole network, or parts of it, learns from each chunk once its scores are final."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from pgolf.config import AdaptationSettings
from pgolf.distributed import World
from pgolf.model import Network, PerLayerNetwork, untie
from pgolf.model.layers import Layer
from pgolf.model.parameters import parameter


class ChunkAdapter:
    """A copy of the network that learns between chunks.

    sequence_length   chunks are cut into sequences of this many tokens, from their start; a shorter rest is left out
    byte_table        for byte-weighted losses: `count(tokens, next_tokens)`

    What is done with a chunk follows from the settings, the chunk and its number alone, so that it can be replayed. All
    ranks call `learn` with the same tokens and go in lockstep; each trains on its contiguous share of the sequences.
    """

    def __init__(
        self,
        model: Network,
        settings: AdaptationSettings,
        *,
        sequence_length: int,
        byte_table=None,
        world: World | None = None,
    ):
        if settings.byte_weighted and byte_table is None:
            raise ValueError("a byte-weighted adaptation needs a byte table")
        self.settings = settings
        self.chunk_tokens = settings.chunk_tokens
        self.sequence_length = sequence_length
        self.byte_table = byte_table
        self.world = world or World()
        self.device = model.tok_emb.weight.device
        self.seconds_per_epoch = 0.0
        """Of the last chunk that was learnt from; what a planner needs."""

        self._raw = (untie(model) if settings.untie else copy.deepcopy(model)).eval()
        self._learner = PerLayerNetwork(self._raw).eval()
        self.factors = {
            name: rate_factor(name, settings)
            for name in self._learner.named_weights()
            if learns(name, settings, self._raw.layers)
        }
        """The names of the weights that learn, and their share of the learning rate."""
        for name, weight in self._learner.named_weights().items():
            weight.requires_grad_(name in self.factors)
        self.trained = self._trained(self._learner)
        # never None, so that ranks which have nothing to train on still have something to average
        self._gradients = [torch.zeros_like(parameter) for parameter in self.trained]
        for trained, gradient in zip(self.trained, self._gradients, strict=True):
            trained.grad = gradient
        self._optimiser = self._make_optimiser()
        on_gpu = self.device.type == "cuda"
        self._loss = torch.compile(self._learner.loss, fullgraph=True, dynamic=False) if on_gpu else self._learner.loss

        self._scorer = self._raw
        self._average: list[torch.Tensor] = []
        if settings.polyak and not settings.polyak_in_place:
            self._scorer = copy.deepcopy(self._raw)
            self._average = self._trained(PerLayerNetwork(self._scorer))

    @property
    def model(self) -> Network:
        return self._raw

    @contextmanager
    def scoring_model(self) -> Iterator[Network]:
        yield self._scorer.eval()

    def learn(self, tokens: np.ndarray, index: int, total: int, epochs: int) -> int:
        """Train on chunk `index` of `total`; `tokens` are its targets and the one before them. Returns optimiser steps."""
        begun = time.perf_counter()
        inputs, targets, weights = self._sequences(tokens)
        rate = learning_rate(self.settings, index, total)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        plan = steps_of(len(inputs), self.world.size, self.settings.batch_sequences)
        self._learner.train(self.settings.training_mode)
        for _ in range(epochs):
            for shares in plan:
                start, stop = shares[self.world.rank]
                self._step(inputs[start:stop], targets[start:stop], weights[start:stop], shares)
        self._learner.eval()
        if self.settings.polyak and self.settings.polyak_in_place:
            self._replace_by_average()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds_per_epoch = (time.perf_counter() - begun) / max(epochs, 1)
        return epochs * len(plan)

    # ---- how it works

    def _trained(self, network: PerLayerNetwork) -> list[torch.Tensor]:
        weights = network.named_weights()
        return [weights[name] for name in self.factors]

    def _make_optimiser(self) -> torch.optim.Optimizer:
        settings = self.settings
        by_factor: dict[float, list] = {}
        for factor, weight in zip(self.factors.values(), self.trained, strict=True):
            by_factor.setdefault(factor, []).append(weight)
        groups = [{"params": weights, "factor": factor} for factor, weights in by_factor.items()]
        if settings.optimiser == "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, weight_decay=0.0)

    def _sequences(self, tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(inputs, targets, weights), each (sequences, sequence_length)."""
        count = (len(tokens) - 1) // self.sequence_length
        last = count * self.sequence_length
        before, after = tokens[:last], tokens[1 : last + 1]
        weights = self.byte_table.count(before, after) if self.settings.byte_weighted else np.ones(last)

        def rows(values: np.ndarray, kind) -> torch.Tensor:
            return torch.from_numpy(values.astype(kind).reshape(count, self.sequence_length)).to(self.device)

        return rows(before, np.int64), rows(after, np.int64), rows(weights, np.float32)

    def _step(self, inputs, targets, weights, shares: list[tuple[int, int]]) -> None:
        self._optimiser.zero_grad(set_to_none=False)
        if len(inputs):
            self._loss(inputs, targets, weights=weights if self.settings.byte_weighted else None).backward()
        for pending in self.world.start_average(self._gradients):
            pending.wait()
        busy = sum(stop > start for start, stop in shares)
        if busy < self.world.size:
            torch._foreach_mul_(self._gradients, self.world.size / busy)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip)
        self._optimiser.step()
        if self._scorer is not self._raw:
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        torch._foreach_lerp_([p.detach() for p in self._average], [p.detach() for p in self.trained], 1 - self.settings.polyak)

    @torch.no_grad()
    def _replace_by_average(self) -> None:
        """The average starts at the weights after the first chunk, and from then on takes their place after every chunk."""
        if not self._average:
            self._average = [parameter.detach().clone() for parameter in self.trained]
        self._follow()
        torch._foreach_copy_([p.detach() for p in self.trained], self._average)


def learning_rate(settings: AdaptationSettings, index: int, total: int) -> float:
    """Of chunk `index` of `total`, before the factors by role."""
    rate = settings.lr
    if settings.cosine:
        rate *= 0.5 * (1 + math.cos(math.pi * index / max(total - 1, 1)))
    return rate * (1 + settings.ramp * min(index / (0.3 * total), 1.0))


def steps_of(sequences: int, ranks: int, batch: int) -> list[list[tuple[int, int]]]:
    """For every step the span of sequences of each rank: contiguous shares, walked side by side. A span may be empty."""
    most = max(1, batch // ranks)
    shares = [(sequences * rank // ranks, sequences * (rank + 1) // ranks) for rank in range(ranks)]
    longest = max(stop - start for start, stop in shares)
    return [
        [(min(start + at, stop), min(start + at + most, stop)) for start, stop in shares] for at in range(0, longest, most)
    ]


def learns(name: str, settings: AdaptationSettings, layers: Sequence[Layer]) -> bool:
    """Whether a weight, by its per-layer name, is trained. `layers` are the executed ones.

    freeze_first  nothing of the first n layers moves
    train_last    of the rest of the network only scales (and an untied head) move with the last n layers

    What several layers share belongs to all of them: it is fixed if one of them is.
    """
    row = parameter(name)
    everywhere = not settings.train_last or row.scale or row.name == "lm_head.weight"
    if not name.startswith("blocks."):
        return everywhere
    number = int(name.split(".")[1])
    first = min(layer.index for layer in layers if number == (layer.physical if row.bank else layer.block))
    if first < settings.freeze_first:
        return False
    return everywhere or first >= len(layers) - settings.train_last


def rate_factor(name: str, settings: AdaptationSettings) -> float:
    """The share of the learning rate: output_lr for what writes into the residual stream, input_lr for what feeds the
    MLP, table_lr for the tables beside the token embedding, and 1."""
    row = parameter(name)
    return getattr(settings, row.rate) if row.rate else 1.0
