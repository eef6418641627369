import os
import signal
import subprocess
import sys
import time

import pytest

from pgolf.process import Stopped, end, end_with_parent, run_child, stopping_on_signals


def until(true, seconds=20.0):
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(process: int) -> bool:
    try:
        return open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("code, expected", [("import sys; sys.exit(5)", 5), ("import os; os.kill(os.getpid(), 15)", 128 + 15)])
def test_a_childs_exit_code_is_as_a_shell_gives_it(code, expected):
    assert run_child([sys.executable, "-c", code]).returncode == expected


def test_what_a_child_says_is_given_back():
    done = run_child([sys.executable, "-c", "print('hello')"], stdout=subprocess.PIPE, text=True)
    assert (done.stdout, done.returncode) == ("hello\n", 0)


def test_signals_raise_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    closed = []
    with pytest.raises(Stopped) as stopped, stopping_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            closed.append(True)
    assert closed and stopped.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before


PARENT = """
import sys
from pgolf.process import run_child, stopping_on_signals
with stopping_on_signals():
    run_child([sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""
CHILD = """
import os, signal, sys, time
from pgolf.process import end_with_parent
end_with_parent()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a child that does not listen
open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_child_ends_with_its_parent_however_that_ends(number, tmp_path):
    mark = tmp_path / "mark"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(mark)], stderr=subprocess.DEVNULL)
    assert until(mark.exists)
    child = int(mark.read_text())
    assert not is_gone(child)
    parent.send_signal(number)
    parent.wait()
    assert until(lambda: is_gone(child), seconds=1.0)


def test_a_process_without_such_a_parent_goes_on(monkeypatch):
    monkeypatch.delenv("PGOLF_PARENT", raising=False)
    end_with_parent()


def test_a_child_whose_parent_is_gone_ends_at_once(monkeypatch):
    code = "from pgolf.process import end_with_parent; end_with_parent(); print('still here')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PGOLF_PARENT": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGKILL and done.stdout == ""


def test_ending_a_child_takes_no_longer_than_its_grace():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    begun = time.monotonic()
    end(child)
    assert time.monotonic() - begun < 5 and child.returncode == -signal.SIGTERM
