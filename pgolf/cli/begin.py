"""The beginning of a run: settings from the command line, its folder, its device."""

from dataclasses import dataclass

import torch

from pgolf.cli.common import chosen_device, dataset_of
from pgolf.cli.flags import resumed, run_path, settings_from
from pgolf.config import Settings, read_toml, to_toml
from pgolf.distributed import rank_from_environment
from pgolf.errors import UsageError
from pgolf.files import write_whole
from pgolf.folder import RunFolder, new_run_path


@dataclass(frozen=True)
class Begun:
    """A run whose folder is there, and holds its settings."""

    folder: RunFolder
    settings: Settings
    device: str
    resume: bool
    is_first: bool


def begin(words: list[str], stage: str) -> Begun:
    """A new run, or with --resume the one in --out. Whatever can be refused is refused before a folder is made."""
    helps = {"-h", "--help", "--help-all"} & set(words)
    settings, options = settings_from(words, stage, cuda=not helps and torch.cuda.is_available())
    path = run_path(options)
    is_first = rank_from_environment() == 0
    chosen_device(options.device)
    if options.resume:
        if path is None:
            raise UsageError("--resume needs --out, the folder of the run to continue")
        folder = RunFolder.existing(path)
        settings = read_toml(folder.config)
        resumed(words, stage, settings)
    else:
        if settings.data.path:
            dataset_of(settings)
        folder = RunFolder.create(path or new_run_path(settings.preset), first=is_first)
        if is_first:
            write_whole(folder.config, to_toml(settings))
    return Begun(folder, settings, options.device, options.resume, is_first)
