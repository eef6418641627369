"""Calibration for GPTQ: for each matrix the second moment of its inputs over some text."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgolf.data import open_shard
from pgolf.model import Network
from pgolf.model.parameters import moment_names

TEMPERATURE = 0.8
# lengths of prefix that generation on a GPU rounds up to, so that few shapes occur
PREFIX_STEP = 64

Report = Callable[[float], None]


def hessians(model: Network, batches: Iterable[Tensor], *, head: bool = False) -> dict[str, Tensor]:
    """Per matrix, under its layer's name, the mean of x x^T over all positions of all batches (sequences, length).

    A layer that is executed twice gathers from both passes. head: the output matrix's input too.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    same: dict[str, list[str]] = {}

    def input_hook(site: str, layer: int, x: Tensor) -> None:
        names = moment_names(site, model.layers[layer].physical, model.settings.tied)
        if not names:
            return
        name, *others = names
        same[name] = others
        x = x.detach().flatten(0, -2).float()
        if name not in sums:
            sums[name] = torch.zeros(x.shape[1], x.shape[1], device=x.device)
        sums[name].addmm_(x.mT, x)
        counts[name] = counts.get(name, 0) + len(x)

    device = model.tok_emb.weight.device
    was_training = model.training
    model.eval()
    model.input_hook = input_hook
    try:
        with torch.no_grad():
            for tokens in batches:
                hidden = model.hidden(tokens.to(device))
                if head:
                    input_hook("head", 0, hidden)
    finally:
        model.input_hook = None
        model.train(was_training)
    means = {name: total / counts[name] for name, total in sums.items()}
    return means | {other: means[name] for name, others in same.items() for other in others}


def training_batches(shards: Sequence[Path], sequences: int, length: int, batch: int) -> Iterable[Tensor]:
    """So many sequences from the start of the training shards, one after another, in batches (B, length).

    As #688's loader has it, a sequence takes length + 1 tokens: inputs and targets overlap within it, not with the next.
    """
    wanted = sequences * (length + 1)
    pieces, count = [], 0
    for shard in sorted(shards, key=lambda path: path.name):
        pieces.append(np.asarray(open_shard(shard)[: wanted - count], dtype=np.int64))
        count += len(pieces[-1])
        if count == wanted:
            break
    tokens = torch.from_numpy(np.concatenate(pieces))
    if count <= length:
        return tokens[None].split(batch)
    return tokens[: count // (length + 1) * (length + 1)].view(-1, length + 1)[:, :-1].split(batch)


def generated_batches(
    model: Network, sequences: int, length: int, batch: int, *, seed: int, report: Report | None = None
) -> Iterable[Tensor]:
    """Text that the model writes itself, as in #1019: at temperature 0.8 from a random first token each; no data is read."""
    vocabulary = model.settings.vocab_size
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(sequences, length, dtype=torch.int64)
    tokens[:, 0] = torch.randint(vocabulary, (sequences,), generator=generator)
    draws = torch.rand(length, sequences, generator=generator, dtype=torch.float64)
    on_cpu = model.tok_emb.weight.device.type == "cpu"
    following = _by_decoder if on_cpu else _by_prefix
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for place, logits in enumerate(following(model, tokens), 1):
            tokens[:, place] = sample(logits.cpu(), draws[place])
            if report:
                report(place / length)
    model.train(was_training)
    return tokens.split(batch)


def sample(logits: Tensor, draws: Tensor) -> Tensor:
    """One token a row: where the cumulated probabilities pass the draw."""
    steps = (logits.double() / TEMPERATURE).softmax(-1).cumsum(-1)
    return (steps < draws[:, None] * steps[:, -1:]).sum(-1)


def _by_decoder(model: Network, tokens: Tensor) -> Iterable[Tensor]:
    from pgolf.model.decoder import Decoder

    decoder = Decoder(model, *tokens.shape)
    for place in range(tokens.shape[1] - 1):
        yield decoder.step(tokens[:, place])


def _by_prefix(model: Network, tokens: Tensor) -> Iterable[Tensor]:
    """Each prefix computed anew, which on a GPU is faster than steps with a cache; what follows the prefix is padding, which
    a causal network does not see."""
    device, length = model.tok_emb.weight.device, tokens.shape[1]
    # beyond the reference length the rotary base follows the window's, so that it must be the whole one
    step = PREFIX_STEP if length <= model.settings.rope_reference_length else length
    for place in range(length - 1):
        end = min(-(-(place + 1) // step) * step, length)
        at = torch.full((len(tokens), 1), place, device=device)
        yield model.logits(tokens[:, :end].to(device), positions=at)[:, 0]
