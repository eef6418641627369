"""What the process asks of the system it runs on: memory, threads, signals, and children that end with it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType

# the names and numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 << 20  # as much as glibc allows
# of sys/prctl.h
PR_SET_PDEATHSIG = 1
# tells a child which process it must not outlive
PARENT = "PGOLF_PARENT"
# how long a child has to end by itself
GRACE_SECONDS = 0.5


def keep_freed_memory() -> None:
    """Large blocks go back to the system when they are freed, and the next ones come as fresh pages that must be zeroed
    first, again in every training step on a CPU. Keep them instead. Other allocators are left as they are."""
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        allocator.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def wait_briefly() -> None:
    """To be called before torch is loaded. Threads that wait for each other at the end of every operator spin, by GNU's
    choice for milliseconds: where anything else wants the same cores, it and we then crawl. Let them sleep after
    microseconds instead, unless the environment says otherwise."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "2000"


def rank() -> int:
    """The rank that torchrun gave this process; 0 alone."""
    return int(os.environ.get("RANK", 0))


# ---- signals


class Stopped(BaseException):
    """A signal asked this process to end; whatever is open is closed on the way out."""

    def __init__(self, number: int):
        self.number = number


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped, as Ctrl-C raises KeyboardInterrupt, so that temporary files go and children end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- children


def run_child(command: Sequence[str], environment: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Run a program that ends when this process does, however that ends. Its exit code is as a shell gives it: 128 + n where
    signal n ended it. `options` are those of subprocess.Popen."""
    child = subprocess.Popen(command, env=child_environment(environment), close_fds=False, **options)
    try:
        said, complaints = child.communicate()
    except BaseException:
        end(child)
        raise
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    return subprocess.CompletedProcess(command, code, said, complaints)


def child_environment(environment: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a child that calls `end_with_parent`."""
    return {**(os.environ if environment is None else environment), PARENT: str(os.getpid())}


def end(child: subprocess.Popen) -> None:
    """Ask a child to end, and end it if it does not."""
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def end_with_parent() -> None:
    """In a child: end when the process that started it has, even if that was killed. Does nothing elsewhere."""
    parent = os.environ.pop(PARENT, "")
    if not parent:
        return
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):  # it ended before the line above
        sys.exit(128 + signal.SIGKILL)


def _watch_parent(parent: int) -> None:
    """Where the system has no signal for it."""
    while os.getppid() == parent:
        time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGKILL)


@cache
def commit() -> str:
    """What git calls the code; nothing where it is not a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
