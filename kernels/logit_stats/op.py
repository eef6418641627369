"""Statistics of the logits as a registered operator: public function, launcher, registration."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.launch import capability_of, implement, next_power
from pgolf.kernels.logit_stats.launch import launch_forward
from pgolf.kernels.tensors import exact_dtype, require_tensors

MOST_CANDIDATES = 128


class LogitStats(NamedTuple):
    """Statistics of p = softmax(logits / temperature), one row a token."""

    lse: Tensor
    """(...): log sum_v exp(z_v), z = logits / temperature"""
    entropy: Tensor
    """(...): in nats"""
    target: Tensor
    """(...): log p[target]"""
    candidates: Tensor
    """(..., K): log p[candidate], -inf for an absent one"""


def logit_stats(
    logits: Tensor,
    targets: Tensor,
    candidates: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
) -> LogitStats:
    """Log-sum-exp, entropy and single log-probabilities of p = softmax(z) in one sweep over raw logits, with

        z = logits / temperature,    or softcap * tanh(logits / softcap) / temperature
        lse = log sum_v exp z_v      entropy = -sum_v p_v log p_v  (Shannon, in nats)
        target = log p[targets]      candidates = log p[candidates], -inf where a candidate is absent (-1)

    The softcap is that of Gemma 2 (arXiv:2408.00118). Nothing here is differentiable: scoring needs no gradient.

    Args:
        logits: (..., V); bfloat16, float16, float32 or float64. No copy in a wider dtype is made on a GPU.
        targets: (...), integer, each in 0..V-1.
        candidates: (..., K), integer, each in -1..V-1, K <= 128; None for none.
        temperature: a positive number, or a tensor with one number, or with one for each token (...).
        softcap: the bound of |z|; None where the logits have it already, or for none.

    Returns:
        Tensors shaped (...), (...), (...), (..., K): float64 on a CPU, float32 on a GPU. An id outside the vocabulary
        raises on a CPU; on a GPU, which cannot wait to say so, its log-probability is NaN.

    Example:
        >>> logits, targets = torch.randn(2, 16, 1024), torch.randint(1024, (2, 16))
        >>> nats = -logit_stats(logits, targets, softcap=30.0).target

    N tokens, e bytes a logit: moves N (V e + 8 K + 20) bytes for 6 N V FLOPs, one exponential a logit among them; with a
    softcap 11 N V, three of the special-function unit's.
    """
    require_tensors("logit_stats", {"logits": logits, "targets": targets}, {"candidates": candidates})
    if not logits.is_floating_point() or logits.dim() < 1:
        raise ValueError(
            f"logit_stats: logits are {logits.dtype} {tuple(logits.shape)}; they must be floating point, (..., V)"
        )
    batch, vocabulary = logits.shape[:-1], logits.shape[-1]
    if candidates is None:
        candidates = targets.new_empty((*targets.shape, 0), dtype=torch.int32)
    for name, ids, shape in (("targets", targets, targets.shape), ("candidates", candidates, candidates.shape[:-1])):
        if shape != batch or ids.is_floating_point():
            raise ValueError(
                f"logit_stats: logits {tuple(logits.shape)} want integer {name} for each of {tuple(batch)}, "
                f"not {ids.dtype} {tuple(ids.shape)}"
            )
    if candidates.shape[-1] > MOST_CANDIDATES:
        raise ValueError(f"logit_stats: {candidates.shape[-1]} candidates a token; at most {MOST_CANDIDATES} fit")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"logit_stats: softcap is {softcap}; it must be positive, or None for no softcap")
    exact = exact_dtype(logits.device)
    if not torch.is_tensor(temperature):
        if not temperature > 0:
            raise ValueError(f"logit_stats: temperature is {temperature}; it must be positive")
        temperature = torch.full((1,), float(temperature), dtype=exact, device=logits.device)
    elif temperature.numel() != 1 and temperature.shape != batch:
        raise ValueError(
            f"logit_stats: temperature {tuple(temperature.shape)} must hold one number, or one for each {tuple(batch)}"
        )
    count = targets.numel()
    lse, entropy, target, picked = torch.ops.pgolf.logit_stats(
        logits.detach().reshape(count, vocabulary),
        targets.reshape(count),
        candidates.reshape(count, candidates.shape[-1]),
        temperature.detach().to(exact).reshape(-1),
        0.0 if softcap is None else float(softcap),
    )
    lse, entropy, target = (x.reshape(batch) for x in (lse, entropy, target))
    return LogitStats(lse, entropy, target, picked.reshape(candidates.shape))


def forward_triton(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from pgolf.kernels.logit_stats import gpu

    logits = logits.float() if logits.dtype == torch.float64 else logits
    logits, targets, candidates = logits.contiguous(), targets.int().contiguous(), candidates.int().contiguous()
    temperature = temperature.float().contiguous()
    count, vocabulary = logits.shape
    lse, entropy, target = (logits.new_empty(count, dtype=torch.float32) for _ in range(3))
    picked = logits.new_empty(candidates.shape, dtype=torch.float32)
    if count:
        launch = launch_forward(vocabulary, capability_of(logits.device))
        gpu.logit_stats_kernel[(count,)](
            logits, targets, candidates, temperature, lse, entropy, target, picked, softcap, int(len(temperature) > 1),
            V=vocabulary, K=candidates.shape[1], BK=next_power(candidates.shape[1]), CAPPED=softcap > 0, **launch.options,
        )  # fmt: skip
    return lse, entropy, target, picked


def _forward_cpu(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """numba is imported with the first call, not with this module."""
    from pgolf.kernels.logit_stats import cpu

    return cpu.forward(*arguments)


def _fake_forward(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor, softcap: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    make = lambda shape: logits.new_empty(shape, dtype=exact_dtype(logits.device))
    count = logits.shape[0]
    return make(count), make(count), make(count), make(candidates.shape)


torch.library.define(
    "pgolf::logit_stats",
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature, float softcap)"
    " -> (Tensor lse, Tensor entropy, Tensor target, Tensor picked)",
)
implement("pgolf::logit_stats", "CPU", _forward_cpu)
implement("pgolf::logit_stats", "CUDA", forward_triton)
torch.library.register_fake("pgolf::logit_stats", _fake_forward)
