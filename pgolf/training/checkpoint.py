"""Checkpoints: one safetensors file that appears whole or not at all, and that says so when it was damaged."""

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from pgolf.config import Settings, to_table
from pgolf.files import atomic_file
from pgolf.training.errors import CheckpointError

NAME = "checkpoint.safetensors"
FORMAT = 2

# what may change between a run and its continuation without changing the weights
FREE = {"training.checkpoint_seconds", "training.validate_every", "training.sinks", "data.path", "data.tokenizer"}
BINDING = ("seed", "data", "model", "training")


def write(path: Path, tensors: dict[str, torch.Tensor], facts: dict) -> None:
    """`facts` is anything JSON can hold."""
    text = json.dumps({"format": FORMAT, **facts})
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(tensors, {"pgolf": text, "sha256": _digest(tensors, text)}))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and facts, or one line that says why not."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; start without resuming") from None
    except (OSError, safetensors.SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    text = metadata.get("pgolf")
    if text is None:
        raise CheckpointError(f"{path} is no checkpoint of a training run; resume from another one, or start afresh")
    if metadata.get("sha256") != _digest(tensors, text):
        raise damaged(path, "its checksum does not match")
    try:
        facts = json.loads(text)
        version = facts["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__} in its facts") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads {FORMAT}; start afresh")
    return tensors, facts


def damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({reason}); delete it and start afresh")


def _digest(tensors: dict[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def binding(settings: Settings, digest: str | None) -> dict[str, object]:
    """Every setting that a continuation must share, by its dotted name; data may have moved, but not changed."""
    flat: dict[str, object] = {}

    def walk(table: dict, path: str) -> None:
        for key, value in table.items():
            name = f"{path}{key}"
            if isinstance(value, dict):
                walk(value, f"{name}.")
            elif name not in FREE:
                flat[name] = list(value) if isinstance(value, tuple) else value

    table = to_table(settings)
    walk({section: table[section] for section in BINDING}, "")
    flat["data.digest"] = digest
    return flat


def check_settings(path: Path, theirs: dict[str, object], ours: dict[str, object]) -> None:
    """Raise one line that names the first setting in which the checkpoint's run differs from this one."""
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise CheckpointError(
                f"{path} belongs to a run with {name} = {theirs.get(name)!r}, but this one has {ours.get(name)!r}; "
                f"resume with the same settings, or use another folder"
            )


class Checkpointer:
    """Writes in the background: `save` copies the tensors and returns, a thread does the rest.

    `last` is (step, path) of the newest file known to be on disk. An error of the thread is raised by the next `arrived`.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / NAME
        self.last: tuple[int, Path] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future] | None = None
        for leftover in self.path.parent.glob(f".{NAME}.*.partial"):
            leftover.unlink(missing_ok=True)

    def load(self, ours: dict[str, object]) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Tensors and facts of the file, if there is one; an error if it belongs to a run of other settings."""
        if not self.path.exists():
            return None
        tensors, facts = read(self.path)
        if not isinstance(facts.get("settings"), dict):
            raise damaged(self.path, "it does not say whose settings it has")
        check_settings(self.path, facts["settings"], ours)
        return tensors, facts

    def save(self, step: int, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        self.arrived(wait=True)
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._pending = step, self._writer.submit(write, self.path, copies, {"step": step, **facts})

    def arrived(self, wait: bool = False) -> tuple[int, Path] | None:
        """The file that was finished since the last call, if any; with `wait`, the one being written is waited for."""
        if not self._pending or not (wait or self._pending[1].done()):
            return None
        step, future = self._pending
        self._pending = None
        future.result()
        self.last = step, self.path
        return self.last

    def close(self) -> None:
        self._writer.shutdown(wait=True)


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
