"""Where the stages of a study run: this machine's cores, Slurm through submitit, or Ray. Each starts a command and tells how
it ended; queueing and transport are the engines' own.
"""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pgolf.errors import PgolfError, UsageError
from pgolf.process import child_environment

GRACE = 20.0
"""Seconds that a stage is given to write what it has."""


class ExecutorError(PgolfError):
    """An engine that cannot be used, in one line."""


@dataclass(frozen=True)
class Task:
    """A command whose output goes to a log."""

    command: list[str]
    log: Path


def threads(cores: int) -> dict[str, str]:
    """A stage computes on as many threads as it has cores, wherever it runs: the same number finds the same bits."""
    return {"OMP_NUM_THREADS": str(cores), "NUMBA_NUM_THREADS": str(cores)}


class Handle(Protocol):
    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def stop(self) -> None:
        """Ask it to end, and see to it."""


class Executor(Protocol):
    name: str
    slots: int
    """Tasks that are given to it at once."""

    def start(self, task: Task) -> Handle: ...


# ---- this machine


@dataclass
class Process:
    process: subprocess.Popen
    release: Any

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self.release()
        return code

    def stop(self) -> None:
        for signum, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        self.release()


class LocalExecutor:
    """Processes, each pinned to cores of its own. A stage ends when the study does, however that ends."""

    name = "local"

    def __init__(self, jobs: int = 0):
        cores = sorted(os.sched_getaffinity(0))
        self.slots = min(jobs or 1, len(cores))
        size = len(cores) // self.slots
        self.free = [set(cores[i * size : (i + 1) * size]) for i in range(self.slots)]

    def start(self, task: Task) -> Process:
        cores = self.free.pop()
        with open(task.log, "ab") as log:
            process = subprocess.Popen(
                task.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment({**os.environ, **threads(len(cores))}),
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
                start_new_session=True,
            )
        kept = [cores]
        return Process(process, lambda: self.free.append(kept.pop()) if kept else None)


# ---- clusters


def run_task(command: list[str], log: str, cores: int) -> int:
    """On a node of the cluster."""
    with open(log, "ab") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **threads(cores)})
    return done.returncode


@dataclass
class SlurmJob:
    job: Any

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return 1 if error else self.job.result()

    def stop(self) -> None:
        self.job.cancel()


class SlurmExecutor:
    """A Slurm job a stage, by submitit; `options` are submitit's parameters."""

    name = "slurm"

    def __init__(self, folder: Path, jobs: int = 0, options: dict | None = None):
        try:
            import submitit
        except ImportError:
            raise ExecutorError("the executor slurm needs submitit: pip install submitit") from None
        self.slots = jobs or 64
        try:
            self.executor = submitit.SlurmExecutor(folder=folder)
            wanted = {"timeout_min": 60, "cpus_per_task": 1, **(options or {})}
            self.cores = wanted["cpus_per_task"]
            known = {key.removeprefix("slurm_"): value for key, value in wanted.items()}
            known["time"] = known.pop("timeout_min", known.get("time", 60))
            self.executor.update_parameters(**known)
        except (RuntimeError, ValueError, NameError) as error:
            raise ExecutorError(f"Slurm cannot be used here: {error}") from None

    def start(self, task: Task) -> SlurmJob:
        return SlurmJob(self.executor.submit(run_task, task.command, str(task.log), self.cores))


@dataclass
class RayTask:
    ray: Any
    reference: Any

    def poll(self) -> int | None:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=True)


class RayExecutor:
    """A Ray task a stage, on the cluster at hand ($RAY_ADDRESS) or a local one."""

    name = "ray"

    def __init__(self, jobs: int = 0):
        try:
            import ray
        except ImportError:
            raise ExecutorError("the executor ray needs Ray: pip install ray") from None
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        self.ray, self.slots = ray, jobs or int(ray.cluster_resources().get("CPU", 1))
        self.run = ray.remote(max_retries=0, num_cpus=1)(run_task)

    def start(self, task: Task) -> RayTask:
        return RayTask(self.ray, self.run.remote(task.command, str(task.log), 1))


def executor_of(name: str, folder: Path, jobs: int, slurm: dict) -> Executor:
    if name == "local":
        return LocalExecutor(jobs)
    if name == "slurm":
        return SlurmExecutor(folder, jobs, slurm)
    if name == "ray":
        return RayExecutor(jobs)
    raise UsageError(f"no executor {name!r}; there are local, slurm and ray")
