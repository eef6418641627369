"""A stage without its work, for tests of the driver: the files of a run whose score follows from its settings and its seed.
In a process of its own, or at once by `Here`.
"""

import contextlib
import json
import math
import os
import sys
import time
from types import SimpleNamespace

import numpy as np

from pgolf.config import read_toml
from pgolf.folder import RunFolder
from pgolf.process import end_with_parent
from pgolf.score_log import write_scores
from pgolf.summary import ArtifactSize, Corpus, Score, Scoring, Train

LENGTHS = (40, 60, 25, 75)


class Here:
    """An executor whose stages have ended when they have begun: in the test's own process."""

    name, slots = "here", 2

    def start(self, task):
        with open(task.log, "a") as log, contextlib.redirect_stdout(log):
            code = main(task.command[3:])
        return SimpleNamespace(poll=lambda: code, stop=lambda: None)


def main(words):
    path, stage, *_ = words
    folder = RunFolder.existing(path)
    settings = read_toml(folder.config)
    with open(folder.path / "ran.txt", "a") as file:
        file.write(f"{stage} {os.environ.get('OMP_NUM_THREADS')} {len(os.sched_getaffinity(0))}\n")
    trouble = os.environ.get("FAKE_TROUBLE", "").split()
    if trouble == [folder.path.name, stage]:
        print("first line\npgolf: this stage cannot work", flush=True)
        return 1
    time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
    rng = np.random.default_rng(settings.seed)
    noise, slope = rng.normal(0, 0.002), settings.model.mlp_slope
    bpb = 2.0 + noise + 0.1 * abs(slope - 0.5) + 0.01 * (6 - settings.artifact.matrix_bits)
    if stage == "train":
        folder.weights.write_text(f"weights of {settings.seed}")
        train = Train(10.0 + 4 * abs(slope - 0.5), 60.0, {}, {}, 4, 4096, bpb * 3, "ema")
        corpus = Corpus("made up", "ab" * 32)
        folder.update_summary(preset=settings.preset, seed=settings.seed, corpus=corpus, train=train, device="none")
    elif stage == "pack":
        folder.artifact.write_text(folder.weights.read_text())
        folder.quantisation.write_text(json.dumps({"matrices": []}))
        size = 100_000 + 1000 * settings.artifact.matrix_bits
        folder.update_summary(artifact=ArtifactSize(size, 0, 0, 16_000_000, {}, size, 16_000_000 - size, 1.0))
    else:
        tokens = np.concatenate([[1], *[np.append(np.full(length - 1, 2), 1) for length in LENGTHS]])
        shares = rng.random(len(tokens) - 1) + 0.5
        nats = bpb * math.log(2) * shares * len(shares) / shares.sum()
        write_scores(folder.scores, tokens, np.ones(len(nats), np.int64), {"sliding": nats}, bos=1, pieces=[b"", b"", b"a"])
        score = Score(float(bpb), float(nats.mean()), float(nats.sum()), len(nats), len(nats), True, 1.0)
        gave_up = {"adaptation": 0.5} if settings.evaluation.stride == 16 else {}
        folder.update_summary(score={"sliding": score}, main="sliding", scoring=Scoring(5.0, 60.0, {}, gave_up, False, 0))
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
