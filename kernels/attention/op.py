"""Registration, launch choice, the choice of a core, and the public functions of `attention` and `xsa`."""

import functools
import importlib.util
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pgolf.kernels.attention import reference
from pgolf.kernels.launch import Launch, capability_of, cdiv, implement, outside_graphs
from pgolf.kernels.threads import SPAN, in_parallel, tokens_in_float32

LOG2E = math.log2(math.e)
INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor? start, Tensor? end"
OPTIONS = "SymInt window, float scale, bool xsa"

torch.library.define("pgolf::document_bounds", "(Tensor cu_seqlens, SymInt length) -> (Tensor, Tensor)")
torch.library.define("pgolf::attention", f"({INPUTS}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)")
torch.library.define(
    "pgolf::attention_backward",
    f"(Tensor grad, {INPUTS}, Tensor z, Tensor a, Tensor lse, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define("pgolf::xsa", "(Tensor y, Tensor v, Tensor? gate, float eps) -> Tensor")
torch.library.define(
    "pgolf::xsa_backward", "(Tensor grad, Tensor y, Tensor v, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)"
)


def attention(q, k, v, *, xsa=False, gate=None, cu_seqlens=None, window=None, scale=None, core=None):
    """Causal attention, with exclusive self-attention (XSA) and a per-head gate as options.

        p_ij = softmax over visible j <= i of scale (q_i . k_j),   y_i = sum_j p_ij v_j
        z = y - a v,  a = (y . v) / max(|v|^2, 1e-24)              with xsa: v of the same token and group
        out = gate z                                               with gate (B, T, H)

    q (B, T, H, d); k, v (B, T, Hkv, d), H a multiple of Hkv: query head h uses key-value head h // (H // Hkv).
    Returns (B, T, H, d) in q's dtype; arithmetic beyond the matmuls is in float32 (float64 for float64 inputs).
    cu_seqlens (n + 1,) int32 with B = 1: document boundaries, starting at 0; a token sees its own document alone.
    Documents may be empty; tokens beyond the last boundary give zeros and zero gradients.
    window: a token sees that many tokens at most, itself included. scale defaults to 1 / sqrt(d).
    Differentiable in q, k, v and gate.

    core: who does the attention itself.
      "triton"     the operator of this room, everything fused; d a power of two up to 128, float32 and 16-bit floats.
                   On a CPU the same operator in plain torch.
      "fa3"        FlashAttention-3 (flash_attn_interface, or through Hugging Face's kernels), then `xsa`
      "fa2"        FlashAttention-2 (flash_attn), then `xsa`
      "sdpa"       torch's own, then `xsa`; with documents or a window it builds a T x T mask
      "dense"      two batched products around a softmax, T x T scores in q's dtype, then `xsa`
      "reference"  plain torch, T x T matrices
    None takes the first usable one from `PREFERENCE`. All agree to rounding.

    The Triton core saves q, k, v, the output before the gate, lse (B, H, T) float32 and, with xsa, a (B, H, T) float32;
    y is recovered as z + a v. With e bytes per element, N = B T and S the number of visible (query, key) pairs, it moves
    at least (2 H + 2 Hkv) N d e bytes forward (H N d e more with a gate) and, backward, (4 H + 4 Hkv) N d e; with xsa or
    a gate 4 H N d e more, for dy and its reading back. FLOPs: 4 S H d forward; 14 S H d backward, because the scores and
    dP are computed twice rather than added up atomically.
    """
    _check_attention(q, k, v, gate, cu_seqlens, window, scale)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    core = core or _best_core(q)
    if core == "reference":
        return reference.attention(q, k, v, xsa=xsa, gate=gate, cu_seqlens=cu_seqlens, window=window, scale=scale)
    if core == "triton":
        _check_fused(q)
        start, end = (None, None) if cu_seqlens is None else torch.ops.pgolf.document_bounds(cu_seqlens, q.shape[1])
        return torch.ops.pgolf.attention(q, k, v, gate, start, end, window or 0, scale, xsa)[0]
    with outside_graphs(f"pgolf.attention by {core}"):
        if core == "sdpa":
            y = _sdpa(q, k, v, cu_seqlens, window, scale)
        elif core == "dense":
            y = _dense(q, k, v, cu_seqlens, window, scale)
        elif core in ("fa3", "fa2"):
            y = _flash(core, q, k, v, cu_seqlens, window, scale)
        else:
            raise ValueError(f"attention: no core {core!r}; there are triton, fa3, fa2, sdpa, dense and reference")
    if cu_seqlens is not None:
        inside = torch.arange(q.shape[1], device=q.device) < cu_seqlens[-1]
        y = torch.where(inside[:, None, None], y, 0)
    if xsa:
        return torch.ops.pgolf.xsa(y, v, gate, reference.EPS)
    return y if gate is None else (y * gate[..., None]).to(q.dtype)


def xsa(y, v, gate=None, *, eps=reference.EPS):
    """Exclusive self-attention after any attention: remove from each head's output its part along the token's own value.

        z = y - a v,  a = (y . v) / max(|v|^2, eps^2),  times gate if there is one

    y (B, T, H, d); v (B, T, Hkv, d) of y's dtype, H a multiple of Hkv; gate (B, T, H). Returns y's shape and dtype;
    arithmetic is in float32 (float64 for float64 inputs). Differentiable in y, v and gate.

    Saved for backward: the inputs. With e bytes per element and N = B T: (2 H + Hkv) N d e bytes forward, (3 H + 2 Hkv)
    N d e backward; about 4 H N d and 10 H N d FLOPs, far below what the memory allows.
    """
    if y.ndim != 4 or v.ndim != 4 or y.shape[:2] != v.shape[:2] or y.shape[3] != v.shape[3] or y.shape[2] % v.shape[2]:
        raise ValueError(
            "xsa: y (B, T, H, d) and v (B, T, Hkv, d) with H a multiple of Hkv expected, "
            f"got {tuple(y.shape)} and {tuple(v.shape)}"
        )
    if y.dtype != v.dtype or not y.dtype.is_floating_point:
        raise ValueError(f"xsa: y and v must have one floating-point dtype, got {y.dtype} and {v.dtype}")
    if gate is not None and gate.shape != y.shape[:3]:
        raise ValueError(f"xsa: gate must be (B, T, H) = {tuple(y.shape[:3])}, got {tuple(gate.shape)}")
    return torch.ops.pgolf.xsa(y, v, gate, eps)


def _check_attention(q, k, v, gate, cu_seqlens, window, scale):
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            "attention: q (B, T, H, d) and k, v (B, T, Hkv, d) expected, "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads cannot share {k.shape[2]} key-value heads evenly")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"attention: q, k and v must have one floating-point dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if gate is not None and gate.shape != q.shape[:3]:
        raise ValueError(f"attention: gate must be (B, T, H) = {tuple(q.shape[:3])}, got {tuple(gate.shape)}")
    if cu_seqlens is not None and (cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32 or q.shape[0] != 1):
        raise ValueError(
            "attention: cu_seqlens must be int32 of one dimension, and the documents packed into a batch of one; "
            f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)} and a batch of {q.shape[0]}"
        )
    if window is not None and window < 1:
        raise ValueError(f"attention: a window of {window} tokens sees nothing; it must be 1 (the token itself) or more")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale must be positive, not {scale}")


def _check_fused(q):
    if q.device.type == "cuda" and not _usable("triton", q.dtype, q.shape[3]):
        raise ValueError(
            "attention: the triton core takes float32, float16 and bfloat16 and head dims of 16, 32, 64 and 128, "
            f"not {q.dtype} and {q.shape[3]}; choose core='sdpa'"
        )


# Best first, per capability; chosen by reasoning, unmeasured. On Hopper FlashAttention-3's backward is far enough ahead
# to pay for the separate pass of XSA; on Ampere and Blackwell FlashAttention-2 is not, once XSA and documents (whose
# empty tiles it launches, knowing no longer bound than T) are counted. SDPA comes last: it has no document mask of its own.
PREFERENCE = {80: ("triton", "fa2", "sdpa"), 90: ("fa3", "triton", "fa2", "sdpa"), 100: ("triton", "fa2", "sdpa")}


def choose_core(capability, dtype, head_dim, installed) -> str:
    """First entry of `PREFERENCE` that is installed and takes this dtype and head dim."""
    known = max(number for number in PREFERENCE if number <= max(capability, 80))
    return next(core for core in PREFERENCE[known] if core in installed and _usable(core, dtype, head_dim))


def _usable(core, dtype, head_dim):
    if core == "triton":
        return dtype in (torch.float32, torch.float16, torch.bfloat16) and head_dim in (16, 32, 64, 128)
    if core in ("fa2", "fa3"):
        return dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256
    return True


# Up to this length a CPU that multiplies 16-bit numbers is faster with T x T scores than with its SDPA, which computes in
# float32.
DENSE_LENGTH = 512


def _best_core(q):
    if q.device.type != "cuda":
        return "dense" if q.dtype in (torch.bfloat16, torch.float16) and q.shape[1] <= DENSE_LENGTH else "sdpa"
    return choose_core(capability_of(q.device), q.dtype, q.shape[3], _installed_cores().split())


def _constant(form: Any) -> Any:
    """A compiled graph cannot trace an import: what is marked like this runs while it is traced, and its answer becomes a
    constant of it. The attribute is what torch.compiler.assume_constant_result sets; calling that would import the compiler
    here and now."""
    form._dynamo_marked_constant = True
    return form


@_constant
def _installed_cores():
    return "triton sdpa" + "".join(f" {core}" for core in FLASH if _flash_module(core) is not None)


@_constant
def _load_flash(core):
    if _flash_module(core) is None:
        raise ImportError(f"attention: core={core!r} needs {FLASH[core]}; core=None takes the best core that is installed")
    LOADED[core] = _flash_module(core)
    return True


FLASH = {
    "fa3": "FlashAttention-3: either flash_attn_interface, or Hugging Face's kernels and its kernels-community/flash-attn3",
    "fa2": "FlashAttention-2: pip install flash-attn",
}
LOADED: dict[str, ModuleType] = {}


@functools.cache
def _flash_module(core):
    if core == "fa2":
        return importlib.import_module("flash_attn") if importlib.util.find_spec("flash_attn") else None
    if importlib.util.find_spec("flash_attn_interface"):
        return importlib.import_module("flash_attn_interface")
    try:
        return importlib.import_module("kernels").get_kernel("kernels-community/flash-attn3")
    except Exception:  # not installed, no network, or no build for this machine: whichever it is, there is no such core.
        return None


def _flash(core, q, k, v, cu_seqlens, window, scale):
    _load_flash(core)
    options = {"softmax_scale": scale, "causal": True, "window_size": (-1 if window is None else window - 1, 0)}
    if cu_seqlens is None:
        out = LOADED[core].flash_attn_func(q, k, v, **options)
        return out[0] if isinstance(out, tuple) else out
    # tokens beyond the last document form one more, so that nothing is left unwritten.
    length = q.shape[1]
    bounds = torch.cat([cu_seqlens, cu_seqlens.new_full((1,), length)])
    out = LOADED[core].flash_attn_varlen_func(
        q[0], k[0], v[0],
        cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=length, max_seqlen_k=length, **options,
    )  # fmt: skip
    return (out[0] if isinstance(out, tuple) else out)[None]


def _sdpa(q, k, v, cu_seqlens, window, scale):
    mask = None if cu_seqlens is None and window is None else _same_document(q.shape[1], cu_seqlens, window, q.device)
    # the spelled-out condition gives a plain bool while a graph with symbolic shapes is traced.
    y = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True if q.shape[2] != k.shape[2] else False,
    )  # fmt: skip
    return y.transpose(1, 2)


def _dense(q, k, v, cu_seqlens, window, scale):
    batch, length, heads, dim = q.shape
    groups, share = k.shape[2], heads // k.shape[2]
    visible = _same_document(length, cu_seqlens, window, q.device)
    hidden = torch.zeros(length, length, dtype=q.dtype, device=q.device).masked_fill(~visible, -math.inf)
    # the heads that share keys stand below each other, so that one product serves them all
    rows = q.unflatten(2, (groups, share)).permute(0, 2, 3, 1, 4).reshape(batch * groups, share * length, dim)
    keys, values = (x.transpose(1, 2).reshape(batch * groups, length, dim) for x in (k, v))
    scores = torch.baddbmm(hidden.repeat(share, 1), rows, keys.mT, alpha=scale)
    y = scores.softmax(-1) @ values
    return y.view(batch, groups, share, length, dim).permute(0, 3, 1, 2, 4).reshape(q.shape)


def _same_document(length, cu_seqlens, window, device):
    """As `reference.visible`, but tokens beyond the last document form one more, so that no row is empty."""
    position = torch.arange(length, device=device)
    mask = position[None, :] <= position[:, None]
    if window is not None:
        mask = mask & (position[:, None] - position[None, :] < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, position.int(), right=True)
        mask = mask & (document[:, None] == document[None, :])
    return mask


# Tiles by capability, bits per element and head dim, as (BM, BN, warps, stages) and, where two blocks are to share a
# multiprocessor, a cap on registers; chosen by reasoning, unmeasured: the largest tiles that spill nothing with every
# option on. A block of 128 rows halves what K and V cost in the L2 cache, which at head dim 64 would else be the limit.
# Eight warps are two warpgroups of 64 rows; they take softmax and matmul in step, so a second block is what keeps the
# tensor cores busy meanwhile. float32 multiplies without tensor cores, for comparison rather than speed.
FORWARD = {
    80: {16: {64: (128, 64, 8, 3), 128: (64, 64, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (32, 16, 8, 2)}},
    90: {16: {64: (128, 64, 8, 3, 128), 128: (128, 64, 8, 3)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    100: {16: {64: (128, 64, 4, 3), 128: (128, 64, 8, 3)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
}
BACKWARD_KV = {
    80: {16: {64: (32, 128, 8, 2), 128: (32, 64, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
    90: {16: {64: (32, 128, 8, 2, 128), 128: (32, 128, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
    100: {16: {64: (32, 128, 8, 2, 128), 128: (64, 128, 8, 2)}, 32: {64: (32, 32, 8, 2), 128: (16, 16, 8, 2)}},
}
BACKWARD_Q = {
    80: {16: {64: (128, 64, 8, 2), 128: (128, 32, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    90: {16: {64: (128, 64, 8, 2, 128), 128: (128, 64, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
    100: {16: {64: (128, 64, 8, 2, 128), 128: (128, 64, 8, 2)}, 32: {64: (32, 32, 4, 2), 128: (32, 16, 8, 2)}},
}
# Elements of a tile (tokens x head dim) of the kernels that only stream, on eight warps: 16 per thread and tensor, which
# keeps several blocks on a multiprocessor and enough loads in flight to cover the latency of memory.
STREAMED = 4096


def _launch_matmul(table, head_dim, element_bits, capability) -> Launch:
    known = max(number for number in table if number <= max(capability, 80))
    rows, columns, warps, stages, *cap = table[known][element_bits][64 if head_dim <= 64 else 128]
    return Launch({"BM": rows, "BN": columns}, warps, stages, *cap)


def launch_attention_fwd(head_dim, element_bits, capability) -> Launch:
    """BN divides BM: the diagonal of a query tile is a whole number of key blocks."""
    return _launch_matmul(FORWARD, head_dim, element_bits, capability)


def launch_attention_bwd_kv(head_dim, element_bits, capability) -> Launch:
    """BM divides BN: the diagonal of a key tile is a whole number of query blocks."""
    return _launch_matmul(BACKWARD_KV, head_dim, element_bits, capability)


def launch_attention_bwd_q(head_dim, element_bits, capability) -> Launch:
    """BN divides BM, as in the forward kernel."""
    return _launch_matmul(BACKWARD_Q, head_dim, element_bits, capability)


def launch_attention_bwd_prepare(head_dim) -> Launch:
    return Launch({"BT": STREAMED // max(32, head_dim)}, num_warps=8, num_stages=1)


def launch_xsa(head_dim) -> Launch:
    """64 tokens of one group at head dim 64; odd head dims are padded to a power of two."""
    width = max(16, 1 << (head_dim - 1).bit_length())
    return Launch({"BT": max(1, STREAMED // max(32, width)), "BD": width}, num_warps=8, num_stages=1)


def launch_document_bounds() -> Launch:
    return Launch({"BT": 512}, num_warps=4, num_stages=1)


# Bytes and FLOPs of one launch. `pairs` is the number of visible (query, key) pairs of one head, summed over the batch.


def traffic_attention_fwd(tokens, pairs, heads, kv_heads, head_dim, element_bytes, xsa=False, gate=False):
    rows = (2 + gate) * heads + 2 * kv_heads
    per_head = 4 * tokens * heads * (1 + xsa + gate)
    return tokens * rows * head_dim * element_bytes + per_head, 4 * pairs * heads * head_dim


def traffic_attention_bwd_prepare(tokens, heads, kv_heads, head_dim, element_bytes, xsa=False, gate=False):
    rows = (3 if xsa or gate else 2) * heads + (2 * kv_heads if xsa else 0)
    per_head = 4 * tokens * heads * (1 + xsa + 2 * gate)
    return tokens * rows * head_dim * element_bytes + per_head, (10 if xsa else 3) * tokens * heads * head_dim


def traffic_attention_bwd_kv(tokens, pairs, heads, kv_heads, head_dim, element_bytes, xsa=False):
    rows = 2 * heads + (5 if xsa else 4) * kv_heads
    return tokens * rows * head_dim * element_bytes + 8 * tokens * heads, 8 * pairs * heads * head_dim


def traffic_attention_bwd_q(tokens, pairs, heads, kv_heads, head_dim, element_bytes):
    rows = 3 * heads + 2 * kv_heads
    return tokens * rows * head_dim * element_bytes + 8 * tokens * heads, 6 * pairs * heads * head_dim


def traffic_xsa(tokens, heads, kv_heads, head_dim, element_bytes, direction, gate=False):
    rows, work = (2 * heads + kv_heads, 4) if direction == "forward" else (3 * heads + 2 * kv_heads, 10)
    gates = 4 * tokens * heads * gate * (1 if direction == "forward" else 2)
    return tokens * rows * head_dim * element_bytes + gates, work * tokens * heads * head_dim


def compile_cases(capability):
    from pgolf.kernels.attention import gpu
    from pgolf.kernels.compile import Case

    batch, length, heads, kv_heads = 48, 2048, 8, 4
    tokens, pairs = batch * length, batch * length * (length + 1) // 2
    shape = f"B={batch} T={length} H={heads} Hkv={kv_heads}"
    cases = []

    def add(kernel, name, launch, traffic, kind, flags, **more):
        """Types follow from the arguments' names; what an option leaves out is None, as the launchers pass it."""
        absent = set()
        if not flags.get("GATE"):
            absent |= {"p_gate", "p_dgate"}
        if kernel is gpu.attention_fwd_kernel:
            absent |= ({"p_z"} if not flags["GATE"] else set()) | ({"p_a"} if not flags["XSA"] else set())
        elif not flags.get("XSA", True):
            absent |= {"p_a", "p_dv_own"} | ({"p_v", "p_dv"} if kernel is gpu.attention_bwd_prepare_kernel else set())
        if kernel is gpu.attention_bwd_prepare_kernel and not (flags["XSA"] or flags["GATE"]):
            absent |= {"p_dy"}
        if not flags.get("DOCUMENTS", True):
            absent |= {"p_start", "p_end"}
        exact = ("p_a", "p_lse", "p_delta", "p_gate", "p_dgate")
        integers = ("p_start", "p_end", "p_cu")
        signature, constants = {}, dict(flags)
        for argument in kernel.arg_names:
            if argument in absent:
                constants[argument] = None
            elif argument in integers:
                signature[argument] = "*i32:16"
            elif argument.startswith("p_"):
                signature[argument] = "*fp32:16" if argument in exact else f"*{kind}:16"
            elif argument in ("scale", "scale2", "floor"):
                signature[argument] = "fp32"
            elif argument not in flags and argument not in launch.tiles:
                signature[argument] = "i32"
        more = {"max_registers": launch.max_registers or 255, **more}
        cases.append(Case(kernel, f"{name} {kind}", signature, constants, launch, shape, *traffic, **more))

    def add_attention(kind, dim, xsa, gate, ragged, directions="forward prepare kv q"):
        bits = 32 if kind == "fp32" else 16
        common = (heads, kv_heads, dim, bits // 8)
        flags = {"H": heads, "HKV": kv_heads, "D": dim}
        edges = {"DOCUMENTS": ragged, "WINDOW": ragged}
        name = f"d={dim}" + " xsa" * xsa + " gate" * gate + " documents window" * ragged
        more = {"matmul": bits == 16}
        if "forward" in directions:
            launch = launch_attention_fwd(dim, bits, capability)
            traffic = traffic_attention_fwd(tokens, pairs, *common, xsa, gate)
            every = {**flags, **edges, "XSA": xsa, "GATE": gate}
            add(gpu.attention_fwd_kernel, f"forward {name}", launch, traffic, kind, every, **more)
        if "prepare" in directions:
            launch = launch_attention_bwd_prepare(dim)
            traffic = traffic_attention_bwd_prepare(tokens, *common, xsa, gate)
            every = {**flags, "XSA": xsa, "GATE": gate}
            add(gpu.attention_bwd_prepare_kernel, f"backward prepare {name}", launch, traffic, kind, every, max_registers=128)
        if "kv" in directions:
            launch = launch_attention_bwd_kv(dim, bits, capability)
            traffic = traffic_attention_bwd_kv(tokens, pairs, *common, xsa)
            every = {**flags, **edges, "XSA": xsa}
            add(gpu.attention_bwd_kv_kernel, f"backward kv {name}", launch, traffic, kind, every, **more)
        if "q" in directions.split():
            launch = launch_attention_bwd_q(dim, bits, capability)
            traffic = traffic_attention_bwd_q(tokens, pairs, *common)
            add(gpu.attention_bwd_q_kernel, f"backward q {name}", launch, traffic, kind, {**flags, **edges}, **more)

    # the challenge's shape plain, with XSA, and with everything; the other head dim; the other dtypes.
    add_attention("bf16", 64, False, False, False)
    add_attention("bf16", 64, True, False, False, "forward prepare kv")
    add_attention("bf16", 64, True, True, True, "forward kv q")
    add_attention("bf16", 128, True, True, False, "forward prepare kv q")
    add_attention("bf16", 128, True, True, True, "forward kv")
    add_attention("fp16", 64, True, False, True, "forward")
    add_attention("fp32", 64, True, True, True, "forward kv q")
    add_attention("fp32", 128, True, True, True, "forward kv q")
    for dim, kind, gate in ((64, "bf16", False), (96, "bf16", True)):
        launch = launch_xsa(dim)
        flags = {"H": heads, "HKV": kv_heads, "D": dim, "GATE": gate}
        for direction, kernel in (("forward", gpu.xsa_fwd_kernel), ("backward", gpu.xsa_bwd_kernel)):
            traffic = traffic_xsa(tokens, heads, kv_heads, dim, 2, direction, gate)
            add(kernel, f"xsa {direction} d={dim}" + " gate" * gate, launch, traffic, kind, flags, max_registers=128)
    add(gpu.document_bounds_kernel, "document bounds", launch_document_bounds(), (8 * tokens, 0), "i32", {}, max_registers=64)
    return cases


def _bounds_triton(cu_seqlens, length):
    from pgolf.kernels.attention import gpu

    launch = launch_document_bounds()
    cu_seqlens = cu_seqlens.contiguous()
    start, end = (torch.empty(length, dtype=torch.int32, device=cu_seqlens.device) for _ in range(2))
    if length:
        grid = (cdiv(length, launch.tiles["BT"]),)
        gpu.document_bounds_kernel[grid](cu_seqlens, start, end, cu_seqlens.numel() - 1, length, **launch.options)
    return start, end


def _forward_triton(q, k, v, gate, start, end, window, scale, xsa):
    from pgolf.kernels.attention import gpu

    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    out = torch.empty_like(q)
    z = torch.empty_like(q) if gate is not None else None
    a = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device) if xsa else None
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=q.device)
    launch = launch_attention_fwd(dim, 8 * q.element_size(), capability_of(q.device))
    tiles = cdiv(length, launch.tiles["BM"])
    if batch * tiles:
        gpu.attention_fwd_kernel[(tiles * batch * heads,)](
            q, k, v, gate, start, out, z, a, lse, scale * LOG2E, reference.EPS**2, length, window, tiles,
            H=heads, HKV=kv_heads, D=dim, XSA=xsa, GATE=gate is not None,
            DOCUMENTS=start is not None, WINDOW=window > 0, **launch.options,
        )  # fmt: skip
    return out, q.new_empty(0) if z is None else z, lse.new_empty(0) if a is None else a, lse


def _backward_triton(grad, q, k, v, gate, start, end, z, a, lse, window, scale, xsa):
    from pgolf.kernels.attention import gpu

    grad, q, k, v = grad.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    gated = gate is not None
    gate = gate.contiguous() if gated else None
    (batch, length, heads, dim), kv_heads = q.shape, k.shape[2]
    bits, capability = 8 * q.element_size(), capability_of(q.device)
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_gate = torch.empty_like(gate) if gated else None
    dy = torch.empty_like(q) if xsa or gated else grad
    dv_own = torch.empty_like(v) if xsa else None
    delta = torch.empty_like(lse)
    heads_and_dim = {"H": heads, "HKV": kv_heads, "D": dim}
    edges = {"DOCUMENTS": start is not None, "WINDOW": window > 0}
    if batch * length:
        launch = launch_attention_bwd_prepare(dim)
        gpu.attention_bwd_prepare_kernel[(cdiv(batch * length, launch.tiles["BT"]) * kv_heads,)](
            grad, z, v if xsa else None, gate, a if xsa else None, dy if xsa or gated else None, dv_own, d_gate, delta,
            reference.EPS**2, batch * length, length, XSA=xsa, GATE=gated, **heads_and_dim, **launch.options,
        )  # fmt: skip
        launch = launch_attention_bwd_kv(dim, bits, capability)
        tiles = cdiv(length, launch.tiles["BN"])
        gpu.attention_bwd_kv_kernel[(tiles * batch * kv_heads,)](
            q, k, v, end, dy, lse, delta, dv_own, d_k, d_v, scale * LOG2E, scale, length, window, tiles,
            XSA=xsa, **heads_and_dim, **edges, **launch.options,
        )  # fmt: skip
        launch = launch_attention_bwd_q(dim, bits, capability)
        tiles = cdiv(length, launch.tiles["BM"])
        gpu.attention_bwd_q_kernel[(tiles * batch * heads,)](
            q, k, v, start, dy, lse, delta, d_q, scale * LOG2E, scale, length, window, tiles,
            **heads_and_dim, **edges, **launch.options,
        )  # fmt: skip
    return d_q, d_k, d_v, d_gate if gated else lse.new_empty(0)


def _xsa_triton(y, v, gate, eps):
    from pgolf.kernels.attention import gpu

    y, v = y.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    (batch, length, heads, dim), kv_heads = y.shape, v.shape[2]
    z, launch = torch.empty_like(y), launch_xsa(dim)
    programs = cdiv(batch * length, launch.tiles["BT"]) * kv_heads
    if programs:
        gpu.xsa_fwd_kernel[(programs,)](
            y, v, gate, z, eps * eps, batch * length, H=heads, HKV=kv_heads, D=dim, GATE=gate is not None, **launch.options
        )
    return z


def _xsa_backward_triton(grad, y, v, gate, eps):
    from pgolf.kernels.attention import gpu

    grad, y, v = grad.contiguous(), y.contiguous(), v.contiguous()
    gated = gate is not None
    gate = gate.contiguous() if gated else None
    (batch, length, heads, dim), kv_heads = y.shape, v.shape[2]
    d_y, d_v, d_gate = torch.empty_like(y), torch.empty_like(v), torch.empty_like(gate) if gated else None
    launch = launch_xsa(dim)
    programs = cdiv(batch * length, launch.tiles["BT"]) * kv_heads
    if programs:
        gpu.xsa_bwd_kernel[(programs,)](
            grad, y, v, gate, d_y, d_v, d_gate, eps * eps, batch * length,
            H=heads, HKV=kv_heads, D=dim, GATE=gated, **launch.options,
        )  # fmt: skip
    return d_y, d_v, d_gate if gated else torch.empty(0, dtype=torch.float32, device=y.device)


def _bounds_cpu(cu_seqlens, length):
    position = torch.arange(length, dtype=torch.int32, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens, position, right=True)
    beyond = document == cu_seqlens.numel()
    start = cu_seqlens[(document - 1).clamp_min(0)].where(~beyond, length)
    return start, cu_seqlens[document.clamp_max(cu_seqlens.numel() - 1)].contiguous()


def _weights_cpu(q, k, start, window, scale, kind):
    """Scores in base 2, masked, with what a softmax needs of them: (scores, lse)."""
    position = torch.arange(q.shape[1], device=q.device)
    mask = position[None, :] <= position[:, None]
    if start is not None:
        mask = mask & (position[None, :] >= start[:, None])
    if window:
        mask = mask & (position[:, None] - position[None, :] < window)
    keys = k.to(kind).repeat_interleave(q.shape[2] // k.shape[2], 2)
    scores = torch.einsum("bihd,bjhd->bhij", q.to(kind), keys) * (scale * LOG2E)
    scores = scores.masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores / LOG2E, -1) * LOG2E
    return scores, lse.masked_fill(~mask.any(-1), 0)


def _forward_cpu(q, k, v, gate, start, end, window, scale, xsa):
    kind = torch.promote_types(q.dtype, torch.float32)
    scores, lse = _weights_cpu(q, k, start, window, scale, kind)
    own = v.to(kind).repeat_interleave(q.shape[2] // k.shape[2], 2)
    z = torch.einsum("bhij,bjhd->bihd", torch.exp2(scores - lse[..., None]), own)
    a = z.new_empty(0)
    if xsa:
        a = (z * own).sum(-1) / own.square().sum(-1).clamp_min(reference.EPS**2)
        z, a = z - a[..., None] * own, a.transpose(1, 2).contiguous()
    z = z.to(q.dtype).contiguous()
    if gate is None:
        return z, z.new_empty(0), a, lse
    return (z.to(kind) * gate[..., None].to(kind)).to(q.dtype).contiguous(), z, a, lse


def _backward_cpu(grad, q, k, v, gate, start, end, z, a, lse, window, scale, xsa):
    kind = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[2] // k.shape[2]
    own, keys = (x.to(kind).repeat_interleave(group, 2) for x in (v, k))
    y, dy = z.to(kind), grad.to(kind)
    d_gate, d_v = y.new_empty(0), 0
    if gate is not None:
        d_gate = (dy * y).sum(-1).to(gate.dtype).contiguous()
        dy = dy * gate[..., None].to(kind)
    if xsa:
        y = y + a.transpose(1, 2)[..., None] * own
        dy, d_v = _project_back(dy, y, v.to(kind), reference.EPS)
    scores, _ = _weights_cpu(q, k, start, window, scale, kind)
    p = torch.exp2(scores - lse[..., None])
    delta = (y * dy).sum(-1).transpose(1, 2)
    ds = p * (torch.einsum("bihd,bjhd->bhij", dy, own) - delta[..., None]) * scale
    d_q = torch.einsum("bhij,bjhd->bihd", ds, keys)
    d_k = torch.einsum("bhij,bihd->bjhd", ds, q.to(kind)).unflatten(2, (-1, group)).sum(3)
    d_v = d_v + torch.einsum("bhij,bihd->bjhd", p, dy).unflatten(2, (-1, group)).sum(3)
    return *(x.to(q.dtype).contiguous() for x in (d_q, d_k, d_v)), d_gate


def _project_back(dz, y, v, eps):
    """Through z = y - a v, heads taken by group: (dy, the part of dv that does not pass through y)."""
    groups = (v.shape[2], y.shape[2] // v.shape[2])
    dz, y, own = dz.unflatten(2, groups), y.unflatten(2, groups), v[:, :, :, None]
    square = own.square().sum(-1, keepdim=True)
    norm = square.clamp_min(eps * eps)
    a, b = (y @ own.mT) / norm, (dz @ own.mT) / norm
    # where |v|^2 is clamped, the quotient's denominator has no slope.
    slope = torch.where(square >= eps * eps, 2 * a, 0)
    d_v = (slope.mT @ b) * own - a.mT @ dz - b.mT @ y
    return (dz - b * own).flatten(2, 3), d_v.squeeze(3)


def _xsa_cpu(y, v, gate, eps):
    """In numba, which computes in float32; float64 stays with torch."""
    if y.dtype == torch.float64:
        return reference.exclude(y, v, gate, eps).contiguous()
    from pgolf.kernels.attention import cpu

    values, gates = tokens_in_float32(v).numpy(), _gates(gate, y, v)
    heads = _by_group(tokens_in_float32(y, copy=True).numpy(), values)

    def work(first):
        span = slice(first, first + SPAN)
        cpu.exclude(heads[span], values[span], gates[span], np.float32(eps * eps))

    in_parallel(work, range(0, len(heads), SPAN))
    return torch.from_numpy(heads).to(y.dtype).view(y.shape)


def _by_group(heads, values):
    tokens, groups, dim = values.shape
    return heads.reshape(tokens, groups, heads.shape[1] // groups, dim)


def _gates(gate, y, v):
    groups = (v.shape[2], y.shape[2] // v.shape[2])
    return np.empty((0, *groups), np.float32) if gate is None else tokens_in_float32(gate).numpy().reshape(-1, *groups)


def _xsa_backward_cpu(grad, y, v, gate, eps):
    if y.dtype == torch.float64:
        return _xsa_backward_torch(grad, y, v, gate, eps)
    from pgolf.kernels.attention import cpu

    values, gates = tokens_in_float32(v).numpy(), _gates(gate, y, v)
    heads, d_y = _by_group(tokens_in_float32(y).numpy(), values), _by_group(tokens_in_float32(grad, copy=True).numpy(), values)
    d_v, d_gate = np.empty_like(values), np.empty_like(gates)

    def work(first):
        span = slice(first, first + SPAN)
        arrays = (x[span] for x in (d_y, heads, values, gates))
        cpu.exclude_backward(*arrays, np.float32(eps * eps), d_v[span], d_gate[span])

    in_parallel(work, range(0, len(heads), SPAN))
    d_y, d_v = (torch.from_numpy(x).to(kind.dtype).view(kind.shape) for x, kind in ((d_y, y), (d_v, v)))
    d_gate = y.new_empty(0) if gate is None else torch.from_numpy(d_gate).to(gate.dtype).view(gate.shape)
    return d_y, d_v, d_gate


def _xsa_backward_torch(grad, y, v, gate, eps):
    d_gate = grad.new_empty(0)
    if gate is not None:
        d_gate = (grad * reference.exclude(y, v, eps=eps)).sum(-1).to(gate.dtype).contiguous()
        grad = grad * gate[..., None].to(grad.dtype)
    d_y, d_v = _project_back(grad, y, v, eps)
    return d_y.contiguous(), d_v.contiguous(), d_gate


for name, on_cpu, on_gpu in (
    ("document_bounds", _bounds_cpu, _bounds_triton),
    ("attention", _forward_cpu, _forward_triton),
    ("attention_backward", _backward_cpu, _backward_triton),
    ("xsa", _xsa_cpu, _xsa_triton),
    ("xsa_backward", _xsa_backward_cpu, _xsa_backward_triton),
):
    implement(f"pgolf::{name}", "CPU", on_cpu)
    implement(f"pgolf::{name}", "CUDA", on_gpu)


@torch.library.register_fake("pgolf::document_bounds")
def _bounds_fake(cu_seqlens, length):
    return cu_seqlens.new_empty(length), cu_seqlens.new_empty(length)


@torch.library.register_fake("pgolf::attention")
def _forward_fake(q, k, v, gate, start, end, window, scale, xsa):
    batch, length, heads, _ = q.shape
    kind = torch.promote_types(q.dtype, torch.float32)
    per_token = (batch, heads, length)
    return (
        q.new_empty(q.shape),
        q.new_empty(q.shape if gate is not None else 0),
        q.new_empty(per_token if xsa else 0, dtype=kind),
        q.new_empty(per_token, dtype=kind),
    )


@torch.library.register_fake("pgolf::attention_backward")
def _backward_fake(grad, q, k, v, gate, start, end, z, a, lse, window, scale, xsa):
    d_gate = lse.new_empty(0) if gate is None else gate.new_empty(gate.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_gate


@torch.library.register_fake("pgolf::xsa")
def _xsa_fake(y, v, gate, eps):
    return y.new_empty(y.shape)


@torch.library.register_fake("pgolf::xsa_backward")
def _xsa_backward_fake(grad, y, v, gate, eps):
    d_gate = y.new_empty(0, dtype=torch.promote_types(y.dtype, torch.float32)) if gate is None else gate.new_empty(gate.shape)
    return y.new_empty(y.shape), v.new_empty(v.shape), d_gate


def _save(ctx, inputs, output):
    q, k, v, gate, start, end, ctx.window, ctx.scale, ctx.xsa = inputs
    out, z, a, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, gate, start, end, out if gate is None else z, a, lse)


def _backward(ctx, grad, *unused):
    if grad is None:
        return (None,) * 9
    d_q, d_k, d_v, d_gate = torch.ops.pgolf.attention_backward(grad, *ctx.saved_tensors, ctx.window, ctx.scale, ctx.xsa)
    return d_q, d_k, d_v, d_gate if ctx.saved_tensors[3] is not None else None, None, None, None, None, None


def _save_xsa(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward_xsa(ctx, grad):
    d_y, d_v, d_gate = torch.ops.pgolf.xsa_backward(grad, *ctx.saved_tensors, ctx.eps)
    return d_y, d_v, d_gate if ctx.saved_tensors[2] is not None else None, None


torch.library.register_autograd("pgolf::attention", _backward, setup_context=_save)
torch.library.register_autograd("pgolf::xsa", _backward_xsa, setup_context=_save_xsa)
