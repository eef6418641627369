"""A GPT of one file with pgolf's operators in place of plain torch: `python examples/nanogpt.py [--steps N] [--device cuda]`.

The ten lines that call them are marked with <-. On a GPU they are Triton kernels, on a CPU plain torch or numba; gradients and
torch.compile(fullgraph=True) work in both. It learns the bytes of this Python's own license.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pgolf.kernels import attention, cross_entropy, mlp, rotary, rotary_table  # <-


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, dim // heads
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.width, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.gain = nn.Parameter(torch.ones(heads))
        self.up = nn.Parameter(torch.randn(4 * dim, dim) / dim**0.5)
        self.down = nn.Parameter(torch.randn(dim, 4 * dim) / (8 * dim) ** 0.5)

    def forward(self, x, cos, sin):  # x: (B, T, D)
        batch, time, _ = x.shape
        qkv = self.qkv(F.rms_norm(x, x.shape[-1:])).view(batch, time, -1, self.width)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)  # (B, T, heads, width)
        q, k = rotary(q, k, self.gain, cos, sin)  # <- QK-norm, RoPE and the gain in one pass
        y = attention(q, k, v.contiguous(), xsa=True)  # <- causal, grouped heads, exclusive self-attention
        x = x + self.out(y.flatten(2))
        return x + mlp(F.rms_norm(x, x.shape[-1:]), self.up, self.down)  # <- LeakyReLU squared between two products


class GPT(nn.Module):
    def __init__(self, vocab: int = 256, dim: int = 128, layers: int = 4, heads: int = 4, kv_heads: int = 2, time: int = 128):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads) for _ in range(layers))
        cos, sin = rotary_table(time, dim // heads, 10_000.0)  # <-
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def logits(self, tokens):  # (B, T)
        x, time = self.embed(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])
        return F.linear(F.rms_norm(x, x.shape[-1:]), self.embed.weight)

    def forward(self, tokens, targets):  # (B, T) both
        return cross_entropy(self.logits(tokens), targets, softcap=30.0)  # <- loss and gradient in one pass over the logits


def text_of_python() -> torch.Tensor:
    """Bytes that every Python has: its license, its help texts."""
    import pydoc_data.topics

    return torch.tensor(list(Path(pydoc_data.topics.__file__).read_bytes()[:500_000]))


def train(model: nn.Module, data: torch.Tensor, steps: int, batch: int = 8, time: int = 128) -> list[float]:
    if data.is_cuda:
        model = torch.compile(model, fullgraph=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        places = torch.randint(len(data) - time - 1, (batch,)).tolist()
        rows = torch.stack([data[place : place + time + 1] for place in places])
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {losses[-1]:.3f} nats a byte", flush=True)
    return losses


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    losses = train(GPT().to(options.device), text_of_python().to(options.device), options.steps)
    return 0 if losses[-1] < losses[0] else 1


if __name__ == "__main__":
    sys.exit(main())
