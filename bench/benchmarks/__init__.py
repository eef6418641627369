"""Every benchmark of an operator, a file a family; importing this package fills the registry."""

from bench.benchmarks import (
    attention,
    cross_entropy,
    hedge,
    logit_stats,
    lora,
    mlp,
    newton_schulz,
    ngram,
    packed,
    rotary,
    scan,
)
from bench.benchmarks.registry import (
    BENCHMARKS,
    BOTH,
    FORWARD,
    Benchmark,
    Entry,
    Place,
    disagreement,
    quiet_compiler,
    results_of,
)

FAMILIES = (attention, cross_entropy, hedge, logit_stats, lora, mlp, newton_schulz, ngram, packed, rotary, scan)

__all__ = [
    "BENCHMARKS",
    "BOTH",
    "FAMILIES",
    "FORWARD",
    "Benchmark",
    "Entry",
    "Place",
    "disagreement",
    "quiet_compiler",
    "results_of",
]
