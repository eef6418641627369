"""Every configuration of the adapters' kernels that is compiled ahead of time: 64 documents of 2,048 tokens, over the ranks
and options that change their code; and the optimiser's, over its precisions."""

from collections.abc import Mapping
from typing import Any

import triton.language as tl

from pgolf.kernels.compile import BARRIERS, Case
from pgolf.kernels.launch import Launch
from pgolf.kernels.lora import gpu, launch

DOCS, LENGTH = 64, 2048
ROWS = DOCS * LENGTH
COUNTS = {"docs": "i32", "length": "i32", "rows": "i32"}
ELEMENT = {2: "*bf16:16", 4: "*fp32:16"}
# why cases live with findings
SEARCH = {BARRIERS: "the only loop looks up the program's tensor, one turn for 256 of them"}
EXACT = {BARRIERS: "float32 is multiplied without tensor cores, through shared memory"}
# numbers of one kind (parameters, gradients, a moment) of all documents at rank 80
UPDATED = 64 * 6_963_200


def _case(
    kernel: Any,
    chosen: Launch,
    detail: str,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    traffic: tuple[int, int],
    *,
    ragged: bool,
    matmul: bool,
    registers: int,
    accepts: Mapping[str, str] | None = None,
) -> Case:
    """Arguments that the kernel does not have are dropped; documents of one length have no boundaries."""
    signature = {name: kind for name, kind in {**types, **COUNTS, "scale": "fp32"}.items() if name in kernel.arg_names}
    fixed = {"RAGGED": ragged, **constants}
    if ragged:
        signature["p_bounds"] = "*i32:16"
    else:
        fixed["p_bounds"] = None
    name = f"{kernel.__name__}[{detail}{' ragged' if ragged else ''}]"
    return Case(kernel, name, signature, fixed, chosen, f"{DOCS}x{LENGTH}", *traffic, matmul, registers, accepts=accepts or {})


def product(
    width: int, out: int, rank: int, capability: int, *, shrink: bool,
    backward: bool = False, ragged: bool = False, typical: int = LENGTH, adapter: int = 2,
) -> Case:  # fmt: skip
    """y = x Wᵀ + t Bᵀ; `typical` is the length of a document that the launch is chosen for, `adapter` the size of A's and B's
    elements."""
    chosen = launch.launch_product(out, typical, capability)
    types = dict.fromkeys(("p_x", "p_w", "p_t", "p_y"), ELEMENT[2]) | dict.fromkeys(("p_a", "p_b"), ELEMENT[adapter])
    constants = {
        "WIDTH": width, "OUT": out, "RANK": rank, "R": launch.rank_blocks(rank)[0], "RK": launch.rank_step(rank),
        "SHRINK": shrink, "BACKWARD": backward,
    }  # fmt: skip
    detail = f"{width}->{out} r{rank}{' whole' if shrink else ''}{' transposed' if backward else ''}"
    detail += " float32 adapters" if adapter == 4 else ""
    traffic = launch.traffic_product(DOCS, ROWS, width, out, rank, 2, shrink)
    options: dict[str, Any] = {"ragged": ragged, "matmul": True, "registers": 208}
    return _case(gpu.lora_product_kernel, chosen, detail, types, constants, traffic, **options)


def shrink(
    width: int, rank: int, capability: int, *,
    backward: bool = False, ragged: bool = False, size: int = 2, typical: int = LENGTH,
) -> Case:  # fmt: skip
    """t = scale · x Aᵀ; `size` is that of every element."""
    chosen = launch.launch_shrink(rank, typical, size, capability)
    types = dict.fromkeys(("p_x", "p_a", "p_t"), ELEMENT[size])
    constants = {"WIDTH": width, "RANK": rank, **launch.padded(rank), "BACKWARD": backward}
    detail = f"{width} r{rank}{' transposed' if backward else ''}{' float32' if size == 4 else ''}"
    traffic = launch.traffic_shrink(DOCS, ROWS, width, rank, size)
    options: dict[str, Any] = {"ragged": ragged, "matmul": size == 2, "registers": 176}
    return _case(gpu.lora_shrink_kernel, chosen, detail, types, constants, traffic, **options)


def expand(
    out: int, rank: int, capability: int, *,
    add: bool, backward: bool = False, ragged: bool = False, size: int = 2, typical: int = LENGTH,
) -> Case:  # fmt: skip
    """y += t Bᵀ"""
    chosen = launch.launch_expand(typical, size)
    types = dict.fromkeys(("p_t", "p_b", "p_y"), ELEMENT[size])
    constants = {"OUT": out, "RANK": rank, "RK": launch.rank_step(rank), "ADD": add, "BACKWARD": backward}
    detail = f"{out} r{rank}{' add' if add else ''}{' transposed' if backward else ''}{' float32' if size == 4 else ''}"
    traffic = launch.traffic_expand(DOCS, ROWS, out, rank, size, add)
    options: dict[str, Any] = {"ragged": ragged, "matmul": size == 2, "registers": 136, "accepts": EXACT if size == 4 else {}}
    return _case(gpu.lora_expand_kernel, chosen, detail, types, constants, traffic, **options)


def adapters(
    width: int, out: int, rank: int, capability: int, *, ragged: bool = False, size: int = 2, adapter: int = 2
) -> Case:
    """dA and dB"""
    chosen = launch.launch_adapters(rank, size, capability)
    types = {
        **dict.fromkeys(("p_x", "p_dy", "p_t", "p_dt"), ELEMENT[size]),
        **dict.fromkeys(("p_da", "p_db"), ELEMENT[adapter]),
        "p_partial": ELEMENT[4],
    }
    constants = {"IN": width, "OUT": out, "RANK": rank, **launch.padded(rank), "CHUNK": launch.CHUNK}
    detail = f"{width} {out} r{rank}{' float32' if size == 4 else ''}"
    traffic = launch.traffic_adapters(DOCS, ROWS, width, out, rank, size)
    options: dict[str, Any] = {"ragged": ragged, "matmul": size == 2, "registers": 176}
    return _case(gpu.lora_bwd_adapters_kernel, chosen, detail, types, constants, traffic, **options)


def reduction() -> Case:
    """The partial sums of long documents"""
    types = dict.fromkeys(("p_partial", "p_da", "p_db"), ELEMENT[4]) | {"p_bounds": "*i32:16", "docs": "i32", "length": "i32"}
    constants: dict[str, object] = {"IN": 512, "OUT": 512, "RANK": 80, "RAGGED": True, "CHUNK": launch.CHUNK}
    return Case(
        gpu.lora_bwd_reduce_kernel,
        "lora_bwd_reduce_kernel[ragged]",
        types,
        constants,
        launch.launch_reduce(),
        f"{DOCS} documents of 4 chunks",
        *launch.traffic_reduce(DOCS, 4, 512, 512, 80, 4),
        max_registers=64,
    )


def adam(p: Any, g: Any, s: Any, *, first: bool, masked: bool, aligned: bool) -> Case:
    """One optimiser step; p, g and s are the dtypes of parameters, gradients and moments, `masked` stands for rates and a
    mask by document."""
    numbers = {name: "fp32" for name in "rate decay beta1 beta2 rest1 rest2 log_beta1 log_beta2 eps".split()}
    signature = {"p_table": "*i64:16", "p_steps": "*i32:16", "tensors": "i32", **numbers}
    constants = {"P": p, "G": g, "S": s, "FIRST": first, "RATES": masked, "ACTIVE": masked, "ALIGNED": aligned, "BT": 256}
    optional = {"p_rates": "*fp32:16", "p_active": "*u8:16"}
    if masked:
        signature |= optional
    else:
        constants |= dict.fromkeys(optional)
    sizes = {tl.float32: 4, tl.bfloat16: 2}
    traffic = launch.traffic_adam(UPDATED, sizes[p], sizes[g], sizes[s], first)
    name = f"lora_adam_kernel[{p.name} {g.name} {s.name}{' first' if first else ''}{' masked' if masked else ''}]"
    shape, chosen = f"{UPDATED:,} numbers", launch.launch_update()
    return Case(gpu.lora_adam_kernel, name, signature, constants, chosen, shape, *traffic, max_registers=96, accepts=SEARCH)


def reset() -> Case:
    """A and B of every document, and one moment of each, set afresh"""
    signature = {"p_table": "*i64:16", "p_chosen": "*u8:16", "tensors": "i32"}
    traffic = launch.traffic_reset(2 * 4 * UPDATED, 4 * UPDATED // 128)
    constants: dict[str, object] = {"CHOSEN": True, "BT": 256}
    shape, chosen = f"{2 * UPDATED:,} numbers", launch.launch_update()
    name = "lora_reset_kernel"
    return Case(gpu.lora_reset_kernel, name, signature, constants, chosen, shape, *traffic, max_registers=48, accepts=SEARCH)


def compile_cases(capability: int) -> list[Case]:
    return [
        product(512, 512, 8, capability, shrink=True),
        product(512, 512, 32, capability, shrink=True, ragged=True),
        product(512, 512, 16, capability, shrink=True, backward=True, adapter=4),
        product(2048, 2048, 8, capability, shrink=True, ragged=True),
        product(512, 512, 8, capability, shrink=True, ragged=True, typical=48),
        product(512, 512, 64, capability, shrink=False),
        product(512, 8192, 80, capability, shrink=False, ragged=True),
        product(512, 512, 96, capability, shrink=False, backward=True),
        product(512, 512, 128, capability, shrink=False, typical=48),
        shrink(512, 8, capability, ragged=True),
        shrink(512, 64, capability, backward=True),
        shrink(2048, 80, capability, backward=True, ragged=True),
        shrink(512, 128, capability, typical=48),
        shrink(512, 128, capability, size=4),
        expand(512, 8, capability, add=True, ragged=True),
        expand(512, 80, capability, add=False, backward=True, typical=48),
        expand(512, 128, capability, add=True, size=4),
        adapters(512, 512, 8, capability, adapter=4),
        adapters(512, 2048, 80, capability, ragged=True),
        adapters(512, 512, 128, capability, ragged=True),
        adapters(512, 512, 128, capability, size=4),
        reduction(),
        adam(tl.float32, tl.float32, tl.float32, first=True, masked=True, aligned=True),
        adam(tl.float32, tl.bfloat16, tl.bfloat16, first=False, masked=False, aligned=True),
        adam(tl.bfloat16, tl.bfloat16, tl.float32, first=True, masked=False, aligned=False),
        reset(),
    ]
