"""The driver: `python -m pgolf.run` trains, packs, scores and reports; each stage can be run alone.

    python -m pgolf.run [options]            all stages, into a new run folder
    python -m pgolf.run train [options]      the first stage only
    python -m pgolf.run pack RUN             weights to model.pgolf
    python -m pgolf.run score RUN            from model.pgolf alone, in a process that has never seen training;
                                             --plan FILE repeats what the clock decided in an earlier scoring
    python -m pgolf.run report RUN           pictures and report.html; --watch serves the page while the run goes on
    python -m pgolf.run audit RUN            whether its scores are code lengths; --scorer FILE.py:NAME audits yours
    python -m pgolf.run honesty              the submissions' published scores beside honest ones, in one table
    python -m pgolf.run show RUN             the figures, in the terminal
    python -m pgolf.run compare RUN RUN ...  one page of several runs, and their differences in the terminal
    python -m pgolf.run data --out DIR ...   make a dataset from text
    python -m pgolf.run compress FILE --artifact A --out F
                                             a file to as many bits as the score says, and back with `decompress`
    python -m pgolf.run export --out DIR RUN [RUN RUN]
                                             the folder that the challenge asks for, with one self-contained script
    python -m pgolf.run --list               the presets

Exit codes: 0 done, 1 something in the way or an audit that failed, 2 the command line or a setting is wrong,
128 + n stopped by signal n.
"""

import os
import signal
import subprocess
import sys

from pgolf.cli import (
    AuditOptions,
    CodecOptions,
    CompareOptions,
    DataOptions,
    ExportOptions,
    HonestyOptions,
    ReportOptions,
    ScoreOptions,
    StageOptions,
    UsageError,
    named_runs,
    parse,
    run_path,
    settings_from,
)
from pgolf.config import SettingsError, load_preset, nearest, preset_names, read_toml, to_toml
from pgolf.errors import PgolfError
from pgolf.folder import RunFolder, new_run_path, write_whole
from pgolf.process import keep_freed_memory, wait_briefly


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    keep_freed_memory()
    wait_briefly()  # so nothing above may have loaded torch
    try:
        return dispatch(words)
    except (UsageError, SettingsError) as error:
        code, said = 2, str(error)
    except PgolfError as error:
        code, said = 1, str(error)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("pgolf."):
            raise
        code, said = 2, f"this script carries what its own settings need, and {error.name} is not in it; use the whole package"
    except KeyboardInterrupt:
        code, said = 130, "stopped"
    except BrokenPipeError:
        # whoever was reading has seen enough; what is still to be written at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    print(f"pgolf: {said}", file=sys.stderr)
    return code


def dispatch(words: list[str]) -> int:
    if "--list" in words:
        return list_presets()
    stage = words[0] if words and not words[0].startswith("-") else ""
    if stage in ("", "train"):
        return run(words[1:] if stage else words, only_training=stage == "train")
    if stage == "data":
        from pgolf import stages

        return stages.make_data(parse(DataOptions, words[1:]))
    if stage == "export":
        from pgolf import stages

        return stages.export(parse(ExportOptions, named_runs(words[1:])))
    if stage == "audit":
        from pgolf import stages

        return stages.audit(parse(AuditOptions, words[1:], positional="run"))
    if stage == "honesty":
        from pgolf import stages

        return stages.honesty(parse(HonestyOptions, words[1:]))
    if stage in ("compress", "decompress"):
        from pgolf.evaluation.codec import commands

        return getattr(commands, stage)(parse(CodecOptions, words[1:], positional="file"))
    if stage == "compare":
        from pgolf import stages

        return stages.compare(parse(CompareOptions, named_runs(words[1:])))
    known = ["pack", "score", "report", "show"]
    if stage not in known:
        others = ["train", "data", "export", "compare", "compress", "decompress", "audit", "honesty"]
        hint = nearest(stage, known + others)
        raise UsageError(f"no stage {stage!r}{hint}; there are {', '.join(others + known)}")
    if len(words) < 2:
        raise UsageError(f"{stage} needs the folder of a run: python -m pgolf.run {stage} RUN")
    from pgolf import stages

    if stage == "score":
        scoring = parse(ScoreOptions, words[1:], positional="run")
        return stages.score(RunFolder.existing(scoring.run), scoring.device, scoring.plan)
    if stage == "report":
        reporting = parse(ReportOptions, words[1:], positional="run")
        folder = RunFolder.existing(reporting.run)
        return stages.watch(folder, reporting.port) if reporting.watch else stages.report(folder)
    options = parse(StageOptions, words[1:], positional="run")
    return getattr(stages, stage)(RunFolder.existing(options.run), options.device)


def list_presets() -> int:
    width = max(map(len, preset_names()))
    for name in preset_names():
        print(f"{name.ljust(width)}  {load_preset(name).description}")
    return 0


def run(words: list[str], *, only_training: bool) -> int:
    """Train, and unless told otherwise pack, score and report."""
    asks_for_help = "--help" in words or "-h" in words
    settings, options = settings_from(words, cuda=not asks_for_help and _has_cuda())
    from pgolf.distributed import rank_from_environment

    path = run_path(options)
    first = rank_from_environment() == 0
    if options.resume:
        if path is None:
            raise UsageError("--resume needs --out, the folder of the run to continue")
        folder = RunFolder.existing(path)
        settings = read_toml(folder.config)
    else:
        folder = RunFolder.create(path or new_run_path(settings.preset), first=first)
        if first:
            write_whole(folder.config, to_toml(settings))

    from pgolf import stages
    from pgolf.artifact.code import embedded

    if not (options.resume and folder.weights.exists()):
        code = stages.train(folder, settings, options.device, resume=options.resume)
        if code:
            return code
    if only_training:
        return 0
    if first and not (options.resume and folder.artifact.exists()):
        stages.pack(folder, options.device)
    # a process of its own: the score must come from the artifact, by code that has never seen training
    command = [sys.executable, "-m", "pgolf.run", "score", str(folder.path)]
    done = subprocess.run(command + (["--device", options.device] if options.device else []))
    if done.returncode or not first:
        return done.returncode
    if not embedded():
        stages.report(folder)
    return stages.show(folder, options.device)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
