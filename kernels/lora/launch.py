"""How the adapters' products and updates are computed and launched: tables, choices, and the bytes and FLOPs of one launch,
as functions of shape and capability. Chosen by reasoning, unmeasured."""

from dataclasses import replace

from pgolf.kernels.launch import Launch, cdiv, nearest

MAX_RANK = 128
# rows of a document that one program sums into an adapter's gradient; a longer document leaves partial sums. Fixed, so that
# a document's gradient has the same bits whatever else is in the batch.
CHUNK = 2048


def rank_blocks(rank: int) -> tuple[int, int]:
    """The padded rank as one power of two, or as two where that is less: 80 is 64 + 16, 96 is 64 + 32."""
    whole = max(16, 1 << (rank - 1).bit_length())
    rest = max(16, 1 << max(rank - whole // 2 - 1, 0).bit_length())
    return (whole // 2, rest) if whole > 32 and whole // 2 + rest < whole else (whole, 0)


def rank_step(rank: int) -> int:
    """Ranks per step of t Bᵀ: long steps, without padding the last one by much."""
    return 16 if rank <= 16 else 64 if rank % 64 == 0 else 32


def padded(rank: int) -> dict[str, int]:
    """`rank_blocks` as the kernels' constants."""
    return dict(zip(("R", "R2"), rank_blocks(rank), strict=True))


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
    columns = launch_product(out, 1024, 90).tiles["BN"]
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


# product: short documents; few columns, two programs a multiprocessor to overlap one's end with another's start; many
# columns, where a wide tile spares the cache.
PRODUCT = {
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
REDUCE = Launch({"BLOCK": 1024}, 4, 1)
ADAPTERS = {
    80: Launch({"BC": 64, "BM": 64}, 4, 3),
    90: Launch({"BC": 128, "BM": 64}, 4, 4),
    100: Launch({"BC": 64, "BM": 64}, 8, 4),
}


def launch_product(out: int, length: int, capability: int) -> Launch:
    table = nearest(PRODUCT, capability)
    return table["short" if _is_short(length) else "wide" if out >= 2048 else "narrow"]


def launch_shrink(rank: int, length: int, element_size: int, capability: int) -> Launch:
    """Reads x once at memory speed: deep pipelines, and more warps only to hold more ranks."""
    if element_size == 4:
        return Launch({"BM": 32, "BK": 16}, 4, 2)
    rows = 64 if _is_short(length) else 128
    stages = nearest({80: 3, 90: 4}, capability)
    return Launch({"BM": rows, "BK": 64}, 8 if rank > 64 and rows == 128 else 4, stages)


def launch_expand(length: int, element_size: int) -> Launch:
    if element_size == 4:
        return Launch({"BM": 32, "BN": 64}, 4, 1)
    return Launch({"BM": 64 if _is_short(length) else 128, "BN": 128}, 4 if _is_short(length) else 8, 2)


def launch_adapters(rank: int, element_size: int, capability: int) -> Launch:
    if element_size == 4:
        return Launch({"BC": 32, "BM": 16}, 4, 2)
    chosen = nearest(ADAPTERS, capability)
    return replace(chosen, num_warps=8) if rank > 64 and chosen.tiles["BC"] > 64 else chosen


def launch_reduce() -> Launch:
    return REDUCE


def launch_update() -> Launch:
    """Elementwise and bound by memory: eight elements a thread, many blocks a multiprocessor."""
    return Launch({"BLOCK": 1024}, 4, 1)


def _is_short(length: int) -> bool:
    """Documents of so few rows waste too much of a tall tile."""
    return length <= 64 or (length < 192 and length % 128 != 0)


# bytes and FLOPs of one launch


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


def traffic_adam(elements: int, parameter_size: int, gradient_size: int, moment_size: int, first: bool) -> tuple[int, int]:
    moments = 2 * moment_size * (2 if first else 1)
    return elements * (2 * parameter_size + gradient_size + moments), elements * (16 if first else 12)


def traffic_reset(written: int, read: int) -> tuple[int, int]:
    return written + read, 0
