"""Two ranks over gloo against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgolf.distributed import launch
from pgolf.training import checkpoint
from tests.training.tiny import Stream, losses, run, tiny

STEPS = 20
# what two ranks are started for once, in one pair of processes
RUNS = {
    "parallel": {"steps": STEPS, "muon_projections": True},
    "round robin": {"steps": STEPS, "muon_projections": True, "parallel_muon": False},
    "local clip": {"steps": 3, "clip_scope": "local", "clip": 0.1},
    "distillation": {"steps": 6, "distillation_share": 0.5},
    "burst": {"steps": 10, "burst_epochs": 2, "warmdown_share": 1.0, "complement_alpha": 0.9},
    "quantisation": {"steps": 6, "qat_threshold": 0.9, "crown_q": 1.0, "crown_q_banks": True, "export": "raw"},
}


def work(folder: Path) -> None:
    """What each of the two ranks does."""
    torch.set_num_threads(1)
    with launch("cpu") as world:
        found = {}
        for name, options in RUNS.items():
            settings = tiny(**options)
            result, events = run(settings, folder / name, Stream(settings, world.rank, world.size))
            digest = float(sum(value.double().abs().sum() for value in result.exported.values()))
            found[name] = {"losses": losses(events), "events": len(events), "weights": digest}
        settings = tiny(steps=9)
        asked = iter([False, False, world.rank == 1])
        stopped, _ = run(settings, folder / "stopped", Stream(settings, world.rank, world.size), stop=lambda: next(asked))
        found["stopped"] = {"steps": stopped.steps, "interrupted": stopped.interrupted}
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"from pathlib import Path; from tests.training.test_ranks import work; work(Path({str(folder)!r}))"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    try:
        assert [child.wait(timeout=200) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["parallel", "round robin", "quantisation", "distillation", "burst"])
def test_two_ranks_follow_the_curve_of_one(two, tmp_path, name):
    _, (first, second) = two
    result, events = run(tiny(**RUNS[name]), tmp_path)
    assert len(first[name]["losses"]) == RUNS[name]["steps"]
    assert first[name]["losses"] == pytest.approx(losses(events), abs=1e-5)
    assert second[name]["events"] == 0
    assert first[name]["weights"] == second[name]["weights"]
    weights = float(sum(value.double().abs().sum() for value in result.exported.values()))
    assert first[name]["weights"] == pytest.approx(weights, rel=1e-4)


def test_local_clipping_depends_on_the_ranks_by_design(two, tmp_path):
    _, (first, second) = two
    _, events = run(tiny(**RUNS["local clip"]), tmp_path)
    assert first["local clip"]["losses"][0] == pytest.approx(losses(events)[0], abs=1e-5)
    assert first["local clip"]["losses"][2] != pytest.approx(losses(events)[2], abs=1e-5)
    assert first["local clip"]["weights"] == second["local clip"]["weights"]


@pytest.mark.parametrize("name", ["parallel", "round robin"])
def test_one_rank_reads_what_two_have_written(two, tmp_path, name):
    folder, _ = two
    run(tiny(**RUNS[name]), tmp_path)
    theirs, facts = checkpoint.read(folder / name / checkpoint.NAME)
    ours, _ = checkpoint.read(tmp_path / checkpoint.NAME)
    assert facts["step"] == STEPS and theirs.keys() == ours.keys()
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4, msg=key)
    result, events = run(tiny(**RUNS[name]), folder / name, resume=True)
    assert result.steps == STEPS and losses(events) == []


def test_a_stop_asked_of_one_rank_stops_both_at_the_same_step(two):
    for found in two[1]:
        assert found["stopped"] == {"steps": 3, "interrupted": True}


def test_alone_there_is_nothing_to_join(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with launch("cpu") as world:
        assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
        assert not torch.distributed.is_initialized()
