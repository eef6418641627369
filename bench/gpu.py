"""All that a machine with an NVIDIA GPU is asked for, in one call that ends in time: `bench/gpu.sh [FOLDER [PART ...]]`.

FOLDER   where logs, JSON and tables go: $OUT if that is set, else runs/gpu
PART     environment, warm, tests, operators, steps, run: all of them, in this order, if none is given.
         On request alone: budgets, profiles, tune (launch tables), sanitizer, accept (commit to these results)

A part is a list of jobs, each a process group with a log and a place in `status.json`. What crashes or hangs costs its own
job: at the end of a part's time its jobs are stopped. Parts are shrunk to --seconds where they ask for more. Every job writes
as it goes, so that a machine that is taken away leaves what there was; a further call with the same folder adds to it.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARRIED = ROOT / "runs/triton-cache"
"""Kernels that `bench.warm` compiled elsewhere; they come along where they are there."""
BESIDE = 8
"""Jobs that run at once, unless they take times."""
GRACE = 3.0
"""Seconds between asking a job to stop and killing it."""
TAIL = 40
"""Lines that are shown of a job that failed."""
DEFAULT = ("environment", "warm", "tests", "operators", "steps", "run")
# what the runs of the presets spend their time in comes first
WORTH = (
    "cross-entropy",
    "head",
    "LoRA",
    "MLP",
    "attention",
    "packed GEMV",
    "logit",
    "Hedge",
    "rotary",
    "XSA",
    "n-gram",
    "scan",
)


@dataclass(eq=False)
class Job:
    name: str
    command: list[str]
    alone: bool = False
    """It takes times, so nothing runs beside it."""
    state: str = "not begun"
    seconds: float = 0.0


@dataclass(eq=False)
class Part:
    name: str
    seconds: float
    jobs: list[Job] = field(default_factory=list)


# ---- what there is to do


def parts_of(folder: Path, benchmarks: Mapping[str, Sequence[str]], presets: Sequence[str], python: str) -> dict[str, Part]:
    """`benchmarks` are the operators' ones with their forms, `presets` those whose training step is timed."""
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-p", "bench.instantly", "--tb=short"]
    measured = [*pytest, "-q", "--benchmark", "--benchmark-each", "0.5", "--benchmark-into", str(folder), "--benchmark-add"]
    files = sorted(path.relative_to(ROOT) for path in (ROOT / "tests/kernels/gpu").glob("test_*.py"))
    steps = {f"step of {preset}": f"training_step and {preset}" for preset in presets} | {"adapters": "adapters and pr549"}
    operators = {
        name: [f"bench/test_operators.py::test_operator[{name}, {form}]" for form in benchmarks[name]]
        for name in sorted(benchmarks, key=worth)
    }
    quick = [python, "-m", "pgolf.run", "--preset", "quick", "--out", str(folder / "quick")]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "3", "--tool"]
    jobs = {
        "environment": (10, [Job("environment", [python, "-m", "bench.environment"])]),
        "warm": (
            60,
            [
                Job("compile", [python, "-m", "bench.warm"]),
                Job("keys", [python, "-m", "bench.warm", "--check"], alone=True),
            ],
        ),
        "tests": (120, [Job(path.stem, [*pytest, "-v", str(path)]) for path in files]),
        "operators": (200, [Job(name, [*measured, *nodes], alone=True) for name, nodes in operators.items()]),
        "steps": (90, [Job(n, [*measured, "bench/test_training.py", "-k", words], alone=True) for n, words in steps.items()]),
        "run": (120, [Job("quick", [*quick, "--training.seconds", "40", "--evaluation.seconds", "40"], alone=True)]),
        "budgets": (60, [Job("budgets", [*measured, "bench/test_budgets.py", "-k", "pr688 or pr745"], alone=True)]),
        "profiles": (40, [Job("profile", ["bench/profile.sh", "pr549", "training", str(folder / "profile")], alone=True)]),
        "tune": (240, [Job("tune", [python, "-m", "bench.tune", "--json", str(folder / "tuned.json")], alone=True)]),
        "sanitizer": (60, [Job(tool, [*sanitizer, tool, python, "-m", "bench.once"]) for tool in ("memcheck", "racecheck")]),
        "accept": (20, [Job("accept", [python, "-m", "bench.accept", str(folder)])]),
    }
    return {name: Part(name, seconds, some) for name, (seconds, some) in jobs.items()}


def worth(name: str) -> int:
    return next((place for place, start in enumerate(WORTH) if name.startswith(start)), len(WORTH))


# ---- doing it


class Call:
    """Some parts within so many seconds, and what the folder says of them."""

    def __init__(self, parts: Sequence[Part], folder: Path, seconds: float, beside: int = BESIDE):
        self.parts, self.folder, self.beside = parts, folder, beside
        self.begun = time.monotonic()
        self.end = self.begun + seconds
        asked = sum(part.seconds for part in parts)
        # one part alone may have all of the time
        self.scale = min(1.0, seconds / asked) if len(parts) > 1 else seconds / asked
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        for part in self.parts:
            self.run_part(part, min(self.end, time.monotonic() + part.seconds * self.scale))
        bad = [f"{part.name}, {job.name}: {job.state}" for part in self.parts for job in part.jobs if job.state != "done"]
        self.say(f"== all: {time.monotonic() - self.begun:.0f} s; {len(bad)} jobs did not end well", *bad)
        return 1 if bad else 0

    def run_part(self, part: Part, limit: float) -> None:
        self.say(f"== {part.name}: {len(part.jobs)} jobs, at most {max(limit - time.monotonic(), 0.0):.0f} s")
        waiting, running = list(part.jobs), {}
        try:
            while (waiting or running) and time.monotonic() < limit:
                while waiting and not (running and (waiting[0].alone or len(running) >= self.beside)):
                    job = waiting.pop(0)
                    process = self.start(part, job)
                    if process:
                        running[job] = process, time.monotonic()
                for job, (process, begun) in list(running.items()):
                    if process.poll() is not None:
                        del running[job]
                        self.ended(part, job, "done" if process.returncode == 0 else f"exit {process.returncode}", begun)
                time.sleep(0.05)
        finally:  # also where the call itself is stopped
            for process, _ in running.values():
                ask(process, signal.SIGTERM)
            patience = time.monotonic() + GRACE
            for job, (process, begun) in running.items():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(patience - time.monotonic(), 0.0))
                ask(process, signal.SIGKILL)
                self.ended(part, job, "cut off", begun)

    def start(self, part: Part, job: Job) -> subprocess.Popen | None:
        job.state = "running"
        self.write_status()
        try:
            with open(self.log_of(part, job), "w") as log:
                return subprocess.Popen(job.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            self.ended(part, job, f"not started: {error.strerror}", time.monotonic())
            return None

    def ended(self, part: Part, job: Job, state: str, begun: float) -> None:
        job.state, job.seconds = state, round(time.monotonic() - begun, 2)
        self.write_status()
        tail: list[str] = []
        if state != "done":
            with contextlib.suppress(OSError):
                text = self.log_of(part, job).read_text(encoding="utf-8", errors="replace")
                tail = [f"   | {line}" for line in text.splitlines()[-TAIL:]]
        self.say(f"   {job.name}: {state}, {job.seconds:.1f} s", *tail)

    def log_of(self, part: Part, job: Job) -> Path:
        return self.folder / "logs" / ("".join(c if c.isalnum() else "-" for c in f"{part.name} {job.name}") + ".txt")

    def say(self, *lines: str) -> None:
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            for line in lines:
                print(line, flush=True)
                log.write(line + "\n")

    def write_status(self) -> None:
        path = self.folder / "status.json"
        path.with_suffix(".part").write_text(json.dumps([asdict(part) for part in self.parts], indent=1) + "\n")
        os.replace(path.with_suffix(".part"), path)


def ask(process: subprocess.Popen, signum: int) -> None:
    """The job and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(os.environ.get("OUT") or "runs/gpu"))
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument(
        "--seconds", type=float, default=float(os.environ.get("SECONDS_IN_ALL", 530)), help="of the whole call"
    )
    parser.add_argument("--python", default=sys.executable, help="that the jobs are run by")
    options = parser.parse_args()
    from bench.benchmarks import BENCHMARKS
    from pgolf.config import preset_names

    folder = options.folder.resolve()
    presets = [name for name in ("pr549", "pr1855") if name in preset_names()]
    known = parts_of(folder, {entry.name: entry.forms for entry in BENCHMARKS}, presets, options.python)
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        parser.error(f"no part {unknown[0]}; there are {', '.join(known)}")
    cache = folder / "triton"
    if CARRIED.exists() and not cache.exists():
        shutil.copytree(CARRIED, cache)
    os.environ |= {"TRITON_CACHE_DIR": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    call = Call([known[name] for name in options.parts or DEFAULT], folder, options.seconds)
    # stopping the call stops its jobs: the part ends, and what it left is there
    signal.signal(signal.SIGTERM, lambda *about: sys.exit(143))
    return call.run()


if __name__ == "__main__":
    sys.exit(main())
