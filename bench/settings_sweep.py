"""What a setting is worth: train the quick preset for a fixed number of steps and score the weights before any rounding.

    python bench/settings_sweep.py STEPS [flags of pgolf.run]

prints bits per byte of windows side by side and of sliding ones on the validation text, and tokens a second of CPU time.
"""

import sys
import tempfile
import time

import numpy as np
import torch

from pgolf.cli.common import dataset_of
from pgolf.cli.flags import settings_from
from pgolf.config import EvaluationSettings
from pgolf.evaluation.evaluate import evaluate
from pgolf.model import build_model
from pgolf.process import keep_freed_memory
from pgolf.progress import Display
from pgolf.training.loop import train


def main(steps: str, *flags: str) -> None:
    keep_freed_memory()
    settings, _ = settings_from(["--steps", steps, "--training.precision", "native", *flags], "train", cuda=False)
    with Display() as display, tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(settings)

        def tell(event: dict) -> None:
            if event["kind"] == "step":
                display.status(f"step {event['step']} of {steps}: loss {event['loss']:.4f}", event["step"] / int(steps))

        begun = time.process_time()
        result = train(settings, dataset, folder=folder, device="cpu", log=tell)
        rate = result.tokens / (time.process_time() - begun)
        model = build_model(settings.model, dtype=torch.float32)
        model.load_state_dict(result.exported)
        options = EvaluationSettings(seconds=3600, window=settings.evaluation.window, stride=settings.evaluation.stride)
        tokens = np.asarray(dataset.val_tokens())
        evaluation = evaluate(model, tokens, dataset.tokenizer.byte_table, options, bos=dataset.tokenizer.bos)
        scores = ", ".join(f"{name} {result.score.bpb:.4f}" for name, result in evaluation.results.items())
        display.settle()
        display.say(f"{result.tokens:,} tokens, {rate:,.0f} a CPU second; {scores}: {' '.join(flags) or 'no flags'}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
