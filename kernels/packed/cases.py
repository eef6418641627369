"""Every configuration of the packed kernels that is compiled ahead of time, on the layers that they are meant for."""

from collections.abc import Iterator, Mapping
from typing import Any

from pgolf.kernels.compile import NARROW, SERIALISED, Case
from pgolf.kernels.launch import cdiv
from pgolf.kernels.packed import gpu, launch

PLANES = {"words": "*i32:16", "halves": "*i16:16", "bytes": "*i8:16", "scales": "*fp32:16"}
SIZES = ("N", "units", "columns", "stride")
# (columns, bits) of 8,192 rows
GEMVS = ((512, 6), (1024, 6), (2048, 5), (8192, 5), (8192, 7), (8192, 8), (8191, 5))
# (dtype, bits, rows, columns, tokens)
PRODUCTS = (
    ("bf16", 5, 512, 512, 16),
    ("bf16", 6, 512, 512, 32),
    ("bf16", 6, 512, 512, 64),
    ("bf16", 5, 8192, 512, 64),
    ("bf16", 6, 8192, 512, 128),
    ("bf16", 4, 8192, 512, 16),
    ("bf16", 8, 8192, 512, 128),
    ("fp16", 7, 8192, 512, 32),
    ("bf16", 7, 512, 513, 16),
)
# (bits, tokens) of 2,048 rows and 512 columns
BACKWARDS = ((5, 16), (6, 32), (7, 64), (8, 64))
# (columns, bits) of 2,048 rows
EXPANSIONS = ((512, 5), (1024, 8), (2048, 6), (513, 7))


def _sizes(cols: int) -> dict[str, str]:
    """Whole units make every size a multiple of 16."""
    return dict.fromkeys(SIZES, "i32" if cols % 32 else "i32:16")


def _accepts(cols: int) -> dict[str, str]:
    return {NARROW: "rows that are no multiple of 32 columns begin at any byte"} if cols % 32 else {}


def _case(kernel: Any, name: str, types: dict[str, str], constants: Mapping[str, object], *rest: Any, **more: Any) -> Case:
    """Named after its constants; arguments that this kernel does not have are dropped."""
    signature = {argument: kind for argument, kind in types.items() if argument in kernel.arg_names}
    return Case(
        kernel, " ".join([name, *(f"{key}={value}" for key, value in constants.items())]), signature, constants, *rest, **more
    )


def gemv(cols: int, bits: int) -> Case:
    rows = 8192
    types = {"x": "*bf16:16", "y": "*bf16:16", **PLANES, **_sizes(cols), "one": "i32:16"}
    constants = {"BITS": bits, "REST": cols % 32 > 0}
    chosen, traffic = launch.launch_gemv(cols), launch.traffic_gemv(rows, cols, bits)
    grid = {"programs": cdiv(rows, chosen.tiles["BN"]), "iterations": 4 * cdiv(cols // 32, chosen.tiles["BU"])}
    shape, more = f"{rows}x{cols}", {"max_registers": 208, "accepts": _accepts(cols), **grid}
    return _case(gpu.packed_gemv_kernel, "gemv bf16", types, constants, chosen, shape, *traffic, **more)


def product(kind: str, bits: int, rows: int, cols: int, tokens: int, capability: int) -> Case:
    splits = launch.matmul_splits(tokens, rows, cols, capability)
    out = "*fp32:16" if splits > 1 else f"*{kind}:16"
    types = {"x": f"*{kind}:16", "out": out, **PLANES, **_sizes(cols), "M": "i32"}
    constants = {"BITS": bits, "REST": cols % 32 > 0, "PARTIAL": splits > 1}
    chosen, traffic = launch.launch_matmul(tokens, capability), launch.traffic_matmul(tokens, rows, cols, bits, splits=splits)
    most, shape = 208 if cols % 32 else 144, f"{tokens}x{rows}x{cols}"
    more = {
        "matmul": True,
        "max_registers": most,
        "accepts": {**_accepts(cols), SERIALISED: "eight chained products of depth 16"},
    }
    return _case(gpu.packed_matmul_kernel, f"matmul {kind}", types, constants, chosen, shape, *traffic, **more)


def backward(bits: int, tokens: int, capability: int) -> Case:
    rows, cols = 2048, 512
    splits = launch.backward_splits(tokens, rows, cols, capability)
    types = {"grad": "*bf16:16", "out": "*fp32:16" if splits > 1 else "*bf16:16", **PLANES, **_sizes(cols), "M": "i32"}
    chosen, traffic = (
        launch.launch_backward(tokens, capability),
        launch.traffic_backward(tokens, rows, cols, bits, splits=splits),
    )
    shape, constants = f"{tokens}x{rows}x{cols}", {"BITS": bits}
    name = "backward bf16"
    return _case(gpu.packed_bwd_kernel, name, types, constants, chosen, shape, *traffic, matmul=True, max_registers=224)


def expansion(cols: int, bits: int) -> Case:
    rows = 2048
    types = {"out": "*bf16:16", **PLANES, **_sizes(cols)}
    constants = {"BITS": bits, "REST": cols % 32 > 0}
    chosen, traffic = launch.launch_expand(cols), launch.traffic_expand(rows, cols, bits)
    return _case(
        gpu.packed_expand_kernel,
        "expand bf16",
        types,
        constants,
        chosen,
        f"{rows}x{cols}",
        *traffic,
        max_registers=96,
        accepts=_accepts(cols),
    )


def reductions() -> Iterator[Case]:
    types = {"partial": "*fp32:16", "scales": "*fp32:16", "out": "*bf16:16", "M": "i32", "N": "i32:16", "splits": "i32"}
    for scaled in (True, False):
        traffic = launch.traffic_reduce(16, 512, 2, scaled=scaled)
        chosen, constants = launch.launch_reduce(), {"SCALED": scaled}
        yield _case(gpu.packed_reduce_kernel, "reduce bf16", types, constants, chosen, "2x16x512", *traffic, max_registers=40)


def compile_cases(capability: int) -> list[Case]:
    return [
        *(gemv(*form) for form in GEMVS),
        *(product(*form, capability) for form in PRODUCTS),
        *(backward(*form, capability) for form in BACKWARDS),
        *(expansion(*form) for form in EXPANSIONS),
        *reductions(),
    ]
