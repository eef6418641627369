"""The beginning of a run: settings from the command line, its folder, its device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pgolf.cli.common import chosen_device
from pgolf.cli.flags import resumed, run_path, settings_from
from pgolf.config import Settings, read_toml, to_toml
from pgolf.errors import UsageError
from pgolf.files import write_whole
from pgolf.folder import FolderError, RunFolder, new_run_path
from pgolf.process import rank
from pgolf.sinks import check_sinks
from pgolf.summary import Summary


@dataclass(frozen=True)
class Begun:
    """A run whose folder is there, locked, and holds its settings."""

    folder: RunFolder
    settings: Settings
    device: str
    resume: bool

    @property
    def done(self) -> Summary:
        """What a resumed run need not do again: a stage is done when its part of the summary is there."""
        return self.folder.read_summary() if self.resume else Summary()


@contextmanager
def begin(words: list[str], stage: str) -> Iterator[Begun]:
    """A new run, or with --resume the one in --out. Whatever can be refused is refused before a folder is made."""
    settings, options = settings_from(words, stage, cuda=torch.cuda.is_available())
    path = run_path(options)
    chosen_device(options.device)
    check_sinks(settings)
    if options.resume:
        if path is None:
            raise UsageError("--resume needs --out, the folder of the run to continue")
        folder = RunFolder.existing(path)
        settings = read_toml(folder.config)
        resumed(words, stage, settings)
        with folder.writing():
            yield Begun(folder, settings, options.device, True)
        return
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if settings.training.micro_batches % ranks:
        raise UsageError(
            f"{ranks} ranks do not divide training.micro_batches {settings.training.micro_batches}; "
            f"start another number of ranks"
        )
    folder = RunFolder.create(path or new_run_path(settings.preset))
    with folder.writing():
        if not rank():
            if folder.config.exists():
                raise FolderError(f"{folder.path} holds a run already; give --resume to continue it, or another --out")
            write_whole(folder.config, to_toml(settings))
        yield Begun(folder, settings, options.device, False)
