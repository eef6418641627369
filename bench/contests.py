"""Who competes at which work: each operator, at sizes for a smoke run, a CPU and a GPU, with the strongest peers there are.

A contest's functions return what they computed, so that they can be compared before any of them is timed. Bytes and
FLOPs are the ones that the operator's docstring states, each tensor crossing memory once.
"""

import contextlib
import importlib.util
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.eager import EagerFive, ngram_backoff_in_dictionaries
from bench.timing import Work
from pgolf.kernels import (
    HedgeMixer,
    NgramBackoff,
    PackedMatrix,
    attention,
    cross_entropy,
    expand,
    linear_cross_entropy,
    lora,
    lora_adam,
    lora_reset,
    mlp,
    neural_statistics,
    newton_schulz,
    packed_matmul,
    rotary,
    rotary_table,
    xsa,
)
from pgolf.kernels.attention import op as attention_op
from pgolf.kernels.attention import reference as attention_reference
from pgolf.kernels.cross_entropy import op as cross_entropy_op
from pgolf.kernels.cross_entropy.reference import cross_entropy_reference, linear_cross_entropy_reference
from pgolf.kernels.hedge import NeuralStatistics
from pgolf.kernels.hedge import op as hedge_op
from pgolf.kernels.hedge import reference as hedge_reference
from pgolf.kernels.lora.reference import lora_reference
from pgolf.kernels.mlp.reference import mlp_reference
from pgolf.kernels.newton_schulz import op as newton_schulz_op
from pgolf.kernels.packed import op as packed_op
from pgolf.kernels.packed import reference as packed_reference
from pgolf.kernels.rotary import op as rotary_op
from pgolf.kernels.rotary import reference as rotary_reference
from pgolf.kernels.scan import op as scan_op
from pgolf.kernels.scan import scan
from pgolf.kernels.scan.reference import scan_chunked, scan_reference

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Place:
    """Where a contest is held, and how large it is: tiny, cpu or full."""

    device: str
    size: str

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def element(self) -> int:
        return self.dtype.itemsize

    def randn(self, *shape: int, grad: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype or self.dtype).requires_grad_(grad)

    def randint(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, device=self.device)


@dataclass
class Contest:
    """
    absent     peers that cannot compete here, and why
    least      by peer: how many times as fast ours must be at least
    of_floor   the share of the floor that ours must reach on a GPU; 0: any
    tolerance  of the results: root mean square of the difference over that of the peer's
    work       (bytes, FLOPs) of the least traffic
    per_call   what one call gets through, for a rate: (number, unit)
    """

    ours: Work
    peers: dict[str, Work]
    work: tuple[int, int] = (0, 0)
    per_call: tuple[float, str] = (0, "")
    absent: dict[str, str] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    of_floor: float = 0.0
    tolerance: float = 2e-2
    figures: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A contest by name, with the shapes that it is held at."""

    name: str
    build: Callable[..., Contest]
    shapes: dict[str, tuple]
    forms: tuple[str, ...] = (FORWARD, BOTH)


ENTRIES: list[Entry] = []


def contest(name: str, *, tiny: tuple, full: tuple, cpu: tuple | None = None, forms=(FORWARD, BOTH)):
    """Enter a builder; without a shape for a CPU it is a GPU's alone (and tiny anywhere)."""

    def enter(build):
        ENTRIES.append(Entry(name, build, {"tiny": tiny, "full": full, **({"cpu": cpu} if cpu else {})}, tuple(forms)))
        return build

    return enter


# ---- what contests share


def performed(function: Callable, leaves: list[Tensor], form: str) -> Work:
    """`function` of the leaves, with the gradients of those that ask for one if the form says so."""

    def forward():
        with torch.no_grad():
            return function(*leaves)

    if form == FORWARD:
        return forward
    asking = [leaf for leaf in leaves if leaf.requires_grad]
    outputs = forward()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out) for out in outputs]

    def both():
        found = function(*leaves)
        found = found if isinstance(found, tuple) else (found,)
        return *found, *torch.autograd.grad(found, asking, upstream)

    both.upstream = upstream
    return both


def alike(form: str, leaves: list[Tensor], **functions: Callable) -> dict[str, Work]:
    """All contenders with the same leaves and the same upstream gradient. Names carry spaces as underscores."""
    found, first = {}, None
    for name, function in functions.items():
        work = performed(function, leaves, form)
        if form == BOTH:
            first = first or work
            for own, shared in zip(work.upstream, first.upstream, strict=True):
                own.copy_(shared)
        found[name.replace("_", " ")] = work
    return found


def compiled(place: Place, function: Callable) -> dict[str, Callable]:
    """torch.compile of the reference: the peer that every kernel has to beat."""
    if not place.on_gpu:
        return {}
    return {"torch.compile": torch.compile(function, fullgraph=True, dynamic=False)}


def without_gpu(place: Place, *names: str) -> dict[str, str]:
    return {} if place.on_gpu else dict.fromkeys(names, "needs a GPU")


def not_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def split(contenders: dict[str, Work]) -> tuple[Work, dict[str, Work]]:
    return contenders["ours"], {name: work for name, work in contenders.items() if name != "ours"}


def results_of(found) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for part in found:
            yield from results_of(part)


def disagreement(found, wanted) -> float:
    """The largest relative error (root mean square) of all results; a NaN is infinite."""
    worst = 0.0
    for one, other in zip(results_of(found), results_of(wanted), strict=True):
        one, other = one.detach().double(), other.detach().double()
        size = other.pow(2).mean().sqrt().clamp_min(1e-30)
        error = ((one - other).pow(2).mean().sqrt() / size).item()
        worst = max(worst, error if error == error else math.inf)
    return worst


# ---- attention


def packed_documents(batch: int, length: int) -> list[int]:
    """Bounds of documents of uneven lengths, about a thousand tokens each at full size, in one row of batch x length."""
    bounds, sizes = [0], random.Random(3)
    while bounds[-1] < batch * length:
        bounds.append(min(batch * length, bounds[-1] + sizes.randrange(length // 8, length)))
    return bounds


def visible_pairs(bounds: list[int]) -> int:
    return sum(n * (n + 1) // 2 for n in (b - a for a, b in zip(bounds, bounds[1:], strict=False)))


def attention_contest(place: Place, form: str, batch: int, length: int, heads: int, kv_heads: int, dim: int, documents: bool):
    ends = packed_documents(batch, length) if documents else []
    bounds = torch.tensor(ends, dtype=torch.int32, device=place.device) if documents else None
    rows, columns = (1, batch * length) if documents else (batch, length)
    q, k, v = (place.randn(rows, columns, count, dim, grad=True) for count in (heads, kv_heads, kv_heads))
    peers = {}

    def cored(core):
        return partial(attention, xsa=True, cu_seqlens=bounds, core=core)

    absent = {}
    if place.on_gpu:
        exclude = torch.compile(attention_reference.exclude, fullgraph=True, dynamic=False)

        def excluded(core, q, k, v):
            return exclude(attention(q, k, v, cu_seqlens=bounds, core=core), v)

        def in_one_graph(q, k, v):
            return attention_reference.exclude(attention(q, k, v, core="sdpa"), v)

        if not documents:  # torch's own would have to see a mask of all pairs
            peers["SDPA + XSA, torch.compile"] = torch.compile(in_one_graph, fullgraph=True, dynamic=False)
        peers["FlexAttention + XSA"] = flex_attention(q, bounds)
        for core, name in (("fa2", "FlashAttention-2"), ("fa3", "FlashAttention-3")):
            if attention_op._flash_module(core) is None:
                absent[name] = "not installed"
            else:
                peers[f"{name} + XSA"] = partial(excluded, core)
                peers[f"{name} + our XSA"] = cored(core)
    else:
        peers["reference"] = cored("reference")
        absent = without_gpu(place, "FlexAttention", "FlashAttention-2", "FlashAttention-3")
    core = "triton" if place.on_gpu or place.size == "tiny" else None
    ours, others = split(alike(form, [q, k, v], ours=cored(core), **peers))
    pairs = visible_pairs(ends) if documents else batch * length * (length + 1) // 2
    tokens, common = batch * length, (heads, kv_heads, dim, place.element)
    moved, flops = attention_op.traffic_attention_fwd(tokens, pairs, *common, xsa=True)
    if form == BOTH:
        moved += tokens * (8 * heads + 4 * kv_heads) * dim * place.element
        flops += 10 * pairs * heads * dim  # what a backward pass has to compute; ours computes 14
    least = dict.fromkeys(others, 1.0) if place.on_gpu else {"reference": 1.05}
    least = {name: times for name, times in least.items() if "our XSA" not in name}
    return Contest(ours, others, (moved, flops), (tokens, "tokens/s"), absent, least, 3e-2)


def flex_attention(q: Tensor, bounds: Tensor | None) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    length = q.shape[1]
    if bounds is None:
        visible = lambda b, h, i, j: i >= j
    else:
        document = torch.searchsorted(bounds, torch.arange(length, device=q.device, dtype=torch.int32), right=True)
        visible = lambda b, h, i, j: (i >= j) & (document[i] == document[j])
    mask = create_block_mask(visible, None, None, length, length, device=q.device, _compile=True)

    def work(q, k, v):
        y = flex(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=True)
        return attention_reference.exclude(y.transpose(1, 2), v)

    return torch.compile(work, fullgraph=True, dynamic=False)


@contest("attention with XSA", tiny=(1, 24, 2, 1, 16), cpu=(2, 256, 3, 1, 64), full=(48, 2048, 8, 4, 64))
def _(place, form, *shape):
    return attention_contest(place, form, *shape, documents=False)


@contest("attention with XSA, eight key heads", tiny=(1, 24, 2, 2, 16), full=(48, 2048, 8, 8, 64))
def _(place, form, *shape):
    return attention_contest(place, form, *shape, documents=False)


@contest("attention with XSA, documents", tiny=(1, 24, 2, 1, 16), full=(48, 2048, 8, 4, 64))
def _(place, form, *shape):
    return attention_contest(place, form, *shape, documents=True)


@contest("XSA alone", tiny=(1, 24, 2, 1, 16), cpu=(8, 256, 3, 1, 64), full=(48, 2048, 8, 4, 64))
def _(place, form, batch, length, heads, kv_heads, dim):
    y, v = (place.randn(batch, length, count, dim, grad=True) for count in (heads, kv_heads))
    eager = attention_reference.exclude
    ours, peers = split(alike(form, [y, v], ours=xsa, **compiled(place, eager), reference=eager))
    traffic = partial(attention_op.traffic_xsa, batch * length, heads, kv_heads, dim, place.element)
    least, per_call = _first(place, peers, 1.0), (batch * length, "tokens/s")
    return Contest(ours, peers, _sum_of(traffic, form), per_call, least=least, of_floor=0.6)


@contest("rotary with QK-norm", tiny=(1, 24, 2, 1, 16, 8), cpu=(8, 256, 3, 1, 64, 16), full=(48, 2048, 8, 4, 64, 16))
def _(place, form, batch, length, heads, kv_heads, dim, dims):
    q, k = (place.randn(batch, length, count, dim, grad=True) for count in (heads, kv_heads))
    gain = place.randn(heads, grad=True, dtype=torch.float32)
    cos, sin = rotary_table(length, dims, 10_000.0, device=place.device)
    eager = rotary_reference.rotary
    ours, peers = split(alike(form, [q, k, gain, cos, sin], ours=rotary, **compiled(place, eager), reference=eager))
    traffic = partial(rotary_op.traffic_rotary, batch * length, heads, kv_heads, dim, place.element)
    return Contest(ours, peers, _sum_of(traffic, form), (batch * length, "tokens/s"), least=_first(place, peers, 0.75))


@contest("scan", tiny=(1, 70, 2, 1, 8, 4), cpu=(4, 256, 6, 6, 32, 16), full=(48, 2048, 8, 8, 128, 8))
def _(place, form, batch, length, heads, groups, width, size):
    v = place.randn(batch, length, heads, width, grad=True)
    b, c = (place.randn(batch, length, groups, size, grad=True) for _ in range(2))
    dt = (torch.rand(batch, length, heads, device=place.device) * 0.1).requires_grad_()
    a = (-torch.arange(1.0, heads + 1, device=place.device)).requires_grad_()

    def of_rates(form: Callable) -> Callable:
        """Mamba's way to say it: the decay's logarithm is a dt."""
        return lambda v, b, c, dt, a: form(v, b, c, dt, a * dt)

    eager = of_rates(partial(scan_chunked, chunk=scan_op.CHUNK))
    peers = {**compiled(place, eager), "chunks in torch": eager}
    if place.size != "full":  # the loop keeps a state for every token
        peers["token by token in torch"] = of_rates(scan_reference)
    absent = without_gpu(place, "mamba-ssm", "flash-linear-attention")
    for name, module, peer in (("mamba-ssm", "mamba_ssm", mamba_ssm_scan), ("flash-linear-attention", "fla", fla_scan)):
        if place.on_gpu and not_installed(module):
            absent[name] = "not installed"
        elif place.on_gpu:
            peers[name] = peer
    ours, peers = split(alike(form, [v, b, c, dt, a], ours=of_rates(scan), **peers))
    shape = (batch * length, heads, groups, width, size, place.element)
    traffic = [scan_op.traffic_forward(*shape)]
    if form == BOTH:
        traffic += [scan_op.traffic_states(*shape), scan_op.traffic_chunks(*shape)]
    work = tuple(map(sum, zip(*traffic, strict=True)))
    return Contest(ours, peers, work, (batch * length, "tokens/s"), absent=absent, least=_first(place, peers, 0.75))


def mamba_ssm_scan(v, b, c, dt, a):
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(v, dt, a, b, c, chunk_size=scan_op.CHUNK)


def fla_scan(v, b, c, dt, a):
    """As linear attention with a decay for each head; it knows no groups and no dt."""
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(c, b, v * dt[..., None].to(v.dtype), g=a * dt, scale=1.0)[0]


def _sum_of(traffic: Callable, form: str) -> tuple[int, int]:
    """(bytes, FLOPs) of the directions that a form takes."""
    found = [traffic(direction) for direction in ("forward", "backward")[: 1 + (form == BOTH)]]
    return tuple(map(sum, zip(*found, strict=True)))


def _first(place: Place, peers: dict, on_cpu: float, on_gpu: float = 1.0) -> dict[str, float]:
    """The least ratio to the first peer: torch.compile on a GPU, plain torch on a CPU."""
    return {next(iter(peers)): on_gpu if place.on_gpu else on_cpu}


# ---- the head and the MLP


def losses(place: Place, form: str, ours: Callable, eager: Callable, liger: Callable, leaves: list[Tensor], **more):
    """`liger` makes Liger-Kernel's function, where that is installed."""
    absent, extra = without_gpu(place, "Liger-Kernel"), {}
    if place.on_gpu:
        if not_installed("liger_kernel"):
            absent = {"Liger-Kernel": "not installed"}
        else:
            extra = {"Liger-Kernel": liger()}
    ours, peers = split(alike(form, leaves, ours=ours, **compiled(place, eager), **extra, reference=eager))
    return Contest(ours, peers, absent=absent, **more)


def _first_of_losses(place: Place, on_cpu: float) -> dict[str, float]:
    return {"torch.compile": 1.0} if place.on_gpu else {"reference": on_cpu}


def cross_entropy_contest(place: Place, form: str, tokens: int, vocabulary: int):
    logits, targets = place.randn(tokens, vocabulary, grad=True), place.randint(vocabulary, tokens)

    def liger():
        from liger_kernel.transformers import LigerCrossEntropyLoss

        loss = LigerCrossEntropyLoss(softcap=30.0)
        # it writes its gradient over the logits, so it gets logits of its own
        return lambda logits: loss(logits.clone(), targets)

    work = cross_entropy_op.traffic_forward(tokens, vocabulary, place.element, want_gradient=form == BOTH)
    ours = lambda logits: cross_entropy(logits, targets, softcap=30.0)
    eager = lambda logits: cross_entropy_reference(logits, targets, softcap=30.0)
    more = {"least": _first_of_losses(place, 1.2), "of_floor": 0.9, "per_call": (tokens, "tokens/s")}
    return losses(place, form, ours, eager, liger, [logits], work=work, **more)


@contest("cross-entropy, small vocabulary", tiny=(20, 64), cpu=(2048, 1024), full=(98_304, 1024))
def _(place, form, *shape):
    return cross_entropy_contest(place, form, *shape)


@contest("cross-entropy, large vocabulary", tiny=(20, 64), full=(98_304, 8192))
def _(place, form, *shape):
    return cross_entropy_contest(place, form, *shape)


@contest("cross-entropy, huge vocabulary", tiny=(20, 64), full=(8192, 65_536))
def _(place, form, *shape):
    return cross_entropy_contest(place, form, *shape)


@contest("head and cross-entropy", tiny=(20, 16, 64), cpu=(2048, 192, 1024), full=(98_304, 512, 8192))
def _(place, form, tokens, width, vocabulary):
    x, w = place.randn(tokens, width, grad=True), (place.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = place.randint(vocabulary, tokens)

    def liger():
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(softcap=30.0)
        return lambda x, w: loss(w, x, targets)

    moved, flops = cross_entropy_op.traffic_forward(tokens, vocabulary, place.element, want_gradient=form == BOTH)
    matrices = (tokens + vocabulary) * width * place.element
    work = moved + matrices * (3 if form == BOTH else 1), flops + 2 * tokens * width * vocabulary * (3 if form == BOTH else 1)
    ours = lambda x, w: linear_cross_entropy(x, w, targets, softcap=30.0)
    eager = lambda x, w: linear_cross_entropy_reference(x, w, targets, softcap=30.0)
    least = _first_of_losses(place, 0.9)
    return losses(place, form, ours, eager, liger, [x, w], work=work, per_call=(tokens, "tokens/s"), least=least)


def mlp_contest(place: Place, form: str, tokens: int, width: int, hidden: int):
    x = place.randn(tokens, width, grad=True)
    up = (place.randn(hidden, width) / width**0.5).requires_grad_()
    down = (place.randn(width, hidden) / hidden**0.5).requires_grad_()
    ours, peers = split(alike(form, [x, up, down], ours=mlp, **compiled(place, mlp_reference), reference=mlp_reference))
    element = place.element
    moved = element * (tokens * (2 * width + 2 * hidden) + 2 * hidden * width)
    flops = 4 * tokens * hidden * width
    if form == BOTH:
        moved, flops = moved + element * (tokens * (4 * width + 5 * hidden) + 4 * hidden * width), 3 * flops
    return Contest(ours, peers, (moved, flops), (tokens, "tokens/s"), least=_first(place, peers, 0.9))


@contest("MLP", tiny=(20, 16, 32), cpu=(2048, 192, 576), full=(98_304, 512, 2048))
def _(place, form, *shape):
    return mlp_contest(place, form, *shape)


@contest("MLP, 3.5 wide", tiny=(20, 16, 32), full=(98_304, 512, 1792))
def _(place, form, *shape):
    return mlp_contest(place, form, *shape)


# ---- adapters


def lora_contest(place: Place, form: str, docs: int, length: int, width: int, out: int, rank: int):
    x, a, b = (
        place.randn(docs, length, width, grad=True),
        *((place.randn(*shape) / shape[-1] ** 0.5).requires_grad_() for shape in ((docs, rank, width), (docs, out, rank))),
    )
    weight = place.randn(out, width) / width**0.5
    eager = lambda x, a, b: lora_reference(x, weight, a, b, 1.0, None)[0]
    works = alike(form, [x, a, b], ours=lambda x, a, b: lora(x, weight, a, b), **compiled(place, eager), reference=eager)
    ours, peers = split(works)
    rows, e = docs * length, place.element
    moved = e * (rows * (width + out + rank) + width * out + docs * rank * (width + out))
    flops = 2 * rows * (width * out + rank * (width + out))
    if form == BOTH:
        moved += e * (rows * (2 * width + 2 * out + 3 * rank) + width * out + 2 * docs * rank * (width + out))
        flops += 2 * rows * (width * out + 2 * rank * (width + out))
    return Contest(ours, peers, (moved, flops), (rows, "tokens/s"), least=_first(place, peers, 0.75))


LORA = {
    "rank 8": (64, 2048, 512, 512, 8),
    "rank 80": (64, 2048, 512, 512, 80),
    "rank 8, MLP": (64, 2048, 512, 2048, 8),
    "rank 8, short": (64, 48, 512, 512, 8),
    "rank 96, short": (64, 48, 512, 512, 96),
}
for detail, shape in LORA.items():
    on_cpu = {"cpu": (8, 256, 192, 192, 8)} if detail == "rank 8" else {}
    contest(f"LoRA, {detail}", tiny=(2, 6, 16, 16, 2), full=shape, **on_cpu)(lora_contest)


@contest("LoRA's Adam", tiny=(2, 2, 16, 2), cpu=(8, 8, 192, 8), full=(64, 33, 512, 80), forms=("step",))
def _(place, form, docs, sites, width, rank):
    """All adapters of a network in one step, beside torch's own fused Adam, whose state every document shares."""
    fresh = torch.float32
    shapes = [(docs, rank, width), (docs, width, rank)] * sites
    start, gradients = ([place.randn(*shape, dtype=fresh) for shape in shapes] for _ in range(2))
    ours_p, peer_p = ([tensor.clone() for tensor in start] for _ in range(2))
    first, second = ([torch.zeros_like(tensor) for tensor in start] for _ in range(2))
    steps = torch.zeros(docs, dtype=torch.int32, device=place.device)
    adam = torch.optim.Adam(peer_p, lr=0.01, betas=(0.9, 0.95), eps=1e-10, fused=True, capturable=place.on_gpu)

    def ours():
        lora_adam(ours_p, gradients, first, second, steps, lr=0.01, betas=(0.9, 0.95), eps=1e-10)
        return ours_p

    def fused():
        for parameter, gradient in zip(peer_p, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        return peer_p

    elements = sum(math.prod(shape) for shape in shapes)
    peer, work = "torch.optim.Adam(fused)", (28 * elements, 16 * elements)
    return Contest(ours, {peer: fused}, work, (elements, "weights/s"), least={peer: 0.9 if place.on_gpu else 0.01})


@contest("LoRA's fresh start", tiny=(2, 2, 16, 2), cpu=(8, 8, 192, 8), full=(64, 33, 512, 80), forms=("step",))
def _(place, form, docs, sites, width, rank):
    """All adapters and moments of a network as at the start, beside copy_ and zero_ on each of them."""
    tensors = lambda *shape: [place.randn(*shape, dtype=torch.float32) for _ in range(sites)]
    a, b, initial = tensors(docs, rank, width), tensors(docs, width, rank), tensors(rank, width)
    first, second = ([torch.randn_like(tensor) for tensor in (*a, *b)] for _ in range(2))
    steps = torch.ones(docs, dtype=torch.int32, device=place.device)

    def ours():
        lora_reset(a, b, initial, first, second, steps)
        return a, b, first, second, steps

    def plain():
        for tensor, start in zip(a, initial, strict=True):
            tensor.copy_(start)
        for tensor in (*b, *first, *second, steps):
            tensor.zero_()
        return a, b, first, second, steps

    peer, written = "copy_ and zero_", 4 * sum(tensor.numel() for tensor in (*a, *b, *first, *second))
    work = written, written // 4
    return Contest(ours, {peer: plain}, work, (written / 4, "weights/s"), least={peer: 1.0 if place.on_gpu else 0.2})


# ---- the mixer


def statistics_contest(place: Place, form: str, tokens: int, vocabulary: int):
    logits, targets = place.randn(tokens, vocabulary, grad=True), place.randint(vocabulary, tokens)
    candidates = place.randint(vocabulary, tokens, 4)
    ones = torch.ones(1, device=place.device, dtype=hedge_op.exact_dtype(place.device))

    def eager(logits):
        """The submissions' arithmetic: whole tables of log-probabilities, in float32."""
        log_probs = torch.log_softmax(logits.float(), -1)
        target = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        picked = log_probs.gather(-1, candidates)
        return logits.float().logsumexp(-1), -(log_probs.exp() * log_probs).sum(-1), target, picked

    def fused(logits):
        return hedge_reference.statistics_reference(logits.float(), targets, candidates, ones.float())

    ours = lambda logits: tuple(neural_statistics(logits, targets, candidates))
    works = alike(form, [logits], ours=ours, **compiled(place, fused), **{"submissions' eager": eager})
    ours, peers = split(works)
    moved, flops = hedge_op.traffic_statistics(tokens, vocabulary, 4, place.element)
    if form == BOTH:
        more = hedge_op.traffic_statistics_backward(tokens, vocabulary, 4, place.element)
        moved, flops = moved + more[0], flops + more[1]
    least = {"submissions' eager": 1.5 if form == FORWARD else 0.5} | ({"torch.compile": 1.0} if place.on_gpu else {})
    of_floor = 0.7 if form == FORWARD else 0.0
    return Contest(ours, peers, (moved, flops), (tokens, "tokens/s"), least=least, of_floor=of_floor)


for size, vocabulary in (("small", 1024), ("medium", 4096), ("large", 8192)):
    on_cpu = {"cpu": (4096, 1024)} if size == "small" else {}
    name = f"mixer's statistics, {size} vocabulary"
    contest(name, tiny=(12, 40), full=(65_536, vocabulary), **on_cpu)(statistics_contest)


@contest("mixer from logits", tiny=(2, 12, 40), cpu=(4, 1024, 1024), full=(32, 2048, 1024), forms=(FORWARD,))
def _(place, form, windows, length, vocabulary):
    """Five experts on a batch of windows, from raw logits: what #688 computes for each batch."""
    mixer = HedgeMixer(vocabulary, warmup=0, device=place.device)
    mixer.count(place.randint(vocabulary, 20_000))
    eager = EagerFive(mixer)
    logits = place.randn(windows, length, vocabulary)
    inputs, targets = place.randint(vocabulary, windows, length), place.randint(vocabulary, windows, length)
    valid = torch.ones(windows, length, dtype=torch.bool, device=place.device)
    # n-gram weights move with every batch; a bench wants the same batch again
    weights = eager.log_weights.clone()

    def ours():
        return mixer.score(neural_statistics(logits, targets), inputs, targets, valid).nll

    def theirs():
        eager.log_weights = weights
        return eager.step_from_logits(logits.float(), inputs, targets, valid)

    tokens = windows * length
    moved, flops = hedge_op.traffic_statistics(tokens, vocabulary, 0, place.element)
    more = hedge_op.traffic_five(tokens)
    peer = "submissions' eager"
    least = {peer: 10.0 if place.on_gpu else 1.5}
    return Contest(ours, {peer: theirs}, (moved + more[0], flops + more[1]), (tokens, "tokens/s"), least=least)


def counting_contest(place: Place, form: str, tokens: int, vocabulary: int):
    """A chunk's tokens into the five experts' tables, beside the submissions' scatter_add."""
    mixer, stream = HedgeMixer(vocabulary, device=place.device), place.randint(vocabulary, tokens)
    buckets = len(mixer.trigram)
    sizes = (vocabulary, vocabulary**2, buckets * vocabulary)
    unigram, bigram, trigram = (torch.zeros(size, device=place.device) for size in sizes)
    one = torch.ones(tokens, device=place.device)

    def ours():
        mixer.count(stream)
        # what repeats is the work; the counts themselves go on rising
        return (mixer.unigram > 0).float()

    def theirs():
        before, previous, y = stream[:-2], stream[1:-1], stream[2:]
        unigram.scatter_add_(0, stream, one)
        bigram.scatter_add_(0, stream[:-1] * vocabulary + stream[1:], one[1:])
        trigram.scatter_add_(0, hedge_reference.trigram_bucket(before, previous, buckets) * vocabulary + y, one[2:])
        return (unigram > 0).float()

    peer, least = "submissions' scatter_add", {"submissions' scatter_add": 1.0 if place.on_gpu else 0.2}
    return Contest(ours, {peer: theirs}, hedge_op.traffic_five_count(tokens), (tokens, "tokens/s"), least=least)


contest("five experts counting", tiny=(60, 16), cpu=(32_769, 1024), full=(131_073, 1024), forms=(FORWARD,))(counting_contest)


CHAIN_ORDERS = (1, 2, 3, 4)


def ngram_backoff_rows(place: Place, tokens: int, documents: int):
    stream = place.randint(64, tokens)
    bounds = torch.tensor([tokens * i // documents for i in range(documents + 1)], device=place.device)
    kind = hedge_op.exact_dtype(place.device)
    target = place.randn(tokens, dtype=kind) - 3
    known = NeuralStatistics(target, target, target, place.randn(tokens, len(CHAIN_ORDERS), dtype=kind) - 2)
    return stream, bounds, known


@contest("chain counting", tiny=(60, 3), cpu=(4000, 8), full=(65_536, 64), forms=(FORWARD,))
def _(place, form, tokens, documents):
    """Document-local counts of four orders, beside a dictionary for each order in Python."""
    stream, bounds, _ = ngram_backoff_rows(place, tokens, documents)
    ngram_backoff = NgramBackoff(CHAIN_ORDERS, device=place.device)
    starts = [False] * tokens
    for document in range(documents):
        starts[tokens * document // documents] = True

    def ours():
        found = ngram_backoff.evidence(stream, bounds)
        return torch.stack([found.hits, found.total], -1).flatten(1)

    def plain():
        counts = ngram_backoff_in_dictionaries(stream.tolist(), starts, CHAIN_ORDERS)
        return torch.tensor(counts, device=place.device, dtype=torch.int32)

    peer, work = "dictionaries in Python", hedge_op.traffic_evidence(tokens, max(CHAIN_ORDERS), len(CHAIN_ORDERS))
    return Contest(ours, {peer: plain}, work, (tokens, "tokens/s"), least={peer: 3.0}, tolerance=0.0)


@contest("chain mixing", tiny=(60, 3), cpu=(50_000, 100), full=(1 << 20, 1024), forms=(FORWARD,))
def _(place, form, tokens, documents):
    stream, bounds, known = ngram_backoff_rows(place, tokens, documents)
    ngram_backoff = NgramBackoff(CHAIN_ORDERS, device=place.device)
    evidence = ngram_backoff.evidence(stream, bounds)
    rows = (known.target, known.candidates, evidence.cell, evidence.hits, evidence.total, ngram_backoff.table)
    plain = lambda: hedge_reference.mix_reference(*rows)[0]
    peers = {"torch.compile": torch.compile(plain, fullgraph=True, dynamic=False)} if place.on_gpu else {}
    peers["the formula in torch"] = plain
    work = hedge_op.traffic_mix(tokens, len(CHAIN_ORDERS))
    ours, least = lambda: ngram_backoff.mix(known, evidence).nll, _first(place, peers, 1.0)
    return Contest(ours, peers, work, (tokens, "tokens/s"), least=least, tolerance=1e-4)


@contest("chain learning", tiny=(60, 3), cpu=(300, 3), full=(16_384, 16), forms=(FORWARD,))
def _(place, form, tokens, documents):
    """Mixing while the weights are learnt, token by token: one thread of one program, because each step needs the last."""
    stream, bounds, known = ngram_backoff_rows(place, tokens, documents)
    evidence = NgramBackoff(CHAIN_ORDERS, device=place.device).evidence(stream, bounds)
    fresh = lambda: NgramBackoff(CHAIN_ORDERS, device=place.device)
    ours = lambda: fresh().mix_and_learn(known, evidence).nll

    def plain():
        ngram_backoff, rows = (
            fresh(),
            (known.target, known.candidates, evidence.cell, evidence.hits, evidence.total, evidence.fresh),
        )
        state = [x.cpu() for x in (*rows, ngram_backoff.table, ngram_backoff.visits)]
        return hedge_reference.mix_online_reference(*state, [], ngram_backoff.floor)[0].to(place.device)

    peer, work = "the loop in Python", hedge_op.traffic_online(tokens, len(CHAIN_ORDERS))
    return Contest(ours, {peer: plain}, work, (tokens, "tokens/s"), least={peer: 4.0}, tolerance=1e-3)


# ---- packed matrices and orthogonalisation


def packed_pair(place: Place, rows: int, columns: int, bits: int):
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(least, most, (rows, columns), device=place.device, dtype=torch.int8)
    scales = (torch.rand(rows, device=place.device) + 0.5) / most
    packed = PackedMatrix(packed_reference.pack_codes(codes, bits), scales, bits, rows, columns)
    return packed, codes, (codes.float() * scales[:, None]).to(place.dtype)


def packed_contest(place: Place, form: str, tokens: int, rows: int, columns: int, bits: int, least: float):
    packed, codes, dense = packed_pair(place, rows, columns, bits)
    x = place.randn(tokens, columns, grad=True)
    peers: dict[str, Callable] = {"dense bf16" if place.on_gpu else "dense float32": lambda x: F.linear(x, dense)}
    absent = without_gpu(place, "gemlite", "torchao")
    if place.on_gpu and form == FORWARD:
        for name, make in (("gemlite", gemlite_linear), ("torchao", torchao_linear)):
            found = make(codes, packed.scales)
            if callable(found):
                peers[f"{name} (8 bits)"] = found
            else:
                absent[name] = found
    first = next(iter(peers))
    ours, others = split(alike(form, [x], ours=lambda x: packed_matmul(x, packed), **peers))
    moved, flops = packed_op.traffic_matmul(tokens, rows, columns, bits, place.element)
    if form == BOTH:
        more = packed_op.traffic_backward(tokens, rows, columns, bits, place.element)
        moved, flops = moved + more[0], flops + more[1]
    gate = {first: least} if place.on_gpu else {first: 0.005}
    of_floor = 0.7 if tokens == 1 and rows * columns >= 1 << 26 else 0.0
    return Contest(ours, others, (moved, flops), (tokens, "rows/s"), absent, gate, of_floor)


def gemlite_linear(codes: Tensor, scales: Tensor) -> Callable | str:
    """Its nearest width that is whole (5 and 6 bits are experimental there): the codes in 8 bits."""
    if not_installed("gemlite"):
        return "not installed"
    from gemlite.core import DType, GemLiteLinear

    rows, columns = codes.shape
    layer = GemLiteLinear(8, group_size=columns, in_features=columns, out_features=rows,
                          input_dtype=DType.BF16, output_dtype=DType.BF16)  # fmt: skip
    layer.pack((codes.int() + 128).to(torch.uint8), scales[:, None].to(torch.bfloat16), 128, None)
    return lambda x: layer.forward(x)


def torchao_linear(codes: Tensor, scales: Tensor) -> Callable | str:
    """Weights in 8 bits, compiled, as its documentation has it."""
    if not_installed("torchao"):
        return "not installed"
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False, device=codes.device, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(codes.float() * scales[:, None])
    quantize_(layer, Int8WeightOnlyConfig())
    return torch.compile(layer, fullgraph=True, dynamic=False)


# what the target at one token is, beside dense bfloat16: what the best published kernel reaches at that width
for bits, wanted in ((6, 1.66), (5, 1.86)):
    on_cpu = {"cpu": (1, 512, 512, bits)} if bits == 6 else {}
    common = {"tiny": (1, 16, 40, bits), "forms": (FORWARD,)}
    large = contest(f"packed GEMV, {bits} bits, large", full=(1, 8192, 8192, bits), **common, **on_cpu)
    large(partial(packed_contest, least=wanted))
    layer = contest(f"packed GEMV, {bits} bits, a layer", full=(1, 2048, 512, bits), **common)
    layer(partial(packed_contest, least=2.0))


contest("packed product, 6 bits, 32 rows", tiny=(3, 16, 64, 6), full=(32, 2048, 512, 6))(partial(packed_contest, least=1.0))


@contest("packed matrices expanded", tiny=(16, 40), cpu=(512, 512), full=(8192, 4096), forms=(FORWARD,))
def _(place, form, rows, columns):
    packed, codes, dense = packed_pair(place, rows, columns, 6)
    eager = lambda: (codes.float() * packed.scales[:, None]).to(place.dtype)
    peers = {"codes in int8": eager}
    if place.on_gpu:
        peers = {"codes in int8, torch.compile": torch.compile(eager, fullgraph=True, dynamic=False)}
    work = packed_op.traffic_expand(rows, columns, 6, place.element)
    least = {next(iter(peers)): 0.9 if place.on_gpu else 0.02}
    ours = lambda: expand(packed, place.dtype)
    return Contest(ours, peers, work, (rows * columns, "weights/s"), least=least, of_floor=0.8)


def newton_schulz_contest(place: Place, form: str, batch: int, rows: int, columns: int):
    g = place.randn(batch, rows, columns)
    flat = [value for triple in newton_schulz_op.coefficient_table("classic", 5) for value in triple]
    plain = lambda: newton_schulz_op.iterate_torch(g, flat, place.dtype)
    peers = {"batched torch": plain}
    if place.on_gpu:
        peers["torch.compile"] = torch.compile(plain, fullgraph=True, dynamic=False)
    short, long = sorted((rows, columns))
    moved = 5 * batch * place.element * (4 * short * long + 4 * short * short)
    flops = 5 * batch * (3 * short * short * long + short**3)
    least = {"batched torch": 1.0 if place.on_gpu else 0.8}
    return Contest(lambda: newton_schulz(g), peers, (moved, flops), (batch, "matrices/s"), least=least, tolerance=5e-2)


for form, shape in (("square", (22, 512, 512)), ("wide", (22, 512, 2048))):
    on_cpu = {"cpu": (8, 192, 192)} if form == "square" else {}
    name = f"Newton-Schulz, {form}"
    contest(name, tiny=(2, 12, 20), full=shape, forms=(FORWARD,), **on_cpu)(newton_schulz_contest)


CROSSOVER = "packed beside dense, 6 bits, 2,048 x 512"


def crossover_sizes() -> list[int]:
    """Rows of the input at which packed and dense products are compared."""
    return [2**power for power in range(15)]


def crossover_contest(place: Place, rows: int) -> Contest:
    shape = (rows, 16, 40, 6) if place.size == "tiny" else (rows, 2048, 512, 6)
    contest = packed_contest(place, FORWARD, *shape, least=0.0)
    contest.least, contest.figures = {}, {"crossover rows": rows}
    return contest


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
    """Compiled graphs are counted by function: each contest starts with a fresh count."""
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
