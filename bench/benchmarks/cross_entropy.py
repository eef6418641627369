"""Softcapped cross-entropy, alone and with the output head."""

from collections.abc import Callable

from torch import Tensor

from bench.benchmarks.registry import BOTH, Benchmark, Place, alike, benchmark, compiled, not_installed, split, without_gpu
from pgolf.kernels import cross_entropy, linear_cross_entropy
from pgolf.kernels.cross_entropy import launch
from pgolf.kernels.cross_entropy.reference import cross_entropy_reference, linear_cross_entropy_reference


def losses(place: Place, form: str, ours: Callable, eager: Callable, liger: Callable, leaves: list[Tensor], **more):
    """`liger` makes Liger-Kernel's function, where that is installed."""
    absent, extra = without_gpu(place, "Liger-Kernel"), {}
    if place.on_gpu:
        if not_installed("liger_kernel"):
            absent = {"Liger-Kernel": "not installed"}
        else:
            extra = {"Liger-Kernel": liger()}
    ours, peers = split(alike(form, leaves, ours=ours, **compiled(place, eager), **extra, reference=eager))
    return Benchmark(ours, peers, absent=absent, **more)


def first_of_losses(place: Place, on_cpu: float) -> dict[str, float]:
    return {"torch.compile": 1.0} if place.on_gpu else {"reference": on_cpu}


def cross_entropy_benchmark(place: Place, form: str, tokens: int, vocabulary: int):
    logits, targets = place.randn(tokens, vocabulary, grad=True), place.randint(vocabulary, tokens)

    def liger():
        from liger_kernel.transformers import LigerCrossEntropyLoss

        loss = LigerCrossEntropyLoss(softcap=30.0)
        # it writes its gradient over the logits, so it gets logits of its own
        return lambda logits: loss(logits.clone(), targets)

    work = launch.traffic_forward(tokens, vocabulary, place.element, want_gradient=form == BOTH)
    ours = lambda logits: cross_entropy(logits, targets, softcap=30.0)
    eager = lambda logits: cross_entropy_reference(logits, targets, softcap=30.0)
    more = {"min_speedup": first_of_losses(place, 1.2), "min_roofline": 0.9, "per_call": (tokens, "tokens/s")}
    return losses(place, form, ours, eager, liger, [logits], work=work, **more)


@benchmark("cross-entropy, small vocabulary", tiny=(20, 64), cpu=(2048, 1024), full=(98_304, 1024))
def _(place, form, *shape):
    return cross_entropy_benchmark(place, form, *shape)


@benchmark("cross-entropy, large vocabulary", tiny=(20, 64), full=(98_304, 8192))
def _(place, form, *shape):
    return cross_entropy_benchmark(place, form, *shape)


@benchmark("cross-entropy, huge vocabulary", tiny=(20, 64), full=(8192, 65_536))
def _(place, form, *shape):
    return cross_entropy_benchmark(place, form, *shape)


@benchmark("head and cross-entropy", tiny=(20, 16, 64), cpu=(2048, 192, 1024), full=(98_304, 512, 8192))
def _(place, form, tokens, width, vocabulary):
    x, w = place.randn(tokens, width, grad=True), (place.randn(vocabulary, width) / width**0.5).requires_grad_()
    targets = place.randint(vocabulary, tokens)

    def liger():
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(softcap=30.0)
        return lambda x, w: loss(w, x, targets)

    moved, flops = launch.traffic_forward(tokens, vocabulary, place.element, want_gradient=form == BOTH)
    matrices = (tokens + vocabulary) * width * place.element
    work = moved + matrices * (3 if form == BOTH else 1), flops + 2 * tokens * width * vocabulary * (3 if form == BOTH else 1)
    ours = lambda x, w: linear_cross_entropy(x, w, targets, softcap=30.0)
    eager = lambda x, w: linear_cross_entropy_reference(x, w, targets, softcap=30.0)
    min_speedup = first_of_losses(place, 0.9)
    return losses(place, form, ours, eager, liger, [x, w], work=work, per_call=(tokens, "tokens/s"), min_speedup=min_speedup)
