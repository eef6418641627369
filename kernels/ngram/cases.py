"""Every configuration of the n-gram kernels to compile ahead of time."""

from pgolf.kernels.compile import BARRIERS, NARROW, Case
from pgolf.kernels.ngram import gpu
from pgolf.kernels.ngram.launch import (
    launch_evidence,
    launch_mix,
    launch_mix_online,
    traffic_evidence,
    traffic_mix,
    traffic_mix_online,
)
from pgolf.kernels.ngram.op import evidence_constants, mix_constants

TOKENS = 65_536
GATHERS = {NARROW: "a token gathers single counts"}


def compile_cases(capability: int) -> list[Case]:
    """Local and shared counts, in groups and token by token; mixing few and many orders."""
    return [
        _evidence((1, 2, 3, 4)),
        _evidence((1, 2, 3, 4, 5, 6)),
        _evidence((1, 2, 3, 4, 5, 6), grouped=True),
        _evidence((3, 4, 5, 6), shared=True),
        _evidence((0, 16), shared=True, grouped=True),
        _mix(4),
        _mix(16),
        _mix_online(4),
    ]


def _evidence(orders: tuple[int, ...], shared: bool = False, grouped: bool = False) -> Case:
    last = max(orders)
    moved, flops = traffic_evidence(TOKENS, last, len(orders))
    signature = _pointers("i32", "tokens", "documents", "top", "count", "total", "records", "table")
    signature |= _pointers("u8", "cell") | dict.fromkeys(("count", "documents", "granularity", "multiplier"), "i32")
    return Case(
        kernel=gpu.ngram_evidence_kernel,
        name=f"evidence{' shared' * shared}{' grouped' * grouped}",
        signature=signature,
        constants=evidence_constants(orders) | {"SHARED": shared, "GROUPED": grouped},
        launch=launch_evidence(last),
        shape=f"N={TOKENS} orders={min(orders)}-{last}",
        bytes=moved,
        flops=flops,
        max_registers=128,
        accepts=GATHERS,
    )


def _mix(num_orders: int) -> Case:
    moved, flops = traffic_mix(TOKENS, num_orders)
    return Case(
        kernel=gpu.ngram_mix_fwd_kernel,
        name="mix_fwd",
        signature=ROWS,
        constants=mix_constants(num_orders),
        launch=launch_mix(),
        shape=f"N={TOKENS} K={num_orders}",
        bytes=moved,
        flops=flops,
        max_registers=128,
        accepts=GATHERS,
    )


def _mix_online(num_orders: int) -> Case:
    moved, flops = traffic_mix_online(TOKENS, num_orders)
    state = _pointers("i1", "group_starts") | _pointers("i32", "visits", "places", "pending") | _pointers("fp32", "posteriors")
    return Case(
        kernel=gpu.ngram_mix_online_kernel,
        name="mix_online",
        signature=ROWS | state | dict.fromkeys(("floor", "least", "most"), "fp32"),
        constants=mix_constants(num_orders),
        launch=launch_mix_online(),
        shape=f"N={TOKENS} K={num_orders}",
        bytes=moved,
        flops=flops,
        max_registers=128,
        accepts=GATHERS | {BARRIERS: "token by token: the next one reads what this one wrote"},
    )


def _pointers(kind: str, *names: str) -> dict[str, str]:
    return {f"p_{name}": f"*{kind}:16" for name in names}


ROWS = (
    _pointers("fp32", "target", "candidates", "table", "nll", "share")
    | _pointers("u8", "cell")
    | _pointers("i32", "count", "total")
    | {"count": "i32"}
)
