"""Softcapped cross-entropy as a registered operator: the public functions, launchers, autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.cross_entropy.launch import launch_forward, launch_rescale
from pgolf.kernels.launch import cdiv, implement
from pgolf.kernels.tensors import require_tensors

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of `targets` under softmax(z), z = softcap * tanh(logits / softcap), or z = logits without a softcap.

        loss_t = w_t * (lse_t - z_t[y_t] + z_loss * lse_t^2),    lse_t = log sum_v exp z_t[v]

    The softcap is that of Gemma 2 (arXiv:2408.00118), z_loss that of PaLM (arXiv:2204.02311).

    Args:
        logits: (..., V), raw; bfloat16, float16, float32 or float64
        targets: (...), int64; a token whose target is `ignore_index` adds nothing to the loss and has a gradient of zero
        softcap: the bound of |z|; None for none
        weights: (...), or None for ones (bytes per token make it a loss per byte)
        z_loss: factor of the squared log-sum-exp
        ignore_index: the target of tokens that do not count
        reduction: "mean", "sum" or "none"

    Returns:
        "mean": sum(loss) / sum(weights of the tokens that are not ignored), 0 where those weights sum to 0;
        "sum": sum(loss); "none": the losses, shaped like targets. float32 (float64 for float64 logits).

    Example:
        >>> logits, targets = torch.randn(2, 16, 1024, requires_grad=True), torch.randint(1024, (2, 16))
        >>> cross_entropy(logits, targets, softcap=30.0).backward()

    Gradients flow to logits and weights. The gradient of the logits is written in the forward pass, while a row is at
    hand, for an upstream gradient of 1; it is what is saved, in the logits' dtype, and the logits are not. Backward
    multiplies it, in its own memory, by the upstream gradient, and a block whose upstream gradient is exactly 1 is
    left alone: the device decides, nothing waits. So a graph can be walked once; a second walk and second derivatives
    are refused. A target outside the vocabulary raises on a CPU; on a GPU, which cannot wait to say so, the token's
    loss and gradient are NaN.

    Arithmetic is in float32 (float64 for float64 logits). On a GPU the softcap of 16-bit logits takes the hardware's tanh,
    which is right to a relative 2^-11, as 16-bit logits are at best.

    N = number of tokens, e = bytes per logit: moves N V 2 e bytes with a gradient (N V e without, and as much as with
    one again where upstream is not 1); about 12 N V FLOPs. A traced graph cannot know that upstream will be 1, so under
    torch.compile the multiplication is a pass of its own, another 2 N V e: use `linear_cross_entropy` there.
    """
    require_tensors("cross_entropy", {"logits": logits, "targets": targets}, {"weights": weights})
    _check("cross_entropy", logits, targets, softcap, weights, reduction, REDUCTIONS)
    vocabulary = logits.shape[-1]
    rows, scale = _rows_and_scale(logits, targets, weights, ignore_index, reduction)
    losses, _, _ = torch.ops.pgolf.cross_entropy(
        logits.reshape(-1, vocabulary),
        rows,
        scale,
        0.0 if softcap is None else float(softcap),
        float(z_loss),
        ignore_index,
        torch.is_grad_enabled() and logits.requires_grad,
    )
    return losses.reshape(targets.shape) if reduction == "none" else losses.sum()


def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`cross_entropy` of the logits x w^T, with their gradient written over them: the head of a network and its loss.

    Args:
        x: (..., D)
        w: (V, D), of x's dtype
        targets, softcap, weights, z_loss, ignore_index: as for `cross_entropy`
        reduction: "mean" or "sum"

    Returns:
        The loss, a scalar: float32 (float64 for float64 inputs).

    Example:
        >>> x, w = torch.randn(2, 16, 64, requires_grad=True), torch.randn(1024, 64, requires_grad=True)
        >>> linear_cross_entropy(x, w, torch.randint(1024, (2, 16)), softcap=30.0).backward()

    Gradients flow to x, w and weights. Saved are x, w and G, the gradient of the logits for an upstream gradient of 1.
    Upstream, one number u, then costs nothing: dx = G (u w), dw = u (G^T x). So a graph may be walked again, and
    torch.compile adds no pass; second derivatives are refused.

    N = number of tokens, e = bytes per element: besides its three products (6 N V D FLOPs, N V e bytes of logits written
    once and of G read twice) it moves N V 2 e bytes.
    """
    require_tensors("linear_cross_entropy", {"x": x, "w": w, "targets": targets}, {"weights": weights})
    if x.dtype != w.dtype:
        raise ValueError(f"linear_cross_entropy: x is {x.dtype}, w {w.dtype}; cast them to one dtype")
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"linear_cross_entropy: x {tuple(x.shape)} and w {tuple(w.shape)} do not fit; they must be (..., D) and (V, D)"
        )
    _check("linear_cross_entropy", x, targets, softcap, weights, reduction, ("mean", "sum"))
    rows, scale = _rows_and_scale(x, targets, weights, ignore_index, reduction)
    loss, _, _ = torch.ops.pgolf.linear_cross_entropy(
        x.reshape(-1, x.shape[-1]),
        w,
        rows,
        scale,
        0.0 if softcap is None else float(softcap),
        float(z_loss),
        ignore_index,
        torch.is_grad_enabled() and (x.requires_grad or w.requires_grad),
    )
    return loss


def _rows_and_scale(
    logits: Tensor, targets: Tensor, weights: Tensor | None, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """Targets in one row, and what each token's loss is multiplied by."""
    rows = targets.reshape(-1)
    kept = rows != ignore_index
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scale = kept.to(exact) if weights is None else torch.where(kept, weights.reshape(-1).to(exact), 0)
    if reduction == "mean":
        total = scale.sum()
        scale = scale / torch.where(total == 0, 1, total)
    return rows, scale


def _check(
    name: str,
    logits: Tensor,
    targets: Tensor,
    softcap: float | None,
    weights: Tensor | None,
    reduction: str,
    reductions: tuple[str, ...],
) -> None:
    if not logits.is_floating_point():
        raise ValueError(f"{name}: the input is {logits.dtype}; it must be floating point")
    if logits.dim() < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"{name}: an input of {tuple(logits.shape)} wants one target per row, but targets are {tuple(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"{name}: targets are {targets.dtype}; convert them with .long()")
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(f"{name}: weights {tuple(weights.shape)} must have the shape of targets {tuple(targets.shape)}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{name}: softcap is {softcap}; it must be positive, or None for no softcap")
    if reduction not in reductions:
        raise ValueError(f"{name}: reduction {reduction!r} is none of {', '.join(reductions)}")


# ---- on a GPU


def forward_triton(
    logits: Tensor,
    targets: Tensor,
    scale: Tensor,
    softcap: float,
    z_loss: float,
    ignore_index: int,
    want_gradient: bool,
    gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient goes to `gradient` if that is given; it may be the logits themselves."""
    if logits.dtype == torch.float64:
        # a GPU has nothing to offer float64 rows that plain torch has not
        from pgolf.kernels.cross_entropy.cpu import forward_torch

        return forward_torch(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient)
    from pgolf.kernels.cross_entropy import gpu

    logits, targets, scale = logits.contiguous(), targets.contiguous(), scale.contiguous()
    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    if count == 0:
        return losses, unscaled, gradient
    launch = launch_forward(vocabulary, logits.element_size())
    in_registers = launch.tiles["BV"] >= vocabulary
    kernel = gpu.cross_entropy_fwd_kernel if in_registers else gpu.cross_entropy_fwd_kernel_long
    # 16-bit logits are coarser than the approximation
    forms = {"CAPPED": softcap > 0, "APPROXIMATE": logits.element_size() == 2, "GRADIENT": want_gradient}
    tensors = (logits, targets, scale, losses, unscaled, gradient)
    kernel[(count,)](*tensors, softcap, z_loss, ignore_index, V=vocabulary, **forms, **launch.options)
    return losses, unscaled, gradient


def rescale_triton(gradient: Tensor, upstream: Tensor) -> None:
    if gradient.dtype == torch.float64:
        gradient.mul_(upstream.unsqueeze(1))
        return
    from pgolf.kernels.cross_entropy import gpu

    count, vocabulary = gradient.shape
    if count == 0:
        return
    launch = launch_rescale(vocabulary)
    grid = (cdiv(count, launch.tiles["BR"]),)
    gpu.cross_entropy_bwd_kernel_rescale[grid](gradient, upstream, upstream.stride(0), count, V=vocabulary, **launch.options)


def linear_forward(forward: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """The whole head from a forward over logits."""

    def run(
        x: Tensor,
        w: Tensor,
        targets: Tensor,
        scale: Tensor,
        softcap: float,
        z_loss: float,
        ignore_index: int,
        want_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = x @ w.T
        into = logits if want_gradient else None
        arguments = (logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, into)
        losses, unscaled, gradient = forward(*arguments)
        return losses.sum(), unscaled, gradient

    return run


# ---- shapes, autograd, registration


def _on_cpu(name: str) -> Callable[..., Any]:
    """A form of cpu.py, imported when it is first called: numba takes a while to load."""

    def form(*arguments: Any) -> Any:
        from pgolf.kernels.cross_entropy import cpu

        return getattr(cpu, name)(*arguments)

    return form


def _fake_forward(
    logits: Tensor, targets: Tensor, scale: Tensor, softcap: float, z_loss: float, ignore_index: int, want_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = logits.new_empty(logits.shape if want_gradient else (0, 0))
    return scale.new_empty(scale.shape), scale.new_empty(scale.shape), gradient


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, unscaled, gradient = output
    ctx.mark_non_differentiable(unscaled, gradient)
    # what has no gradient would get one of zeros, as large as the logits
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(unscaled, gradient)
    ctx.walked = False


def _refuse_second_derivatives(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative: its gradient is computed in the forward pass. "
            "Call backward without create_graph, or use cross_entropy_reference"
        )


def _backward(ctx: Any, upstream: Tensor, _unscaled: None, _gradient: None) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives("cross_entropy")
    if ctx.walked:
        raise RuntimeError(
            "cross_entropy was walked backward once already and its gradient is used up. "
            "Compute the loss again, or add the losses up and call backward once"
        )
    unscaled, gradient = ctx.saved_tensors
    d_logits = d_scale = None
    if ctx.needs_input_grad[2]:
        d_scale = upstream * unscaled
    if ctx.needs_input_grad[0]:
        if type(gradient) is torch.Tensor:
            ctx.walked = True
            torch.ops.pgolf.cross_entropy_rescale(gradient, upstream)
            d_logits = gradient
        else:
            # a tensor that stands for another, as in tracing: its saved values are not ours to overwrite
            d_logits = (gradient * upstream.unsqueeze(1)).to(gradient.dtype)
    return d_logits, None, d_scale, None, None, None, None


def _linear_fake_forward(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    scale: Tensor,
    softcap: float,
    z_loss: float,
    ignore_index: int,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = x.new_empty((x.shape[0], w.shape[0]) if want_gradient else (0, 0))
    return scale.new_empty(()), scale.new_empty(scale.shape), gradient


def _linear_setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, w = inputs[:2]
    _, unscaled, gradient = output
    ctx.mark_non_differentiable(unscaled, gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, unscaled, gradient)


def _linear_backward(ctx: Any, upstream: Tensor, _unscaled: None, _gradient: None) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives("linear_cross_entropy")
    x, w, unscaled, gradient = ctx.saved_tensors
    wants_x, wants_w, _, wants_scale = ctx.needs_input_grad[:4]
    dx = gradient @ (w * upstream).to(w.dtype) if wants_x else None
    dw = (gradient.T @ x * upstream).to(w.dtype) if wants_w else None
    return dx, dw, None, upstream * unscaled if wants_scale else None, None, None, None, None


torch.library.define(
    "pgolf::cross_entropy",
    "(Tensor logits, Tensor targets, Tensor scale, float softcap, float z_loss, int ignore_index, bool want_gradient)"
    " -> (Tensor losses, Tensor unscaled, Tensor gradient)",
)
torch.library.define(
    "pgolf::linear_cross_entropy",
    "(Tensor x, Tensor w, Tensor targets, Tensor scale, float softcap, float z_loss, int ignore_index,"
    " bool want_gradient) -> (Tensor loss, Tensor unscaled, Tensor gradient)",
)
torch.library.define("pgolf::cross_entropy_rescale", "(Tensor(a!) gradient, Tensor upstream) -> ()")
implement("pgolf::cross_entropy", "CPU", _on_cpu("forward"))
implement("pgolf::cross_entropy", "CUDA", forward_triton)
implement("pgolf::cross_entropy_rescale", "CPU", _on_cpu("rescale"))
implement("pgolf::cross_entropy_rescale", "CUDA", rescale_triton)
torch.library.register_fake("pgolf::cross_entropy", _fake_forward)
torch.library.register_fake("pgolf::cross_entropy_rescale", lambda gradient, upstream: None)
torch.library.register_autograd("pgolf::cross_entropy", _backward, setup_context=_setup_context)
implement("pgolf::linear_cross_entropy", "CPU", linear_forward(_on_cpu("forward")))
implement("pgolf::linear_cross_entropy", "CUDA", linear_forward(forward_triton))
torch.library.register_fake("pgolf::linear_cross_entropy", _linear_fake_forward)
torch.library.register_autograd("pgolf::linear_cross_entropy", _linear_backward, setup_context=_linear_setup_context)
