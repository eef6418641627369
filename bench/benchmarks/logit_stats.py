"""Log-sum-exp, entropy, target and candidate log-probabilities in one pass over the logits."""

import torch

from bench.benchmarks.registry import FORWARD, Benchmark, Place, alike, benchmark, compiled, split
from pgolf.kernels import logit_stats
from pgolf.kernels.logit_stats import launch
from pgolf.kernels.logit_stats.reference import logit_stats_reference
from pgolf.kernels.tensors import exact_dtype

SOFTCAP = 30.0


def statistics_benchmark(place: Place, form: str, tokens: int, vocabulary: int):
    """From raw logits, softcap and all, as scoring has them."""
    logits, targets = place.randn(tokens, vocabulary), place.randint(vocabulary, tokens)
    candidates = place.randint(vocabulary, tokens, 4)
    ones = torch.ones(1, device=place.device, dtype=exact_dtype(place.device))

    def eager(logits):
        """The submissions' arithmetic: whole tables of log-probabilities, in float32."""
        capped = SOFTCAP * torch.tanh(logits.float() / SOFTCAP)
        log_probs = torch.log_softmax(capped, -1)
        target = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        picked = log_probs.gather(-1, candidates)
        return capped.logsumexp(-1), -(log_probs.exp() * log_probs).sum(-1), target, picked

    def fused(logits):
        return logit_stats_reference(logits.float(), targets, candidates, ones.float(), SOFTCAP)

    ours = lambda logits: tuple(logit_stats(logits, targets, candidates, softcap=SOFTCAP))
    works = alike(form, [logits], ours=ours, **compiled(place, fused), **{"submissions' eager": eager})
    ours, peers = split(works)
    work = launch.traffic_forward(tokens, vocabulary, 4, place.element, capped=True)
    min_speedup = {"submissions' eager": 1.5} | ({"torch.compile": 1.0} if place.on_gpu else {})
    # three of the special-function unit's instructions a logit: twice the memory's time on an H200
    return Benchmark(ours, peers, work, (tokens, "tokens/s"), min_speedup=min_speedup, min_roofline=0.35)


for size, vocabulary in (("small", 1024), ("medium", 4096), ("large", 8192)):
    on_cpu = {"cpu": (4096, 1024)} if size == "small" else {}
    name = f"logit statistics, {size} vocabulary"
    benchmark(name, tiny=(12, 40), full=(65_536, vocabulary), forms=(FORWARD,), **on_cpu)(statistics_benchmark)
