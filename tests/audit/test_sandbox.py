"""What a sandboxed process can see, open and leave behind; and that the auditor sees it, whichever way a file is opened."""

import os
import subprocess
import sys

import pytest

from pgolf.audit.sandbox import Sandbox, View, isolation
from pgolf.files import sweep
from tests.test_process import is_gone, until

PROGRAM = """
import ctypes, os, sys
def tried(open_it):
    try:
        open_it()
        return "yes"
    except OSError:
        return "no"
secret, own = sys.argv[1:]
print(
    tried(lambda: open(secret)),
    tried(lambda: open(secret, "r+")),
    ctypes.CDLL(None).open(secret.encode(), 0) >= 0,
    tried(lambda: open("/proc/self/root" + secret)),
    tried(lambda: open(own)),
    tried(lambda: open(own, "a")),
    tried(lambda: open("mine", "w")),
    os.path.exists("earlier"),
)
open("earlier", "w").close()
"""


def kinds():
    return ["namespaces", "filter"] if isolation() == "namespaces" else [isolation()] if isolation() else []


@pytest.mark.parametrize("kind", kinds())
def test_only_its_own_files_can_be_read_and_nothing_is_left(tmp_path, kind):
    (tmp_path / "secret.txt").write_text("42")
    (tmp_path / "own.txt").write_text("mine")
    secret, own = str(tmp_path / "secret.txt"), str(tmp_path / "own.txt")
    for _ in range(2):
        with Sandbox([sys.executable, "-I", "-c", PROGRAM, secret, own], View((own,)), kind=kind) as sandbox:
            said = sandbox.process.communicate(timeout=60)[0].decode().split()
            assert said == ["no", "no", "False", "no", "yes", "no", "yes", "False"], (said, sandbox.complaint())
        observed = sandbox.observed()
        assert secret in observed.opened and own not in observed.opened and not observed.connected
    assert (tmp_path / "own.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", kinds())
def test_connections_are_seen(kind):
    program = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), timeout=1)\nexcept OSError: pass"
    with Sandbox([sys.executable, "-I", "-c", program], View(), kind=kind) as sandbox:
        sandbox.process.communicate(timeout=60)
    assert sandbox.observed().connected == ("127.0.0.1:9",)


@pytest.mark.skipif(isolation() != "namespaces", reason="this system has no user namespaces")
def test_no_network_no_other_process_and_no_library_is_changed():
    program = """
import os, socket
from pathlib import Path
try:
    socket.create_connection(("1.1.1.1", 53), timeout=2)
except OSError as error:
    print(error.errno)
print(sum(name.isdigit() for name in os.listdir("/proc")))
import pgolf
Path(pgolf.__file__).with_name("left_behind.py").write_text("")
"""
    with Sandbox([sys.executable, "-c", program], View()) as sandbox:
        said = sandbox.process.communicate(timeout=60)[0].decode().split()
    import errno
    from pathlib import Path

    import pgolf

    assert said == [str(errno.ENETUNREACH), "1"]
    assert not Path(pgolf.__file__).with_name("left_behind.py").exists()


AUDITOR = """
import sys, time
from pgolf.audit.sandbox import Sandbox, View
inside = Sandbox([sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"], View(), kind=sys.argv[1])
inside.process.stdout.readline()
print(inside.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["namespaces", "filter"])
def test_nothing_outlives_an_auditor_that_is_killed(kind, tmp_path):
    if kind not in (isolation(), "filter"):
        pytest.skip("this system has no namespaces for a user")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    auditor = subprocess.Popen([sys.executable, "-c", AUDITOR, kind], stdout=subprocess.PIPE, text=True, env=environment)
    launched = int(auditor.stdout.readline())
    with open(f"/proc/{launched}/task/{launched}/children") as file:
        processes = [launched, *map(int, file.read().split())]
    assert len(processes) == (2 if kind == "namespaces" else 1) and not any(map(is_gone, processes))
    auditor.kill()
    auditor.wait()
    assert until(lambda: all(map(is_gone, processes)), seconds=1.0)
    # and what it had to leave goes with the next one
    assert len(os.listdir(tmp_path)) == 1
    sweep(tmp_path)
    assert not os.listdir(tmp_path)
