"""Training the adapters: one fused Adam step and one fused reset over every adapter of a model, document by document."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.kernels.launch import cdiv, implement
from pgolf.kernels.lora.launch import launch_update
from pgolf.kernels.lora.reference import adam_reference, bias_correction
from pgolf.kernels.tensors import require_tensors
from pgolf.kernels.threads import in_parallel

# weights from which a CPU shares Adam's work among its threads
WORTH_THREADS = 1 << 17


def lora_initial(
    rank: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """An initial A, uniform in ±1/√width.

    Args:
        rank, width: its shape
        seed: one for each place in the model that has adapters; every document that `lora_reset` starts afresh starts from
            the same numbers. Drawn on the CPU, so that a seed means the same numbers on every device
        dtype, device: of the result

    Returns:
        (rank, width)

    Example:
        >>> lora_initial(8, 512, seed=0).shape
        torch.Size([8, 512])
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rank, width, generator=generator, dtype=torch.float64) * 2 - 1
    return (uniform / width**0.5).to(device, dtype)


@torch.no_grad()
def lora_adam(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    active: Tensor | None = None,
) -> None:
    """One step of AdamW (Adam, arXiv:1412.6980; decoupled decay, arXiv:1711.05101), in place, of every tensor given, as one
    launch.

    All tensors have documents as their leading dimension and may differ in the rest; document d is at step steps[d].

        t = steps[d] += 1;   m = β₁ m + (1 - β₁) g;   v = β₂ v + (1 - β₂) g²
        p = p (1 - lr·decay) - lr · m/(1 - β₁ᵗ) / (√(v/(1 - β₂ᵗ)) + eps)

    Args:
        parameters, gradients: same shapes; each list has one dtype (float32, bfloat16 or float16)
        first, second: the moments m and v, same shapes, one dtype for both. bfloat16 halves their traffic, but rounds away a
            β₂ nearer to 1 than about 0.99. With betas[0] = 0, `first` is neither read nor written and may be an empty list
        steps: int32 (docs,), counted on the device
        lr: a number, or float32 (docs,) with one for each document
        betas: β₁ and β₂
        eps, weight_decay: numbers
        active: bool (docs,): documents where it is false keep parameters, moments and step untouched

    Example:
        >>> p, g, v, steps = torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32)
        >>> lora_adam([p], [g], [], [v], steps, lr=0.1, betas=(0.0, 0.99))
        >>> steps.tolist()
        [1, 1]

    State traffic is the cost: a parameter moves 2 e_p + e_g + 2 e_m bytes with betas[0] = 0 and 2 e_p + e_g + 4 e_m
    otherwise (20 and 28 where everything is float32, 12 and 16 where the moments and the gradient are bfloat16), for
    about 12 FLOPs.
    """
    docs = _documents("lora_adam", steps, active)
    lists = {"parameters": parameters, "gradients": gradients, "second": second}
    if betas[0]:
        lists["first"] = first
    for name, tensors in lists.items():
        _check_list("lora_adam", name, tensors, docs)
        if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in parameters]:
            raise ValueError(f"lora_adam: {name} must have the shapes of parameters, one tensor for each")
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise ValueError(f"lora_adam: all tensors of {name} must have one dtype")
    if betas[0] and first and first[0].dtype != second[0].dtype:
        raise ValueError(f"lora_adam: first is {first[0].dtype} but second is {second[0].dtype}; they must agree")
    if not 0 <= betas[0] < 1 or not 0 < betas[1] < 1:
        raise ValueError(f"lora_adam: betas must lie in [0, 1) and (0, 1); got {betas}")
    rates = lr if isinstance(lr, Tensor) else None
    if rates is not None and (rates.shape != steps.shape or rates.dtype != torch.float32):
        raise ValueError(f"lora_adam: a tensor lr must be float32 ({docs},); got {rates.dtype} {tuple(rates.shape)}")
    rate = 0.0 if rates is not None else float(lr)
    moments = list(first) if betas[0] else []
    torch.ops.pgolf.lora_adam(
        list(parameters), list(gradients), moments, list(second), steps, rates, rate, *betas, eps, weight_decay, active
    )


@torch.no_grad()
def lora_reset(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    initial: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Tensor,
    *,
    documents: Tensor | None = None,
) -> None:
    """Start documents afresh, in place, as one launch: A = initial A, B = 0, moments = 0, steps = 0.

    Args:
        a: tensors (docs, rank, in)
        b: tensors with documents leading
        initial: for each tensor of a the (rank, in) that every document starts from, in the same dtype (`lora_initial` draws
            one), so that a document's start depends neither on its place nor on its company
        first, second: the moments, any number of tensors (`first` is empty where betas[0] = 0)
        steps: int32 (docs,)
        documents: bool (docs,): which to reset; all if not given

    Example:
        >>> a, b, steps = torch.ones(2, 4, 8), torch.ones(2, 8, 4), torch.ones(2, dtype=torch.int32)
        >>> lora_reset([a], [b], [lora_initial(4, 8, seed=0)], [], [], steps)
        >>> bool((b == 0).all() and (steps == 0).all())
        True

    Writes each byte of the chosen documents once; reads only `initial`.
    """
    docs = _documents("lora_reset", steps, documents)
    for name, tensors in {"a": a, "b": b, "first": first, "second": second}.items():
        _check_list("lora_reset", name, tensors, docs)
    if [(tensor.shape[1:], tensor.dtype) for tensor in a] != [(tensor.shape, tensor.dtype) for tensor in initial]:
        raise ValueError("lora_reset: initial must hold, for each tensor of a, one document's worth in the same dtype")
    torch.ops.pgolf.lora_reset(list(a), list(initial), [*b, *first, *second, steps], documents)


def _documents(function: str, steps: Tensor, chosen: Tensor | None) -> int:
    require_tensors(function, {"steps": steps}, {"mask": chosen})
    if steps.dim() != 1 or steps.dtype != torch.int32:
        raise ValueError(f"{function}: steps must be int32 (docs,); got {steps.dtype} {tuple(steps.shape)}")
    if chosen is not None and (chosen.dtype != torch.bool or chosen.shape != steps.shape):
        raise ValueError(
            f"{function}: the mask of documents must be bool ({len(steps)},); got {chosen.dtype} {tuple(chosen.shape)}"
        )
    return steps.shape[0]


def _check_list(function: str, name: str, tensors: Sequence[Tensor], docs: int) -> None:
    if isinstance(tensors, Tensor):
        raise TypeError(f"{function}: {name} must be a list of tensors; put the one you have into brackets")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            require_tensors(function, {f"{name}[{i}]": tensor})
        if not tensor.dim() or tensor.size(0) != docs:
            raise ValueError(f"{function}: {name} must have {docs} documents leading; got {tuple(tensor.shape)}")
        if name != "gradients" and not tensor.is_contiguous():
            raise ValueError(f"{function}: {name} are updated in place and must be contiguous")


def _adam_cpu(
    parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor], steps: Tensor,
    rates: Tensor | None, rate: float, beta1: float, beta2: float, eps: float, weight_decay: float, active: Tensor | None,
) -> None:  # fmt: skip
    if all(x.dtype == torch.float32 for x in (*parameters, *gradients, *first, *second)):
        return _adam_numba(
            parameters, gradients, first, second, steps, rates, rate, beta1, beta2, eps, weight_decay, active
        )  # fmt: skip
    rows = slice(None) if active is None else active
    steps[rows] += 1
    precision = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    lr = (torch.full(steps.shape, rate, dtype=precision) if rates is None else rates.to(precision))[rows]
    for i, (p, g, v) in enumerate(zip(parameters, gradients, second, strict=True)):
        m = first[i] if beta1 else None
        new_p, new_m, new_v = adam_reference(
            p[rows], g[rows], None if m is None else m[rows], v[rows], steps[rows], lr, (beta1, beta2), eps, weight_decay
        )
        p[rows], v[rows] = new_p.to(p.dtype), new_v.to(v.dtype)
        if m is not None:
            m[rows] = new_m.to(m.dtype)


def _adam_numba(
    parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor], steps: Tensor,
    rates: Tensor | None, rate: float, beta1: float, beta2: float, eps: float, weight_decay: float, active: Tensor | None,
) -> None:  # fmt: skip
    """In float32. Each document is computed on its own, so its result has the same bits whatever else is in the batch."""
    from pgolf.kernels.lora import cpu

    steps += 1 if active is None else active
    docs = len(steps)
    gradients = [gradient.contiguous() for gradient in gradients]
    lists = (parameters, gradients, first if beta1 else [None] * len(parameters), second)
    addresses = np.array([[0 if x is None else x.data_ptr() for x in row] for row in zip(*lists, strict=True)], np.int64)
    lengths = np.array([p.numel() // docs for p in parameters], np.int64)
    numbers = np.full(docs, rate, np.float32) if rates is None else rates.numpy()
    taken = steps.tolist()
    of_step = {t: (bias_correction(beta1, t), bias_correction(beta2, t)) for t in set(taken)}
    corrections = np.array([of_step[t] for t in taken], np.float32)
    betas = [np.float32(x) for x in (beta1, 1 - beta1, beta2, 1 - beta2)]
    chosen = np.arange(docs) if active is None else np.flatnonzero(active.numpy())

    def work(documents: np.ndarray) -> None:
        cpu.adam(addresses, lengths, documents, numbers, corrections, *betas, np.float32(eps), np.float32(weight_decay))

    if len(parameters) and len(chosen):
        shares = torch.get_num_threads() if lengths.sum() * len(chosen) >= WORTH_THREADS else 1
        in_parallel(work, np.array_split(chosen, min(shares, len(chosen))))
    torch.autograd.graph.increment_version([*parameters, *first, *second])


def _reset_cpu(a: list[Tensor], initial: list[Tensor], cleared: list[Tensor], documents: Tensor | None) -> None:
    if documents is None:
        torch._foreach_copy_(a, [start.expand_as(tensor) for tensor, start in zip(a, initial, strict=True)])
        torch._foreach_zero_(cleared)
        return
    for tensor, start in zip(a, initial, strict=True):
        tensor[documents] = start
    for tensor in cleared:
        tensor[documents] = 0


@lru_cache(maxsize=32)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Addresses and lengths for a kernel that walks many tensors. Kept, because a loop that reuses its memory asks for the
    same table at every step; and pinned, so that the copy does not wait for the device."""
    return torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _launch_over(
    entries: Sequence[tuple[int, ...]], lengths: list[int], docs: int, device: torch.device
) -> tuple[tuple[int, int], Tensor, dict[str, Any]]:
    """(grid, table, constants) of a kernel over every document of a list of tensors: lengths[i] counts the elements that a
    document has in tensor i, entries[i] are four numbers for the kernel."""
    launch = launch_update()
    rows, blocks = [], 0
    for entry, length in zip(entries, lengths, strict=True):
        rows.append((*entry, length, blocks))
        blocks += cdiv(length, launch.tiles["BLOCK"])
    constants = {"BT": min(256, 1 << (len(rows) - 1).bit_length()), **launch.options}
    return (blocks, docs), _table(tuple(rows), device), constants


def _adam_triton(
    parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor], steps: Tensor,
    rates: Tensor | None, rate: float, beta1: float, beta2: float, eps: float, weight_decay: float, active: Tensor | None,
) -> None:  # fmt: skip
    import triton.language as tl

    from pgolf.kernels.lora.gpu import lora_adam_kernel

    steps += 1 if active is None else active
    docs = steps.shape[0]
    sized = [i for i, p in enumerate(parameters) if p.numel()]
    if not sized:
        return
    gradients = [gradient.contiguous() for gradient in gradients]
    entries = [
        (parameters[i].data_ptr(), gradients[i].data_ptr(), first[i].data_ptr() if beta1 else 0, second[i].data_ptr())
        for i in sized
    ]
    lengths = [parameters[i].numel() // docs for i in sized]
    aligned = all(address % 16 == 0 for entry in entries for address in entry) and all(n % 16 == 0 for n in lengths)
    grid, table, constants = _launch_over(entries, lengths, docs, steps.device)
    types = {name: getattr(tl, str(tensors[0].dtype).removeprefix("torch."))
             for name, tensors in (("P", parameters), ("G", gradients), ("S", second))}  # fmt: skip
    log_beta1 = math.log(beta1) if beta1 else 0.0
    lora_adam_kernel[grid](
        table, steps, rates, None if active is None else active.view(torch.uint8), len(sized), rate, weight_decay,
        beta1, beta2, 1 - beta1, 1 - beta2, log_beta1, math.log(beta2), eps,
        **types, FIRST=beta1 > 0, RATES=rates is not None, ACTIVE=active is not None, ALIGNED=aligned,
        **constants,
    )  # fmt: skip
    # autograd cannot see a kernel write; this is how it learns that a saved tensor is no longer what it was
    torch.autograd.graph.increment_version([*parameters, *first, *second])


def _reset_triton(a: list[Tensor], initial: list[Tensor], cleared: list[Tensor], documents: Tensor | None) -> None:
    from pgolf.kernels.lora.gpu import lora_reset_kernel

    initial = [start.contiguous() for start in initial]
    sources = [start.data_ptr() for start in initial] + [0] * len(cleared)
    sized = [(tensor, source) for tensor, source in zip([*a, *cleared], sources, strict=True) if tensor.numel()]
    if not sized:
        return
    steps = cleared[-1]
    docs = steps.shape[0]
    words = [tensor.numel() // docs * tensor.element_size() // 2 for tensor, _ in sized]
    entries = [
        (tensor.data_ptr(), source, int(tensor.data_ptr() % 16 == source % 16 == count % 16 == 0), 0)
        for (tensor, source), count in zip(sized, words, strict=True)
    ]
    grid, table, constants = _launch_over(entries, words, docs, steps.device)
    chosen = None if documents is None else documents.view(torch.uint8)
    lora_reset_kernel[grid](table, chosen, len(sized), CHOSEN=documents is not None, **constants)
    torch.autograd.graph.increment_version([*a, *cleared])


torch.library.define(
    "pgolf::lora_adam",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first, Tensor(c!)[] second, Tensor(d!) steps, "
    "Tensor? rates, float rate, float beta1, float beta2, float eps, float weight_decay, Tensor? active) -> ()",
)
torch.library.define("pgolf::lora_reset", "(Tensor(a!)[] a, Tensor[] initial, Tensor(b!)[] cleared, Tensor? documents) -> ()")
implement("pgolf::lora_adam", "CPU", _adam_cpu)
implement("pgolf::lora_reset", "CPU", _reset_cpu)
implement("pgolf::lora_adam", "CUDA", _adam_triton)
implement("pgolf::lora_reset", "CUDA", _reset_triton)
torch.library.register_fake("pgolf::lora_adam", lambda *arguments: None)
torch.library.register_fake("pgolf::lora_reset", lambda *arguments: None)
