"""The driver of a counted script, which carries this file instead of the command line: train, pack, score.

Settings are those of the submission; what may differ from run to run is the seed, where the data lies, and the clocks.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pgolf.cli.score import score
from pgolf.cli.stages import stages
from pgolf.config.load import from_table, read_toml, to_toml
from pgolf.config.settings import Settings
from pgolf.errors import PgolfError, UsageError
from pgolf.files import sweep, write_whole
from pgolf.folder import FolderError, RunFolder, new_run_path
from pgolf.process import Stopped, end_with_parent, keep_freed_memory, rank, stopping_on_signals

# the submission's settings, as they differ from the defaults; a script has them here
FROZEN: dict = {}
# environment name, flag, setting
FREE = (
    ("SEED", "--seed", "seed"),
    ("DATA_PATH", "--data.path", "data.path"),
    ("TOKENIZER_PATH", "--data.tokenizer", "data.tokenizer"),
    ("MAX_WALLCLOCK_SECONDS", "--training.seconds", "training.seconds"),
    ("ITERATIONS", "--steps", "training.steps"),
    ("", "--evaluation.seconds", "evaluation.seconds"),
    ("", "--evaluation.max-tokens", "evaluation.max_tokens"),
)


def main(words: list[str]) -> int:
    end_with_parent()
    keep_freed_memory()
    try:
        with stopping_on_signals():
            if words[:1] == ["score"]:
                return score(RunFolder.existing(words[1]), *words[2:])
            sweep(Path(tempfile.gettempdir()))
            return run(words)
    except PgolfError as error:
        print(f"pgolf: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        return 128 + stopped.number


def run(words: list[str]) -> int:
    resume, given = "--resume" in words, [word for word in words if word != "--resume"]
    flags = dict(zip(given[::2], given[1::2], strict=False))
    known = ["--out", "--device", *(flag for _, flag, _ in FREE)]
    if len(given) % 2 or not flags.keys() <= set(known):
        raise UsageError(f"options: --resume, and with a value each {', '.join(known)}; --help of the whole package explains")
    settings = from_table(FROZEN, Settings(), "the submission")
    for name, flag, setting in FREE:
        value = flags.get(flag) or os.environ.get(name)
        if value:
            section, _, key = setting.rpartition(".")
            owner = getattr(settings, section) if section else settings
            changed = replace(owner, **{key: type(getattr(owner, key))(value)})
            settings = replace(settings, **{section: changed}) if section else changed
    device, identity = flags.get("--device", ""), os.environ.get("RUN_ID")
    path = Path(flags.get("--out") or (Path("runs") / identity if identity else new_run_path(settings.preset)))
    folder = RunFolder.existing(path) if resume else RunFolder.create(path)
    with folder.writing():
        if resume:
            settings = read_toml(folder.config)
        elif not rank():
            if folder.config.exists():
                raise FolderError(f"{path} holds a run already; give --resume to continue it, or another --out")
            write_whole(folder.config, to_toml(settings))
        here = Path(__file__)
        program = (
            f"import sys; sys.path.insert(0, {str(here.parent)!r}); from {here.stem} import main; sys.exit(main(sys.argv[1:]))"
        )
        scoring = [sys.executable, "-c", program, "score", str(folder.path)] + [device] * bool(device)
        return stages(folder, settings, device, resume, scoring)
