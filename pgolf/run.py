"""The driver: `pgolf` (or `python -m pgolf.run`) trains, packs, scores and reports; each stage can be run alone.

    pgolf [options]                all stages, into a new run folder; the same as `pgolf run`
    pgolf STAGE [options]          one of them; `pgolf --help` lists the stages, `pgolf STAGE --help` explains one
    pgolf --list                   the presets
    pgolf --version

Exit codes: 0 done, 1 something in the way or an audit that failed, 2 the command line or a setting is wrong, 3 done, but
not within the clock, 70 an error of the program's own, 128 + n stopped by signal n.
"""

import importlib
import os
import signal
import sys
import traceback

import pgolf
from pgolf.config import load_preset, nearest, preset_names
from pgolf.errors import PgolfError, UsageError
from pgolf.files import system_error
from pgolf.process import Stopped, end_with_parent, keep_freed_memory, stopping_on_signals, wait_briefly

# shows the traceback of an error of the program's own, for its authors
DEBUG = "PGOLF_DEBUG"
INTERNAL_ERROR = 70  # as sysexits.h has it

# A stage is a module pgolf/cli/<name>.py with a `main(words) -> exit code`; here is its line in the help.
STAGES = {
    "run": "train, pack, score, report and show; what is done without a stage's name",
    "train": "only the first stage of a run",
    "pack": "RUN: its weights to model.pgolf",
    "score": "RUN: from model.pgolf alone, in a process that has never seen training",
    "audit": "RUN, or --scorer FILE.py:NAME: whether its scores are code lengths",
    "report": "RUN: pictures and report.html; --watch serves the page while the run goes on",
    "show": "RUN: the figures, in the terminal",
    "compare": "RUN RUN ...: one page of several runs, and their differences in the terminal",
    "export": "RUN ... --out DIR: the folder that the challenge asks for, with one self-contained script",
    "compress": "FILE --artifact MODEL --out BITS: to as many bits as the score says",
    "decompress": "BITS --artifact MODEL --out FILE: and back",
    "push": "RUN REPO: its artifact to the Hugging Face Hub, with its report as the model card",
    "pull": "REPO --out DIR: an artifact from there, checked",
    "data": "--out DIR: a dataset from text, or the challenge's public one",
    "study": "STUDY.toml: many runs as one experiment, on this machine or a cluster, and their page",
    "honesty": "the submissions' published scores beside honest ones, in one table",
}


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    end_with_parent()
    keep_freed_memory()
    wait_briefly()  # so nothing above may have loaded torch
    try:
        with stopping_on_signals():
            return dispatch(words)
    except PgolfError as error:
        code, said = error.exit_code, str(error)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("pgolf."):
            raise
        code, said = 2, f"this script carries what its own settings need, and {error.name} is not in it; use the whole package"
    except KeyboardInterrupt:
        code, said = 128 + signal.SIGINT, "stopped"
    except Stopped as stop:
        code, said = 128 + stop.number, f"stopped by {signal.Signals(stop.number).name}"
    except MemoryError:
        code, said = 1, "there is not enough memory; give smaller settings or a smaller text"
    except BrokenPipeError:
        # the reader of a pipe has closed it; what is still to be written at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        said = str(system_error("use", error.filename or "a file", error))
        code = 1
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        code, said = INTERNAL_ERROR, internal_error(error)
    print(f"pgolf: {said}", file=sys.stderr)
    return code


def program() -> None:
    """`main`, and the process's end. One that a signal has stopped ends at once: to take a loaded torch apart takes seconds on
    a busy machine."""
    code = main()
    if code > 128:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def internal_error(error: Exception) -> str:
    """One line for what should not have happened: what it was and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())[:300]
    return (
        f"an error of the program's own: {type(error).__name__}: {what} ({place.filename}:{place.lineno}); "
        f"please report it; {DEBUG}=1 shows the traceback"
    )


def dispatch(words: list[str]) -> int:
    if "--list" in words:
        return list_presets()
    if words == ["--version"]:
        print(f"pgolf {pgolf.__version__}")
        return 0
    if words and words[0].startswith("--tyro-"):
        return completion(words)
    stage, words = (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)
    if stage and stage not in STAGES:
        raise UsageError(f"no stage {stage!r}{nearest(stage, STAGES)}; there are {', '.join(STAGES)}")
    if not stage and {"-h", "--help"} & set(words):
        return help()
    return importlib.import_module(f"pgolf.cli.{stage or 'run'}").main(words)


def help() -> int:
    """The stages and the options that most runs need; --help-all shows a flag for every setting."""
    from pgolf.cli.flags import RunOptions
    from pgolf.cli.parse import parse

    print("pgolf [STAGE] [options]; pgolf STAGE --help explains one stage\n")
    for name, line in STAGES.items():
        print(f"  {name:<11}{line}")
    print()
    parse(RunOptions, ["--help"], "run")
    return 0


def list_presets() -> int:
    width = max(map(len, preset_names()))
    for name in preset_names():
        print(f"{name.ljust(width)}  {load_preset(name).description}")
    return 0


def completion(words: list[str]) -> int:
    """`--tyro-print-completion bash` (or zsh, tcsh, fish), `--tyro-write-completion bash FILE`: by a parser of all stages."""
    import tyro

    options = {name: importlib.import_module(f"pgolf.cli.{name}").Options for name in STAGES}
    tyro.extras.subcommand_cli_from_dict(options, prog="pgolf", args=words)
    return 0


if __name__ == "__main__":
    program()
