"""Every configuration of the sweep to compile ahead of time."""

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import next_power
from pgolf.kernels.logit_stats import gpu
from pgolf.kernels.logit_stats.launch import launch_forward, traffic_forward

TOKENS = 65_536


def compile_cases(capability: int) -> list[Case]:
    """Vocabularies that are and are not powers of two, with 0 to 16 candidates, in three dtypes, capped or not."""
    return [
        *(_forward(vocabulary, 4, capability) for vocabulary in (256, 1000, 1024, 8192, 65_536)),
        *(_forward(vocabulary, 4, capability, capped=True) for vocabulary in (256, 1000, 1024, 8192)),
        _forward(1024, 0, capability),
        _forward(1024, 16, capability, "fp32"),
        _forward(1024, 16, capability, "fp32", capped=True),
        _forward(1024, 10, capability, "fp16"),
    ]


def _forward(vocabulary: int, num_candidates: int, capability: int, kind: str = "bf16", capped: bool = False) -> Case:
    moved, flops = traffic_forward(TOKENS, vocabulary, num_candidates, 4 if kind == "fp32" else 2, capped)
    signature = _pointers(kind, "logits") | _pointers("i32", "targets", "candidates")
    signature |= _pointers("fp32", "temperature", "lse", "entropy", "target", "picked")
    return Case(
        kernel=gpu.logit_stats_kernel,
        name=f"fwd {kind}{' softcap' * capped}",
        signature=signature | {"softcap": "fp32", "temperature_stride": "i32"},
        constants={"V": vocabulary, "K": num_candidates, "BK": next_power(num_candidates), "CAPPED": capped},
        launch=launch_forward(vocabulary, capability),
        shape=f"N={TOKENS} V={vocabulary} K={num_candidates}",
        bytes=moved,
        flops=flops,
        max_registers=96,
    )


def _pointers(kind: str, *names: str) -> dict[str, str]:
    return {f"p_{name}": f"*{kind}:16" for name in names}
