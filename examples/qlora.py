"""Adapters on a packed network (QLoRA, arXiv:2305.14314), and text from it: `python examples/qlora.py [--steps N] [--bits B]`.

The GPT of nanogpt.py is trained, its attention matrices are rounded to a few bits and packed, and adapters go on learning
through the codes. Then it writes: a window of 16 bytes is a product of few rows, which reads codes and no floats.
"""

import argparse
import sys

import torch
from nanogpt import GPT, Block, text_of_python, train
from torch import Tensor, nn
from torch.nn import functional as F

from pgolf.kernels import lora, lora_adam, lora_initial, pack, packed_matmul

WINDOW = 16


class PackedLinear(nn.Module):
    """x W^T + (x A^T) B^T with W as codes of `bits` bits and a scale for each row."""

    def __init__(self, weight: Tensor, bits: int, rank: int, seed: int):
        super().__init__()
        most = 2 ** (bits - 1) - 1
        scales = weight.abs().amax(1) / most
        self.packed = pack((weight / scales[:, None]).round().to(torch.int8), scales, bits)
        self.a = lora_initial(rank, weight.shape[1], seed=seed, device=weight.device)[None].requires_grad_()
        self.b = torch.zeros(1, len(weight), rank, device=weight.device, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(1, -1, x.shape[-1])
        return packed_matmul(x, self.packed) + lora(rows, None, self.a, self.b).view(*x.shape[:-1], -1)


def rounded(model: GPT, bits: int, rank: int = 4) -> list[PackedLinear]:
    """Puts packed matrices in place of the model's own."""
    layers = []
    for block in (part for part in model.blocks if isinstance(part, Block)):
        for name in ("qkv", "out"):
            layers.append(PackedLinear(getattr(block, name).weight.detach(), bits, rank, seed=len(layers)))
            setattr(block, name, layers[-1])
    return layers


def windows(data: Tensor, count: int, time: int) -> Tensor:
    places = torch.randint(len(data) - time - 1, (count,)).tolist()
    return torch.stack([data[place : place + time + 1] for place in places])


def recover(model: GPT, layers: list[PackedLinear], data: Tensor, steps: int, time: int) -> None:
    leaves = [factor for layer in layers for factor in (layer.a, layer.b)]
    first, second = ([torch.zeros_like(leaf) for leaf in leaves] for _ in range(2))
    count = torch.zeros(1, dtype=torch.int32, device=data.device)
    for _ in range(steps):
        rows = windows(data, 8, time)
        gradients = torch.autograd.grad(model(rows[:, :-1], rows[:, 1:]), leaves)
        lora_adam([leaf.detach() for leaf in leaves], gradients, first, second, count, lr=3e-3)


@torch.no_grad()
def write(model: GPT, start: Tensor, count: int) -> bytes:
    """The likeliest bytes after `start`."""
    text = start.tolist()
    for _ in range(count):
        text.append(int(model.logits(torch.tensor([text[-WINDOW:]], device=start.device))[0, -1].argmax()))
    return bytes(text)


def main(words: list[str] | None = None, *, time: int = 128) -> list[float]:
    """Losses as trained, rounded, and with adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(words)
    data, model = text_of_python().to(options.device), GPT(time=time).to(options.device)
    train(model, data, options.steps, time=time)
    model.requires_grad_(False)
    fixed = windows(data, 16, time)
    loss = lambda: F.cross_entropy(model.logits(fixed[:, :-1]).flatten(0, 1), fixed[:, 1:].flatten()).item()
    losses = [loss()]
    layers = rounded(model, options.bits)
    losses.append(loss())
    recover(model, layers, data, options.steps, time)
    losses.append(loss())
    print(f"nats a byte: {losses[0]:.3f}, rounded to {options.bits} bits {losses[1]:.3f}, with adapters {losses[2]:.3f}")
    print(write(model, data[:WINDOW], 64).decode(errors="replace"))
    return losses


if __name__ == "__main__":
    losses = main()
    sys.exit(0 if losses[2] < losses[1] else 1)
