"""Seconds and memory of rounding and packing a network of a preset's size, with random weights and made-up second moments:

    python bench/packing.py [--preset pr688] [--compressor zstd|lzma|entropy] [--threads 2]

Prints seconds on the clock and on all cores, part by part, and the most memory that the process ever held.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import torch

from pgolf.artifact.pack import read_artifact, write_weights
from pgolf.artifact.weights import round_weights
from pgolf.config import load_preset
from pgolf.model import build_model, submission_state


def moments_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Second moments of correlated inputs for every matrix of a block, alike for those that see the same input."""
    generator = torch.Generator().manual_seed(1)
    moments, shared = {}, {}
    for name, tensor in state.items():
        if ".attn." not in name and ".mlp." not in name or tensor.ndim != 2:
            continue
        width = tensor.shape[1]
        site = name.replace("c_k", "c_q").replace("c_v", "c_q")
        if site not in shared:
            inputs = torch.randn(2 * width, width, generator=generator)
            inputs += 2 * torch.randn(2 * width, 1, generator=generator)
            inputs *= torch.rand(width, generator=generator) + 0.2
            shared[site] = inputs.T @ inputs / len(inputs)
        moments[name] = shared[site]
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="pr688")
    parser.add_argument("--compressor", default="", help="instead of the preset's")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = load_preset(options.preset)
    chosen = dataclasses.replace(settings.artifact, limit=10**9)
    if options.compressor:
        chosen = dataclasses.replace(chosen, compressor=options.compressor)
    settings = dataclasses.replace(settings, artifact=chosen)
    torch.manual_seed(0)
    # matrices as large as trained ones, so that codes are spread as theirs are
    state = {
        name: 0.4 * torch.randn(tensor.shape) if tensor.ndim == 2 else tensor
        for name, tensor in submission_state(build_model(settings.model)).items()
    }
    weights = sum(tensor.numel() for tensor in state.values())
    hessians = moments_of(state)
    print(f"{options.preset}: {weights:,} weights, {chosen.rounding}, {chosen.compressor}, {options.threads} threads")

    def timed(name: str, work):
        clock, cores = time.perf_counter(), time.process_time()
        result = work()
        seconds = time.perf_counter() - clock, time.process_time() - cores
        print(f"{name:9} {seconds[0]:7.1f} s on the clock {seconds[1]:7.1f} s on all cores", flush=True)
        return result, seconds

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pgolf"
        rounded, first = timed("rounding", lambda: round_weights(state, chosen, hessians))
        size, second = timed("packing", lambda: write_weights(path, rounded, settings, b""))
        both = [a + b for a, b in zip(first, second, strict=True)]
        print(f"{'both':9} {both[0]:7.1f} s on the clock {both[1]:7.1f} s on all cores")
        back, _ = timed("reading", lambda: read_artifact(path))
    values = rounded.values({name: tensor.shape for name, tensor in state.items()})
    if not all(torch.equal(values[name], tensor) for name, tensor in back.state.items()):
        raise SystemExit("what was read is not what was written")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{size.model_bytes:,} bytes; at most {most:.2f} GiB of memory")


if __name__ == "__main__":
    main()
