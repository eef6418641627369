"""Training the adapters: one fused Adam step and one fused reset over every adapter of a model, document by document."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.kernels.lora.reference import adam_reference


def lora_initial(
    rank: int, width: int, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """An initial A, (rank, width), uniform in ±1/√width. Drawn on the CPU, so that a seed means the same numbers on every
    device; one seed a site, and every document that `lora_reset` starts afresh starts from the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rank, width, generator=generator, dtype=torch.float64) * 2 - 1
    return (uniform / width**0.5).to(device, dtype)


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
    """One AdamW step, in place, of every tensor given, as one launch.

    All tensors have documents as their leading dimension and may differ in the rest; document d is at step steps[d].

        t = steps[d] += 1;   m = β₁ m + (1 - β₁) g;   v = β₂ v + (1 - β₂) g²
        p = p (1 - lr·decay) - lr · m/(1 - β₁ᵗ) / (√(v/(1 - β₂ᵗ)) + eps)

    parameters, gradients   same shapes; each list has one dtype (float32, bfloat16 or float16)
    first, second           the moments m and v, same shapes, one dtype for both. bfloat16 halves their traffic, but rounds
                            away a β₂ nearer to 1 than about 0.99. With betas[0] = 0, `first` is neither read nor written
                            and may be an empty list.
    steps                   int32 (docs,), counted on the device
    lr                      a number, or float32 (docs,) with one for each document
    active                  bool (docs,): documents where it is false keep parameters, moments and step untouched

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

    a          list of (docs, rank, in); `initial` holds for each the (rank, in) that every document starts from, same
               dtype (`lora_initial` draws one), so a document's start depends neither on its place nor on its company
    b, first, second   lists of tensors with documents leading, of any length (`first` is empty where betas[0] = 0)
    steps      int32 (docs,)
    documents  bool (docs,): which to reset; all if not given

    Writes each byte of the chosen documents once; reads only `initial`.
    """
    docs = _documents("lora_reset", steps, documents)
    for name, tensors in {"a": a, "b": b, "first": first, "second": second}.items():
        _check_list("lora_reset", name, tensors, docs)
    if [(tensor.shape[1:], tensor.dtype) for tensor in a] != [(tensor.shape, tensor.dtype) for tensor in initial]:
        raise ValueError("lora_reset: initial must hold, for each tensor of a, one document's worth in the same dtype")
    torch.ops.pgolf.lora_reset(list(a), list(initial), [*b, *first, *second, steps], documents)


def _documents(function: str, steps: Tensor, chosen: Tensor | None) -> int:
    if steps.dim() != 1 or steps.dtype != torch.int32:
        raise ValueError(f"{function}: steps must be int32 (docs,); got {steps.dtype} {tuple(steps.shape)}")
    if chosen is not None and (chosen.dtype != torch.bool or chosen.shape != steps.shape):
        raise ValueError(
            f"{function}: the mask of documents must be bool ({len(steps)},); got {chosen.dtype} {tuple(chosen.shape)}"
        )
    return steps.shape[0]


def _check_list(function: str, name: str, tensors: Sequence[Tensor], docs: int) -> None:
    for tensor in tensors:
        if tensor.shape[:1] != (docs,):
            raise ValueError(f"{function}: {name} must have {docs} documents leading; got {tuple(tensor.shape)}")
        if name != "gradients" and not tensor.is_contiguous():
            raise ValueError(f"{function}: {name} are updated in place and must be contiguous")


def _adam_cpu(parameters, gradients, first, second, steps, rates, rate, beta1, beta2, eps, weight_decay, active):
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


def _reset_cpu(a, initial, cleared, documents):
    rows = slice(None) if documents is None else documents
    for tensor, start in zip(a, initial, strict=True):
        tensor[rows] = start
    for tensor in cleared:
        tensor[rows] = 0


torch.library.define(
    "pgolf::lora_adam",
    "(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first, Tensor(c!)[] second, Tensor(d!) steps, "
    "Tensor? rates, float rate, float beta1, float beta2, float eps, float weight_decay, Tensor? active) -> ()",
)
torch.library.define(
    "pgolf::lora_reset", "(Tensor(a!)[] a, Tensor[] initial, Tensor(b!)[] cleared, Tensor? documents) -> ()"
)
torch.library.impl("pgolf::lora_adam", "CPU", _adam_cpu)
torch.library.impl("pgolf::lora_reset", "CPU", _reset_cpu)
torch.library.register_fake("pgolf::lora_adam", lambda *arguments: None)
torch.library.register_fake("pgolf::lora_reset", lambda *arguments: None)
