"""The training loop: from settings and a loader to weights, within a clock, through kills and continuations."""

import math
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

import pgolf
from pgolf.budget import Budget
from pgolf.config import Settings, TrainingSettings
from pgolf.data import CoprimeStrideLoader, Dataset, Prefetch, SequentialLoader
from pgolf.distributed import World
from pgolf.model import count_parameters, parameter_groups
from pgolf.training import checkpoint, schedule
from pgolf.training.checkpoint import Checkpointer, random_states, set_random_states
from pgolf.training.complement import Complement
from pgolf.training.distillation import distilled_loss, teacher_of, teacher_shape
from pgolf.training.errors import TrainingError
from pgolf.training.pace import Pace
from pgolf.training.plan import BURST, NETWORK, TEACHER, TrainingPlan
from pgolf.training.step_results import StepResult, StepResults
from pgolf.training.train_step import TrainStep, init_model, names_of, under


class Loader(Protocol):
    def batch(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and targets (B, T) of one micro-step of this rank: a pure function."""


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


def train(
    settings: Settings,
    data: Dataset | Loader,
    *,
    folder: str | Path,
    device: str | torch.device,
    log: Callable[[dict], None],
    resume: bool = False,
    budget: Budget | None = None,
    reserve: float | None = None,
    validate: Callable[[torch.nn.Module], dict] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train settings.model until the clock or the number of steps is used up.

    data      a dataset, or this rank's loader
    folder    where checkpoint.safetensors is kept up to date; with `resume` training goes on from it, if it is there
    log       gets one dict an event, on the first rank only; "kind" is start, phase, step, validation, checkpoint, end
    reserve   seconds at the end of the clock for packing, on the machine as it is now; None: what the settings say
    budget    the clock; made from the settings if not given. Warm-up, compiling, validation and the last checkpoint
              are not on it
    validate  model -> figures; every rank calls it, the model is in evaluation mode
    stop      asked after every step; once it is true on any rank, the step's checkpoint is written and training returns

    Many ranks must have joined before (`distributed.launch`), and all of them call this.
    """
    world = World.current(device)
    options = settings.training
    with _loader(settings, data, world) as loader, closing(Checkpointer(folder)) as checkpointer:
        budget = budget or Budget(options.seconds, options.reserve if reserve is None else reserve)
        with budget.outside("set-up"):
            binding = checkpoint.binding(settings, getattr(data, "digest", None))
            saved = checkpointer.load(binding) if resume else None
            network, teacher = _networks(settings, world)
            alpha, vocabulary = options.complement_alpha, settings.model.vocab_size
            trainer = Trainer(
                settings,
                loader,
                world,
                budget,
                checkpointer,
                binding,
                log if world.is_first else lambda event: None,
                network,
                teacher,
                Complement(alpha, vocabulary, world) if options.complement_alpha else None,
                TrainingPlan(options, budget.limit - budget.reserve),
                StepResults(world),
                validate,
                stop,
            )
        if resume and not saved:
            trainer.log({"kind": "phase", "step": 0, "name": f"no checkpoint in {checkpointer.path.parent}"})
        return trainer.train(saved)


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


def _networks(settings: Settings, world: World) -> tuple[TrainStep, TrainStep | None]:
    """The network that is kept, and its teacher if there is to be one."""
    torch.manual_seed(settings.seed)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = init_model(settings.model, settings, world.device)
    if not settings.training.distillation_share:
        return TrainStep.of(model, settings.training, world), None
    teacher = teacher_of(init_model(teacher_shape(settings.model), settings, world.device), settings.training, world)
    return TrainStep.of(model, settings.training, world, distilled_loss(model, teacher.model)), teacher


@dataclass
class Trainer:
    """One run of training: everything that it uses, and where it stands."""

    settings: Settings
    loader: Loader
    world: World
    budget: Budget
    checkpointer: Checkpointer
    binding: dict[str, object]
    """The settings that a continuation must share."""
    log: Callable[[dict], None]
    network: TrainStep
    """The network that is kept."""
    teacher: TrainStep | None
    complement: Complement | None
    plan: TrainingPlan
    results: StepResults
    validate: Callable[[torch.nn.Module], dict] | None = None
    stop: Callable[[], bool] | None = None

    step: int = 0
    """Steps begun so far, over all phases."""
    loss: float = math.nan
    """Of the newest step whose result is known."""
    interrupted: bool = False
    pace: Pace = field(default_factory=Pace)
    saved_at: float = 0.0
    """The clock at the last checkpoint."""

    @property
    def options(self) -> TrainingSettings:
        return self.settings.training

    @property
    def accumulation(self) -> int:
        """Micro-steps of one step on this rank."""
        return self.options.micro_batches // self.world.size

    @property
    def current(self) -> TrainStep:
        """What the current phase trains."""
        return self.teacher if self.teacher and self.plan.phase.name == TEACHER else self.network

    # ---- the run

    def train(self, saved: tuple[dict[str, torch.Tensor], dict] | None) -> TrainingResult:
        """From the start, or from a checkpoint's tensors and facts."""
        with self.budget.outside("set-up"):
            self._announce()
        with self.budget.outside("warm-up"):
            self._warm_up()
        with self.budget.outside("set-up"):
            if saved:
                try:
                    self._restore(*saved)
                except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    raise checkpoint.damaged(self.checkpointer.path, reason) from error
        self.pace.start(self.step, self.loss, self._first_clock())
        self.saved_at = self.pace.known.elapsed
        while not self.interrupted and self._goes_on():
            self._train_step()
        with self.budget.part("steps"):
            self._observe(self.results.all())
        return self._end()

    def _announce(self) -> None:
        cuda = self.world.device.type == "cuda"
        self.log(
            {
                "kind": "start",
                "parameters": count_parameters(self.network.model),
                "rates": self.network.optimisers.rates(),
                "plan": {
                    "steps": self.options.steps,
                    "seconds": self.budget.limit - self.budget.reserve,
                    "batch_tokens": self.options.batch_tokens,
                    "ranks": self.world.size,
                    "micro_steps": self.accumulation,
                },
                "versions": {"pgolf": pgolf.__version__, "torch": torch.__version__, "python": platform.python_version()},
                "device": torch.cuda.get_device_name(self.world.device) if cuda else platform.machine() or "cpu",
            }
        )

    def _warm_up(self) -> None:
        """Real steps that compile everything, then everything as it was. The loader has no state to restore."""
        if not self.options.warmup_steps:
            return
        self.log({"kind": "phase", "step": 0, "name": "warm-up"})
        random = random_states(self.world.device)
        for trained in filter(None, (self.teacher, self.network)):
            before = {name: tensor.clone() for name, tensor in trained.state.items()}
            for index, (looped, quantised) in enumerate(self._graphs(trained)):
                trained.model.looped = looped
                if trained.terms:
                    trained.terms.switch(quantised)
                self._gradients(trained, index)
                trained.optimisers.step(1.0, self.options.muon_momentum)
                trained.optimisers.zero_grad()
            if trained.terms:
                trained.terms.switch(False)
            trained.set_weights(before)
            trained.optimisers.reset()
        if self.complement:
            self.complement.forget()
        set_random_states(random, self.world.device)
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _graphs(self, trained: TrainStep) -> list[tuple[bool, bool]]:
        """For each step of the warm-up whether loops run all their passes and whether weights are rounded: every form that
        training will compile."""
        steps, again = self.options.warmup_steps, min(self.options.warmup_steps, 2)
        graphs = [(not self.options.loop_start, False)] * steps
        if self.options.loop_start:
            graphs += [(True, False)] * again
        return graphs + [(True, True)] * (again if trained.terms else 0)

    def _first_clock(self) -> float:
        """What the first rank's clock says now."""
        elapsed = torch.tensor(self.budget.elapsed(), dtype=torch.float64, device=self.world.device)
        self.world.broadcast([elapsed])
        return float(elapsed)

    # ---- its phases

    @property
    def _step_seconds(self) -> float:
        """Of the current phase, so far."""
        return self.pace.seconds(self.plan.phase)

    def _elapsed(self) -> float:
        return self.pace.elapsed(self.step, self.plan.phase)

    def _phase_is_over(self) -> bool:
        self._keep_reserve()
        return self.plan.over(self.step, self._elapsed(), self._step_seconds, self.pace.slowest)

    def _keep_reserve(self) -> None:
        """Where the machine has become slower since the first steps, packing will take longer by as much."""
        if self.options.steps or not self.budget.reserve:
            return
        slowdown = self.pace.slowdown(self.plan.phase)
        if slowdown is None:
            return
        # never more than half of the clock: something must be left to pack
        reserve = min(max(1.0, slowdown) * self.budget.reserve, self.budget.limit / 2)
        self.plan.whole = self.budget.limit - max(reserve, self.budget.reserve)

    def _goes_on(self) -> bool:
        """Whether there is a step to take; where a phase has ended, the next one begins."""
        while self._phase_is_over():
            if self.plan.is_last:
                return False
            with self.budget.part("steps"):
                self._observe(self.results.all())
                phase = self.plan.begin_next(self.step, self.pace.known.elapsed, self._step_seconds)
            if self.teacher and phase.name == NETWORK:
                # frozen from here on: its moments are freed
                self.teacher.optimisers.reset()
            told = {NETWORK: "the teacher is trained", BURST: f"burst: the last {phase.replayed} steps again"}
            self.log({"kind": "phase", "step": self.step, "name": told[phase.name]})
        return True

    # ---- one step

    def _train_step(self) -> None:
        phase, trained = self.plan.phase.name, self.current
        with self.budget.part("steps" if phase == NETWORK else phase):
            planned = self.plan.step(self.step, self._elapsed(), self._step_seconds)
            looped = planned.gone >= self.options.loop_start
            if looped and not trained.model.looped:
                self.log({"kind": "phase", "step": self.step, "name": "loops run all their passes"})
            trained.model.looped = looped
            if trained.terms and trained.terms.reached(planned.schedule):
                self.log({"kind": "phase", "step": self.step, "name": "quantisation-aware"})
            loss = self._gradients(trained, planned.batch)
            if self.complement and phase != BURST:
                self.complement.count()
            norm = trained.optimisers.step(planned.rate, schedule.muon_momentum(self.options, planned.age))
            trained.optimisers.zero_grad()
            self.step += 1
            if trained.average.update(trained.state, planned.age + 1, planned.schedule):
                self.log({"kind": "phase", "step": self.step, "name": f"averaging ({self.options.export})"})
            asked = bool(self.stop and self.stop())
            self.results.push(self.step, loss, norm, planned.rate, self.budget.elapsed(), asked)
            self._observe(self.results.ready())
        self._note_checkpoint()
        if self.interrupted or self._phase_is_over() and self.plan.is_last:
            return
        if self.pace.known.elapsed - self.saved_at >= self.options.checkpoint_seconds:
            with self.budget.part("checkpoints"):
                self._observe(self.results.all())
                self._checkpoint()
            self.pace.reset_clock(self._first_clock())
        if self.validate and phase != TEACHER and self.options.validate_every and self.step % self.options.validate_every == 0:
            with self.budget.part("steps"):
                self._observe(self.results.all())
            self._validate("raw")

    def _gradients(self, trained: TrainStep, step: int) -> torch.Tensor:
        """Accumulate this rank's share of one step's gradient; gives its mean loss, without the penalty."""
        total = torch.zeros((), device=self.world.device)
        for micro in range(self.accumulation):
            tokens, targets = (part.to(self.world.device) for part in self.loader.batch(step, micro))
            weights = self.complement.weights(tokens, targets) if self.complement else None
            loss = trained.loss(tokens, targets, weights=weights) / self.accumulation
            loss.backward()
            total += loss.detach()
        penalty = trained.penalty()
        if penalty is not None:
            penalty.backward()
        return total

    def _observe(self, results: Iterable[StepResult]) -> None:
        """Take note of finished steps, in order."""
        for result in results:
            if not math.isfinite(result.loss) or not math.isfinite(result.norm):
                what = "loss" if not math.isfinite(result.loss) else "gradient norm"
                raise self._not_finite(f"the {what} of step {result.step} is {getattr(result, what.split()[-1])}")
            self.loss = result.loss
            self.interrupted |= result.stopped
            steps_per_second = self.pace.add(result)
            if self.options.steps:
                remaining = (self.options.steps - result.step) * self._step_seconds
            else:
                remaining = max(0.0, self.budget.limit - self.budget.reserve - result.elapsed)
            self.log(
                {
                    "kind": "step",
                    "step": result.step,
                    "loss": result.loss,
                    "multiplier": result.multiplier,
                    "gradient_norm": result.norm,
                    "tokens_per_second": steps_per_second * self.options.batch_tokens,
                    "elapsed": result.elapsed,
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

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of the current phase."""
        tensors: dict[str, torch.Tensor] = {}
        if self.teacher:
            kept = self.teacher.tensors() if self.current is self.teacher else self.teacher.weights()
            tensors |= {f"teacher.{name}": tensor for name, tensor in kept.items()}
        if self.current is self.network:
            # before its phase the network has its initial weights
            tensors |= self.network.tensors()
        if self.complement:
            tensors["complement"] = self.complement.pairs
        return tensors

    def _checkpoint(self) -> None:
        tensors = self._tensors()
        floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
        # the loss is of the weights before the step, not of those after it
        if not torch.stack(torch._foreach_norm(floating, math.inf)).isfinite().all():
            raise self._not_finite(f"the weights are not finite after step {self.step}")
        tensors |= {f"random.{name}": state for name, state in random_states(self.world.device).items()}
        self.saved_at = self.pace.known.elapsed
        if self.world.is_first:
            facts = {
                "tokens": self.step * self.options.batch_tokens,
                "loss": self.loss,
                "budget": self.budget.state(),
                "quantisation": bool(self.network.terms and self.network.terms.active),
                "phases": self.plan.state(),
                "settings": self.binding,
            }
            self._note_checkpoint(wait=True)
            self.checkpointer.save(self.step, tensors, facts)

    def _note_checkpoint(self, wait: bool = False) -> None:
        arrived = self.checkpointer.arrived(wait)
        if arrived:
            self.log({"kind": "checkpoint", "step": arrived[0], "path": str(arrived[1])})

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        self.step, self.loss = int(facts["step"]), float(facts["loss"])
        self.plan.restore(facts["phases"])
        for name, own in self._tensors().items():
            if name in tensors and (tensors[name].shape, tensors[name].dtype) != (own.shape, own.dtype):
                raise ValueError(f"{name} is {tensors[name].dtype} {tuple(tensors[name].shape)}")
        if not all(tensor.numel() for tensor in tensors.values()):
            raise ValueError("it holds empty tensors")
        if self.current is self.teacher:
            self.teacher.restore(under("teacher.", tensors))
        else:
            self.network.restore(tensors)
            if self.teacher:
                self.teacher.set_weights(under("teacher.model.", tensors))
        if self.complement:
            self.complement.restore(tensors["complement"])
        set_random_states(under("random.", tensors), self.world.device)
        if self.network.terms:
            self.network.terms.switch(facts["quantisation"])
        self.budget.restore(facts["budget"])
        self.checkpointer.last = self.step, self.checkpointer.path
        self.log({"kind": "phase", "step": self.step, "name": "resumed"})

    def _validate(self, weights: str) -> dict:
        assert self.validate
        with self.budget.outside("validation"):
            self.network.model.eval()
            figures = self.validate(self.network.model)
            self.network.model.train()
        self.log({"kind": "validation", "step": self.step, "weights": weights, **figures})
        return figures

    def _end(self) -> TrainingResult:
        with self.budget.outside("export"):
            self._checkpoint()
            weights, exported = self.network.average.export(self.network.state, self.plan.age(self.step))
            if self.options.export_tables == "bfloat16":
                names = names_of(self.network.model)
                for table in parameter_groups(self.network.model)["token"]:
                    exported[names[table]] = exported[names[table]].bfloat16().float()
            self._note_checkpoint(wait=True)
        validation = None
        # as the artifact will run, however early training ended
        self.network.model.looped = True
        if self.validate and not self.interrupted:
            self.network.set_weights(exported)
            validation = self._validate(weights)
        tokens = self.step * self.options.batch_tokens
        report = self.budget.report()
        end = {"steps": self.step, "tokens": tokens, "seconds": report, "loss": self.loss, "weights": weights}
        self.log({"kind": "end", **end, "interrupted": self.interrupted})
        return TrainingResult(
            steps=self.step,
            tokens=tokens,
            seconds=report,
            loss=self.loss,
            validation=validation,
            exported=exported,
            weights=weights,
            interrupted=self.interrupted,
        )
