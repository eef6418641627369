"""Every configuration of the MLP's kernels that is compiled ahead of time: 512 -> 2,048 -> 512, many rows and few."""

from collections.abc import Mapping
from typing import Any

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import Launch, nearest
from pgolf.kernels.mlp import gpu, launch

D, HIDDEN, OUT = 512, 2048, 512
SIZES = {"D": D, "H": HIDDEN, "D_OUT": OUT, "PRECISION": "tf32"}


def _case(
    kernel: Any,
    name: str,
    kind: str,
    chosen: Launch,
    matrices: Mapping[str, tuple[str, str]],
    scalars: Mapping[str, str],
    rows: int,
    traffic: tuple[int, int],
    depth: int | None = None,
) -> Case:
    """`matrices` names the tile that each matrix is walked in; HALF is half of BN. `depth` is the length of the sum whose end
    a persistent kernel meets once in so many iterations."""
    tiles = {**chosen.tiles, "HALF": chosen.tiles["BN"] // 2}
    signature = dict(scalars)
    for matrix, (height, width) in matrices.items():
        descriptor = f"tensordesc<{kind}[{tiles[height]},{tiles[width]}]>"
        signature[matrix] = descriptor if tiles["TMA"] else f"*{kind}:16"
    constants = {key: value for key, value in SIZES.items() if key in kernel.arg_names}
    shape = f"T={rows} D={D} H={HIDDEN}"
    rarely = tiles["BK"] / depth if depth else 1.0
    return Case(
        kernel, f"{name} {kind}", signature, constants, chosen, shape, *traffic, matmul=True, max_registers=240, rarely=rarely
    )


def up(kind: str, rows: int, capability: int) -> Case:
    matrices = {"x": ("BM", "BK"), "w_up": ("BN", "BK"), "s": ("BM", "HALF")}
    chosen, traffic = launch.launch_up(rows, HIDDEN, capability), launch.traffic_up(rows, D, HIDDEN)
    scalars = {"rows": "i32", "slope": "fp32"}
    return _case(gpu.mlp_fwd_kernel_up, "fwd_up", kind, chosen, matrices, scalars, rows, traffic, D)


def down(kind: str, rows: int, capability: int) -> Case:
    matrices = {"s": ("BM", "BK"), "w_down": ("BN", "BK"), "y": ("BM", "HALF")}
    chosen, traffic = launch.launch_down(rows, OUT, capability), launch.traffic_down(rows, HIDDEN, OUT)
    return _case(gpu.mlp_fwd_kernel_down, "fwd_down", kind, chosen, matrices, {"rows": "i32"}, rows, traffic, HIDDEN)


def hidden(kind: str, rows: int, capability: int) -> Case:
    matrices = {"dy": ("BM", "BK"), "w_down": ("BK", "BN"), "s": ("BM", "HALF"), "d_pre": ("BM", "HALF")}
    chosen, traffic = launch.launch_hidden(rows, HIDDEN, capability), launch.traffic_hidden(rows, HIDDEN, OUT)
    scalars = {"rows": "i32", "slope": "fp32"}
    return _case(gpu.mlp_bwd_kernel_hidden, "bwd_hidden", kind, chosen, matrices, scalars, rows, traffic, OUT)


def w_down(kind: str, rows: int, capability: int) -> Case:
    matrices = {"s": ("BK", "BM"), "dy": ("BK", "BN")}
    chosen = launch.launch_w_down(capability)
    parts, _ = launch.parts_of_rows(rows, HIDDEN, OUT, chosen, nearest(launch.MULTIPROCESSORS, capability))
    scalars = {"p_parts": "*fp32:16", "rows": "i32", "rows_per_part": "i32"}
    traffic = launch.traffic_w_down(rows, HIDDEN, OUT, parts)
    return _case(gpu.mlp_bwd_kernel_w_down, "bwd_w_down", kind, chosen, matrices, scalars, rows, traffic)


def compile_cases(capability: int) -> list[Case]:
    many, few = 98_304, 512
    return [
        *(make("bf16", many, capability) for make in (up, down, hidden, w_down)),
        *(make("bf16", few, capability) for make in (up, down, hidden)),
        *(make("fp16", many, capability) for make in (up, down, hidden, w_down)),
    ]
