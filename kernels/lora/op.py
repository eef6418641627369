"""Batched per-document LoRA: the public function, its registration, and how its kernels are launched."""

import torch
from torch import Tensor

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import Launch, capability_of, cdiv, implement
from pgolf.kernels.lora.reference import lora_backward_reference, lora_reference

MAX_RANK = 128
# rows of a document that one program sums into an adapter's gradient; a longer document leaves partial sums. Fixed, so that
# a document's gradient has the same bits whatever else is in the batch.
CHUNK = 2048


def lora(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0, cu_seqlens: Tensor | None = None
) -> Tensor:
    """y_d = x_d Wᵀ + s (x_d A_dᵀ) B_dᵀ for every document d.

    x           (docs, n, in), or (tokens, in) with cu_seqlens; float32, bfloat16 or float16
    weight      (out, in) as x, shared by all documents; None leaves only the adapters' product
    a, b        (docs, rank, in) and (docs, out, rank), rank 1 to 128, both as x or both float32
    cu_seqlens  int32 (docs + 1,), rising from 0: document d is rows cu_seqlens[d] to cu_seqlens[d + 1] of x. It may be
                empty. Rows behind the last document get the base product only.
    result      (docs, n, out) or (tokens, out), as x

    Gradients for x, a, b, and for weight if it asks for one; the adapters' are summed per document in a fixed order.
    Saved for backward: x and t = s x Aᵀ (rank numbers a row). With T rows in all, e and e_a the sizes of an element of x and
    of a, and every tensor crossing memory once a pass:

        forward     T (in + out + rank) e + in·out·e + docs·rank (in + out) e_a bytes,  2 T (in·out + rank (in + out)) FLOPs
        backward    T (2 in + 2 out + 3 rank) e + in·out·e + 2 docs·rank (in + out) e_a,  2 T (in·out + 2 rank (in + out))
        without dx  T (in + 2 out + 3 rank) e + docs·rank (in + 2 out) e_a,  2 T rank (in + 2 out)

    and 2 T in·out more for the weight's gradient. What crosses memory again, and when, is the choice of `choose_route`.
    """
    _check(x, weight, a, b, cu_seqlens)
    return torch.ops.pgolf.lora(x, weight, a, b, scale, cu_seqlens)[0]


def _check(x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, cu_seqlens: Tensor | None) -> None:
    if a.dim() != 3 or b.dim() != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2]:
        raise ValueError(
            f"lora: a must be (docs, rank, in) and b (docs, out, rank); got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    docs, rank, width = a.shape
    out = b.shape[1]
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"lora: ranks 1 to {MAX_RANK} are supported, not {rank}")
    if cu_seqlens is None:
        if x.dim() != 3 or x.shape[0] != docs or x.shape[2] != width:
            raise ValueError(f"lora: x must be ({docs}, n, {width}) to fit a; got {tuple(x.shape)}")
    else:
        if x.dim() != 2 or x.shape[1] != width:
            raise ValueError(f"lora: with cu_seqlens x must be (tokens, {width}) to fit a; got {tuple(x.shape)}")
        if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] != docs + 1:
            raise ValueError(
                f"lora: cu_seqlens must be int32 with {docs + 1} entries for {docs} documents; "
                f"got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
    if weight is not None and (weight.dim() != 2 or weight.shape[0] != out or weight.shape[1] != width):
        raise ValueError(f"lora: weight must be ({out}, {width}) to fit a and b; got {tuple(weight.shape)}")
    if weight is not None and weight.dtype != x.dtype:
        raise ValueError(f"lora: weight is {weight.dtype} but x is {x.dtype}; cast one of them")
    if a.dtype != b.dtype or a.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"lora: a and b must both be {x.dtype}, as x, or both float32; got {a.dtype} and {b.dtype}")


def rank_blocks(rank: int) -> tuple[int, int]:
    """The padded rank as one power of two, or as two where that is less: 80 is 64 + 16, 96 is 64 + 32."""
    whole = max(16, 1 << (rank - 1).bit_length())
    rest = max(16, 1 << max(rank - whole // 2 - 1, 0).bit_length())
    return (whole // 2, rest) if whole > 32 and whole // 2 + rest < whole else (whole, 0)


def rank_step(rank: int) -> int:
    """Ranks per step of t Bᵀ: long steps, without padding the last one by much."""
    return 16 if rank <= 16 else 64 if rank % 64 == 0 else 32


def choose_route(width: int, out: int, rank: int, element_size: int) -> str:
    """How the base and the adapter's product are put together, by what each way costs a row of x.

    "whole": one kernel, which computes t again for every column of tiles; "split": t first, then one kernel for the rest;
    "around": cuBLAS for the base, t, and t Bᵀ added to what cuBLAS wrote. float32 leaves the base to cuBLAS always: there
    are no tensor cores for it that keep its precision.
    """
    if element_size == 4:
        return "around"
    # chosen by reasoning, unmeasured: an H100's bytes and FLOPs a second as such kernels reach them
    memory, triton, cublas = 3.0e12, 600e12, 700e12
    columns = launch_product(width, out, rank, 1024, 90).tiles["BN"]
    read, write = element_size * width / memory, element_size * out / memory
    padded, second = rank_blocks(rank)
    base = 2 * width * out
    cost = {
        "split": read + max(read + write, (base + 2 * rank * out) / triton),
        "around": max(read + write, base / cublas) + read + 2 * write,
    }
    if not second and padded <= 64:
        again = 2 * width * padded * cdiv(out, columns)
        cost["whole"] = max(read + write, (base + again + 2 * padded * out) / triton)
    return min(cost, key=cost.__getitem__)


# Launch tables, chosen by reasoning, unmeasured.
# product: short documents; few columns, two programs a multiprocessor to overlap one's end with another's start; many
# columns, where a wide tile spares the cache.
_PRODUCT = {
    80: {
        "short": Launch({"BM": 64, "BN": 128, "BK": 32}, 4, 4),
        "narrow": Launch({"BM": 128, "BN": 128, "BK": 32}, 8, 4),
        "wide": Launch({"BM": 128, "BN": 128, "BK": 32}, 8, 4),
    },
    90: {
        "short": Launch({"BM": 64, "BN": 128, "BK": 64}, 4, 4),
        "narrow": Launch({"BM": 128, "BN": 128, "BK": 64}, 8, 3),
        "wide": Launch({"BM": 128, "BN": 256, "BK": 64}, 8, 3),
    },
    100: {
        "short": Launch({"BM": 64, "BN": 128, "BK": 64}, 4, 4),
        "narrow": Launch({"BM": 128, "BN": 128, "BK": 64}, 4, 3),
        "wide": Launch({"BM": 128, "BN": 256, "BK": 64}, 8, 3),
    },
}


def launch_product(width: int, out: int, rank: int, length: int, capability: int) -> Launch:
    table = _PRODUCT[_family(capability)]
    return table["short" if _is_short(length) else "wide" if out >= 2048 else "narrow"]


def launch_shrink(width: int, rank: int, length: int, element_size: int, capability: int) -> Launch:
    """Reads x once at memory speed: deep pipelines, and more warps only to hold more ranks."""
    if element_size == 4:
        return Launch({"BM": 32, "BK": 16}, 4, 2)
    rows = 64 if _is_short(length) else 128
    stages = 3 if _family(capability) == 80 else 4
    return Launch({"BM": rows, "BK": 64}, 8 if rank > 64 and rows == 128 else 4, stages)


def launch_expand(out: int, rank: int, length: int, element_size: int, capability: int) -> Launch:
    if element_size == 4:
        return Launch({"BM": 32, "BN": 64}, 4, 1)
    return Launch({"BM": 64 if _is_short(length) else 128, "BN": 128}, 4 if _is_short(length) else 8, 2)


def launch_adapters(rank: int, element_size: int, capability: int) -> Launch:
    if element_size == 4:
        return Launch({"BC": 32, "BM": 16}, 4, 2)
    return {
        80: Launch({"BC": 64, "BM": 64}, 4, 3),
        90: Launch({"BC": 128, "BM": 64}, 8 if rank > 64 else 4, 4),
        100: Launch({"BC": 64, "BM": 64}, 8, 4),
    }[_family(capability)]


_REDUCE = Launch({"BLOCK": 1024}, 4, 1)


def _is_short(length: int) -> bool:
    """Documents of so few rows waste too much of a tall tile."""
    return length <= 64 or (length < 192 and length % 128 != 0)


def _family(capability: int) -> int:
    return 80 if capability < 90 else 90 if capability < 100 else 100


def traffic_product(docs: int, rows: int, width: int, out: int, rank: int, size: int, shrink: bool) -> tuple[int, int]:
    adapters = docs * rank * (out + (width if shrink else 0))
    flops = 2 * rows * (width * out + rank * out + (rank * width if shrink else 0))
    return size * (rows * (width + out + rank) + width * out + adapters), flops


def traffic_shrink(docs: int, rows: int, width: int, rank: int, size: int) -> tuple[int, int]:
    return size * (rows * (width + rank) + docs * rank * width), 2 * rows * width * rank


def traffic_expand(docs: int, rows: int, out: int, rank: int, size: int, add: bool) -> tuple[int, int]:
    return size * (rows * (out * (2 if add else 1) + rank) + docs * rank * out), 2 * rows * out * rank


def traffic_adapters(docs: int, rows: int, width: int, out: int, rank: int, size: int) -> tuple[int, int]:
    return size * (rows * (width + out + 2 * rank) + docs * rank * (width + out)), 2 * rows * rank * (width + out)


def traffic_reduce(docs: int, chunks: int, width: int, out: int, rank: int, size: int) -> tuple[int, int]:
    numbers = docs * rank * (width + out)
    return numbers * (4 * chunks + size), numbers * chunks


class _Rows:
    """The rows of x as the kernels see them, and how many tiles of a given height cover every document."""

    def __init__(self, x: Tensor, docs: int, bounds: Tensor | None):
        self.rows, self.docs, self.bounds = x.shape[:-1].numel(), docs, bounds
        self.length = x.shape[1] if bounds is None else 0
        self.typical_length = cdiv(self.rows, docs)

    def tiles(self, size: int) -> int:
        return self.docs * cdiv(self.length, size) if self.bounds is None else self.rows // size + self.docs + 1

    @property
    def arguments(self) -> tuple:
        return self.bounds, self.docs, self.length, self.rows

    @property
    def ragged(self) -> bool:
        return self.bounds is not None


def _shrink(x: Tensor, a: Tensor, scale: float, rows: _Rows, backward: bool) -> Tensor:
    from pgolf.kernels.lora.gpu import lora_shrink_kernel

    rank = a.shape[2] if backward else a.shape[1]
    t = x.new_empty(*x.shape[:-1], rank)
    launch = launch_shrink(x.shape[-1], rank, rows.typical_length, x.element_size(), capability_of(x.device))
    lora_shrink_kernel[(rows.tiles(launch.tiles["BM"]),)](
        x, a, t, *rows.arguments, scale,
        WIDTH=x.shape[-1], RANK=rank, **_padded(rank), RAGGED=rows.ragged, BACKWARD=backward, **launch.options,
    )  # fmt: skip
    return t


def _padded(rank: int) -> dict[str, int]:
    return dict(zip(("R", "R2"), rank_blocks(rank), strict=True))


def _multiply(
    x: Tensor, weight: Tensor | None, a: Tensor, b: Tensor, scale: float, rows: _Rows, backward: bool, route: str | None
) -> tuple[Tensor, Tensor]:
    """(y, t) forward; backward, with dy for x and b and a for a and b, (dx, dt)."""
    from pgolf.kernels.lora.gpu import lora_expand_kernel, lora_product_kernel

    width = x.shape[-1]
    rank, out = (b.shape[1], b.shape[2]) if backward else (b.shape[2], b.shape[1])
    route = "around" if weight is None else route or choose_route(width, out, rank, x.element_size())
    capability = capability_of(x.device)
    y = x.new_empty(*x.shape[:-1], out)
    t = x.new_empty(*x.shape[:-1], rank) if route == "whole" else _shrink(x, a, scale, rows, backward)
    if route == "around":
        if weight is not None:
            torch.mm(x.view(-1, width), weight if backward else weight.mT, out=y.view(-1, out))
        launch = launch_expand(out, rank, rows.typical_length, x.element_size(), capability)
        lora_expand_kernel[(rows.tiles(launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"]),)](
            t, b, y, *rows.arguments,
            OUT=out, RANK=rank, RK=rank_step(rank), ADD=weight is not None, RAGGED=rows.ragged, BACKWARD=backward,
            **launch.options,
        )  # fmt: skip
        return y, t
    launch = launch_product(width, out, rank, rows.typical_length, capability)
    lora_product_kernel[(rows.tiles(launch.tiles["BM"]) * cdiv(out, launch.tiles["BN"]),)](
        x, weight, a, b, t, y, *rows.arguments, scale,
        WIDTH=width, OUT=out, RANK=rank, R=rank_blocks(rank)[0], RK=rank_step(rank), SHRINK=route == "whole",
        RAGGED=rows.ragged, BACKWARD=backward, **launch.options,
    )  # fmt: skip
    return y, t


def forward_triton(x, weight, a, b, scale, cu_seqlens, route=None):
    rows = _Rows(x, a.shape[0], cu_seqlens)
    if rows.rows == 0:
        return _forward_fake(x, weight, a, b, scale, cu_seqlens)
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    weight = None if weight is None else weight.contiguous()
    return _multiply(x, weight, a, b, scale, rows, False, route)


def backward_triton(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient, route=None):
    from pgolf.kernels.lora.gpu import lora_bwd_adapters_kernel, lora_bwd_reduce_kernel

    docs, rank, width = a.shape
    out = b.shape[1]
    rows = _Rows(x, docs, cu_seqlens)
    if rows.rows == 0:
        return x.new_empty(x.shape if input_gradient else (0,)), torch.zeros_like(a), torch.zeros_like(b)
    dy, x, t, a, b = dy.contiguous(), x.contiguous(), t.contiguous(), a.contiguous(), b.contiguous()
    weight = None if weight is None else weight.contiguous()
    if input_gradient:
        dx, dt = _multiply(dy, weight, b, a, scale, rows, True, route)
    else:
        dx, dt = x.new_empty(0), _shrink(dy, b, scale, rows, True)
    da, db = a.new_empty(a.shape), b.new_empty(b.shape)
    longest = rows.rows if rows.ragged else rows.length
    slots = rows.tiles(CHUNK)
    partial = x.new_empty(slots if longest > CHUNK else 0, (width + out) * rank, dtype=torch.float32)
    launch = launch_adapters(rank, x.element_size(), capability_of(x.device))
    shape = {"IN": width, "OUT": out, "RANK": rank, "RAGGED": rows.ragged, "CHUNK": CHUNK}
    grid = (slots, cdiv(width, launch.tiles["BC"]) + cdiv(out, launch.tiles["BC"]))
    lora_bwd_adapters_kernel[grid](x, dy, t, dt, da, db, partial, *rows.arguments, **shape, **_padded(rank), **launch.options)
    if longest > CHUNK:
        lora_bwd_reduce_kernel[docs, cdiv((width + out) * rank, _REDUCE.tiles["BLOCK"])](
            partial, da, db, cu_seqlens, docs, rows.length, **shape, **_REDUCE.options
        )
    return dx, da, db


def compile_cases(capability: int) -> list[Case]:
    """Every kernel at the anchor's shape, 64 documents of 2,048 tokens, over the ranks and options that change its code."""
    from pgolf.kernels.lora import gpu, update

    docs, length = 64, 2048
    rows = docs * length
    counts = {"docs": "i32", "length": "i32", "rows": "i32"}
    element = {2: "*bf16:16", 4: "*fp32:16"}

    def case(kernel, launch, detail, pointers, constants, traffic, ragged, scaled, matmul, registers):
        signature = {**pointers, **counts}
        signature |= ({"p_bounds": "*i32:16"} if ragged else {}) | ({"scale": "fp32"} if scaled else {})
        unused = {} if ragged else {"p_bounds": None}
        name = f"{kernel.__name__}[{detail}{' ragged' if ragged else ''}]"
        shape = f"{docs}x{length}"
        constants = {"RAGGED": ragged, **unused, **constants}
        return Case(kernel, name, signature, constants, launch, shape, *traffic, matmul, registers)

    def product(width, out, rank, shrink, backward=False, ragged=False, typical=length, adapter=2):
        launch = launch_product(width, out, rank, typical, capability)
        pointers = dict.fromkeys(("p_x", "p_w", "p_t", "p_y"), element[2]) | dict.fromkeys(("p_a", "p_b"), element[adapter])
        constants = {
            "WIDTH": width, "OUT": out, "RANK": rank, "R": rank_blocks(rank)[0], "RK": rank_step(rank),
            "SHRINK": shrink, "BACKWARD": backward,
        }  # fmt: skip
        detail = f"{width}->{out} r{rank}{' whole' if shrink else ''}{' transposed' if backward else ''}"
        detail += " float32 adapters" if adapter == 4 else ""
        traffic = traffic_product(docs, rows, width, out, rank, 2, shrink)
        return case(gpu.lora_product_kernel, launch, detail, pointers, constants, traffic, ragged, True, True, 208)

    def shrink(width, rank, backward=False, ragged=False, size=2, typical=length):
        launch = launch_shrink(width, rank, typical, size, capability)
        pointers = dict.fromkeys(("p_x", "p_a", "p_t"), element[size])
        constants = {"WIDTH": width, "RANK": rank, **_padded(rank), "BACKWARD": backward}
        detail = f"{width} r{rank}{' transposed' if backward else ''}{' float32' if size == 4 else ''}"
        traffic = traffic_shrink(docs, rows, width, rank, size)
        return case(gpu.lora_shrink_kernel, launch, detail, pointers, constants, traffic, ragged, True, size == 2, 176)

    def expand(out, rank, add, backward=False, ragged=False, size=2, typical=length):
        launch = launch_expand(out, rank, typical, size, capability)
        pointers = dict.fromkeys(("p_t", "p_b", "p_y"), element[size])
        constants = {"OUT": out, "RANK": rank, "RK": rank_step(rank), "ADD": add, "BACKWARD": backward}
        detail = f"{out} r{rank}{' add' if add else ''}{' transposed' if backward else ''}{' float32' if size == 4 else ''}"
        traffic = traffic_expand(docs, rows, out, rank, size, add)
        return case(gpu.lora_expand_kernel, launch, detail, pointers, constants, traffic, ragged, False, size == 2, 136)

    def adapters(width, out, rank, ragged=False, size=2, adapter=2):
        launch = launch_adapters(rank, size, capability)
        pointers = {
            **dict.fromkeys(("p_x", "p_dy", "p_t", "p_dt"), element[size]),
            **dict.fromkeys(("p_da", "p_db"), element[adapter]),
            "p_partial": element[4],
        }
        constants = {"IN": width, "OUT": out, "RANK": rank, **_padded(rank), "CHUNK": CHUNK}
        detail = f"{width} {out} r{rank}{' float32' if size == 4 else ''}"
        traffic = traffic_adapters(docs, rows, width, out, rank, size)
        return case(gpu.lora_bwd_adapters_kernel, launch, detail, pointers, constants, traffic, ragged, False, size == 2, 176)

    reduce = Case(
        gpu.lora_bwd_reduce_kernel,
        "lora_bwd_reduce_kernel[ragged]",
        {**dict.fromkeys(("p_partial", "p_da", "p_db"), element[4]), "p_bounds": "*i32:16", "docs": "i32", "length": "i32"},
        {"IN": 512, "OUT": 512, "RANK": 80, "RAGGED": True, "CHUNK": CHUNK},
        _REDUCE,
        f"{docs} documents of 4 chunks",
        *traffic_reduce(docs, 4, 512, 512, 80, 4),
        max_registers=64,
    )
    return [
        product(512, 512, 8, shrink=True),
        product(512, 512, 32, shrink=True, ragged=True),
        product(512, 512, 16, shrink=True, backward=True, adapter=4),
        product(2048, 2048, 8, shrink=True, ragged=True),
        product(512, 512, 8, shrink=True, ragged=True, typical=48),
        product(512, 512, 64, shrink=False),
        product(512, 8192, 80, shrink=False, ragged=True),
        product(512, 512, 96, shrink=False, backward=True),
        product(512, 512, 128, shrink=False, typical=48),
        shrink(512, 8, ragged=True),
        shrink(512, 64, backward=True),
        shrink(2048, 80, backward=True, ragged=True),
        shrink(512, 128, typical=48),
        shrink(512, 128, size=4),
        expand(512, 8, add=True, ragged=True),
        expand(512, 80, add=False, backward=True, typical=48),
        expand(512, 128, add=True, size=4),
        adapters(512, 512, 8, adapter=4),
        adapters(512, 2048, 80, ragged=True),
        adapters(512, 512, 128, ragged=True),
        adapters(512, 512, 128, size=4),
        reduce,
        *update.compile_cases(),
    ]


def _forward_fake(x, weight, a, b, scale, cu_seqlens):
    return x.new_empty(*x.shape[:-1], b.shape[1]), x.new_empty(*x.shape[:-1], a.shape[1])


def _backward_fake(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient):
    return x.new_empty(x.shape if input_gradient else (0,)), a.new_empty(a.shape), b.new_empty(b.shape)


def _backward_cpu(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient):
    dx, da, db = lora_backward_reference(dy, x, t, weight, a, b, scale, cu_seqlens, input_gradient)
    return dx if input_gradient else x.new_empty(0), da, db


def _save(ctx, inputs, output):
    x, weight, a, b, scale, cu_seqlens = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, a, b, cu_seqlens)
    ctx.scale = scale


def _differentiate(ctx, dy, _dt):
    x, t, weight, a, b, cu_seqlens = ctx.saved_tensors
    wants_x, wants_weight, *_ = ctx.needs_input_grad
    dx, da, db = torch.ops.pgolf.lora_backward(dy, x, t, weight, a, b, ctx.scale, cu_seqlens, wants_x)
    dw = dy.flatten(0, -2).mT @ x.flatten(0, -2) if wants_weight else None
    return dx if wants_x else None, dw, da, db, None, None


torch.library.define(
    "pgolf::lora", "(Tensor x, Tensor? weight, Tensor a, Tensor b, float scale, Tensor? cu_seqlens) -> (Tensor, Tensor)"
)
torch.library.define(
    "pgolf::lora_backward",
    "(Tensor dy, Tensor x, Tensor t, Tensor? weight, Tensor a, Tensor b, float scale, Tensor? cu_seqlens, "
    "bool input_gradient) -> (Tensor, Tensor, Tensor)",
)
implement("pgolf::lora", "CPU", lora_reference)
implement("pgolf::lora_backward", "CPU", _backward_cpu)
implement("pgolf::lora", "CUDA", forward_triton)
implement("pgolf::lora_backward", "CUDA", backward_triton)
torch.library.register_fake("pgolf::lora", _forward_fake)
torch.library.register_fake("pgolf::lora_backward", _backward_fake)
torch.library.register_autograd("pgolf::lora", _differentiate, setup_context=_save)
