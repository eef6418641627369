"""Batched Newton-Schulz orthogonalisation."""

import torch

from bench.benchmarks.registry import FORWARD, Benchmark, Place, benchmark
from pgolf.kernels import newton_schulz
from pgolf.kernels.newton_schulz import op as newton_schulz_op


def newton_schulz_benchmark(place: Place, form: str, batch: int, rows: int, columns: int):
    g = place.randn(batch, rows, columns)
    flat = [value for triple in newton_schulz_op.coefficient_table("classic", 5) for value in triple]
    plain = lambda: newton_schulz_op.iterate_torch(g, flat, place.dtype)
    peers = {"batched torch": plain}
    if place.on_gpu:
        peers["torch.compile"] = torch.compile(plain, fullgraph=True, dynamic=False)
    short, long = sorted((rows, columns))
    moved = 5 * batch * place.element * (4 * short * long + 4 * short * short)
    flops = 5 * batch * (3 * short * short * long + short**3)
    min_speedup = {"batched torch": 1.0 if place.on_gpu else 0.8}
    return Benchmark(
        lambda: newton_schulz(g), peers, (moved, flops), (batch, "matrices/s"), min_speedup=min_speedup, tolerance=5e-2
    )


for form, shape in (("square", (22, 512, 512)), ("wide", (22, 512, 2048))):
    on_cpu = {"cpu": (8, 192, 192)} if form == "square" else {}
    name = f"Newton-Schulz, {form}"
    benchmark(name, tiny=(2, 12, 20), full=shape, forms=(FORWARD,), **on_cpu)(newton_schulz_benchmark)
