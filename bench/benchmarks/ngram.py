"""The n-gram back-off: counting contexts, mixing with the network, learning the weights."""

import torch

from bench.benchmarks.registry import FORWARD, Benchmark, Place, benchmark, first_peer
from bench.eager import ngram_backoff_in_dictionaries
from pgolf.kernels import LogitStats, NgramBackoff
from pgolf.kernels.ngram import launch, reference
from pgolf.kernels.tensors import exact_dtype

ORDERS = (1, 2, 3, 4)


def ngram_backoff_rows(place: Place, tokens: int, documents: int):
    stream = place.randint(64, tokens)
    bounds = torch.tensor([tokens * i // documents for i in range(documents + 1)], device=place.device)
    kind = exact_dtype(place.device)
    target = place.randn(tokens, dtype=kind) - 3
    known = LogitStats(target, target, target, place.randn(tokens, len(ORDERS), dtype=kind) - 2)
    return stream, bounds, known


@benchmark("n-gram counting", tiny=(60, 3), cpu=(4000, 8), full=(65_536, 64), forms=(FORWARD,))
def _(place, form, tokens, documents):
    """Document-local counts of four orders, beside a dictionary for each order in Python."""
    stream, bounds, _ = ngram_backoff_rows(place, tokens, documents)
    ngram_backoff = NgramBackoff(ORDERS, device=place.device)
    starts = [False] * tokens
    for document in range(documents):
        starts[tokens * document // documents] = True

    def ours():
        evidence = ngram_backoff.evidence(stream, bounds)
        return torch.stack([evidence.hits, evidence.total], -1).flatten(1)

    def plain():
        counts = ngram_backoff_in_dictionaries(stream.tolist(), starts, ORDERS)
        return torch.tensor(counts, device=place.device, dtype=torch.int32)

    peer, work = "dictionaries in Python", launch.traffic_evidence(tokens, max(ORDERS), len(ORDERS))
    return Benchmark(ours, {peer: plain}, work, (tokens, "tokens/s"), min_speedup={peer: 3.0}, tolerance=0.0)


@benchmark("n-gram mixing", tiny=(60, 3), cpu=(50_000, 100), full=(1 << 20, 1024), forms=(FORWARD,))
def _(place, form, tokens, documents):
    stream, bounds, known = ngram_backoff_rows(place, tokens, documents)
    ngram_backoff = NgramBackoff(ORDERS, device=place.device)
    evidence = ngram_backoff.evidence(stream, bounds)
    rows = (known.target, known.candidates, evidence.cell, evidence.hits, evidence.total, ngram_backoff.table)
    plain = lambda: reference.mix_reference(*rows)[0]
    peers = {"torch.compile": torch.compile(plain, fullgraph=True, dynamic=False)} if place.on_gpu else {}
    peers["the formula in torch"] = plain
    work = launch.traffic_mix(tokens, len(ORDERS))
    ours, min_speedup = lambda: ngram_backoff.mix(known, evidence).nll, first_peer(place, peers, 1.0)
    return Benchmark(ours, peers, work, (tokens, "tokens/s"), min_speedup=min_speedup, tolerance=1e-4)


@benchmark("n-gram weight learning", tiny=(60, 3), cpu=(300, 3), full=(16_384, 16), forms=(FORWARD,))
def _(place, form, tokens, documents):
    """Mixing while the weights are learnt, token by token: one thread of one program, because each step needs the last."""
    stream, bounds, known = ngram_backoff_rows(place, tokens, documents)
    evidence = NgramBackoff(ORDERS, device=place.device).evidence(stream, bounds)
    fresh = lambda: NgramBackoff(ORDERS, device=place.device)
    ours = lambda: fresh().mix_and_learn(known, evidence).nll

    def plain():
        ngram_backoff, rows = (
            fresh(),
            (known.target, known.candidates, evidence.cell, evidence.hits, evidence.total, evidence.group_starts),
        )
        state = [x.cpu() for x in (*rows, ngram_backoff.table, ngram_backoff.visits)]
        return reference.mix_online_reference(*state, [], ngram_backoff.floor)[0].to(place.device)

    peer, work = "the loop in Python", launch.traffic_mix_online(tokens, len(ORDERS))
    return Benchmark(ours, {peer: plain}, work, (tokens, "tokens/s"), min_speedup={peer: 4.0}, tolerance=1e-3)
