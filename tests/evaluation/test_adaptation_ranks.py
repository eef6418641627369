"""Two ranks in lockstep over gloo, against the transcription that sees both ranks' sequences."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgolf.config import load_preset
from pgolf.distributed import launch
from pgolf.model import submission_state
from tests.evaluation import transcription_ttt as transcription
from tests.evaluation.test_adaptation import LENGTH, TINY, adapter_of, chunk, one_count
from tests.model.common import facts, random_model

# five sequences are two and three; one sequence is none and one
CASES = {"uneven": ("pr953", 5 * LENGTH + 7, 4), "one idle": ("pr549", LENGTH + 3, 256), "two steps": ("pr688", 7 * LENGTH, 4)}


def settings_of(preset, batch):
    return dataclasses.replace(load_preset(preset).evaluation.adaptation, epochs=2, batch_sequences=batch)


def work(folder: Path) -> None:
    """What each of the two ranks does."""
    torch.set_num_threads(1)
    with launch("cpu") as world:
        for name, (preset, targets, batch) in CASES.items():
            adapter = adapter_of(random_model(TINY), settings_of(preset, batch), world=world)
            for i in range(2):
                adapter.learn(chunk(i, targets), i, 7, 2)
            state = {key: tensor.contiguous() for key, tensor in submission_state(adapter.model).items()}
            save_file(state, folder / f"{name} {world.rank}.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"from pathlib import Path; from tests.evaluation.test_adaptation_ranks import work; work(Path({str(folder)!r}))"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    children = [
        subprocess.Popen([sys.executable, "-c", script], cwd=root, env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [child.wait(timeout=200) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_average_their_gradients(two, name, monkeypatch):
    preset, targets, batch = CASES[name]
    first, second = (load_file(two / f"{name} {rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)

    settings = settings_of(preset, batch)
    monkeypatch.setitem(transcription.RECIPES[preset], "epochs", settings.epochs)
    model = random_model(TINY)
    own = facts(model.settings)
    chunks = [[int(token) for token in chunk(i, targets)] for i in range(2)]
    sizes = {"length": LENGTH, "total": 7, "nbytes": one_count, "ranks": 2, "batch": max(1, batch // 2)}
    wanted, _ = transcription.adapt(submission_state(model), chunks, preset, own, **sizes)
    for key in wanted:
        torch.testing.assert_close(first[key], wanted[key], rtol=1e-5, atol=1e-5, msg=key)
    before = submission_state(model)
    assert sum(bool((wanted[key] - before[key]).abs().max() > 1e-4) for key in wanted) >= 10
