"""The training loop: from settings and a loader to weights, within a clock, through kills and continuations."""

import dataclasses
import math
import platform
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

import pgolf
from pgolf.budget import Budget
from pgolf.config import ModelSettings, Settings
from pgolf.data import CoprimeStrideLoader, Dataset, Prefetch, SequentialLoader
from pgolf.distributed import World
from pgolf.model import build_model, count_parameters, parameter_groups
from pgolf.model.network import Network
from pgolf.training import checkpoint, schedule
from pgolf.training.complement import Complement
from pgolf.training.course import BURST, NETWORK, TEACHER, Course
from pgolf.training.distillation import distilled_loss, teacher_of, teacher_shape
from pgolf.training.errors import TrainingError
from pgolf.training.learner import Learner, under

# On CUDA the host works this many steps ahead of what it knows of the device.
STEPS_IN_FLIGHT = 2
PACE_STEPS = 20


class Loader(Protocol):
    def batch(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and targets of one micro-step of this rank: a pure function."""


@dataclass
class TrainingResult:
    steps: int
    tokens: int
    seconds: dict
    """The budget's report: total, parts, untimed."""
    loss: float
    """Of the last step, averaged over ranks."""
    validation: dict | None
    """What `validate` gave for the exported weights."""
    exported: dict[str, torch.Tensor] = field(repr=False)
    """Weights in float32, by the model's own names."""
    weights: str
    """What they are: raw, ema, swa or lawa. "raw" too where the run was too short for the average asked for."""
    interrupted: bool


@dataclass(frozen=True)
class Status:
    """What every rank knows of a finished step; the same numbers on each, so all decide alike."""

    step: int
    loss: float
    norm: float
    elapsed: float
    stopped: bool


def train(
    settings: Settings,
    data: Dataset | Loader,
    *,
    folder: str | Path,
    device: str | torch.device,
    log: Callable[[dict], None],
    resume: bool = False,
    budget: Budget | None = None,
    validate: Callable[[torch.nn.Module], dict] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train settings.model until the clock or the number of steps is used up.

    data      a dataset, or this rank's loader
    folder    where checkpoint.safetensors is kept up to date; with `resume` training goes on from it, if it is there
    log       gets one dict an event, on the first rank only; "kind" is start, phase, step, validation, checkpoint, end
    budget    the clock; made from the settings if not given. Warm-up, compiling, validation and the last checkpoint
              are not on it
    validate  model -> figures; every rank calls it, the model is in evaluation mode
    stop      asked after every step; once it is true on any rank, the step's checkpoint is written and training returns

    Many ranks must have joined before (`distributed.launch`), and all of them call this.
    """
    world = World.current(device)
    with _loader(settings, data, world) as loader:
        run = _Run(settings, loader, getattr(data, "digest", None), Path(folder), world, log, budget, validate, stop)
        try:
            return run.train(resume)
        finally:
            run.checkpointer.close()


@contextmanager
def _loader(settings: Settings, data: Dataset | Loader, world: World) -> Iterator[Loader]:
    options = settings.training
    if options.micro_batches % world.size:
        raise TrainingError(
            f"{world.size} ranks do not divide training.micro_batches {options.micro_batches}; start another number of ranks"
        )
    if not isinstance(data, Dataset):
        yield data
        return
    kind = {"sequential": SequentialLoader, "coprime": CoprimeStrideLoader}[settings.data.loader]
    loader = kind(
        data.train_shards,
        batch_tokens=options.batch_tokens,
        sequence_length=options.sequence_length,
        accumulation=options.micro_batches // world.size,
        world_size=world.size,
        rank=world.rank,
        seed=settings.seed,
        vocab_size=settings.model.vocab_size,
        held_out=len(data.held_out(settings.data.held_out_tokens)),
    )
    with Prefetch(loader, world.device) as prefetch:
        yield prefetch


class _Run:
    def __init__(self, settings, loader, digest, folder, world, log, budget, validate, stop):
        self.settings, self.options = settings, settings.training
        self.loader, self.world, self.device = loader, world, world.device
        self.validate, self.stop = validate, stop
        self.budget = budget or Budget(self.options.seconds, self.options.reserve)
        self.log = log if self.world.is_first else lambda event: None
        self.course = Course(self.options, self.budget.limit - self.budget.reserve)
        self.binding = checkpoint.binding(settings, digest)
        self.accumulation = self.options.micro_batches // self.world.size
        self.checkpointer = checkpoint.Checkpointer(folder)
        self.statuses = _Statuses(world)
        self.recent: deque[Status] = deque(maxlen=PACE_STEPS)
        self.loss = math.nan

    # ---- the course of a run

    def train(self, resume: bool) -> TrainingResult:
        with self.budget.outside("set-up"):
            saved = checkpoint.read(self.checkpointer.path) if resume and self.checkpointer.path.exists() else None
            if saved:
                checkpoint.check_settings(self.checkpointer.path, saved[1]["settings"], self.binding)
            self._build()
            self._announce()
        with self.budget.outside("warm-up"):
            self._warm_up()
        with self.budget.outside("set-up"):
            self.learner = self.teacher or self.network
            if saved:
                self._restore(*saved)
            elif resume:
                self.log({"kind": "phase", "step": 0, "name": f"no checkpoint in {self.checkpointer.path.parent}"})
        self._begin_clock(saved[1]["step"] if saved else 0)
        while not self.interrupted and self._goes_on():
            self._step()
        with self.budget.part("steps"):
            self._observe(self.statuses.all())
        return self._end()

    def _build(self) -> None:
        torch.manual_seed(self.settings.seed)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        model = drawn(self.settings.model, self.settings, self.device)
        self.teacher, loss = None, None
        if self.options.distillation_share:
            teacher = drawn(teacher_shape(self.settings.model), self.settings, self.device)
            self.teacher = teacher_of(teacher, self.options, self.world)
            loss = distilled_loss(model, self.teacher.model)
        self.network = Learner(model, parameter_groups(model), self.options, self.world, loss)
        alpha, vocabulary = self.options.complement_alpha, self.settings.model.vocab_size
        self.complement = Complement(alpha, vocabulary, self.world) if alpha else None

    def _announce(self) -> None:
        cuda = self.device.type == "cuda"
        self.log(
            {
                "kind": "start",
                "parameters": count_parameters(self.network.model),
                "plan": {
                    "steps": self.options.steps,
                    "seconds": self.budget.limit - self.budget.reserve,
                    "batch_tokens": self.options.batch_tokens,
                    "ranks": self.world.size,
                    "micro_steps": self.accumulation,
                },
                "versions": {"pgolf": pgolf.__version__, "torch": torch.__version__, "python": platform.python_version()},
                "device": torch.cuda.get_device_name(self.device) if cuda else platform.machine() or "cpu",
            }
        )

    def _warm_up(self) -> None:
        """Real steps that compile everything, then everything as it was. The loader has no state to restore."""
        if not self.options.warmup_steps:
            return
        self.log({"kind": "phase", "step": 0, "name": "warm-up"})
        random = _random_states(self.device)
        for learner in filter(None, (self.teacher, self.network)):
            self.learner = learner
            self._warm_up_one()
        if self.complement:
            self.complement.forget()
        _set_random_states(random, self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _warm_up_one(self) -> None:
        learner = self.learner
        before = {name: tensor.clone() for name, tensor in learner.state.items()}
        quantised = min(self.options.warmup_steps, 2) if learner.terms.wanted else 0
        for index in range(self.options.warmup_steps + quantised):
            learner.terms.switch(index >= self.options.warmup_steps)
            self._gradients(index)
            learner.optimisers.step(1.0, self.options.muon_momentum)
            learner.optimisers.zero_grad()
        learner.terms.switch(False)
        learner.set_weights(before)
        learner.optimisers.reset()

    def _begin_clock(self, step: int) -> None:
        self.step = step
        self.interrupted = False
        self.known = Status(step, self.loss, math.nan, self._first_clock(), False)
        self.saved_at = self.known.elapsed
        self.recent.append(self.known)

    def _first_clock(self) -> float:
        """What the first rank's clock says now."""
        elapsed = torch.tensor(self.budget.elapsed(), dtype=torch.float64, device=self.device)
        self.world.broadcast([elapsed])
        return float(elapsed)

    # ---- the parts of the course

    @property
    def _pace(self) -> float:
        """Seconds a step of the part under way has taken so far."""
        part = self.course.part
        steps = self.known.step - part.step
        return (self.known.elapsed - part.elapsed) / steps if steps > 0 else 0.0

    def _elapsed(self) -> float:
        """The first rank's clock, told forward over the steps in flight: every rank computes the same."""
        return self.known.elapsed + (self.step - self.known.step) * self._pace

    def _part_is_over(self) -> bool:
        return self.course.over(self.step, self._elapsed(), self._pace)

    def _goes_on(self) -> bool:
        """Whether there is a step to take; where a part has ended, the next one is entered."""
        while self._part_is_over():
            if self.course.is_last:
                return False
            with self.budget.part("steps"):
                self._observe(self.statuses.all())
                part = self.course.go_on(self.step, self.known.elapsed, self._pace)
            if part.name == NETWORK:
                self._hear_teacher()
            told = {NETWORK: "the teacher is trained", BURST: f"burst: the last {part.replayed} steps again"}
            self.log({"kind": "phase", "step": self.step, "name": told[part.name]})
        return True

    def _hear_teacher(self) -> None:
        """From here on it only speaks: the moments that it learnt with are given up."""
        assert self.teacher
        self.teacher.optimisers.reset()
        self.learner = self.network

    # ---- one step

    def _step(self) -> None:
        part = self.course.part.name
        with self.budget.part("steps" if part == NETWORK else part):
            turn = self.course.turn(self.step, self._elapsed(), self._pace)
            if self.learner.terms.reached(turn.schedule):
                self.log({"kind": "phase", "step": self.step, "name": "quantisation-aware"})
            loss = self._gradients(turn.batch)
            if self.complement and part != BURST:
                self.complement.count()
            norm = self.learner.optimisers.step(turn.rate, schedule.muon_momentum(self.options, turn.age))
            self.learner.optimisers.zero_grad()
            self.step += 1
            if self.learner.average.update(self.learner.state, turn.age + 1, turn.schedule):
                self.log({"kind": "phase", "step": self.step, "name": f"averaging ({self.options.export})"})
            asked = bool(self.stop and self.stop())
            self.statuses.push(self.step, loss, norm, turn.rate, self.budget.elapsed(), asked)
            self._observe(self.statuses.ready())
        self._note_checkpoint()
        if self.interrupted or self._part_is_over() and self.course.is_last:
            return
        if self.known.elapsed - self.saved_at >= self.options.checkpoint_seconds:
            with self.budget.part("checkpoints"):
                self._observe(self.statuses.all())
                self._checkpoint()
            self.known = dataclasses.replace(self.known, elapsed=self._first_clock())
        if self.validate and part != TEACHER and self.options.validate_every and self.step % self.options.validate_every == 0:
            with self.budget.part("steps"):
                self._observe(self.statuses.all())
            self._validate("raw")

    def _gradients(self, step: int) -> torch.Tensor:
        """Accumulate this rank's share of one step's gradient; gives its mean loss, without the penalty."""
        total = torch.zeros((), device=self.device)
        for micro in range(self.accumulation):
            tokens, targets = (part.to(self.device) for part in self.loader.batch(step, micro))
            weights = self.complement.weights(tokens, targets) if self.complement else None
            loss = self.learner.loss(tokens, targets, weights=weights) / self.accumulation
            loss.backward()
            total += loss.detach()
        penalty = self.learner.terms.penalty()
        if penalty is not None:
            penalty.backward()
        return total

    def _observe(self, statuses: Iterator[tuple[Status, float]]) -> None:
        """Take note of finished steps, in order."""
        for status, multiplier in statuses:
            if not math.isfinite(status.loss) or not math.isfinite(status.norm):
                what = "loss" if not math.isfinite(status.loss) else "gradient norm"
                raise self._not_finite(f"the {what} of step {status.step} is {getattr(status, what.split()[-1])}")
            self.known, self.loss = status, status.loss
            self.interrupted |= status.stopped
            first = self.recent[0]
            self.recent.append(status)
            seconds = status.elapsed - first.elapsed
            if self.options.steps:
                remaining = (self.options.steps - status.step) * self._pace
            else:
                remaining = max(0.0, self.budget.limit - self.budget.reserve - status.elapsed)
            self.log(
                {
                    "kind": "step",
                    "step": status.step,
                    "loss": status.loss,
                    "multiplier": multiplier,
                    "gradient_norm": status.norm,
                    "tokens_per_second": (status.step - first.step) * self.options.batch_tokens / max(seconds, 1e-9),
                    "elapsed": status.elapsed,
                    "remaining": remaining,
                }
            )

    def _not_finite(self, what: str) -> TrainingError:
        self._note_checkpoint(wait=True)
        if self.checkpointer.last:
            step, path = self.checkpointer.last
            where = f"the last good checkpoint is {path}, of step {step}"
        else:
            where = "there is no checkpoint yet"
        return TrainingError(f"{what}; {where}; lower the learning rates, or clip harder")

    # ---- checkpoints, validation, the end

    def _checkpoint(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        if self.teacher:
            # the network is as it was drawn while the teacher learns
            kept = self.teacher.tensors() if self.learner is self.teacher else self.teacher.weights()
            tensors |= {f"teacher.{name}": tensor for name, tensor in kept.items()}
        if self.learner is self.network:
            tensors |= self.network.tensors()
        if self.complement:
            tensors["complement"] = self.complement.pairs
        floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
        # one step's loss says nothing of the weights that its update has led to
        if not torch.stack(torch._foreach_norm(floating, math.inf)).isfinite().all():
            raise self._not_finite(f"the weights are not finite after step {self.step}")
        tensors |= {f"random.{name}": state for name, state in _random_states(self.device).items()}
        self.saved_at = self.known.elapsed
        if self.world.is_first:
            facts = {
                "tokens": self.step * self.options.batch_tokens,
                "loss": self.loss,
                "budget": self.budget.state(),
                "quantisation": self.network.terms.active,
                "course": self.course.state(),
                "settings": self.binding,
            }
            self._note_checkpoint(wait=True)
            self.checkpointer.save(self.step, tensors, facts)

    def _note_checkpoint(self, wait: bool = False) -> None:
        arrived = self.checkpointer.arrived(wait)
        if arrived:
            self.log({"kind": "checkpoint", "step": arrived[0], "path": str(arrived[1])})

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        self.course.restore(facts["course"])
        if self.teacher and self.course.part.name == TEACHER:
            self.teacher.restore(under("teacher.", tensors))
        else:
            self.network.restore(tensors)
            if self.teacher:
                self.teacher.set_weights(under("teacher.model.", tensors))
                self._hear_teacher()
        if self.complement:
            self.complement.restore(tensors["complement"])
        _set_random_states(under("random.", tensors), self.device)
        self.network.terms.switch(facts["quantisation"])
        self.budget.restore(facts["budget"])
        self.loss = facts["loss"]
        self.checkpointer.last = facts["step"], self.checkpointer.path
        self.log({"kind": "phase", "step": facts["step"], "name": "resumed"})

    def _validate(self, weights: str) -> dict:
        with self.budget.outside("validation"):
            self.network.model.eval()
            figures = self.validate(self.network.model)
            self.network.model.train()
        self.log({"kind": "validation", "step": self.step, "weights": weights, **figures})
        return figures

    def _end(self) -> TrainingResult:
        with self.budget.outside("export"):
            self._checkpoint()
            weights, exported = self.network.average.export(self.network.state, self.course.age(self.step))
            self._note_checkpoint(wait=True)
        validation = None
        if self.validate and not self.interrupted:
            self.network.set_weights(exported)
            validation = self._validate(weights)
        tokens = self.step * self.options.batch_tokens
        report = self.budget.report()
        end = {"steps": self.step, "tokens": tokens, "seconds": report, "loss": self.loss, "weights": weights}
        self.log({"kind": "end", **end, "interrupted": self.interrupted})
        return TrainingResult(**end, validation=validation, exported=exported, interrupted=self.interrupted)


def drawn(shape: ModelSettings, settings: Settings, device: torch.device) -> Network:
    """A network with its first weights, at the run's precision."""
    options, on_cpu = settings.training, device.type == "cpu"
    repeats = options.precision == "auto" and options.steps > 0 and on_cpu
    exact = options.precision == "float32" or repeats
    # None: the device's own choice
    model = build_model(shape, device=device, dtype=torch.float32 if exact else None, seed=settings.seed)
    if on_cpu and not exact and multiplies_bfloat16():
        model.activation = torch.bfloat16
    return model


def multiplies_bfloat16() -> bool:
    """This processor has instructions for it: elsewhere bfloat16 is slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _Statuses:
    """What happened in each step, summed over ranks; on CUDA it is read a few steps later, so that nobody waits."""

    def __init__(self, world: World):
        self.world = world
        self.cuda = world.device.type == "cuda"
        self.depth = STEPS_IN_FLIGHT if self.cuda else 0
        self.queue: deque[tuple] = deque()

    def push(self, step, loss, norm, multiplier, elapsed, stopped) -> None:
        told = torch.tensor([elapsed if self.world.is_first else 0.0, float(stopped)], dtype=torch.float64)
        told = told.pin_memory().to(self.world.device, non_blocking=True) if self.cuda else told
        summed = self.world.sum(torch.cat([torch.stack([loss, norm]).double(), told]))
        event = None
        if self.cuda:
            summed = summed.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.queue.append((step, summed, multiplier, event))

    def ready(self) -> Iterator[tuple[Status, float]]:
        """Those that have waited long enough."""
        while len(self.queue) > self.depth:
            yield self._pop()

    def all(self) -> Iterator[tuple[Status, float]]:
        while self.queue:
            yield self._pop()

    def _pop(self) -> tuple[Status, float]:
        step, summed, multiplier, event = self.queue.popleft()
        if event:
            event.synchronize()
        loss, norm, elapsed, stopped = summed.tolist()
        return Status(step, loss / self.world.size, norm / self.world.size, elapsed, stopped > 0), multiplier


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
