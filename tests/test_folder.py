import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pgolf.folder import FolderError, RunFolder
from pgolf.summary import Summary, write_summary
from tests.test_summary import WHOLE


def test_places_that_cannot_be_runs(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be made"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(FolderError, match="cannot be made: File name too long"):
        RunFolder.create(tmp_path / ("x" * 300))
    with pytest.raises(FolderError, match="no run folder"):
        RunFolder.existing(tmp_path / "nothing")
    with pytest.raises(FolderError, match="cannot be read: File name too long"):
        RunFolder.existing(tmp_path / ("x" * 300))


def test_summary_grows_stage_by_stage(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary(preset="quick")
    assert folder.update_summary(seed=3) == Summary(preset="quick", seed=3) == folder.read_summary()
    assert json.loads(folder.summary.read_text()).keys() >= {"version", "preset", "seed"}


@pytest.mark.parametrize("stage, kept", [("train", ()), ("pack", ("train",)), ("score", ("train", "artifact"))])
def test_a_stage_that_begins_anew_takes_back_what_follows_from_it(tmp_path, stage, kept):
    folder = RunFolder(tmp_path)
    folder.withdraw(stage)
    assert not folder.summary.exists()
    write_summary(folder.summary, WHOLE)
    folder.withdraw(stage)
    left = folder.read_summary()
    assert {name for name in ("train", "artifact", "scoring", "audit") if getattr(left, name)} == set(kept)
    assert (left.score, left.main, left.compressors) == ({}, "", {})
    write_summary(folder.summary, WHOLE)
    folder.withdraw("audit")
    assert folder.read_summary() == replace(WHOLE, audit=None)


HOLDER = """
import sys, time
from pgolf.folder import RunFolder
with RunFolder(sys.argv[1]).writing():
    print("held", flush=True)
    time.sleep(60)
"""
ASKER = """
import sys
from pgolf.folder import FolderError, RunFolder
try:
    with RunFolder(sys.argv[1]).writing():
        print("mine")
except FolderError as error:
    print(error)
"""


def ask(path, **environment) -> str:
    words = [sys.executable, "-c", ASKER, str(path)]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}).stdout.strip()


def test_one_process_writes_at_a_time(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    try:
        assert ask(tmp_path) == f"{tmp_path} is being written by process {holder.pid}; wait until it is done, or end it"
        # other ranks of the same run leave the asking to the first one
        assert ask(tmp_path, RANK="1") == "mine"
    finally:
        holder.kill()
        holder.wait()
    assert ask(tmp_path) == "mine"


def test_a_folder_is_locked_for_the_children_too(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.writing(), folder.writing():
        assert ask(tmp_path) == "mine"
        other = tmp_path / "other"
        other.mkdir()
        with RunFolder(other).writing():
            assert ask(other) == "mine"
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FolderError, match=f"written by process {holder.pid}"), folder.writing():
        pass
    holder.kill()
    holder.wait()
