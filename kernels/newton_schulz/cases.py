"""Every configuration of the symmetric product to compile ahead of time: for banks of 22 matrices."""

from pgolf.kernels.compile import Case
from pgolf.kernels.newton_schulz import gpu
from pgolf.kernels.newton_schulz.launch import launch_symmetric, traffic_symmetric

BATCH = 22
SHAPES = ((512, 512), (256, 512), (512, 2048), (296, 704))


def compile_cases(capability: int) -> list[Case]:
    """The Gram matrix (m x k times its transpose) and the polynomial in it (m x m)."""
    forms = [("bf16", m, k, linear) for m, k in SHAPES for linear in (False, True)]
    forms += [("fp16", 512, 2048, False), ("fp16", 512, 2048, True)]
    return [_symmetric(kind, m, m if linear else k, linear, capability) for kind, m, k, linear in forms]


def _symmetric(kind: str, m: int, k: int, linear: bool, capability: int) -> Case:
    launch = launch_symmetric(capability)
    moved, flops = traffic_symmetric(BATCH, m, k, launch.tiles["BM"], linear)
    return Case(
        kernel=gpu.newton_schulz_kernel_symmetric,
        name=f"{'polynomial' if linear else 'gram'} {kind}",
        signature={"p_x": f"*{kind}:16", "p_out": f"*{kind}:16", "linear": "fp32", "square": "fp32"},
        constants={"M": m, "K": k, "LINEAR": linear, "PRECISION": "tf32"},
        launch=launch,
        shape=f"{BATCH} x {m} x {k}",
        bytes=moved,
        flops=flops,
        matmul=True,
        max_registers=240,
    )
