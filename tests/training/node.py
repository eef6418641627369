"""What torchrun starts on each of two nodes: a tiny training whose steps are slow enough to be interrupted."""

import json
import sys
import time
from pathlib import Path

import torch

from pgolf.distributed import launch
from tests.training.tiny import Stream, losses, run, tiny

STEPS = 12


def settings():
    return tiny(steps=STEPS, checkpoint_seconds=0.0)


class SlowStream(Stream):
    def batch(self, step, micro):
        time.sleep(0.1)
        return super().batch(step, micro)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with launch("cpu") as world:
        result, events = run(settings(), folder, SlowStream(settings(), world.rank, world.size), resume=True)
        if world.is_first:
            begun = next(event["step"] for event in events if event["kind"] == "step") - 1
            (folder / "found.json").write_text(json.dumps({"begun": begun, "losses": losses(events), "ranks": world.size}))
