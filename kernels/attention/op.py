"""Registration, launch choice, the choice of a core, and the public functions of `attention` and `xsa`."""

import math

import torch

from pgolf.kernels.attention import reference

LOG2E = math.log2(math.e)

for schema in (
    "document_bounds(Tensor cu_seqlens, SymInt length) -> (Tensor, Tensor)",
    "attention(Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor? start, Tensor? end, SymInt window, float scale, bool xsa)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? gate, Tensor? start, Tensor? end, Tensor z,"
    " Tensor a, Tensor lse, SymInt window, float scale, bool xsa) -> (Tensor, Tensor, Tensor, Tensor)",
    "xsa(Tensor y, Tensor v, Tensor? gate, float eps) -> Tensor",
    "xsa_backward(Tensor grad, Tensor y, Tensor v, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)",
):
    torch.library.define("pgolf::" + schema.partition("(")[0], "(" + schema.partition("(")[2])


def attention(q, k, v, *, xsa=False, gate=None, cu_seqlens=None, window=None, scale=None, core=None):
    _check_attention(q, k, v, gate, cu_seqlens, window, scale)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    core = core or ("sdpa" if q.device.type == "cpu" else "triton")
    if core == "reference":
        return reference.attention(q, k, v, xsa=xsa, gate=gate, cu_seqlens=cu_seqlens, window=window, scale=scale)
    if core == "triton":
        start, end = (None, None) if cu_seqlens is None else torch.ops.pgolf.document_bounds(cu_seqlens, q.shape[1])
        return torch.ops.pgolf.attention(q, k, v, gate, start, end, window or 0, scale, xsa)[0]
    y = _sdpa(q, k, v, cu_seqlens, window, scale)
    if cu_seqlens is not None:
        inside = torch.arange(q.shape[1], device=q.device) < cu_seqlens[-1]
        y = torch.where(inside[:, None, None], y, 0)
    if xsa:
        return _xsa(y, v, gate)
    return y if gate is None else (y * gate[..., None]).to(q.dtype)


def xsa(y, v, gate=None, *, eps=1e-12):
    if y.ndim != 4 or v.ndim != 4 or y.shape[:2] != v.shape[:2] or y.shape[3] != v.shape[3] or y.shape[2] % v.shape[2]:
        raise ValueError(f"xsa: y (B, T, H, d) and v (B, T, Hkv, d) with H a multiple of Hkv expected, got {tuple(y.shape)} and {tuple(v.shape)}")
    if y.dtype != v.dtype:
        raise ValueError(f"xsa: y and v must have one dtype, got {y.dtype} and {v.dtype}")
    if gate is not None and gate.shape != y.shape[:3]:
        raise ValueError(f"xsa: gate must be (B, T, H) = {tuple(y.shape[:3])}, got {tuple(gate.shape)}")
    return torch.ops.pgolf.xsa(y, v, gate, eps)


_xsa = xsa


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
        raise ValueError(f"attention: a window of {window} tokens sees nothing; it must be at least 1 (the token itself)")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale must be positive, not {scale}")


def _sdpa(q, k, v, cu_seqlens, window, scale):
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[2] != k.shape[2]
    if cu_seqlens is None and window is None:
        mask = None
    else:
        # tokens beyond the last document form one more, so that no row of the mask is empty.
        mask = _same_document(q.shape[1], cu_seqlens, window, q.device)
    y = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return y.transpose(1, 2)


def _same_document(length, cu_seqlens, window, device):
    position = torch.arange(length, device=device)
    mask = position[None, :] <= position[:, None]
    if window is not None:
        mask = mask & (position[:, None] - position[None, :] < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens, position.int(), right=True)
        mask = mask & (document[:, None] == document[None, :])
    return mask


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
    own, keys, z, dz = v.to(kind).repeat_interleave(group, 2), k.to(kind).repeat_interleave(group, 2), z.to(kind), grad.to(kind)
    d_gate, d_own, y = z.new_empty(0), torch.zeros_like(own), z
    if gate is not None:
        d_gate = (dz * z).sum(-1).to(gate.dtype)
        dz = dz * gate[..., None].to(kind)
    if xsa:
        dz, d_own, y = _project_back(dz, z, own, a.transpose(1, 2)[..., None], reference.EPS)
    scores, _ = _weights_cpu(q, k, start, window, scale, kind)
    p = torch.exp2(scores - lse[..., None])
    delta = (y * dz).sum(-1).transpose(1, 2)
    d_own = d_own + torch.einsum("bhij,bihd->bjhd", p, dz)
    ds = p * (torch.einsum("bihd,bjhd->bhij", dz, own) - delta[..., None]) * scale
    d_q = torch.einsum("bhij,bjhd->bihd", ds, keys).to(q.dtype).contiguous()
    d_keys = torch.einsum("bhij,bihd->bjhd", ds, q.to(kind))
    d_k, d_v = (x.unflatten(2, (-1, group)).sum(3).to(k.dtype).contiguous() for x in (d_keys, d_own))
    return d_q, d_k, d_v, d_gate


def _project_back(dz, z, own, a, eps):
    """Through z = y - a v: (dy, the part of dv that does not pass through y, y)."""
    square = own.square().sum(-1, keepdim=True)
    norm = square.clamp_min(eps * eps)
    b = (dz * own).sum(-1, keepdim=True) / norm
    y = z + a * own
    # where |v|^2 is clamped, the quotient's denominator has no slope.
    slope = torch.where(square >= eps * eps, 2 * a, 0)
    return dz - b * own, -a * dz - b * (y - slope * own), y


def _xsa_cpu(y, v, gate, eps):
    return reference.exclude(y, v, gate, eps).contiguous()


def _xsa_backward_cpu(grad, y, v, gate, eps):
    kind = torch.promote_types(y.dtype, torch.float32)
    group = y.shape[2] // v.shape[2]
    own, dz, full = v.to(kind).repeat_interleave(group, 2), grad.to(kind), y.to(kind)
    a = (full * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp_min(eps * eps)
    z, d_gate = full - a * own, full.new_empty(0)
    if gate is not None:
        d_gate = (dz * z).sum(-1).to(gate.dtype).contiguous()
        dz = dz * gate[..., None].to(kind)
    d_y, d_own, _ = _project_back(dz, z, own, a, eps)
    return d_y.to(y.dtype).contiguous(), d_own.unflatten(2, (-1, group)).sum(3).to(v.dtype).contiguous(), d_gate


torch.library.impl("pgolf::document_bounds", "CPU", _bounds_cpu)
torch.library.impl("pgolf::attention", "CPU", _forward_cpu)
torch.library.impl("pgolf::attention_backward", "CPU", _backward_cpu)
torch.library.impl("pgolf::xsa", "CPU", _xsa_cpu)
torch.library.impl("pgolf::xsa_backward", "CPU", _xsa_backward_cpu)


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
    kind = torch.promote_types(y.dtype, torch.float32)
    return y.new_empty(y.shape), v.new_empty(v.shape), y.new_empty(0, dtype=kind) if gate is None else gate.new_empty(gate.shape)


def _save(ctx, inputs, output):
    q, k, v, gate, start, end, ctx.window, ctx.scale, ctx.xsa = inputs
    out, z, a, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, gate, start, end, out if gate is None else z, a, lse)


def _backward(ctx, grad, *unused):
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
