import errno
import json
import os
import stat

import pytest

from pgolf.files import FileError, write_whole
from pgolf.folder import FolderError, RunFolder
from pgolf.progress import Display
from pgolf.summary import Summary


def test_a_run_is_not_overwritten(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    write_whole(folder.config, "seed = 1\n")
    with pytest.raises(FolderError, match="holds a run already"):
        RunFolder.create(tmp_path / "run")
    assert RunFolder.existing(tmp_path / "run").config == folder.config


def test_places_that_cannot_be_runs(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be made"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(FolderError, match="no run folder"):
        RunFolder.existing(tmp_path / "nothing")


def test_summary_grows_stage_by_stage(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary(preset="quick")
    assert folder.update_summary(seed=3) == Summary(preset="quick", seed=3) == folder.read_summary()
    assert json.loads(folder.summary.read_text()).keys() >= {"version", "preset", "seed"}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device; make room"):
        write_whole(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_written_files_can_be_read_by_others(tmp_path):
    write_whole(tmp_path / "x", "y")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o044


def test_plain_lines_off_a_terminal(tmp_path, capsys):
    with Display(tmp_path / "log.txt", events=tmp_path / "train.jsonl", plain_seconds=3600) as display:
        display.say("begun")
        display.status("half", 0.5)
        display.status("a bit more", 0.6)
        display.status("done", 1.0)
        display.event({"kind": "step", "step": 1})
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["begun", "half", "done"] == (tmp_path / "log.txt").read_text().splitlines()
    assert (tmp_path / "train.jsonl").read_text() == '{"kind": "step", "step": 1}\n'


def test_other_ranks_are_silent(tmp_path, capsys):
    with Display(tmp_path / "log.txt", active=False) as display:
        display.say("hello")
        display.status("half", 1.0)
        display.event({"kind": "step"})
    assert capsys.readouterr().out == "" and not (tmp_path / "log.txt").exists()
