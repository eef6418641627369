"""Batched LoRA adapters of many documents: the product, their Adam step, their reset."""

import math

import torch

from bench.benchmarks.registry import BOTH, Benchmark, Place, alike, benchmark, compiled, first_peer, split
from pgolf.kernels import lora, lora_adam, lora_reset
from pgolf.kernels.lora.reference import lora_reference


def lora_benchmark(place: Place, form: str, docs: int, length: int, width: int, out: int, rank: int):
    x, a, b = (
        place.randn(docs, length, width, grad=True),
        *((place.randn(*shape) / shape[-1] ** 0.5).requires_grad_() for shape in ((docs, rank, width), (docs, out, rank))),
    )
    weight = place.randn(out, width) / width**0.5
    eager = lambda x, a, b: lora_reference(x, weight, a, b, 1.0, None)[0]
    works = alike(form, [x, a, b], ours=lambda x, a, b: lora(x, weight, a, b), **compiled(place, eager), reference=eager)
    ours, peers = split(works)
    rows, e = docs * length, place.element
    moved = e * (rows * (width + out + rank) + width * out + docs * rank * (width + out))
    flops = 2 * rows * (width * out + rank * (width + out))
    if form == BOTH:
        moved += e * (rows * (2 * width + 2 * out + 3 * rank) + width * out + 2 * docs * rank * (width + out))
        flops += 2 * rows * (width * out + 2 * rank * (width + out))
    return Benchmark(ours, peers, (moved, flops), (rows, "tokens/s"), min_speedup=first_peer(place, peers, 0.8))


LORA = {
    "rank 8": (64, 2048, 512, 512, 8),
    "rank 80": (64, 2048, 512, 512, 80),
    "rank 8, MLP": (64, 2048, 512, 2048, 8),
    "rank 8, short": (64, 48, 512, 512, 8),
    "rank 96, short": (64, 48, 512, 512, 96),
}
for detail, shape in LORA.items():
    on_cpu = {"cpu": (8, 256, 192, 192, 8)} if detail == "rank 8" else {}
    benchmark(f"LoRA, {detail}", tiny=(2, 6, 16, 16, 2), full=shape, **on_cpu)(lora_benchmark)


@benchmark("LoRA's Adam", tiny=(2, 2, 16, 2), cpu=(8, 33, 512, 8), full=(64, 33, 512, 80), forms=("step",))
def _(place, form, docs, sites, width, rank):
    """All adapters of a network in one step, beside torch's own fused Adam, whose state every document shares."""
    fresh = torch.float32
    shapes = [(docs, rank, width), (docs, width, rank)] * sites
    start, gradients = ([place.randn(*shape, dtype=fresh) for shape in shapes] for _ in range(2))
    ours_p, peer_p = ([tensor.clone() for tensor in start] for _ in range(2))
    first, second = ([torch.zeros_like(tensor) for tensor in start] for _ in range(2))
    steps = torch.zeros(docs, dtype=torch.int32, device=place.device)
    adam = torch.optim.Adam(peer_p, lr=0.01, betas=(0.9, 0.95), eps=1e-10, fused=True, capturable=place.on_gpu)

    def ours():
        lora_adam(ours_p, gradients, first, second, steps, lr=0.01, betas=(0.9, 0.95), eps=1e-10)
        return ours_p

    def fused():
        for parameter, gradient in zip(peer_p, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        return peer_p

    elements = sum(math.prod(shape) for shape in shapes)
    peer, work = "torch.optim.Adam(fused)", (28 * elements, 16 * elements)
    return Benchmark(ours, {peer: fused}, work, (elements, "weights/s"), min_speedup={peer: 0.9})


@benchmark("LoRA's fresh start", tiny=(2, 2, 16, 2), cpu=(8, 33, 512, 8), full=(64, 33, 512, 80), forms=("step",))
def _(place, form, docs, sites, width, rank):
    """All adapters and moments of a network as at the start, beside copy_ and zero_ on each of them."""
    tensors = lambda *shape: [place.randn(*shape, dtype=torch.float32) for _ in range(sites)]
    a, b, initial = tensors(docs, rank, width), tensors(docs, width, rank), tensors(rank, width)
    first, second = ([torch.randn_like(tensor) for tensor in (*a, *b)] for _ in range(2))
    steps = torch.ones(docs, dtype=torch.int32, device=place.device)

    def ours():
        lora_reset(a, b, initial, first, second, steps)
        return a, b, first, second, steps

    def plain():
        for tensor, start in zip(a, initial, strict=True):
            tensor.copy_(start)
        for tensor in (*b, *first, *second, steps):
            tensor.zero_()
        return a, b, first, second, steps

    peer, written = "copy_ and zero_", 4 * sum(tensor.numel() for tensor in (*a, *b, *first, *second))
    work = written, written // 4
    return Benchmark(ours, {peer: plain}, work, (written / 4, "weights/s"), min_speedup={peer: 1.0 if place.on_gpu else 0.9})
