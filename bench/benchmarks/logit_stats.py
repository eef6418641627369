"""Log-sum-exp, entropy, target and candidate log-probabilities in one pass over the logits."""

import torch

from bench.benchmarks.registry import BOTH, FORWARD, Benchmark, Place, alike, benchmark, compiled, split
from pgolf.kernels import logit_stats
from pgolf.kernels.logit_stats import launch
from pgolf.kernels.logit_stats.reference import logit_stats_reference
from pgolf.kernels.tensors import exact_dtype


def statistics_benchmark(place: Place, form: str, tokens: int, vocabulary: int):
    logits, targets = place.randn(tokens, vocabulary, grad=True), place.randint(vocabulary, tokens)
    candidates = place.randint(vocabulary, tokens, 4)
    ones = torch.ones(1, device=place.device, dtype=exact_dtype(place.device))

    def eager(logits):
        """The submissions' arithmetic: whole tables of log-probabilities, in float32."""
        log_probs = torch.log_softmax(logits.float(), -1)
        target = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        picked = log_probs.gather(-1, candidates)
        return logits.float().logsumexp(-1), -(log_probs.exp() * log_probs).sum(-1), target, picked

    def fused(logits):
        return logit_stats_reference(logits.float(), targets, candidates, ones.float())

    ours = lambda logits: tuple(logit_stats(logits, targets, candidates))
    works = alike(form, [logits], ours=ours, **compiled(place, fused), **{"submissions' eager": eager})
    ours, peers = split(works)
    moved, flops = launch.traffic_forward(tokens, vocabulary, 4, place.element)
    if form == BOTH:
        more = launch.traffic_backward(tokens, vocabulary, 4, place.element)
        moved, flops = moved + more[0], flops + more[1]
    min_speedup = {"submissions' eager": 1.5 if form == FORWARD else 0.5} | ({"torch.compile": 1.0} if place.on_gpu else {})
    min_roofline = 0.7 if form == FORWARD else 0.0
    return Benchmark(ours, peers, (moved, flops), (tokens, "tokens/s"), min_speedup=min_speedup, min_roofline=min_roofline)


for size, vocabulary in (("small", 1024), ("medium", 4096), ("large", 8192)):
    on_cpu = {"cpu": (4096, 1024)} if size == "small" else {}
    name = f"logit statistics, {size} vocabulary"
    benchmark(name, tiny=(12, 40), full=(65_536, vocabulary), **on_cpu)(statistics_benchmark)
