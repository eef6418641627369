"""A1, the sandbox: a fresh process with an empty environment and an empty home must give the same costs, and open
nothing but what the submission names.

    python -m pgolf.audit.sandbox SUBJECT FOLDER      # started by the auditor; reads FOLDER/tokens.npy

SUBJECT is `scorer=MODULE_OR_FILE:NAME` or `run=FOLDER`. Every file that is opened, every connection and every process is
written down by a hook that is in place before the subject is loaded. (Where the system allows it, the process has no
network at all.)
"""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# part of the system, and no place for training data
SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin")
# what libraries ask their compilers and the machine
TOOLS = ("gcc", "cc", "clang", "ld", "ldconfig", "ptxas", "nvcc", "uname", "lscpu", "file")
# where to find programs, and how threads are to behave: both processes want the same cores
KEPT_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "NUMBA_CACHE_DIR",
    "NUMBA_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)
SECONDS = 300


@dataclass
class Watch:
    """What a process opened, connected to and started, beside its libraries."""

    allowed: tuple[str, ...]
    opened: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)
    active: bool = True
    _written: set[str] = field(default_factory=set)

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "open":
            self._open(*arguments[:3])
        elif event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
            self.reached.add(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            program = os.path.basename(os.fsdecode(arguments[0])) if arguments[0] else ""
            if program not in TOOLS:
                self.reached.add(f"started {program}")

    def _open(self, path, mode, flags) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        whole = os.path.abspath(os.fsdecode(path))
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._written.add(whole)
        elif whole not in self._written and not whole.startswith(self.allowed):
            self.opened.add(whole)


def libraries() -> tuple[str, ...]:
    """Where installed code lies, and this package."""
    places = {sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values()}
    places |= {str(Path(__file__).resolve().parents[2] / part) for part in ("pgolf", "kernels")}
    return tuple(sorted({os.path.abspath(place) for place in places} | set(SYSTEM)))


class Sandbox:
    """The other process. It runs beside the auditor until `result` is asked for."""

    def __init__(self, subject: str, tokens: np.ndarray, total: int | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="pgolf-sandbox-"))
        np.save(self.folder / "tokens.npy", tokens)
        (self.folder / "total.json").write_text(json.dumps(total))
        home = self.folder / "home"
        home.mkdir()
        environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path and os.path.isdir(path))
        command = [sys.executable, "-m", "pgolf.audit.sandbox", subject, str(self.folder)]
        self._said = open(self.folder / "said.txt", "w", encoding="utf-8")
        self._process = subprocess.Popen(
            [*_without_network(), *command], cwd=home, env=environment, stdout=self._said, stderr=subprocess.STDOUT
        )

    def result(self) -> dict:
        """{"nats": by predictor, "opened": [...], "reached": [...]} or {"error": one line}."""
        try:
            self._process.wait(SECONDS)
            found = self.folder / "found.json"
            if not found.exists():
                lines = (self.folder / "said.txt").read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"]
                return {"error": lines[-1][:300]}
            costs = np.load(self.folder / "nats.npz")
            return {**json.loads(found.read_text()), "nats": {name: costs[name] for name in costs.files}}
        except subprocess.TimeoutExpired:
            return {"error": f"it was not done after {SECONDS} s"}
        finally:
            self.close()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._said.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _without_network() -> list[str]:
    """The command that starts another one without a network, where this system has it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    prefix = [unshare, "--map-root-user", "--net"]
    tried = subprocess.run([*prefix, "true"], capture_output=True)
    return prefix if tried.returncode == 0 else []


def inside(subject: str, folder: Path) -> None:
    """What runs inside the sandbox."""
    allowed = (*libraries(), str(folder))
    watch = Watch(allowed)
    sys.addaudithook(watch)
    from pgolf.audit.subjects import load

    tokens = np.load(folder / "tokens.npy")
    total = json.loads((folder / "total.json").read_text())
    tried = load(subject)
    found = tried.score(tokens, (), total)
    watch.active = False
    named = tuple(os.path.abspath(name) for name in tried.claims.may_read or ())
    code = tuple(os.path.abspath(name) for name in tried.claims.code_files)
    loaded = {os.path.abspath(file) for module in sys.modules.values() if (file := getattr(module, "__file__", None))}
    opened = [path for path in watch.opened if not path.startswith(named + code) and _source(path) not in loaded]
    costs: dict = {name: scored.nats for name, scored in found.items()}
    np.savez(folder / "nats.npz", **costs)
    (folder / "found.json").write_text(json.dumps({"opened": sorted(opened), "reached": sorted(watch.reached)}))


def _source(path: str) -> str:
    """The module of a cached one."""
    from importlib.util import source_from_cache

    try:
        return source_from_cache(path)
    except ValueError:
        return path


if __name__ == "__main__":
    inside(sys.argv[1], Path(sys.argv[2]))
