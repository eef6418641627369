"""The driver of a study: which stage of which run comes next, until there is none."""

import hashlib
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pgolf.config import Settings, read_toml, to_toml
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.process import commit
from pgolf.study.executors import Executor, Handle, Task
from pgolf.study.figures import figures_of
from pgolf.study.ledger import Ledger, State
from pgolf.study.plan import BASE, STAGES, Arm, Gate, Study, StudyError
from pgolf.study.stage import is_done

STAGE_MODULE = "pgolf.study.stage"
PAUSE = 0.1
"""Seconds between two looks at what runs."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-{self.seed}"

    @property
    def settings(self) -> Settings:
        return replace(self.arm.settings, seed=self.seed)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that it runs itself."""
        return STAGES[STAGES.index(self.arm.first_stage) :]


class Driver:
    def __init__(
        self,
        study: Study,
        folder: Path,
        executor: Executor,
        *,
        device: str = "",
        retry: bool = False,
        say: Callable[[str], None] = print,
    ):
        """retry: stages that crashed in an earlier call are tried again."""
        self.study, self.folder, self.executor, self.device, self.retry, self.say = study, folder, executor, device, retry, say
        # seed by seed, the base's run first: others reuse its stages and are compared with it
        self.runs = [Run(arm, seed) for seed in study.seeds for arm in study.arms.values()]
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.states: dict[str, State] = {}
        self.running: dict[Run, tuple[str, Handle, float]] = {}
        self.passed: set[tuple[Run, Gate]] = set()

    def run(self) -> int:
        """0 if every run ended well or was stopped by a gate."""
        with self.ledger.held():
            self._take_up()
            try:
                while True:
                    self._collect()
                    self._judge()
                    while len(self.running) < self.executor.slots and (job := self._next()):
                        self._start(*job)
                    if not self.running:
                        break
                    time.sleep(PAUSE)
            finally:
                for _, handle, _ in self.running.values():
                    handle.stop()
        return 1 if any(state.crashed for state in self.states.values()) else 0

    def folder_of(self, arm: str, seed: int) -> RunFolder:
        return RunFolder(self.folder / "runs" / f"{arm}-{seed}")

    def _take_up(self) -> None:
        """The states in the ledger, once it is clear that they are this study's."""
        known = self.ledger.states()
        self.states = {run.name: known.get(run.name, State()) for run in self.runs}
        for run in self.runs:
            folder, state = self.folder_of(run.arm.name, run.seed), self.states[run.name]
            if folder.config.exists() and read_toml(folder.config) != run.settings:
                raise StudyError(f"{folder.path} holds a run of other settings; take another folder with --out, or delete it")
            if self.retry:
                state.crashed.clear()
        done = sum(self._is_over(run) for run in self.runs)
        self.say(f"{len(self.runs)} runs, {done} of them done; {self.executor.slots} at once ({self.executor.name})")

    # ---- what comes next

    def _is_over(self, run: Run) -> bool:
        state = self.states[run.name]
        return bool(state.stopped or state.crashed) or set(run.stages) <= state.done

    def _next(self) -> tuple[Run, str] | None:
        """The first run that can go on, and its stage."""
        for run in self.runs:
            if run in self.running or self._is_over(run) or self._is_stopped(run) or not self._can_borrow(run):
                continue
            done = self.states[run.name].done
            if all((run, gate) in self.passed for gate in self._gates_behind(run)):
                return run, next(stage for stage in run.stages if stage not in done)
        return None

    def _is_stopped(self, run: Run) -> bool:
        """A gate stops an arm with all its seeds."""
        return any(self.states[Run(run.arm, seed).name].stopped for seed in self.study.seeds)

    def _can_borrow(self, run: Run) -> bool:
        """Whether the base's run has what this one begins with."""
        earlier = STAGES[: STAGES.index(run.arm.first_stage)]
        return set(earlier) <= self.states[Run(self.study.arms[BASE], run.seed).name].done

    def _gates_behind(self, run: Run) -> list[Gate]:
        """Those whose stage the run has behind it."""
        return [gate for gate in self.study.gates if run.arm.name != BASE and gate.after in self.states[run.name].done]

    def _judge(self) -> None:
        """Let runs through gates, or stop them, where the run that they are held against has come as far."""
        for run in self.runs:
            state, other = self.states[run.name], Run(self.study.arms[run.arm.against], run.seed)
            for gate in self._gates_behind(run):
                if (run, gate) in self.passed or state.stopped:
                    continue
                if gate.after not in self.states[other.name].done:
                    if self._is_over(other) or self._is_stopped(other):
                        self.passed.add((run, gate))
                    continue
                ours, theirs = (figures_of(self.folder_of(one.arm.name, one.seed)).get(gate.figure) for one in (run, other))
                if ours is None or theirs is None or ours - theirs <= gate.worse_by:
                    self.passed.add((run, gate))
                    continue
                state.stopped = (
                    f"{gate.figure} {ours:.5g}, worse than {theirs:.5g} of {other.name} by more than {gate.worse_by:g}"
                )
                self.ledger.append(
                    "gate", run=run.name, arm=run.arm.name, seed=run.seed, stage=gate.after, reason=state.stopped
                )
                self.say(f"{run.name}: stopped by a gate, {state.stopped}")

    # ---- begin and end

    def _start(self, run: Run, stage: str) -> None:
        folder = self.folder_of(run.arm.name, run.seed)
        self._prepare(run, folder)
        state = self.states[run.name]
        state.attempts[stage] = state.attempts.get(stage, 0) + 1
        self.ledger.append(
            "begin",
            run=run.name,
            arm=run.arm.name,
            seed=run.seed,
            stage=stage,
            settings=hashlib.sha256(to_toml(run.settings).encode()).hexdigest()[:16],
            commit=commit(),
            host=platform.node(),
            executor=self.executor.name,
            attempt=state.attempts[stage],
        )
        device = ["--device", self.device] if self.device else []
        command = [sys.executable, "-m", STAGE_MODULE, str(folder.path.resolve()), stage, *device]
        log = folder.path / f"{stage}.out"
        self.running[run] = stage, self.executor.start(Task(command, log.resolve())), time.monotonic()

    def _prepare(self, run: Run, folder: RunFolder) -> None:
        """The run's folder with its settings and what the base lends it; killed anywhere, it is made again."""
        if folder.config.exists():
            return
        folder.path.mkdir(parents=True, exist_ok=True)
        if run.arm.first_stage != "train":
            base = self.folder_of(BASE, run.seed)
            lent = [base.weights] + ([base.artifact, base.quantisation] if run.arm.first_stage == "score" else [])
            for path in lent:
                if path.exists():
                    shutil.copy(path, folder.path / path.name)
            kept = base.read_summary()
            artifact = kept.artifact if run.arm.first_stage == "score" else None
            folder.update_summary(
                preset=kept.preset,
                seed=kept.seed,
                corpus=kept.corpus,
                parameters=kept.parameters,
                device=kept.device,
                versions=kept.versions,
                train=kept.train,
                artifact=artifact,
            )
        write_whole(folder.config, to_toml(run.settings))

    def _collect(self) -> None:
        for run, (stage, handle, begun) in list(self.running.items()):
            code = handle.poll()
            if code is None:
                continue
            del self.running[run]
            folder, state = self.folder_of(run.arm.name, run.seed), self.states[run.name]
            ended = code == 0 and is_done(folder, stage)
            summary, reason = folder.read_summary(), "" if ended else reason_in(folder.path / f"{stage}.out", code)
            self.ledger.append(
                "end",
                run=run.name,
                arm=run.arm.name,
                seed=run.seed,
                stage=stage,
                exit=0 if ended else code or 1,
                reason=reason,
                seconds=round(time.monotonic() - begun, 3),
                figures=figures_of(folder),
                device=summary.device,
                corpus=summary.corpus.digest if summary.corpus else None,
            )
            if ended:
                state.done.add(stage)
            else:
                state.crashed[stage] = reason
            over = sum(self._is_over(one) for one in self.runs)
            self.say(f"{over} of {len(self.runs)} runs; {run.name}: {stage} {'done' if ended else f'failed, {reason}'}")


def reason_in(log: Path, code: int) -> str:
    """The last line that a stage wrote, which in this package is its error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"exit {code}: {last[:300]}" if last else f"exit {code}"
