import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf.files import FileError, atomic_file, atomic_folder, owned, sha256_of, sweep, temporary_folder, write_whole


@pytest.fixture
def umask():
    before = os.umask(0o077)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask, mask):
    umask(mask)
    write_whole(tmp_path / "file", "x")
    with atomic_folder(tmp_path / "folder"):
        pass
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_file_appears_when_the_block_has_ended_well(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device; make room"):
        write_whole(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_name_that_is_too_long_gets_one_line(tmp_path):
    with pytest.raises(FileError, match="File name too long"):
        write_whole(tmp_path / ("x" * 300), "new")


def test_a_folder_appears_whole_and_only_once(tmp_path):
    with atomic_folder(tmp_path / "data") as staging:
        (staging / "file").write_text("x")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "data") as staging:
        (staging / "other").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "file"]


KILLED = """
import os, signal, sys
from pgolf.files import atomic_file, atomic_folder, temporary_folder
with atomic_file(sys.argv[1] + "/file"), atomic_folder(sys.argv[1] + "/folder"), temporary_folder("test"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_swept(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment).returncode == -9
    ours = tmp_path / (owned("file") + "xyz.partial")
    ours.write_text("still being written")
    foreign = tmp_path / ".file.another_host-1.xyz.partial"
    foreign.write_text("nobody here can say")
    left = [path for path in (*tmp_path.iterdir(), *(tmp_path / "temporary").iterdir()) if path.name.endswith(".partial")]
    assert len(left) == 5
    sweep(tmp_path)
    sweep(tmp_path / "temporary")
    assert {path for path in left if path.exists()} == {ours, foreign}


def test_who_writes_a_file_sweeps_its_folder(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment).returncode == -9
    assert len(os.listdir(tmp_path)) == 3
    write_whole(tmp_path / "file", "x")
    assert os.listdir(tmp_path) == ["file"]


def test_a_temporary_folder_goes_with_its_block():
    with pytest.raises(KeyError), temporary_folder("test") as folder:
        (folder / "deep").mkdir()
        raise KeyError
    assert not folder.exists()


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x").startswith("ba7816bf")
    with pytest.raises(FileError, match="cannot read .*No such file"):
        sha256_of(Path("nowhere"))
