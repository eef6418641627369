"""A whole training step of each preset, and one step of test-time training, with our operators and with plain torch."""

import pytest
import torch

from bench.steps import AdaptersStep, TrainingStep, preset_for
from pgolf.flops import training_flops, utilisation

PRESETS = [
    pytest.param("quick"),
    *(pytest.param(name, marks=pytest.mark.gpu) for name in ("pr549", "pr688", "pr745", "pr953", "pr1014")),
]


@pytest.mark.parametrize("preset", PRESETS)
def test_training_step(bench, preset):
    """On a GPU both are one compiled graph, and with all operators on it must be the faster one."""
    settings = preset_for(preset, bench.device, tiny=bench.tiny)
    ours, plain = (TrainingStep(settings, bench.device, operators) for operators in ("kernels", "torch"))
    on_gpu = bench.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    own = ours().item()
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else "needs a GPU"
    other = plain().item()
    assert abs(own - other) < 0.02 * abs(other), f"{preset}: the losses of the first step are {own:.4f} and {other:.4f}"
    flops = training_flops(settings, ours.tokens_per_step)
    figures = {
        "peak memory, GB": memory,
        "parameters": ours.parameters,
        "where the time goes": where_time_goes(bench, ours) if not bench.tiny else "",
    }
    line = bench.measure(
        f"training step of {preset}",
        {"ours": ours, "plain torch": plain},
        floor=flops / bench.session.ceilings.flops,
        per_call=(ours.tokens_per_step, "tokens/s"),
        min_speedup={"plain torch": 1.0 if on_gpu else 0.9},
        figures=figures,
        capture=False,
    )
    if line and on_gpu:
        line.figures["MFU"] = utilisation(flops / line.ours.median, torch.cuda.get_device_name()) or "unknown device"
    bench.keep(line)


def where_time_goes(bench, step: TrainingStep) -> str:
    """Shares of forward, backward and optimiser, from steps that leave one out."""
    whole, gradients, forward = (bench.seconds_of(work) for work in (step, step.gradients, step.forward))
    shares = {"forward": forward, "backward": gradients - forward, "optimiser": whole - gradients}
    return ", ".join(f"{name} {max(0.0, seconds) / whole:.0%}" for name, seconds in shares.items())


@pytest.mark.parametrize("rank", [8, 80])
@pytest.mark.parametrize("preset", [pytest.param("pr549", marks=pytest.mark.gpu), pytest.param("quick")])
def test_adapters_step(bench, preset, rank):
    """64 documents of 2,048 tokens on a GPU: at least twice as fast as the compiled torch path, optimiser included."""
    settings = preset_for(preset, bench.device, tiny=bench.tiny)
    size = {"tiny": (2, 16), "cpu": (8, 128), "full": (64, 2048)}[bench.size]
    shape = {"documents": size[0], "length": size[1], "rank": rank}
    if bench.size == "full" and preset == "quick":
        pytest.skip("its shapes are a CPU's")
    ours, plain = (AdaptersStep(settings, bench.device, operators, **shape) for operators in ("kernels", "torch"))
    own, other = ours().item(), plain().item()
    assert abs(own - other) < 0.02 * abs(other), f"{preset}: the losses of the first step are {own:.4f} and {other:.4f}"
    line = bench.measure(
        f"adapters' step of {preset}, {size[0]} x {size[1]:,}, rank {rank}",
        {"ours": ours, "plain torch": plain},
        per_call=(size[0] * size[1], "tokens/s"),
        min_speedup={"plain torch": 2.0 if bench.device == "cuda" else 0.8},
        capture=False,
    )
    bench.keep(line)
