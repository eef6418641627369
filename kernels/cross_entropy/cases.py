"""Every configuration of cross-entropy to compile ahead of time."""

from pgolf.kernels.compile import BARRIERS, NARROW, Case
from pgolf.kernels.cross_entropy import gpu
from pgolf.kernels.cross_entropy.launch import launch_forward, launch_rescale, traffic_forward, traffic_rescale

TOKENS = 98_304


def compile_cases(capability: int) -> list[Case]:
    """Rows in registers and long ones, with and without softcap and gradient; the challenge's vocabularies first."""
    cases = [_forward(vocabulary) for vocabulary in (256, 1000, 1024, 2048, 4096, 8192, 16_384, 50_304, 65_536)]
    for vocabulary in (1024, 8192, 65_536):
        cases += [_forward(vocabulary, gradient=False), _forward(vocabulary, capped=False), _forward(vocabulary, kind="fp32")]
    return cases + [_rescale(vocabulary) for vocabulary in (256, 1000, 1024, 65_536)]


def _forward(vocabulary: int, kind: str = "bf16", capped: bool = True, gradient: bool = True) -> Case:
    element_size = 4 if kind == "fp32" else 2
    launch = launch_forward(vocabulary, element_size)
    pointers = {"p_logits": f"*{kind}:16", "p_targets": "*i64:16", "p_gradient": f"*{kind}:16"}
    pointers |= dict.fromkeys(("p_scale", "p_losses", "p_unscaled"), "*fp32:16")
    moved, flops = traffic_forward(TOKENS, vocabulary, element_size, gradient)
    in_registers = launch.tiles["BV"] >= vocabulary
    return Case(
        kernel=gpu.cross_entropy_fwd_kernel if in_registers else gpu.cross_entropy_fwd_kernel_long,
        name=f"fwd{'' if in_registers else '_long'} {kind}{' softcap' * capped}{' gradient' * gradient}",
        signature=pointers | {"softcap": "fp32", "z_loss": "fp32", "ignore_index": "i64"},
        constants={"V": vocabulary, "CAPPED": capped, "APPROXIMATE": kind != "fp32", "GRADIENT": gradient},
        launch=launch,
        shape=f"N={TOKENS} V={vocabulary}",
        bytes=moved,
        flops=flops,
        max_registers=128,
        accepts={} if in_registers else {BARRIERS: "a row is walked in pieces, with one reduction a piece"},
    )


def _rescale(vocabulary: int) -> Case:
    moved, flops = traffic_rescale(TOKENS, vocabulary, 2)
    return Case(
        kernel=gpu.cross_entropy_bwd_kernel_rescale,
        name="bwd_rescale bf16",
        signature={"p_gradient": "*bf16:16", "p_upstream": "*fp32:16", "upstream_stride": "i32", "count": "i32"},
        constants={"V": vocabulary},
        launch=launch_rescale(vocabulary),
        shape=f"N={TOKENS} V={vocabulary}",
        bytes=moved,
        flops=flops,
        max_registers=64,
        accepts={NARROW: "a tile of 512 gives each of 256 threads two numbers"} if vocabulary > 50_000 else {},
    )
