"""Every configuration of the sweep to compile ahead of time."""

from pgolf.kernels.compile import Case
from pgolf.kernels.launch import next_power
from pgolf.kernels.logit_stats import gpu
from pgolf.kernels.logit_stats.launch import launch_backward, launch_forward, traffic_backward, traffic_forward

TOKENS = 65_536


def compile_cases(capability: int) -> list[Case]:
    """Vocabularies that are and are not powers of two, with 0 to 16 candidates, in three dtypes."""
    vocabularies = (256, 1000, 1024, 65_536)
    return [
        *(_forward(vocabulary, 4, capability) for vocabulary in (*vocabularies[:3], 8192, vocabularies[3])),
        _forward(1024, 0, capability),
        _forward(1024, 16, capability, "fp32"),
        _forward(1024, 10, capability, "fp16"),
        *(_backward(vocabulary, 4, capability) for vocabulary in vocabularies),
        _backward(1024, 0, capability),
        _backward(1024, 16, capability, "fp32"),
    ]


def _forward(vocabulary: int, num_candidates: int, capability: int, kind: str = "bf16") -> Case:
    moved, flops = traffic_forward(TOKENS, vocabulary, num_candidates, 4 if kind == "fp32" else 2)
    return Case(
        kernel=gpu.logit_stats_fwd_kernel,
        name=f"fwd {kind}",
        signature=_signature(kind) | _pointers("fp32", "target", "picked"),
        constants={"V": vocabulary, "K": num_candidates, "BK": next_power(num_candidates)},
        launch=launch_forward(vocabulary, capability),
        shape=f"N={TOKENS} V={vocabulary} K={num_candidates}",
        bytes=moved,
        flops=flops,
        max_registers=128,
    )


def _backward(vocabulary: int, num_candidates: int, capability: int, kind: str = "bf16") -> Case:
    moved, flops = traffic_backward(TOKENS, vocabulary, num_candidates, 4 if kind == "fp32" else 2)
    upstream = _pointers("fp32", "d_lse", "d_entropy", "d_target", "d_picked", "d_rows")
    return Case(
        kernel=gpu.logit_stats_bwd_kernel,
        name=f"bwd {kind}",
        signature=_signature(kind) | upstream | _pointers(kind, "d_logits"),
        constants={"V": vocabulary, "K": num_candidates},
        launch=launch_backward(vocabulary, capability),
        shape=f"N={TOKENS} V={vocabulary} K={num_candidates}",
        bytes=moved,
        flops=flops,
        max_registers=128,
    )


def _signature(kind: str) -> dict[str, str]:
    pointers = _pointers(kind, "logits") | _pointers("i32", "targets", "candidates")
    pointers |= _pointers("fp32", "temperature", "lse", "entropy")
    return pointers | {"count": "i32", "temperature_stride": "i32"}


def _pointers(kind: str, *names: str) -> dict[str, str]:
    return {f"p_{name}": f"*{kind}:16" for name in names}
