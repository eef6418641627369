"""Registration, launch choice and the public functions of `rotary`."""

import torch

from pgolf.kernels.launch import Launch, capability_of, cdiv, implement
from pgolf.kernels.rotary import reference
from pgolf.kernels.threads import SPAN, in_parallel, tokens_in_float32

INPUTS = "Tensor q, Tensor k, Tensor gain, Tensor cos, Tensor sin, float eps"
torch.library.define("pgolf::rotary", f"({INPUTS}) -> (Tensor, Tensor)")
torch.library.define("pgolf::rotary_backward", f"(Tensor grad_q, Tensor grad_k, {INPUTS}) -> (Tensor, Tensor, Tensor)")

# Elements of one tile (tokens x head dim) and warps, per capability; chosen by reasoning, unmeasured: enough bytes in
# flight per thread to cover the latency of memory, few enough registers for eight blocks on a multiprocessor.
TILES = {
    80: {"forward": (2048, 4), "backward": (2048, 4)},
    90: {"forward": (4096, 4), "backward": (2048, 4)},
    100: {"forward": (4096, 4), "backward": (2048, 4)},
}


def rotary(q, k, gain, cos, sin, *, eps=None):
    """Normalise q and k, rotate their first dims by position, and scale each query head; one pass over each tensor.

        n(x) = x / sqrt(mean(x^2) + eps)                         over the head dim, no learnable gain
        R(x) = (x1 cos + x2 sin, -x1 sin + x2 cos, rest)         x1, x2: the two halves of the first r dims
        q' = gain[h] R(n(q)),  k' = R(n(k))

    q (B, T, H, d), k (B, T, Hkv, d) of one dtype; gain (H,); cos, sin (T, r/2) float32 or float64, 0 <= r <= d.
    eps defaults to the machine epsilon of q's dtype. Arithmetic is in float32 (float64 for float64 inputs); results have
    the inputs' shapes and dtype. Differentiable in q, k and gain; the sum for gain is in a fixed order.

    Saved for backward: the inputs alone (the norms are recomputed).
    Bytes, with e bytes per element and N = B T: forward 2 N (H + Hkv) d e, backward 3 N (H + Hkv) d e.
    FLOPs: about 4 N (H + Hkv) d forward, 8 N (H + Hkv) d backward; both are far below what the memory allows.
    """
    _check(q, k, gain, cos, sin)
    eps = torch.finfo(q.dtype).eps if eps is None else eps
    return torch.ops.pgolf.rotary(q, k, gain, cos, sin, eps)


def rotary_table(length, dims, base, *, device=None, dtype=torch.float32):
    """(cos, sin), each (length, dims / 2), of position * base^(-2j / dims). Computed in float64, because float32 loses
    the phase of the fast dims far into a sequence."""
    if dims % 2 or dims < 0:
        raise ValueError(f"rotary_table: dims must be an even number, not {dims}")
    exponent = torch.arange(0, dims, 2, device=device, dtype=torch.float64) / max(dims, 1)
    phase = torch.arange(length, device=device, dtype=torch.float64)[:, None] * base**-exponent
    return phase.cos().to(dtype), phase.sin().to(dtype)


def _check(q, k, gain, cos, sin):
    if q.ndim != 4 or k.ndim != 4 or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"rotary: q (B, T, H, d) and k (B, T, Hkv, d) expected, got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.dtype != k.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"rotary: q and k must have one floating-point dtype, got {q.dtype} and {k.dtype}")
    if gain.shape != q.shape[2:3]:
        raise ValueError(f"rotary: gain must have one entry per query head, ({q.shape[2]},), got {tuple(gain.shape)}")
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] != q.shape[1] or 2 * cos.shape[1] > q.shape[3]:
        raise ValueError(
            f"rotary: cos and sin must both be (T, r/2) with T = {q.shape[1]} and r <= {q.shape[3]}, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if cos.dtype not in (torch.float32, torch.float64) or sin.dtype != cos.dtype:
        raise ValueError(f"rotary: cos and sin must both be float32 or float64, got {cos.dtype} and {sin.dtype}")


def launch_rotary(head_dim, dims, capability, direction) -> Launch:
    """The tile of one program: BT tokens of one head, rows padded to powers of two."""
    elements, warps = TILES[max(known for known in TILES if known <= max(capability, 80))][direction]
    width = max(16, _power_of_two(head_dim))
    tiles = {"BT": max(16, elements // width), "BD": width, "BH": _power_of_two(max(1, dims // 2))}
    return Launch(tiles, num_warps=warps, num_stages=1)


def traffic_rotary(tokens, heads, kv_heads, head_dim, element_bytes, direction) -> tuple[int, int]:
    """(bytes, flops) of one call. The tables and the partial sums of the gain are small beside the rows."""
    elements = tokens * (heads + kv_heads) * head_dim
    passes, work = (2, 4) if direction == "forward" else (3, 8)
    return passes * elements * element_bytes, work * elements


def _power_of_two(number):
    return 1 << (number - 1).bit_length()


def _shape_of(q, k, cos):
    (batch, length, heads, dim), half = q.shape, cos.shape[1]
    return batch * length, length, {"H": heads, "HKV": k.shape[2], "D": dim, "HALF": half}


def _forward_triton(q, k, gain, cos, sin, eps):
    from pgolf.kernels.rotary import gpu

    q, k, gain, cos, sin = (x.contiguous() for x in (q, k, gain, cos.float(), sin.float()))
    query, key = torch.empty_like(q), torch.empty_like(k)
    total, length, constants = _shape_of(q, k, cos)
    launch = launch_rotary(q.shape[3], 2 * cos.shape[1], capability_of(q.device), "forward")
    programs = cdiv(total, launch.tiles["BT"]) * (q.shape[2] + k.shape[2])
    if programs:
        gpu.rotary_fwd_kernel[(programs,)](q, k, gain, cos, sin, query, key, eps, total, length, **constants, **launch.options)
    return query, key


def _backward_triton(grad_q, grad_k, q, k, gain, cos, sin, eps):
    from pgolf.kernels.rotary import gpu

    grad_q, grad_k, q, k, gain = (x.contiguous() for x in (grad_q, grad_k, q, k, gain))
    cos, sin = (x.float().contiguous() for x in (cos, sin))
    d_q, d_k = torch.empty_like(q), torch.empty_like(k)
    total, length, constants = _shape_of(q, k, cos)
    launch = launch_rotary(q.shape[3], 2 * cos.shape[1], capability_of(q.device), "backward")
    tiles = cdiv(total, launch.tiles["BT"])
    partial = torch.empty(q.shape[2], tiles, dtype=torch.float32, device=q.device)
    if tiles:
        gpu.rotary_bwd_kernel[(tiles * (q.shape[2] + k.shape[2]),)](
            grad_q, grad_k, q, k, gain, cos, sin, d_q, d_k, partial, eps, total, length, tiles, **constants, **launch.options
        )
    return d_q, d_k, partial.sum(1).to(gain.dtype)


def compile_cases(capability):
    from pgolf.kernels.compile import Case
    from pgolf.kernels.rotary import gpu

    cases = []
    # (dtype, head dim, rotary dims): the challenge's shape first; all, none, and an awkward number of dims rotated.
    shapes = [("bf16", 64, 16), ("bf16", 64, 64), ("bf16", 64, 0), ("bf16", 128, 32), ("bf16", 96, 20)]
    for kind, dim, dims in [*shapes, ("fp16", 64, 16), ("fp32", 64, 16)]:
        constants = {"H": 8, "HKV": 4, "D": dim, "HALF": dims // 2}
        element_bytes = 4 if kind == "fp32" else 2
        for direction, kernel in (("forward", gpu.rotary_fwd_kernel), ("backward", gpu.rotary_bwd_kernel)):
            launch = launch_rotary(dim, dims, capability, direction)
            sizes = {"eps": "fp32", "total": "i32", "length": "i32", "tiles": "i32"}
            of_floats = ("p_gain", "p_cos", "p_sin", "p_partial")
            signature = {
                name: sizes.get(name) or ("*fp32:16" if name in of_floats else f"*{kind}:16")
                for name in kernel.arg_names
                if name not in constants and name not in launch.tiles
            }
            amount = traffic_rotary(98_304, 8, 4, dim, element_bytes, direction)
            name = f"{direction} {kind} d={dim} rotary={dims}"
            cases.append(Case(kernel, name, signature, constants, launch, "N=98304 H=8 Hkv=4", *amount, max_registers=96))
    return cases


def _forward_cpu(q, k, gain, cos, sin, eps):
    """In numba, which computes in float32; float64 stays with torch."""
    if torch.float64 in (q.dtype, cos.dtype):
        return reference.rotary(q, k, gain, cos, sin, eps=eps)
    from pgolf.kernels.rotary import cpu

    heads, turns = [tokens_in_float32(x, copy=True) for x in (q, k)], [x.float().contiguous().numpy() for x in (cos, sin)]
    gains = [x.detach().float().contiguous().numpy() for x in (gain, torch.ones(k.shape[2]))]

    def work(first):
        for x, own in zip(heads, gains, strict=True):
            cpu.forward(x.numpy()[first : first + SPAN], own, *turns, first, eps)

    in_parallel(work, range(0, len(heads[0]), SPAN))
    return tuple(x.to(kind.dtype).view(kind.shape) for x, kind in zip(heads, (q, k), strict=True))


def _backward_cpu(grad_q, grad_k, q, k, gain, cos, sin, eps):
    if torch.float64 in (q.dtype, cos.dtype):
        return _backward_torch(grad_q, grad_k, q, k, gain, cos, sin, eps)
    from pgolf.kernels.rotary import cpu

    grads, heads = [tokens_in_float32(x, copy=True) for x in (grad_q, grad_k)], [tokens_in_float32(x) for x in (q, k)]
    turns = [x.float().contiguous().numpy() for x in (cos, sin)]
    gains = [x.detach().float().contiguous().numpy() for x in (gain, torch.ones(k.shape[2]))]
    starts = range(0, len(heads[0]), SPAN)
    sums = [torch.zeros(len(starts), x.shape[2]) for x in (q, k)]

    def work(first):
        for grad, x, own, total in zip(grads, heads, gains, sums, strict=True):
            span = slice(first, first + SPAN)
            cpu.backward(grad.numpy()[span], x.numpy()[span], own, *turns, first, eps, total.numpy()[first // SPAN])

    in_parallel(work, starts)
    d_q, d_k = (x.to(kind.dtype).view(kind.shape) for x, kind in zip(grads, (q, k), strict=True))
    return d_q, d_k, sums[0].sum(0).to(gain.dtype)


def _backward_torch(grad_q, grad_k, q, k, gain, cos, sin, eps):
    kind = torch.promote_types(q.dtype, torch.float32)

    def through(grad, x, factor):
        # the transpose of a rotation turns the other way.
        turned = reference.rotate(grad.to(kind), cos, -sin)
        scale = torch.rsqrt(x.to(kind).square().mean(-1, keepdim=True) + eps)
        unit = x.to(kind) * scale
        wanted = turned * factor
        return scale * (wanted - unit * (unit * wanted).mean(-1, keepdim=True)), (turned * unit).sum((0, 1, 3))

    d_q, d_gain = through(grad_q, q, gain[:, None].to(kind))
    d_k, _ = through(grad_k, k, 1)
    return d_q.to(q.dtype).contiguous(), d_k.to(k.dtype).contiguous(), d_gain.to(gain.dtype)


implement("pgolf::rotary", "CPU", _forward_cpu)
implement("pgolf::rotary_backward", "CPU", _backward_cpu)
implement("pgolf::rotary", "CUDA", _forward_triton)
implement("pgolf::rotary_backward", "CUDA", _backward_triton)


@torch.library.register_fake("pgolf::rotary")
def _forward_fake(q, k, gain, cos, sin, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.register_fake("pgolf::rotary_backward")
def _backward_fake(grad_q, grad_k, q, k, gain, cos, sin, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape), gain.new_empty(gain.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_q, grad_k):
    d_q, d_k, d_gain = torch.ops.pgolf.rotary_backward(grad_q, grad_k, *ctx.saved_tensors, ctx.eps)
    return d_q, d_k, d_gain, None, None, None


torch.library.register_autograd("pgolf::rotary", _backward, setup_context=_save)
