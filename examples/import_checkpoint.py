"""Weights of a submission into pgolf's network: `python examples/import_checkpoint.py [FILE] [--preset pr549]`.

FILE is a .safetensors or .pt with the submission's own names, banked or not. Without one, random weights under those names
stand in for it, so that the example runs anywhere. It prints what the network predicts.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from pgolf.config import at_scale, load_preset
from pgolf.model import build_model, import_checkpoint, submission_state


def state_of(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--preset", default="pr549")
    parser.add_argument("--scale", default="full", choices=("full", "tiny"))
    options = parser.parse_args(words)
    settings = at_scale(load_preset(options.preset), options.scale)
    model = build_model(settings.model, seed=0).eval()
    state = state_of(options.file) if options.file else submission_state(build_model(settings.model, seed=1))
    import_checkpoint(model, state)
    tokens = torch.randint(settings.model.vocab_size, (1, 16))
    with torch.no_grad():
        likely = model.logits(tokens).softmax(-1).max(-1)  # (B, T)
    for given, token, share in zip(tokens[0].tolist(), likely.indices[0].tolist(), likely.values[0].tolist(), strict=True):
        print(f"after token {given:5d} the likeliest is {token:5d} with {share:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
