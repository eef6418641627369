"""The driver among other processes: what it starts ends with it, and one of two with the same folder wins."""

import os
import signal
import subprocess
import sys

import pytest

import pgolf.cli.pack
from pgolf.folder import RunFolder
from pgolf.run import main
from tests.small_dataset import small_dataset
from tests.test_process import is_gone, until

TINY = """--scale tiny --model.layers 1 --model.value-embedding-layers --steps 1 --evaluation.max-tokens 0
    --evaluation.stride 1 --evaluation.batch 1 --evaluation.seconds 3600 --device cpu""".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("driver") / "data").folder


def start(*words, **options) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "pgolf.run", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def descendants(process: int) -> list[int]:
    with open(f"/proc/{process}/task/{process}/children") as file:
        children = [int(word) for word in file.read().split()]
    return children + [one for child in children for one in descendants(child)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_driver_that_is_killed_while_it_scores(tmp_path, data, monkeypatch, number):
    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(pgolf.cli.pack, "code_bytes", lambda settings, kind: 1000)
    assert main(["train", "--out", str(folder.path), "--data.path", str(data), *TINY]) == 0
    assert main(["pack", str(folder.path), "--device", "cpu"]) == 0
    driver = start("--resume", "--out", folder.path, stderr=subprocess.DEVNULL)
    assert any("scoring, " in line for line in driver.stdout)
    ours = [driver.pid, *descendants(driver.pid)]
    assert len(ours) > 1 and not any(map(is_gone, ours))
    driver.send_signal(number)
    assert until(lambda: all(map(is_gone, ours)), seconds=1.0)
    assert driver.wait() == (-number if number == signal.SIGKILL else 128 + number)
    with folder.writing():  # nobody holds it any more
        assert not folder.read_summary().scoring


def test_of_two_drivers_with_one_folder_one_wins(tmp_path, data):
    out = tmp_path / "run"
    words = ["train", "--out", out, "--data.path", data, *TINY]
    both = [start(*words, stderr=subprocess.PIPE) for _ in range(2)]
    said = [driver.communicate()[1] for driver in both]
    (winner,) = [driver for driver in both if not driver.returncode]
    (line,) = [line for line, driver in zip(said, both, strict=True) if driver is not winner]
    held = f"pgolf: {out} is being written by process {winner.pid}; wait until it is done, or end it\n"
    assert line in (held, f"pgolf: {out} holds a run already; give --resume to continue it, or another --out\n")
    assert RunFolder(out).read_summary().train.steps == 1
    assert not [name for name in os.listdir(out) if name.endswith(".partial")]
    assert sum('"kind": "start"' in event for event in (out / "train.jsonl").read_text().splitlines()) == 1
