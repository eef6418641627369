"""The MLP with LeakyReLU squared."""

from bench.benchmarks.registry import BOTH, Benchmark, Place, alike, benchmark, compiled, first_peer, split
from pgolf.kernels import mlp
from pgolf.kernels.mlp.reference import mlp_reference


def mlp_benchmark(place: Place, form: str, tokens: int, width: int, hidden: int):
    x = place.randn(tokens, width, grad=True)
    up = (place.randn(hidden, width) / width**0.5).requires_grad_()
    down = (place.randn(width, hidden) / hidden**0.5).requires_grad_()
    ours, peers = split(alike(form, [x, up, down], ours=mlp, **compiled(place, mlp_reference), reference=mlp_reference))
    element = place.element
    moved = element * (tokens * (2 * width + 2 * hidden) + 2 * hidden * width)
    flops = 4 * tokens * hidden * width
    if form == BOTH:
        moved, flops = moved + element * (tokens * (4 * width + 5 * hidden) + 4 * hidden * width), 3 * flops
    return Benchmark(ours, peers, (moved, flops), (tokens, "tokens/s"), min_speedup=first_peer(place, peers, 0.9))


@benchmark("MLP", tiny=(20, 16, 32), cpu=(2048, 192, 576), full=(98_304, 512, 2048))
def _(place, form, *shape):
    return mlp_benchmark(place, form, *shape)


@benchmark("MLP, 3.5 wide", tiny=(20, 16, 32), full=(98_304, 512, 1792))
def _(place, form, *shape):
    return mlp_benchmark(place, form, *shape)
