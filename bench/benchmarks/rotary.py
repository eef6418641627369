"""Rotary embedding with QK-norm and gain."""

from functools import partial

import torch

from bench.benchmarks.registry import Benchmark, alike, benchmark, compiled, first_peer, split, sum_of
from pgolf.kernels import rotary, rotary_table
from pgolf.kernels.rotary import launch as rotary_launch
from pgolf.kernels.rotary import reference as rotary_reference


@benchmark("rotary with QK-norm", tiny=(1, 24, 2, 1, 16, 8), cpu=(8, 256, 3, 1, 64, 16), full=(48, 2048, 8, 4, 64, 16))
def _(place, form, batch, length, heads, kv_heads, dim, dims):
    q, k = (place.randn(batch, length, count, dim, grad=True) for count in (heads, kv_heads))
    gain = place.randn(heads, grad=True, dtype=torch.float32)
    cos, sin = rotary_table(length, dims, 10_000.0, device=place.device)
    eager = rotary_reference.rotary
    ours, peers = split(alike(form, [q, k, gain, cos, sin], ours=rotary, **compiled(place, eager), reference=eager))
    traffic = partial(rotary_launch.traffic_rotary, batch * length, heads, kv_heads, dim, place.element)
    return Benchmark(
        ours, peers, sum_of(traffic, form), (batch * length, "tokens/s"), min_speedup=first_peer(place, peers, 0.8)
    )
