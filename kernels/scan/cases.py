"""Every configuration of the scan's kernels that is compiled ahead of time, for 48 sequences of 2,048 tokens."""

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import nearest
from pgolf.kernels.scan import gpu, launch

BATCH, LENGTH = 48, 2048
# in float32 whatever v is
EXACT = ("p_dt", "p_decay", "p_states", "p_dstates", "p_ddt", "p_ddecay")
KERNELS = (
    ("forward", gpu.scan_fwd_kernel, launch.launch_forward, launch.traffic_forward),
    ("backward states", gpu.scan_bwd_kernel_states, launch.launch_states, launch.traffic_states),
    ("backward chunks", gpu.scan_bwd_kernel_chunks, launch.launch_chunks, launch.traffic_chunks),
)
# (dtype, heads, groups, P, S): the hybrid's, the size of its ten-layer variant, the largest, and shared groups of an odd size
SHAPES = (("bf16", 8, 8, 128, 8), ("fp16", 8, 8, 128, 16), ("bf16", 8, 8, 128, 32), ("bf16", 4, 2, 64, 5))


def compile_cases(capability: int) -> list[Case]:
    cases = []
    for kind, heads, groups, width, size in SHAPES:
        if size > nearest(launch.LARGEST, capability):
            continue
        for direction, kernel, choose, traffic in KERNELS:
            signature = {"length": "i32", "chunks": "i32"}
            for name in kernel.arg_names:
                if name.startswith("p_"):
                    wide = name in EXACT or name in ("p_db", "p_dc") and groups < heads
                    signature[name] = "*fp32:16" if wide else f"*{kind}:16"
            name = f"{direction} P={width} S={size} {kind}" + " groups" * (groups < heads)
            constants: dict[str, object] = {"H": heads, "G": groups, "P": width, "S": size}
            shape = f"B={BATCH} T={LENGTH} H={heads} G={groups}"
            amount = traffic(BATCH * LENGTH, heads, groups, width, size)
            cases.append(Case(kernel, name, signature, constants, choose(size, capability), shape, *amount, matmul=True))
    return cases
