"""Attention with exclusive self-attention (XSA), and XSA alone."""

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.benchmarks.registry import (
    BOTH,
    Benchmark,
    Place,
    alike,
    benchmark,
    compiled,
    first_peer,
    split,
    sum_of,
    without_gpu,
)
from pgolf.kernels import attention, xsa
from pgolf.kernels.attention import core as attention_core
from pgolf.kernels.attention import launch as attention_launch
from pgolf.kernels.attention import reference as attention_reference


def packed_documents(batch: int, length: int) -> list[int]:
    """Bounds of documents of uneven lengths, about a thousand tokens each at full size, in one row of batch x length."""
    bounds, sizes = [0], random.Random(3)
    while bounds[-1] < batch * length:
        bounds.append(min(batch * length, bounds[-1] + sizes.randrange(length // 8, length)))
    return bounds


def visible_pairs(bounds: list[int]) -> int:
    return sum(n * (n + 1) // 2 for n in (b - a for a, b in zip(bounds, bounds[1:], strict=False)))


def attention_benchmark(
    place: Place, form: str, batch: int, length: int, heads: int, kv_heads: int, dim: int, documents: bool
):
    ends = packed_documents(batch, length) if documents else []
    bounds = torch.tensor(ends, dtype=torch.int32, device=place.device) if documents else None
    rows, columns = (1, batch * length) if documents else (batch, length)
    q, k, v = (place.randn(rows, columns, count, dim, grad=True) for count in (heads, kv_heads, kv_heads))
    peers = {}

    def cored(core):
        return partial(attention, xsa=True, cu_seqlens=bounds, core=core)

    absent = {}
    if place.on_gpu:
        exclude = torch.compile(attention_reference.exclude, fullgraph=True, dynamic=False)

        def excluded(core, q, k, v):
            return exclude(attention(q, k, v, cu_seqlens=bounds, core=core), v)

        def in_one_graph(q, k, v):
            return attention_reference.exclude(attention(q, k, v, core="sdpa"), v)

        if not documents:  # torch's own would have to see a mask of all pairs
            peers["SDPA + XSA, torch.compile"] = torch.compile(in_one_graph, fullgraph=True, dynamic=False)
        peers["FlexAttention + XSA"] = flex_attention(q, bounds)
        for core, name in (("fa2", "FlashAttention-2"), ("fa3", "FlashAttention-3")):
            if attention_core.flash_module(core) is None:
                absent[name] = "not installed"
            else:
                peers[f"{name} + XSA"] = partial(excluded, core)
                peers[f"{name} + our XSA"] = cored(core)
    else:
        peers["reference"] = cored("reference")
        absent = without_gpu(place, "FlexAttention", "FlashAttention-2", "FlashAttention-3")
    core = "triton" if place.on_gpu or place.size == "tiny" else None
    ours, others = split(alike(form, [q, k, v], ours=cored(core), **peers))
    pairs = visible_pairs(ends) if documents else batch * length * (length + 1) // 2
    tokens, common = batch * length, (heads, kv_heads, dim, place.element)
    moved, flops = attention_launch.traffic_attention_fwd(tokens, pairs, *common, xsa=True)
    if form == BOTH:
        moved += tokens * (8 * heads + 4 * kv_heads) * dim * place.element
        flops += 10 * pairs * heads * dim  # what a backward pass has to compute; ours computes 14
    min_speedup = dict.fromkeys(others, 1.0) if place.on_gpu else {"reference": 1.05}
    min_speedup = {name: times for name, times in min_speedup.items() if "our XSA" not in name}
    return Benchmark(ours, others, (moved, flops), (tokens, "tokens/s"), absent, min_speedup, 3e-2)


def flex_attention(q: Tensor, bounds: Tensor | None) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    length = q.shape[1]
    if bounds is None:
        visible = lambda b, h, i, j: i >= j
    else:
        document = torch.searchsorted(bounds, torch.arange(length, device=q.device, dtype=torch.int32), right=True)
        visible = lambda b, h, i, j: (i >= j) & (document[i] == document[j])
    mask = create_block_mask(visible, None, None, length, length, device=q.device, _compile=True)

    def work(q, k, v):
        y = flex(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=True)
        return attention_reference.exclude(y.transpose(1, 2), v)

    return torch.compile(work, fullgraph=True, dynamic=False)


@benchmark("attention with XSA", tiny=(1, 24, 2, 1, 16), cpu=(2, 256, 3, 1, 64), full=(48, 2048, 8, 4, 64))
def _(place, form, *shape):
    return attention_benchmark(place, form, *shape, documents=False)


@benchmark("attention with XSA, eight key heads", tiny=(1, 24, 2, 2, 16), full=(48, 2048, 8, 8, 64))
def _(place, form, *shape):
    return attention_benchmark(place, form, *shape, documents=False)


@benchmark("attention with XSA, documents", tiny=(1, 24, 2, 1, 16), full=(48, 2048, 8, 4, 64))
def _(place, form, *shape):
    return attention_benchmark(place, form, *shape, documents=True)


@benchmark("XSA alone", tiny=(1, 24, 2, 1, 16), cpu=(8, 256, 3, 1, 64), full=(48, 2048, 8, 4, 64))
def _(place, form, batch, length, heads, kv_heads, dim):
    y, v = (place.randn(batch, length, count, dim, grad=True) for count in (heads, kv_heads))
    eager = attention_reference.exclude
    ours, peers = split(alike(form, [y, v], ours=xsa, **compiled(place, eager), reference=eager))
    traffic = partial(attention_launch.traffic_xsa, batch * length, heads, kv_heads, dim, place.element)
    min_speedup, per_call = first_peer(place, peers, 1.0), (batch * length, "tokens/s")
    return Benchmark(ours, peers, sum_of(traffic, form), per_call, min_speedup=min_speedup, min_roofline=0.6)
