"""The stage train: the run's settings and data to weights.safetensors."""

import contextlib
import re
import signal
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from pgolf.cli.begin import begin
from pgolf.cli.common import chosen_device, dataset_of, device_name, versions
from pgolf.cli.flags import RunFlags
from pgolf.cli.pack import rehearse
from pgolf.config import Settings
from pgolf.data import Dataset
from pgolf.distributed import World, launch
from pgolf.errors import OVER_LIMIT
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.progress import Display, clock
from pgolf.sinks import Sinks
from pgolf.summary import Corpus, Train
from pgolf.training.loop import train as train_model

Options = RunFlags
# what packing may take, in what it took when it was measured
PACKING_ROOM = 1.3
# of the validation stream, that are looked at while training goes on
VALIDATION_TOKENS = 16_384


def main(words: list[str]) -> int:
    with begin(words, "train") as run:
        return 0 if run.done.train else train(run.folder, run.settings, run.device, resume=run.resume)


def train(folder: RunFolder, settings: Settings, device: str, *, resume: bool) -> int:
    with (
        folder.writing(),
        launch(chosen_device(device)) as world,
        Display(folder.log, events=folder.train_log, active=world.is_first) as display,
        Sinks(settings, folder.path, display.say, active=world.is_first) as sinks,
    ):
        if world.is_first:
            folder.withdraw("train")
        display.say(f"run {folder.path}: preset {settings.preset}, seed {settings.seed}")
        dataset = dataset_of(settings, display)
        display.say(f"corpus {dataset.name} (digest {dataset.digest[:12]}), vocabulary {dataset.vocab_size}")
        narrator = TrainingNarrator(display, settings, sinks)
        reserve = packing_reserve(settings, dataset, world, display)
        with StopOnSignal() as stop:
            result = train_model(
                settings,
                dataset,
                folder=folder.path,
                device=world.device,
                log=narrator,
                resume=resume,
                reserve=reserve,
                validate=validation_of(settings, dataset, world.device),
                stop=stop,
            )
        display.settle()
        memory = peak_memory(world.device)
        display.event({"kind": "memory", "peak_memory_bytes": memory})
        if result.interrupted:
            display.say(f"stopped at step {result.steps}; continue with: pgolf --resume --out {folder.path}")
            return 128 + stop.number
        if world.is_first:
            write_weights(folder.weights, result.exported)
            done = Train(
                seconds=result.seconds["total"],
                limit=settings.training.seconds,
                parts=result.seconds["parts"],
                untimed=result.seconds["untimed"],
                steps=result.steps,
                tokens=result.tokens,
                loss=result.loss,
                weights=result.weights,
                peak_memory_bytes=memory,
                over_limit=not settings.training.steps and result.seconds["total"] > settings.training.seconds,
            )
            folder.update_summary(
                preset=settings.preset,
                seed=settings.seed,
                corpus=Corpus(dataset.name, dataset.digest, dataset.shared),
                parameters=narrator.parameters,
                train=done,
                device=device_name(world.device),
                versions=versions(),
            )
            if done.over_limit:
                display.say(
                    f"over the limit: training took {done.seconds:.1f} s of {done.limit:.0f}; raise training.seconds, "
                    f"or make training.batch_tokens smaller"
                )
                return OVER_LIMIT
    return 0


def packing_reserve(settings: Settings, dataset: Dataset, world: World, display: Display) -> float:
    """Seconds to keep at the end of the training clock for what packing does on it: measured once, off the clock, on a network
    that has not learnt anything, and with room to spare. A fixed number of steps has no clock."""
    if settings.training.steps:
        return settings.training.reserve
    needed = torch.zeros(1, dtype=torch.float64, device=world.device)
    if world.is_first:
        display.status("measuring what calibration and rounding take", 0.0)
        needed += rehearse(settings, dataset, world.device)
        display.settle()
    world.broadcast([needed])
    return min(max(settings.training.reserve, PACKING_ROOM * float(needed)), settings.training.seconds / 2)


def validation_of(settings: Settings, dataset: Dataset, device: torch.device):
    """model -> its loss on the beginning of the validation stream, in sequences side by side. Nothing learns from it."""
    if not settings.training.validate_every:
        return None
    length = settings.training.sequence_length
    tokens = np.asarray(dataset.val_tokens()[: VALIDATION_TOKENS + 1]).astype(np.int64)
    count = (len(tokens) - 1) // length * length
    inputs, targets = (torch.from_numpy(part).reshape(-1, length) for part in (tokens[:count], tokens[1 : count + 1]))

    @torch.no_grad()
    def validate(model) -> dict:
        nats = 0.0
        for row, target in zip(inputs.split(16), targets.split(16), strict=True):
            logits = model.logits(row.to(device)).flatten(0, 1).float()
            nats += float(torch.nn.functional.cross_entropy(logits, target.to(device).flatten(), reduction="sum"))
        return {"loss": nats / count}

    return validate


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors took on a GPU, or that this process took of the machine's memory; of the first rank."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux alone keeps it for each program
        for kilobytes in re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(kilobytes)
    return None


class StopOnSignal:
    """Turns true once SIGTERM or Ctrl-C has come, so that the step can finish and be saved; a second one does not wait."""

    def __init__(self):
        self.number = 0

    def __call__(self) -> bool:
        return bool(self.number)

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


class TrainingNarrator:
    """Training's events as a person reads them."""

    def __init__(self, display: Display, settings: Settings, sinks: Sinks):
        self.display, self.sinks = display, sinks
        self.steps = settings.training.steps
        self.parameters = 0

    def __call__(self, event: dict) -> None:
        self.display.event(event)
        self.sinks.event(event)
        getattr(self, "_" + event["kind"])(event)

    def _start(self, event: dict) -> None:
        self.parameters = event["parameters"]
        plan = event["plan"]
        length = f"{plan['steps']:,} steps" if plan["steps"] else f"{plan['seconds']:.0f} s"
        ranks = f" on {plan['ranks']} ranks" if plan["ranks"] > 1 else ""
        self.display.say(f"{self.parameters:,} parameters; {length} of {plan['batch_tokens']:,} tokens a step{ranks}")

    def _phase(self, event: dict) -> None:
        if event["name"] == "warm-up":
            self.display.status("warming up, which compiles what has to be", 0.0)
        else:
            self.display.settle()
            self.display.say(f"step {event['step']}: {event['name']}")

    def _step(self, event: dict) -> None:
        total = event["elapsed"] + event["remaining"]
        done = event["step"] / self.steps if self.steps else event["elapsed"] / max(total, 1e-9)
        self.display.status(
            f"step {event['step']:,}  loss {event['loss']:.4f}  {event['tokens_per_second']:,.0f} tokens/s  "
            f"rate x{event['multiplier']:.2f}  {clock(event['elapsed'])} gone, {clock(event['remaining'])} left",
            done,
            left=False,
        )

    def _validation(self, event: dict) -> None:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in event.items() if isinstance(value, float))
        self.display.say(f"step {event['step']}: validation {figures}")

    def _checkpoint(self, event: dict) -> None:
        """Checkpoints come often; the event file has them."""

    def _end(self, event: dict) -> None:
        self.display.say(f"trained {event['steps']:,} steps, {event['tokens']:,} tokens, last loss {event['loss']:.4f}")


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))
