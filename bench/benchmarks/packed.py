"""Packed 5- and 6-bit matrices: products with them, and their expansion."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.benchmarks.registry import (
    BOTH,
    FORWARD,
    Benchmark,
    Place,
    alike,
    benchmark,
    not_installed,
    split,
    without_gpu,
)
from pgolf.kernels import PackedMatrix, expand, packed_matmul
from pgolf.kernels.packed import launch as packed_launch
from pgolf.kernels.packed import reference as packed_reference


def packed_pair(place: Place, rows: int, columns: int, bits: int):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, columns), device=place.device, dtype=torch.int8)
    scales = (torch.rand(rows, device=place.device) + 0.5) / high
    packed = PackedMatrix(packed_reference.pack_codes(codes, bits), scales, bits, rows, columns)
    return packed, codes, (codes.float() * scales[:, None]).to(place.dtype)


def packed_benchmark(
    place: Place, form: str, tokens: int, rows: int, columns: int, bits: int, min_speedup: float, on_cpu: float = 0.8
):
    """min_speedup, on_cpu: the gate beside a dense product, on a GPU and on a CPU."""
    packed, codes, dense = packed_pair(place, rows, columns, bits)
    x = place.randn(tokens, columns, grad=True)
    peers: dict[str, Callable] = {"dense bf16" if place.on_gpu else "dense float32": lambda x: F.linear(x, dense)}
    absent = without_gpu(place, "gemlite", "torchao")
    if place.on_gpu and form == FORWARD:
        for name, make in (("gemlite", gemlite_linear), ("torchao", torchao_linear)):
            peer = make(codes, packed.scales)
            if callable(peer):
                peers[f"{name} (8 bits)"] = peer
            else:
                absent[name] = peer
    first = next(iter(peers))
    ours, others = split(alike(form, [x], ours=lambda x: packed_matmul(x, packed), **peers))
    moved, flops = packed_launch.traffic_matmul(tokens, rows, columns, bits, place.element)
    if form == BOTH:
        more = packed_launch.traffic_backward(tokens, rows, columns, bits, place.element)
        moved, flops = moved + more[0], flops + more[1]
    gate = {first: min_speedup if place.on_gpu else on_cpu}
    min_roofline = 0.7 if tokens == 1 and rows * columns >= 1 << 26 else 0.0
    return Benchmark(ours, others, (moved, flops), (tokens, "rows/s"), absent, gate, min_roofline)


def gemlite_linear(codes: Tensor, scales: Tensor) -> Callable | str:
    """Its nearest width that is whole (5 and 6 bits are experimental there): the codes in 8 bits."""
    if not_installed("gemlite"):
        return "not installed"
    from gemlite.core import DType, GemLiteLinear

    rows, columns = codes.shape
    layer = GemLiteLinear(8, group_size=columns, in_features=columns, out_features=rows,
                          input_dtype=DType.BF16, output_dtype=DType.BF16)  # fmt: skip
    layer.pack((codes.int() + 128).to(torch.uint8), scales[:, None].to(torch.bfloat16), 128, None)
    return lambda x: layer.forward(x)


def torchao_linear(codes: Tensor, scales: Tensor) -> Callable | str:
    """Weights in 8 bits, compiled, as its documentation has it."""
    if not_installed("torchao"):
        return "not installed"
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False, device=codes.device, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(codes.float() * scales[:, None])
    quantize_(layer, Int8WeightOnlyConfig())
    return torch.compile(layer, fullgraph=True, dynamic=False)


# what the target at one token is, beside dense bfloat16: what the best published kernel reaches at that width
for bits, wanted in ((6, 1.66), (5, 1.86)):
    common = {"tiny": (1, 16, 40, bits), "forms": (FORWARD,)}
    # on a CPU the large one is beyond the last cache, where packed codes have to win, and the layer within it
    sizes = {"full": (1, 8192, 8192, bits), **({"cpu": (1, 8192, 8192, bits)} if bits == 6 else {})}
    large = benchmark(f"packed GEMV, {bits} bits, large", **sizes, **common)
    large(partial(packed_benchmark, min_speedup=wanted, on_cpu=1.0))
    sizes = {"full": (1, 2048, 512, bits), "cpu": (1, 2048, 2048, bits)}
    layer = benchmark(f"packed GEMV, {bits} bits, a layer", **sizes, **common)
    layer(partial(packed_benchmark, min_speedup=2.0))


eight = {"tiny": (3, 16, 64, 6), "cpu": (8, 8192, 4096, 6), "full": (8, 2048, 512, 6)}
benchmark("packed product, 6 bits, 8 rows", **eight, forms=(FORWARD,))(partial(packed_benchmark, min_speedup=1.0, on_cpu=1.0))
benchmark("packed product, 6 bits, 32 rows", tiny=(3, 16, 64, 6), full=(32, 2048, 512, 6))(
    partial(packed_benchmark, min_speedup=1.0)
)


@benchmark("packed matrices expanded", tiny=(16, 40), cpu=(2048, 512), full=(8192, 4096), forms=(FORWARD,))
def _(place, form, rows, columns):
    packed, codes, dense = packed_pair(place, rows, columns, 6)
    eager = lambda: (codes.float() * packed.scales[:, None]).to(place.dtype)
    peers = {"codes in int8": eager}
    if place.on_gpu:
        peers = {"codes in int8, torch.compile": torch.compile(eager, fullgraph=True, dynamic=False)}
    work = packed_launch.traffic_expand(rows, columns, 6, place.element)
    min_speedup = {next(iter(peers)): 0.9}
    ours = lambda: expand(packed, place.dtype)
    return Benchmark(ours, peers, work, (rows * columns, "weights/s"), min_speedup=min_speedup, min_roofline=0.8)


CROSSOVER = "packed beside dense, 6 bits, 2,048 x 512"


def crossover_sizes() -> list[int]:
    """Rows of the input at which packed and dense products are compared."""
    return [2**power for power in range(15)]


def crossover_benchmark(place: Place, rows: int) -> Benchmark:
    shape = (rows, 16, 40, 6) if place.size == "tiny" else (rows, 2048, 512, 6)
    benchmark = packed_benchmark(place, FORWARD, *shape, min_speedup=0.0)
    benchmark.min_speedup, benchmark.figures = {}, {"crossover rows": rows}
    return benchmark
