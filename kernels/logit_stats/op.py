"""Statistics of the logits as a registered operator: public function, launchers, autograd."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.arguments import require_tensors
from pgolf.kernels.launch import capability_of, cdiv, implement, next_power
from pgolf.kernels.logit_stats.launch import launch_backward, launch_forward
from pgolf.kernels.logit_stats.reference import logit_stats_backward_reference
from pgolf.kernels.tensors import check_range, exact_dtype
from pgolf.kernels.threads import in_parallel

MOST_CANDIDATES = 16
# Logits of one group of rows on a CPU: small enough to stay in the cache.
CACHED_ELEMENTS = 131_072


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
) -> LogitStats:
    """Log-sum-exp, entropy and single log-probabilities of p = softmax(z), z = logits / temperature, in one sweep.

        lse = log sum_v exp z_v      entropy = -sum_v p_v log p_v  (Shannon, in nats)
        target = log p[targets]      candidates = log p[candidates], -inf where a candidate is absent (-1)

        stats = logit_stats(logits, targets)      # (B, T, V) and (B, T)
        nats = -stats.target.mean()

    Args:
        logits: (..., V), any softcap already applied; bfloat16, float16, float32 or float64.
        targets: (...), integer, each in 0..V-1.
        candidates: (..., K), integer, each in -1..V-1, K <= 16; None for none.
        temperature: a positive number, or a tensor with one number, or with one for each token (...).

    Returns:
        Tensors shaped (...), (...), (...), (..., K): float64 on a CPU, float32 on a GPU.

    Gradients flow to logits and to a temperature tensor. Saved for backward: the inputs, lse and entropy; backward
    reads the logits once more. An id outside the vocabulary raises on a CPU; on a GPU, which cannot wait to say so,
    its log-probability is NaN.

    N tokens, e bytes a logit: forward moves N (V e + 8 K + 20) bytes and computes 6 N V FLOPs, one exponential a
    logit among them; backward moves N (2 V e + 8 K + 28) bytes, (12 + 2 K) N V FLOPs.
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
        logits.reshape(count, vocabulary),
        targets.reshape(count),
        candidates.reshape(count, candidates.shape[-1]),
        temperature.to(exact).reshape(-1),
    )
    lse, entropy, target = (x.reshape(batch) for x in (lse, entropy, target))
    return LogitStats(lse, entropy, target, picked.reshape(candidates.shape))


# ---- on a CPU


def forward_cpu(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from pgolf.kernels.logit_stats import cpu

    count, vocabulary = logits.shape
    check_range(targets, 0, vocabulary - 1, "logit_stats: targets")
    check_range(candidates, -1, vocabulary - 1, "logit_stats: candidates")
    lse, entropy, target = (torch.empty(count, dtype=torch.float64) for _ in range(3))
    picked = torch.empty(candidates.shape, dtype=torch.float64)
    targets, candidates = targets.int().contiguous(), candidates.int().contiguous()
    rows = logits.detach().contiguous()
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    single = rows.dtype == torch.float32
    peaks = torch.empty(count) if single else rows.amax(1)
    tensors = (rows, peaks, targets, candidates, temperature.contiguous(), lse, entropy, target, picked)
    arrays = [x.detach().numpy() for x in tensors]
    share = max(1, cdiv(count, torch.get_num_threads()))
    group = max(1, CACHED_ELEMENTS // vocabulary)

    def sweep(first: int) -> None:
        stop = min(first + share, count)
        for begin in range(first, stop, group):
            own = [x[begin : min(begin + group, stop)] if len(x) == count else x for x in arrays]
            if single:
                cpu.row_maxima(*own[:2])
            cpu.logit_stats(*own)

    in_parallel(sweep, range(0, count, share))
    return lse, entropy, target, picked


def backward_cpu(
    logits: Tensor,
    targets: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    lse: Tensor,
    entropy: Tensor,
    *upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    d_logits = logits.new_empty(logits.shape)
    d_rows = torch.empty_like(lse)
    step = max(1, CACHED_ELEMENTS // max(1, logits.shape[1]))
    for begin in range(0, len(logits), step):
        here = slice(begin, begin + step)
        own = temperature[here] if len(temperature) > 1 else temperature
        d_logits[here], d_rows[here] = logit_stats_backward_reference(
            logits[here], targets[here], candidates[here], own, lse[here], entropy[here], *(x[here] for x in upstream)
        )
    return d_logits, d_rows


# ---- on a GPU


def forward_triton(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor
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
        gpu.logit_stats_fwd_kernel[(cdiv(count, launch.tiles["BR"]),)](
            logits, targets, candidates, temperature, lse, entropy, target, picked, count, int(len(temperature) > 1),
            V=vocabulary, K=candidates.shape[1], BK=next_power(candidates.shape[1]), **launch.options,
        )  # fmt: skip
    return lse, entropy, target, picked


def backward_triton(
    logits: Tensor,
    targets: Tensor,
    candidates: Tensor,
    temperature: Tensor,
    lse: Tensor,
    entropy: Tensor,
    *upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    from pgolf.kernels.logit_stats import gpu

    kind = logits.dtype
    logits = logits.float() if kind == torch.float64 else logits
    logits, targets, candidates = logits.contiguous(), targets.int().contiguous(), candidates.int().contiguous()
    temperature = temperature.float().contiguous()
    count, vocabulary = logits.shape
    d_logits, d_rows = torch.empty_like(logits), torch.empty_like(lse)
    if count:
        launch = launch_backward(vocabulary, capability_of(logits.device))
        gpu.logit_stats_bwd_kernel[(cdiv(count, launch.tiles["BR"]),)](
            logits, targets, candidates, temperature, lse, entropy, *(x.float().contiguous() for x in upstream),
            d_logits, d_rows, count, int(len(temperature) > 1), V=vocabulary, K=candidates.shape[1], **launch.options,
        )  # fmt: skip
    return d_logits.to(kind), d_rows


# ---- shapes, autograd, registration


def _fake_forward(
    logits: Tensor, targets: Tensor, candidates: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    make = lambda shape: logits.new_empty(shape, dtype=exact_dtype(logits.device))
    count = logits.shape[0]
    return make(count), make(count), make(count), make(candidates.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, targets, candidates, temperature = inputs
    lse, entropy, _, _ = output
    ctx.save_for_backward(logits, targets, candidates, temperature, lse, entropy)


def _backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    d_logits, d_rows = torch.ops.pgolf.logit_stats_backward(*ctx.saved_tensors, *upstream)
    temperature = ctx.saved_tensors[3]
    d_temperature = d_rows if len(temperature) > 1 else d_rows.sum(0, keepdim=True)
    return d_logits, None, None, d_temperature if ctx.needs_input_grad[3] else None


torch.library.define(
    "pgolf::logit_stats",
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature)"
    " -> (Tensor lse, Tensor entropy, Tensor target, Tensor picked)",
)
torch.library.define(
    "pgolf::logit_stats_backward",
    "(Tensor logits, Tensor targets, Tensor candidates, Tensor temperature, Tensor lse, Tensor entropy,"
    " Tensor d_lse, Tensor d_entropy, Tensor d_target, Tensor d_picked) -> (Tensor d_logits, Tensor d_rows)",
)
implement("pgolf::logit_stats", "CPU", forward_cpu)
implement("pgolf::logit_stats", "CUDA", forward_triton)
implement("pgolf::logit_stats_backward", "CPU", backward_cpu)
implement("pgolf::logit_stats_backward", "CUDA", backward_triton)
torch.library.register_fake("pgolf::logit_stats", _fake_forward)
torch.library.register_fake(
    "pgolf::logit_stats_backward",
    lambda logits, targets, candidates, temperature, lse, *rest: (logits.new_empty(logits.shape), lse.new_empty(lse.shape)),
)
torch.library.register_autograd("pgolf::logit_stats", _backward, setup_context=_setup_context)
