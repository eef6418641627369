"""The chunked state-space scan of Mamba-2."""

from collections.abc import Callable
from functools import partial

import torch

from bench.benchmarks.registry import (
    BOTH,
    Benchmark,
    alike,
    benchmark,
    compiled,
    first_peer,
    not_installed,
    split,
    without_gpu,
)
from pgolf.kernels.scan import launch as scan_launch
from pgolf.kernels.scan import scan
from pgolf.kernels.scan.reference import scan_chunked, scan_reference


@benchmark("scan", tiny=(1, 70, 2, 1, 8, 4), cpu=(4, 256, 6, 6, 32, 16), full=(48, 2048, 8, 8, 128, 8))
def _(place, form, batch, length, heads, groups, width, size):
    v = place.randn(batch, length, heads, width, grad=True)
    b, c = (place.randn(batch, length, groups, size, grad=True) for _ in range(2))
    dt = (torch.rand(batch, length, heads, device=place.device) * 0.1).requires_grad_()
    a = (-torch.arange(1.0, heads + 1, device=place.device)).requires_grad_()

    def of_rates(form: Callable) -> Callable:
        """Mamba's way to say it: the decay's logarithm is a dt."""
        return lambda v, b, c, dt, a: form(v, b, c, dt, a * dt)

    eager = of_rates(partial(scan_chunked, chunk=scan_launch.CHUNK))
    peers = {**compiled(place, eager), "chunks in torch": eager}
    if place.size != "full":  # the loop keeps a state for every token
        peers["token by token in torch"] = of_rates(scan_reference)
    absent = without_gpu(place, "mamba-ssm", "flash-linear-attention")
    for name, module, peer in (("mamba-ssm", "mamba_ssm", mamba_ssm_scan), ("flash-linear-attention", "fla", fla_scan)):
        if place.on_gpu and not_installed(module):
            absent[name] = "not installed"
        elif place.on_gpu:
            peers[name] = peer
    ours, peers = split(alike(form, [v, b, c, dt, a], ours=of_rates(scan), **peers))
    shape = (batch * length, heads, groups, width, size, place.element)
    traffic = [scan_launch.traffic_forward(*shape)]
    if form == BOTH:
        traffic += [scan_launch.traffic_states(*shape), scan_launch.traffic_chunks(*shape)]
    work = tuple(map(sum, zip(*traffic, strict=True)))
    return Benchmark(ours, peers, work, (batch * length, "tokens/s"), absent=absent, min_speedup=first_peer(place, peers, 0.8))


def mamba_ssm_scan(v, b, c, dt, a):
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(v, dt, a, b, c, chunk_size=scan_launch.CHUNK)


def fla_scan(v, b, c, dt, a):
    """As linear attention with a decay for each head; it has no groups and no dt."""
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(c, b, v * dt[..., None].to(v.dtype), g=a * dt, scale=1.0)[0]
