"""What several stages need: the run's data, its device, and what they were."""

import contextlib
import platform

import torch

import pgolf
from pgolf.config import Settings
from pgolf.data import Dataset, default_dataset, open_dataset
from pgolf.data.dataset import Progress
from pgolf.errors import UsageError
from pgolf.files import CACHE
from pgolf.progress import Display


def dataset_of(settings: Settings, display: Display | None = None) -> Dataset:
    """The run's data; the built-in corpus is made once and kept in a cache."""
    if settings.data.path:
        return open_dataset(settings.data.path, settings.data.tokenizer or None, settings.model.vocab_size)
    dataset = default_dataset(CACHE, vocab_size=settings.model.vocab_size, progress=progress_on(display) if display else None)
    if display:
        display.settle()
    return dataset


def progress_on(display: Display) -> Progress:
    """Shows what making a dataset has done of how much."""

    def progress(what: str, done: int, total: int | None) -> None:
        display.status(f"{what}: {done:,}" + (f" of {total:,}" if total else ""), done / total if total else 0.0)

    return progress


def chosen_device(name: str) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UsageError(f"no device {name!r}; try cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use; leave --device out, or say cpu")
    return device


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    by_name = {"pgolf": pgolf.__version__, "python": platform.python_version(), "torch": torch.__version__}
    with contextlib.suppress(ImportError):
        import triton

        by_name["triton"] = triton.__version__
    return by_name
