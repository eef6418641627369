"""What a sandboxed process may see, how it is started, and what it was seen doing."""

import functools
import importlib.util
import json
import os
import platform
import re
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pgolf
from pgolf.audit.sandbox.launch import ARCHITECTURES
from pgolf.audit.sandbox.watch import Watch
from pgolf.files import temporary_folder

LAUNCH = Path(__file__).with_name("launch.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/sys")
DEVICES = ("nvidia", "kfd", "dri")
# where to find programs and how threads behave: every process of an audit gets the same
KEPT_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "NUMBA_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
# part of every process, and no place for data; within namespaces all of /proc and /dev is the sandbox's own
HARMLESS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/proc")
OWN_PROCESS = ("/proc/self/", "/proc/thread-self/")
# the home of a process within namespaces
INSIDE = "/tmp/home"
# another name for the whole file system
ROOT_OF_PROCESS = re.compile(r"^(/proc/(self|thread-self|\d+)(/task/\d+)?/root)+")
ISOLATED = "It ran in namespaces that hold its own files alone: nothing else could be read, and nothing outlived a process."
OBSERVED = "This system does not let the auditor isolate a process: what it opened was observed, not proved."
UNSEEN = "This system lets the auditor neither isolate nor observe a process: what it opened is not known."


@dataclass(frozen=True)
class View:
    """What is visible to a process beside the system and installed libraries."""

    files: tuple[str, ...] = ()
    """Files and folders, its own code among them; read-only."""
    everything: bool = False
    """All of the system's files, read-only: for a process that is told nothing."""


@dataclass(frozen=True)
class Observed:
    """What a process did that it had no need to."""

    opened: tuple[str, ...]
    connected: tuple[str, ...]


@functools.cache
def isolation() -> str:
    """What this system offers: "namespaces", "filter" (reported system calls alone), or ""."""
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        return ""
    for kind in ("namespaces", "filter"):
        try:
            with Sandbox([sys.executable, "-I", "-S", "-c", "print('ok')"], View(), kind=kind) as tried:
                said = tried.process.communicate(timeout=20)[0]
        except (OSError, subprocess.TimeoutExpired):
            continue
        if said.strip() == b"ok":
            return kind
    return ""


def note() -> str:
    return {"namespaces": ISOLATED, "filter": OBSERVED, "": UNSEEN}[isolation()]


def libraries() -> tuple[str, ...]:
    """Folders of installed code, and of this package."""
    places = {sys.prefix, sys.base_prefix, *site.getsitepackages(), site.getusersitepackages()}
    places |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= set(_own_packages())
    places |= {str(Path(sys.executable).resolve().parents[1])}
    real = {os.path.realpath(place) for place in places} | {os.path.abspath(place) for place in places}
    return tuple(sorted(place for place in real if os.path.exists(place)))


def _own_packages() -> list[str]:
    root = Path(pgolf.__file__).resolve().parents[1]
    return [str(root / part) for part in ("pgolf", "kernels") if (root / part).is_dir()]


class Sandbox:
    """A running process; `with` ends it and everything that it started.

    command  program and arguments; sys.executable as the program
    kind     how it is isolated; None: as well as this system can
    """

    def __init__(self, command: Sequence[str], view: View, *, kind: str | None = None):
        kind = isolation() if kind is None else kind
        self.view, self.kind = view, kind
        self._place = ExitStack()
        place = self._place.enter_context(temporary_folder("sandbox"))
        self.folder = str(place / "home")
        os.mkdir(self.folder)
        self.inside = INSIDE if kind == "namespaces" and not view.everything else self.folder
        self.readable = tuple(dict.fromkeys((*SYSTEM, *libraries(), *view.files)))
        ours, theirs = socket.socketpair() if kind else (None, None)
        plan = {
            "namespaces": kind == "namespaces",
            "everything": view.everything,
            "root": self.folder,
            "folder": self.folder,
            "inside": self.inside,
            "layered": _own_packages(),
            "visible": [path for path in self.readable if os.path.lexists(path)],
            "devices": [name for name in os.listdir("/dev") if name.startswith(DEVICES)] if os.path.isdir("/dev") else [],
            "parent": os.getpid(),
            "report_to": theirs.fileno() if theirs else None,
            "command": list(command),
            "environment": self._environment(),
        }
        described = place / "plan.json"
        described.write_text(json.dumps(plan))
        self._errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCH), str(described)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[theirs.fileno()] if theirs else [],
            start_new_session=True,
        )
        self.watch: Watch | None = None
        self._closed = False
        if ours is not None and theirs is not None:
            theirs.close()
            self.watch = Watch(ours, self._refused if kind == "filter" else lambda path, writes: False)

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        home = {"HOME": self.inside, "XDG_CACHE_HOME": self.inside, "TMPDIR": self.inside}
        path = os.pathsep.join([str(Path(pgolf.__file__).resolve().parents[1]), *_import_folders(self.view.files)])
        return kept | home | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}

    def _foreign(self, path: str) -> bool:
        """Whether a path is none of the process's own."""
        path = ROOT_OF_PROCESS.sub("", path) or "/"
        if path in HARMLESS or path.startswith(OWN_PROCESS) or (path.startswith("/proc/") and path.count("/") == 2):
            return False
        own = (*self.readable, self.inside, *(("/proc", "/dev") if self.inside == INSIDE else ()))
        if self.watch is not None and path in self.watch.created:
            return False
        return not any(path == place or path.startswith(f"{place}/") for place in own) and path not in _parents(own)

    def _refused(self, path: str, writes: bool) -> bool:
        """Without namespaces: what is not its own, and every change outside its own folder."""
        own = path == self.inside or path.startswith(f"{self.inside}/") or path in HARMLESS
        return self._foreign(path) or (writes and not own)

    def observed(self) -> Observed:
        """What the process did until now; complete once it has ended."""
        if self.watch is None:
            return Observed((), ())
        # an import looks for its compiled form, which is not there
        opened = sorted(path for path in self.watch.opened if self._foreign(path) and self._foreign(source_of(path)))
        return Observed(tuple(opened), tuple(sorted(self.watch.connected)))

    def complaint(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                try:
                    stream.close()
                except OSError:
                    pass
        if self.watch is not None:
            self.watch.join(2.0)
        self._errors.close()
        self._place.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def source_of(path: str) -> str:
    """The module of a compiled one; any other path as it is."""
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:
        return path


def _import_folders(files: Sequence[str]) -> list[str]:
    """Folders of the process's own files, from which it may import."""
    return sorted({os.path.dirname(path) for path in files if path.endswith(".py")})


def _parents(places: Sequence[str]) -> set[str]:
    return {str(parent) for place in places for parent in Path(place).parents}
