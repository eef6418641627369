"""What a file, a folder, a signal, a full disk or a flag can do to a run: one line, an exit code, and nothing half-done.

Damaged bytes of every kind of file are in test_fuzz.py, kills in kill_points.py, clocks in test_clocks.py.
"""

import errno
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

import pgolf.cli.data
import pgolf.cli.train
from pgolf.cli.train import write_weights
from pgolf.config import Settings, to_toml
from pgolf.folder import RunFolder
from pgolf.model import build_model
from pgolf.run import main
from tests.small_dataset import small_dataset
from tests.training.tiny import MODEL


@pytest.fixture
def refused(capsys):
    """Call the driver; its exit code, and the one line that it has said why."""

    def call(*words) -> tuple[int, str]:
        code = main([str(word) for word in words])
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and "Traceback" not in said, said
        return code, said

    return call


@pytest.fixture
def trained(tmp_path) -> RunFolder:
    """A run whose weights are there, and nothing else."""
    folder = RunFolder.create(tmp_path / "run")
    folder.config.write_text(to_toml(replace(Settings(), model=MODEL)))
    write_weights(folder.weights, build_model(MODEL, seed=1).state_dict())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("faults") / "data", documents=60).folder


# ---- flags


@pytest.mark.parametrize(
    "words, says",
    [
        (["--steps", "-5"], "training.steps"),
        (["--device", "abacus"], "no device 'abacus'; try cpu or cuda"),
        (["--model.vocab-size", "300"], "280"),
        (["--training.seconds", "nan"], "training.seconds"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_before_a_folder_is_made(refused, tmp_path, data, words, says):
    out = tmp_path / "deep" / "run"
    code, said = refused("--out", out, "--scale", "tiny", "--data.path", data, *words)
    assert code in (1, 2) and says in said and not out.parent.exists()


def test_a_dataset_sets_the_vocabulary(data):
    from pgolf.cli.flags import settings_from

    settings, _ = settings_from(["--scale", "tiny", "--data.path", str(data)], "run", cuda=False, environment={})
    assert settings.model.vocab_size == 280


def test_ranks_that_do_not_divide_the_work_leave_no_folder(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, said = refused("--out", tmp_path / "run", "--training.micro-batches", "2")
    assert code == 2 and "3 ranks do not divide" in said and not (tmp_path / "run").exists()


# ---- files


def cut(path, state):
    path.write_bytes(path.read_bytes()[:-100])


def no_file(path, state):
    path.write_bytes(b"")


def other_shape(path, state):
    name = next(iter(state))
    write_weights(path, {**state, name: state[name][:1]})


def one_missing(path, state):
    write_weights(path, dict(list(state.items())[1:]))


def spoilt(value):
    def spoil(path, state):
        name = next(name for name, tensor in state.items() if tensor.is_floating_point())
        write_weights(path, {**state, name: torch.full_like(state[name], value)})

    return spoil


@pytest.mark.parametrize("damage", [cut, no_file, other_shape, one_missing, spoilt(float("nan")), spoilt(1e30)])
def test_weights_are_checked_before_they_are_packed(refused, trained, damage):
    damage(trained.weights, build_model(MODEL, seed=1).state_dict())
    code, said = refused("pack", trained.path, "--device", "cpu")
    assert code == 1 and str(trained.weights) in said and not trained.artifact.exists()


def test_a_bitstream_is_looked_at_before_a_model_is_loaded(refused, tmp_path):
    (tmp_path / "bits").write_bytes(b"no bits at all")
    code, said = refused("decompress", tmp_path / "bits", "--artifact", "nowhere", "--out", tmp_path / "text")
    assert code == 1 and f"{tmp_path / 'bits'}" in said and "nowhere" not in said


def test_a_full_disk_under_the_log(refused, trained):
    trained.log.symlink_to("/dev/full")
    code, said = refused("train", "--resume", "--out", trained.path, "--device", "cpu")
    assert code == 1 and "cannot write" in said and "make room" in said


def test_a_full_disk_under_the_weights(refused, tmp_path, data, monkeypatch):
    def full(path, state):
        with monkeypatch.context() as patched:
            patched.setattr(
                os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
            )
            write_weights(path, state)

    monkeypatch.setattr(pgolf.cli.train, "write_weights", full)
    words = "--scale tiny --model.layers 1 --model.value-embedding-layers --steps 1 --device cpu".split()
    code, said = refused("train", "--out", tmp_path / "run", "--data.path", data, *words)
    assert code == 1 and "weights.safetensors: No space left on device; make room" in said
    assert not RunFolder(tmp_path / "run").read_summary().train
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".partial")]


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("stage", ["data", "train"])
def test_a_signal_while_a_dataset_is_made_ends_the_stage_at_once(refused, tmp_path, data, monkeypatch, stage, number):
    def slow(*words, **options):
        os.kill(os.getpid(), number)
        time.sleep(30)

    owner, name = (pgolf.cli.data, "build_dataset") if stage == "data" else (pgolf.cli.train, "dataset_of")
    monkeypatch.setattr(owner, name, slow)
    (tmp_path / "text").write_text("text")
    words = ["--text", tmp_path / "text"] if stage == "data" else ["--scale", "tiny", "--device", "cpu", "--data.path", data]
    begun = time.monotonic()
    code, said = refused(stage, "--out", tmp_path / "out", *words)
    assert code == 128 + number and said.startswith("pgolf: stopped") and time.monotonic() - begun < 10
