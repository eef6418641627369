"""The scan as a registered operator: launch choice, launchers, autograd and the public functions."""

import torch

from pgolf.kernels.launch import Launch, capability_of, cdiv, implement
from pgolf.kernels.scan.reference import scan_chunked

# Tokens of a chunk, on every device: a state is kept for each. Twice as many would double the work inside chunks,
# half as many the bytes of states.
CHUNK = 64


def scan(v, b, c, dt, log_decay):
    """A state for each head, which fades, takes a value in and is read at every token:

        h_t = exp(log_decay_t) h_(t-1) + dt_t b_t v_t^T,    y_t = c_t h_t,    h before the first token zero

    which is y_t = sum over j <= t of exp(log_decay_(j+1) + ... + log_decay_t) dt_j (c_t . b_j) v_j. With dt = softplus(...)
    and log_decay = A dt for a learnt A < 0 this is Mamba-2's layer; where neither depends on the token, the decay is one of
    time alone.

    v               (batch, T, heads, P)
    b, c            (batch, T, groups, S), heads a multiple of groups: head h uses group h // (heads // groups)
    dt, log_decay   (batch, T, heads), or (heads,) where they are the same at every token; log_decay <= 0
    returns         (batch, T, heads, P) in v's dtype, which is that of b and c too

    Differentiable in all of them. Arithmetic on dt, log_decay and the state is in float32 (float64 for float64 inputs).
    Saved for backward: the inputs, and the state before each chunk of 64 tokens, (batch, heads, chunks, S, P).

    On CUDA chunks are products of matrices, for 16-bit floats, P of 64 or 128 and S up to 32 (16 on Ampere); `scan_chunked`
    in plain torch serves other sizes and dtypes. Forward walks along a sequence with a program for each 64 of a head's
    width, so that a device fills from about batch x heads x P / 64 = twice its multiprocessors on. On a CPU numba goes
    token by token.

    N = batch T heads, e bytes per element, Q = 64, S at least 16. Forward: N (2 P e + 2 S e + 4 S P / Q + 8) bytes, if
    every head has a group of its own, and N (2 Q (S + P) + 4 S P) FLOPs; backward, in two launches:
    N (4 P e + 5 S e + 12 S P / Q + 20) bytes and N (2 Q (3 S + 2 P) + 8 S P) FLOPs.
    """
    _check(v, b, c, dt, log_decay)
    exact = torch.promote_types(v.dtype, torch.float32)
    dt, log_decay = (x.to(exact).expand(v.shape[:3]) for x in (dt, log_decay))
    if v.is_cuda and not uses_kernels(v.shape[3], b.shape[3], v.dtype, capability_of(v.device)):
        return scan_chunked(v, b, c, dt, log_decay, CHUNK)
    return torch.ops.pgolf.scan(v, b, c, dt, log_decay)[0]


@torch.no_grad()
def scan_step(state, v, b, c, dt, log_decay):
    """One token of `scan`, in place on its state: after n steps from zeros, the n-th result is what `scan` gives there.

    state           (batch, heads, S, P), in float32 or float64; zeros before the first token
    v               (batch, heads, P)
    b, c            (batch, groups, S)
    dt, log_decay   (batch, heads), or (heads,)
    returns         (batch, heads, P) in v's dtype

    Not differentiable. Its cost does not depend on how many tokens went before: about 5 S P FLOPs a head, and the state
    read and written.
    """
    sequence = (x[:, None] for x in (v, b, c))
    _check(*sequence, *(x if x.dim() == 1 else x[:, None] for x in (dt, log_decay)))
    heads = v.shape[1]
    if state.shape != (v.shape[0], heads, b.shape[2], v.shape[2]):
        raise ValueError(
            f"scan_step: state is {tuple(state.shape)}; (batch, heads, S, P) = "
            f"{(v.shape[0], heads, b.shape[2], v.shape[2])} expected"
        )
    b, c = (x.to(state).repeat_interleave(heads // x.shape[1], 1)[..., None] for x in (b, c))
    dt, log_decay = (x.to(state).expand(v.shape[:2])[..., None, None] for x in (dt, log_decay))
    state.mul_(log_decay.exp()).add_(dt * b * v.to(state)[:, :, None])
    return (c * state).sum(2).to(v.dtype)


def _check(v, b, c, dt, log_decay):
    if v.dim() != 4 or b.dim() != 4 or b.shape != c.shape or v.shape[:2] != b.shape[:2] or v.shape[2] % max(b.shape[2], 1):
        raise ValueError(
            "scan: v (batch, T, heads, P) and b, c (batch, T, groups, S) with heads a multiple of groups expected, "
            f"got {tuple(v.shape)}, {tuple(b.shape)} and {tuple(c.shape)}"
        )
    if not v.dtype == b.dtype == c.dtype or not v.dtype.is_floating_point:
        raise ValueError(f"scan: v, b and c must have one floating-point dtype, got {v.dtype}, {b.dtype} and {c.dtype}")
    for name, x in (("dt", dt), ("log_decay", log_decay)):
        if x.shape not in (v.shape[:3], v.shape[2:3]):
            raise ValueError(f"scan: {name} must be (batch, T, heads) or (heads,) of v {tuple(v.shape)}, not {tuple(x.shape)}")


# Part of the width, warps and stages by capability; chosen by reasoning, unmeasured: what spills nothing. Programs take no
# more than 64 of a head's width at once, so that several share a multiprocessor and hide each other's chain of products.
FORWARD = {80: (64, 4, 3), 90: (64, 4, 3), 100: (64, 8, 2)}
STATES = {80: (64, 4, 3), 90: (64, 4, 3), 100: (64, 4, 1)}
CHUNKS = {80: (32, 8, 2), 90: (64, 8, 1), 100: (64, 8, 1)}
# The largest state whose gradients stay in registers.
LARGEST = {80: 16, 90: 32, 100: 32}


def _launch(table, size, capability) -> Launch:
    width, warps, stages = table[capability]
    return Launch({"BT": CHUNK, "BP": width, "BS": padded(size)}, num_warps=warps, num_stages=stages)


def launch_forward(size: int, capability: int) -> Launch:
    return _launch(FORWARD, size, capability)


def launch_states(size: int, capability: int) -> Launch:
    return _launch(STATES, size, capability)


def launch_chunks(size: int, capability: int) -> Launch:
    return _launch(CHUNKS, size, capability)


def padded(size: int) -> int:
    """The columns of a state's tile: a power of two, and no fewer than a product of matrices takes."""
    return max(16, 1 << (size - 1).bit_length())


def uses_kernels(width: int, size: int, dtype: torch.dtype, capability: int) -> bool:
    """Half precision, heads of 64 or 128 (narrower tiles have too few rows for Hopper's products) and small states, on the
    devices that launches were chosen for."""
    half = dtype in (torch.bfloat16, torch.float16)
    return capability in FORWARD and half and width in (64, 128) and 1 <= size <= LARGEST[capability]


def traffic_forward(tokens, heads, groups, width, size, element_size=2):
    """Bytes and FLOPs; the least bytes: what two heads of a group both read comes from the cache."""
    columns = padded(size)
    states = 4 * heads * width * size // CHUNK
    moved = 2 * heads * width * element_size + 2 * groups * size * element_size + states + 8 * heads
    return tokens * moved, tokens * heads * (2 * CHUNK * (columns + width) + 4 * columns * width)


def traffic_states(tokens, heads, groups, width, size, element_size=2):
    states = 4 * heads * width * size // CHUNK
    moved = heads * width * element_size + groups * size * element_size + states + 4 * heads
    return tokens * moved, tokens * heads * 2 * padded(size) * width


def traffic_chunks(tokens, heads, groups, width, size, element_size=2):
    """The same; where heads share a group, each has gradients of its own in float32."""
    columns = padded(size)
    states = 8 * heads * width * size // CHUNK
    shares = 2 * heads * size * (element_size if groups == heads else 4)
    moved = 3 * heads * width * element_size + 2 * groups * size * element_size + shares + states + 16 * heads
    return tokens * moved, tokens * heads * (2 * CHUNK * (3 * columns + 2 * width) + 6 * columns * width)


def compile_cases(capability):
    from pgolf.kernels.compile import Case
    from pgolf.kernels.scan import gpu

    batch, length = 48, 2048
    exact = ("p_dt", "p_decay", "p_states", "p_dstates", "p_ddt", "p_ddecay")
    kernels = (
        ("forward", gpu.scan_fwd_kernel, launch_forward, traffic_forward),
        ("backward states", gpu.scan_bwd_kernel_states, launch_states, traffic_states),
        ("backward chunks", gpu.scan_bwd_kernel_chunks, launch_chunks, traffic_chunks),
    )
    cases = []
    # the hybrid's, the size of its ten-layer variant, the largest, and shared groups of an odd size
    shapes = [("bf16", 8, 8, 128, 8), ("fp16", 8, 8, 128, 16), ("bf16", 8, 8, 128, 32), ("bf16", 4, 2, 64, 5)]
    for kind, heads, groups, width, size in shapes:
        if size > LARGEST[capability]:
            continue
        for direction, kernel, choose, traffic in kernels:
            moved, work = traffic(batch * length, heads, groups, width, size)
            signature = {"length": "i32", "chunks": "i32"}
            for name in kernel.arg_names:
                if name.startswith("p_"):
                    wide = name in exact or name in ("p_db", "p_dc") and groups < heads
                    signature[name] = "*fp32:16" if wide else f"*{kind}:16"
            cases.append(
                Case(
                    kernel=kernel,
                    name=f"{direction} P={width} S={size} {kind}" + " groups" * (groups < heads),
                    signature=signature,
                    constants={"H": heads, "G": groups, "P": width, "S": size},
                    launch=choose(size, capability),
                    shape=f"B={batch} T={length} H={heads} G={groups}",
                    bytes=moved,
                    flops=work,
                    matmul=True,
                )
            )
    return cases


def forward_triton(v, b, c, dt, log_decay):
    from pgolf.kernels.scan import gpu

    v, b, c, dt, log_decay = (x.contiguous() for x in (v, b, c, dt, log_decay))
    batch, length, heads, width = v.shape
    groups, size = b.shape[2:]
    y, states = torch.empty_like(v), _states(v, size)
    launch = launch_forward(size, capability_of(v.device))
    if v.numel():
        gpu.scan_fwd_kernel[(batch * heads, cdiv(width, launch.tiles["BP"]))](
            v, b, c, dt, log_decay, y, states, length, states.shape[2], H=heads, G=groups, P=width, S=size, **launch.options
        )
    return y, states


def backward_triton(dy, v, b, c, dt, log_decay, states):
    from pgolf.kernels.scan import gpu

    dy, v, b, c, dt, log_decay = (x.contiguous() for x in (dy, v, b, c, dt, log_decay))
    batch, length, heads, width = v.shape
    groups, size = b.shape[2:]
    dv, d_dt, d_log_decay = (torch.empty_like(x) for x in (v, dt, log_decay))
    # heads that share a group add up afterwards, in a fixed order
    exact = b.dtype if groups == heads else torch.float32
    db, dc = (torch.empty(batch, length, heads, size, dtype=exact, device=v.device) for _ in range(2))
    if v.numel():
        d_states, chunks, capability = torch.empty_like(states), states.shape[2], capability_of(v.device)
        sizes = {"H": heads, "G": groups, "P": width, "S": size}
        launch = launch_states(size, capability)
        gpu.scan_bwd_kernel_states[(batch * heads, cdiv(width, launch.tiles["BP"]))](
            dy, c, log_decay, d_states, length, chunks, **sizes, **launch.options
        )
        launch = launch_chunks(size, capability)
        gpu.scan_bwd_kernel_chunks[(chunks, batch * heads)](
            dy, v, b, c, dt, log_decay, states, d_states, dv, db, dc, d_dt, d_log_decay, length, chunks,
            **sizes, **launch.options,
        )  # fmt: skip
    if groups < heads:
        db, dc = (x.unflatten(2, (groups, -1)).sum(3).to(b.dtype) for x in (db, dc))
    return dv, db, dc, d_dt, d_log_decay


def forward_numba(v, b, c, dt, log_decay):
    from pgolf.kernels.scan import cpu

    y = torch.empty(v.shape, dtype=dt.dtype)
    states = _states(v, b.shape[3])
    cpu.forward(*_arrays(dt.dtype, v, b, c, dt, log_decay), CHUNK, y.numpy(), states.numpy())
    return y.to(v.dtype), states


def backward_numba(dy, v, b, c, dt, log_decay, states):
    from pgolf.kernels.scan import cpu

    given = v, b, c, dt, log_decay
    found = [torch.zeros(x.shape, dtype=dt.dtype) for x in given]
    inputs = _arrays(dt.dtype, dy, *given, states)
    cpu.backward(*inputs, CHUNK, *(x.numpy() for x in found))
    return tuple(gradient.to(x.dtype) for gradient, x in zip(found, given, strict=True))


def _arrays(kind, *tensors):
    return [x.detach().to(kind).contiguous().numpy() for x in tensors]


def _states(v, size):
    """Room for the state before each chunk."""
    batch, length, heads, width = v.shape
    exact = torch.promote_types(v.dtype, torch.float32)
    return v.new_empty(batch, heads, cdiv(length, CHUNK), size, width, dtype=exact)


def _fake_forward(v, b, c, dt, log_decay):
    return v.new_empty(v.shape), _states(v, b.shape[3])


def _fake_backward(dy, v, b, c, dt, log_decay, states):
    return tuple(x.new_empty(x.shape) for x in (v, b, c, dt, log_decay))


def _save(ctx, inputs, output):
    _, states = output
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(*inputs, states)


def _backward(ctx, dy, _):
    gradients = torch.ops.pgolf.scan_backward(dy, *ctx.saved_tensors)
    return tuple(g if wanted else None for g, wanted in zip(gradients, ctx.needs_input_grad, strict=True))


INPUTS = "Tensor v, Tensor b, Tensor c, Tensor dt, Tensor log_decay"
torch.library.define("pgolf::scan", f"({INPUTS}) -> (Tensor y, Tensor states)")
torch.library.define(
    "pgolf::scan_backward", f"(Tensor dy, {INPUTS}, Tensor states) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
implement("pgolf::scan", "CPU", forward_numba)
implement("pgolf::scan_backward", "CPU", backward_numba)
implement("pgolf::scan", "CUDA", forward_triton)
implement("pgolf::scan_backward", "CUDA", backward_triton)
torch.library.register_fake("pgolf::scan", _fake_forward)
torch.library.register_fake("pgolf::scan_backward", _fake_backward)
torch.library.register_autograd("pgolf::scan", _backward, setup_context=_save)
