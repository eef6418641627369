"""Softcapped cross-entropy as a registered operator: choice of launch, launchers, autograd and the public function."""

import numpy as np
import torch

from pgolf.kernels.launch import Launch, cdiv, implement
from pgolf.kernels.threads import in_parallel

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """Cross-entropy of `targets` under softmax(z), z = softcap * tanh(logits / softcap), or z = logits without a softcap.

        loss_t = w_t * (lse_t - z_t[y_t] + z_loss * lse_t^2),    lse_t = log sum_v exp z_t[v]

    logits   (..., V), raw; bfloat16, float16, float32 or float64
    targets  (...), int64; a token whose target is `ignore_index` adds nothing to the loss and has a gradient of zero
    weights  (...), or None for ones (bytes per token make it a loss per byte)
    returns  "mean": sum(loss) / sum(weights of the tokens that are not ignored), 0 where those weights sum to 0;
             "sum": sum(loss); "none": the losses, shaped like targets. float32 (float64 for float64 logits).

    Gradients flow to logits and weights. The gradient of the logits is written in the forward pass, while a row is at
    hand, for an upstream gradient of 1; it is what is saved, in the logits' dtype, and the logits are not. Backward
    multiplies it, in its own memory, by the upstream gradient, and a block whose upstream gradient is exactly 1 is
    left alone: the device decides, nothing waits. So a graph can be walked once; a second walk and second derivatives
    are refused. A target outside the vocabulary raises on a CPU; on a GPU, which cannot wait to say so, the token's
    loss and gradient are NaN.

    N = number of tokens, e = bytes per logit: moves N V 2 e bytes with a gradient (N V e without, and as much as with
    one again where upstream is not 1); about 12 N V FLOPs. A traced graph cannot know that upstream will be 1, so under
    torch.compile the multiplication is a pass of its own, another 2 N V e: use `linear_cross_entropy` there.
    """
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
    x: torch.Tensor,
    w: torch.Tensor,
    targets: torch.Tensor,
    *,
    softcap: float | None = None,
    weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """`cross_entropy` of the logits x w^T, with their gradient written over them: the head of a network and its loss.

    x        (..., D)
    w        (V, D), of x's dtype
    targets, weights, softcap, z_loss, ignore_index as for `cross_entropy`; reduction "mean" or "sum"
    returns  the loss, a scalar: float32 (float64 for float64 inputs)

    Gradients flow to x, w and weights. Saved are x, w and G, the gradient of the logits for an upstream gradient of 1.
    Upstream, one number u, then costs nothing: dx = G (u w), dw = u (G^T x). So a graph may be walked again, and
    torch.compile adds no pass; second derivatives are refused.

    N = number of tokens, e = bytes per element: besides its three products (6 N V D FLOPs, N V e bytes of logits written
    once and of G read twice) it moves N V 2 e bytes.
    """
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


def _rows_and_scale(logits, targets, weights, ignore_index, reduction):
    """Targets in one row, and what each token's loss is multiplied by."""
    rows = targets.reshape(-1)
    kept = rows != ignore_index
    exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scale = kept.to(exact) if weights is None else torch.where(kept, weights.reshape(-1).to(exact), 0)
    if reduction == "mean":
        total = scale.sum()
        scale = scale / torch.where(total == 0, 1, total)
    return rows, scale


def _check(name, logits, targets, softcap, weights, reduction, reductions):
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


# Elements of one group of rows on a CPU: small enough to stay in the cache.
CACHED_ELEMENTS = 524_288

# Longest row kept in registers. Chosen by reasoning, unmeasured: with longer rows a multiprocessor holds too few of
# them for one to load while another computes.
LONGEST_IN_REGISTERS = 16_384


def launch_forward(vocabulary: int) -> Launch:
    """Rows in registers (tiles BR and BV), short ones several at once; or, with no BR, one long row in sweeps of BV.
    One table serves every architecture, because memory alone sets the pace."""
    if vocabulary > LONGEST_IN_REGISTERS:
        # two programs a multiprocessor: the rows under way must fit in L2 together until their second sweep
        return Launch({"BV": 8192}, num_warps=16, num_stages=1)
    width = max(128, 1 << (vocabulary - 1).bit_length())
    rows = max(1, 2048 // width)
    return Launch({"BR": rows, "BV": width}, num_warps=max(4, width // 1024), num_stages=1)


def launch_rescale(vocabulary: int) -> Launch:
    """So many rows that asking whether their upstream is 1 is cheap, in tiles of at most 32 elements a thread."""
    width = max(128, 1 << (vocabulary - 1).bit_length())
    tile = min(width, 512)
    return Launch({"BR": max(1, min(8192 // tile, 16_384 // width)), "BV": tile}, num_warps=8, num_stages=1)


def traffic_forward(count: int, vocabulary: int, element_size: int, want_gradient: bool = True) -> tuple[int, int]:
    """Bytes and floating-point operations: the logits once, their gradient once, and 20 bytes a token besides."""
    passes = 2 if want_gradient else 1
    return count * (vocabulary * element_size * passes + 20), count * vocabulary * (12 if want_gradient else 8)


def traffic_rescale(count: int, vocabulary: int, element_size: int) -> tuple[int, int]:
    return count * (2 * vocabulary * element_size + 4), count * vocabulary


def compile_cases(capability):
    from pgolf.kernels.compile import Case
    from pgolf.kernels.cross_entropy import gpu

    def forward(vocabulary, kind="bf16", capped=True, gradient=True):
        launch = launch_forward(vocabulary)
        pointers = {"p_logits": f"*{kind}:16", "p_targets": "*i64:16", "p_gradient": f"*{kind}:16"}
        pointers |= dict.fromkeys(("p_scale", "p_losses", "p_unscaled"), "*fp32:16")
        count = 98_304
        traffic = traffic_forward(count, vocabulary, 4 if kind == "fp32" else 2, gradient)
        in_registers = "BR" in launch.tiles
        return Case(
            kernel=gpu.cross_entropy_fwd_kernel if in_registers else gpu.cross_entropy_fwd_kernel_long,
            name=f"fwd{'' if in_registers else '_long'} {kind}{' softcap' * capped}{' gradient' * gradient}",
            signature=pointers | {"count": "i32", "softcap": "fp32", "z_loss": "fp32", "ignore_index": "i64"},
            constants={"V": vocabulary, "CAPPED": capped, "GRADIENT": gradient},
            launch=launch,
            shape=f"N={count} V={vocabulary}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=128,
        )

    def rescale(vocabulary):
        traffic = traffic_rescale(98_304, vocabulary, 2)
        return Case(
            kernel=gpu.cross_entropy_bwd_kernel_rescale,
            name="bwd_rescale bf16",
            signature={"p_gradient": "*bf16:16", "p_upstream": "*fp32:16", "upstream_stride": "i32", "count": "i32"},
            constants={"V": vocabulary},
            launch=launch_rescale(vocabulary),
            shape=f"N=98304 V={vocabulary}",
            bytes=traffic[0],
            flops=traffic[1],
            max_registers=64,
        )

    found = [forward(vocabulary) for vocabulary in (256, 1000, 1024, 2048, 4096, 8192, 16_384, 50_304, 65_536)]
    for vocabulary in (1024, 8192, 65_536):
        found += [forward(vocabulary, gradient=False), forward(vocabulary, capped=False), forward(vocabulary, kind="fp32")]
    return found + [rescale(vocabulary) for vocabulary in (256, 1000, 1024, 65_536)]


def forward_triton(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient=None):
    """The gradient goes to `gradient` if that is given; it may be the logits themselves."""
    if logits.dtype == torch.float64:
        # a GPU has nothing to offer float64 rows that plain torch has not
        return forward_torch(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient)
    from pgolf.kernels.cross_entropy import gpu

    logits, targets, scale = logits.contiguous(), targets.contiguous(), scale.contiguous()
    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    if count == 0:
        return losses, unscaled, gradient
    launch = launch_forward(vocabulary)
    constants = {"V": vocabulary, "CAPPED": softcap > 0, "GRADIENT": want_gradient, **launch.options}
    tensors = (logits, targets, scale, losses, unscaled, gradient)
    if "BR" in launch.tiles:
        grid = (cdiv(count, launch.tiles["BR"]),)
        gpu.cross_entropy_fwd_kernel[grid](*tensors, count, softcap, z_loss, ignore_index, **constants)
    else:
        gpu.cross_entropy_fwd_kernel_long[(count,)](*tensors, softcap, z_loss, ignore_index, **constants)
    return losses, unscaled, gradient


def rescale_triton(gradient, upstream):
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


def forward_cpu(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient=None):
    """In numba, which computes in float32; float64 stays with torch."""
    if logits.dtype == torch.float64:
        return forward_torch(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient)
    from pgolf.kernels.cross_entropy import cpu

    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    kept = _kept(targets, vocabulary, ignore_index)
    group = max(1, CACHED_ELEMENTS // max(1, vocabulary))
    for start in range(0, count, group):
        here = slice(start, start + group)
        own = logits.detach()[here].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tensors = (own, own.amax(1), targets[here], kept[here], scale[here], losses[here], unscaled[here])
        arrays = [x.detach().numpy() for x in tensors]
        share = cdiv(len(own), torch.get_num_threads())

        def work(first, arrays=arrays, share=share):
            *given, loss, plain = (array[first : first + share] for array in arrays)
            cpu.rows(*given, np.float32(softcap), np.float32(z_loss), loss, plain, want_gradient)

        in_parallel(work, range(0, len(own), share))
        if want_gradient:
            gradient[here] = own
    return losses, unscaled, gradient


def _kept(targets, vocabulary, ignore_index):
    kept = targets != ignore_index
    if bool((kept & ((targets < 0) | (targets >= vocabulary))).any()):
        raise ValueError(f"cross_entropy: a target is neither in 0..{vocabulary - 1} nor the ignore index {ignore_index}")
    return kept


def forward_torch(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, gradient=None):
    """Rows in groups that stay in the cache, so that memory sees each logit once, as on a GPU."""
    count, vocabulary = logits.shape
    losses, unscaled = torch.empty_like(scale), torch.empty_like(scale)
    if gradient is None:
        gradient = logits.new_empty((count, vocabulary) if want_gradient else (0, 0))
    group = max(1, CACHED_ELEMENTS // max(1, vocabulary))
    kept = _kept(targets, vocabulary, ignore_index)
    columns = torch.where(kept, targets, 0)
    for start in range(0, count, group):
        here = slice(start, start + group)
        column, keep = columns[here, None], kept[here]
        raw = logits[here].to(scale.dtype)
        if softcap:
            tanh = torch.mul(raw, 1 / softcap).tanh_()
            z = tanh * softcap
        else:
            z = raw.clone() if raw.data_ptr() == logits[here].data_ptr() else raw
        z_target = z.gather(1, column)
        peak = z.amax(1, keepdim=True)
        exponential = z.sub_(peak).exp_()
        total = exponential.sum(1, keepdim=True)
        lse = total.log().add_(peak)
        loss = (lse - z_target + z_loss * lse.square()).squeeze(1)
        unscaled[here] = torch.where(keep, loss, 0)
        losses[here] = unscaled[here] * scale[here]
        if want_gradient:
            row_scale = scale[here, None]
            dz = exponential.mul_(row_scale * (1 + 2 * z_loss * lse) / total)
            dz.scatter_add_(1, column, -row_scale)
            if softcap:
                dz.addcmul_(dz, tanh.square_(), value=-1)
            gradient[here] = dz.masked_fill_(~keep[:, None], 0)
    return losses, unscaled, gradient


def linear_forward(forward):
    """The whole head from a forward over logits."""

    def run(x, w, targets, scale, softcap, z_loss, ignore_index, want_gradient):
        logits = x @ w.T
        into = logits if want_gradient else None
        arguments = (logits, targets, scale, softcap, z_loss, ignore_index, want_gradient, into)
        losses, unscaled, gradient = forward(*arguments)
        return losses.sum(), unscaled, gradient

    return run


def rescale_torch(gradient, upstream):
    if not bool((upstream == 1).all()):
        gradient.mul_(upstream.unsqueeze(1))


def _fake_forward(logits, targets, scale, softcap, z_loss, ignore_index, want_gradient):
    gradient = logits.new_empty(logits.shape if want_gradient else (0, 0))
    return scale.new_empty(scale.shape), scale.new_empty(scale.shape), gradient


def _setup_context(ctx, inputs, output):
    _, unscaled, gradient = output
    ctx.mark_non_differentiable(unscaled, gradient)
    # what has no gradient would get one of zeros, as large as the logits
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(unscaled, gradient)
    ctx.walked = False


def _refuse_second_derivatives(name):
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} has no second derivative: its gradient is computed in the forward pass. "
            "Call backward without create_graph, or use cross_entropy_reference"
        )


def _backward(ctx, upstream, _unscaled, _gradient):
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


def _linear_fake_forward(x, w, targets, scale, softcap, z_loss, ignore_index, want_gradient):
    gradient = x.new_empty((x.shape[0], w.shape[0]) if want_gradient else (0, 0))
    return scale.new_empty(()), scale.new_empty(scale.shape), gradient


def _linear_setup_context(ctx, inputs, output):
    x, w = inputs[:2]
    _, unscaled, gradient = output
    ctx.mark_non_differentiable(unscaled, gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, unscaled, gradient)


def _linear_backward(ctx, upstream, _unscaled, _gradient):
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
implement("pgolf::cross_entropy", "CPU", forward_cpu)
implement("pgolf::cross_entropy", "CUDA", forward_triton)
implement("pgolf::cross_entropy_rescale", "CPU", rescale_torch)
implement("pgolf::cross_entropy_rescale", "CUDA", rescale_triton)
torch.library.register_fake("pgolf::cross_entropy", _fake_forward)
torch.library.register_fake("pgolf::cross_entropy_rescale", lambda gradient, upstream: None)
torch.library.register_autograd("pgolf::cross_entropy", _backward, setup_context=_setup_context)
implement("pgolf::linear_cross_entropy", "CPU", linear_forward(forward_cpu))
implement("pgolf::linear_cross_entropy", "CUDA", linear_forward(forward_triton))
torch.library.register_fake("pgolf::linear_cross_entropy", _linear_fake_forward)
torch.library.register_autograd("pgolf::linear_cross_entropy", _linear_backward, setup_context=_linear_setup_context)
