"""A run that is killed while it replaces a file, at each of them, and what becomes of it.

    python -m tests.kill_points [--every 1]

Every stage runs once undisturbed, in a process that is forked from this one, which has everything loaded. Then once for each
file or folder that took its final name meanwhile, and each time it is killed (SIGKILL) right before or right after the N-th of
these; the same command is given again, with --resume for a run; and what lies there afterwards must be, bit for bit, what the
undisturbed one has left, and nothing else. `--every 3` tries every third of these points.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch._dynamo

import pgolf.artifact.calibration
import pgolf.cli.audit
import pgolf.cli.data
import pgolf.cli.export
import pgolf.cli.report
import pgolf.cli.score
import pgolf.cli.stages
import pgolf.evaluation.evaluate
import pgolf.evaluation.ngram_table
from pgolf.artifact import code, coder
from pgolf.audit.auditor import Report
from pgolf.config import read_toml
from pgolf.run import main
from pgolf.training import checkpoint

# after so many a process that does not end is ended
SECONDS = 120
# they say how long something took
TIMED = {"log.txt", "train.jsonl", "report.html", "audit.html"}
RUN = """run --data.path data --scale tiny --steps 3 --model.layers 2 --model.value-embedding-layers
    --training.checkpoint-seconds 0 --training.micro-batches 1
    --evaluation.max-tokens 200 --evaluation.stride 256 --evaluation.seconds 3600
    --evaluation.adaptation.chunk-tokens 256 --device cpu --out made""".split()


@dataclass(frozen=True)
class Command:
    """A command that makes `made` in its folder, and the one that goes on after a kill."""

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    needs: tuple[str, ...]
    """What must lie in the folder before."""
    complete: str = ""
    """What the second command may say, with exit code 1, where all was done before the kill."""


def command(name: str, words: Sequence[str], *needs: str, complete: str = "") -> Command:
    return Command(name, tuple(words), tuple(words), needs, complete)


COMMANDS = (
    command("data", "data --text text --vocab 280 --out made".split(), "text", complete="already holds files"),
    Command("run", tuple(RUN), ("run", "--resume", "--out", "made"), ("data",)),
    command("audit", ("audit", "made", "--device", "cpu"), "data", "made"),
    command("export", "export run --out made".split(), "run", complete="is not empty"),
    command("report", ("report", "made"), "made"),
    command("compress", "compress text/7.txt --artifact run/model.pgolf --out made".split(), "text", "run"),
    command("decompress", "decompress compress --artifact run/model.pgolf --out made".split(), "compress", "run"),
)


# ---- forks


def forked(words: Sequence[str], place: Path, kill_at: int = 0, before: bool = False) -> tuple[int, list[str], str]:
    """A command in a fork of this process: its exit code, the names that it gave to finished files, and what it said."""
    out, log = place.parent / "names", place.parent / "said"
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        os.chdir(place)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        names: list[str] = []
        for name in ("replace", "rename"):
            setattr(os, name, functools.partial(counted, getattr(os, name), names, kill_at, before))
        try:
            exit_code = main(list(words))
            out.write_text("\n".join(names))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            exit_code = 99
        sys.stdout.flush()
        os._exit(exit_code)
    _, status = os.waitpid(child, 0)
    exit_code = os.waitstatus_to_exitcode(status)
    names = out.read_text().split("\n") if not exit_code and out.read_text() else []
    return exit_code, names, log.read_text()


def counted(real, names: list[str], kill_at: int, before: bool, source, target) -> None:
    name = Path(target).name
    if name.endswith((".nbi", ".nbc")):  # numba's cache of compiled code, which only the first one fills
        return real(source, target)
    names.append(name)
    if before and len(names) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if not before and len(names) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


# ---- the stages, undisturbed and killed


def prepare() -> None:
    """What takes long and replaces no file is left out or done once for all forks; and what a stage would start as a process
    of its own becomes part of it, so that one count goes through all of a run."""
    torch.set_num_threads(1)
    coder.shape_tables()
    pgolf.cli.stages.run_child = lambda words: argparse.Namespace(returncode=main(words[3:]))
    pgolf.cli.audit.audit_run = lambda *words, **options: Report([], ["sliding"], 1.0)


def write_texts(folder: Path) -> None:
    folder.mkdir()
    for number in range(40):
        lines = [f"The {word} of {number} and its {word * 2}s, said once more {number * 7}." for word in "abcdefgh"]
        (folder / f"{number}.txt").write_text("\n\n".join(lines))


def trials(command: Command, store: Path, every: int) -> list[str]:
    """What is wrong after any of the command's kill points; the command's result goes to the store under its name."""
    place = store.parent / "place"
    calm = store / command.name
    lay_out(command, store, place)
    exit_code, names, said = forked(command.words, place)
    if exit_code:
        raise SystemExit(f"{command.name} ended with {exit_code} before anything was killed: {said}")
    if command.name == "run":
        # for all that follow: the script takes long to make, and is no file of a run; now count without it
        code.make_script(read_toml(place / "made" / "config.toml"), "cpu")
        lay_out(command, store, place)
        _, names, _ = forked(command.words, place)
    expected = contents(place)
    shutil.move(place / "made", calm)
    failures = []
    for number in points_of(names)[::every]:
        for before in (True, False):
            lay_out(command, store, place)
            where = f"{command.name}, killed {'before' if before else 'after'} {names[number - 1]} ({number} of {len(names)})"
            print(where, file=sys.stderr, flush=True)
            exit_code, _, said = forked(command.words, place, number, before)
            if exit_code != -signal.SIGKILL:
                failures.append(f"{where}: not killed, but {exit_code}: {said}")
                continue
            begun = (place / "made" / "config.toml").exists()
            exit_code, _, said = forked(command.again if begun else command.words, place)
            if exit_code and not (command.complete and command.complete in said):
                failures.append(f"{where}: the second try ended with {exit_code}: {said.strip().splitlines()[-1:]}")
            found = contents(place)
            failures += [f"{where}: {name} is not as it was" for name in differing(expected, found)]
    return failures


def points_of(names: list[str]) -> list[int]:
    """The replacements to kill at; many pictures one after the other are one."""
    pictures = [name.endswith(".svg") for name in names]
    return [at + 1 for at in range(len(names)) if not (pictures[at] and at and pictures[at - 1])]


def lay_out(command: Command, store: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in command.needs:
        if name == "made":
            shutil.copytree(store / "run", place / "made")
        elif name == "data":  # a run remembers there what it has measured
            shutil.copytree(store / name, place / name)
        else:
            os.symlink(store / name, place / name)


def contents(place: Path) -> dict[str, bytes]:
    """Every file that lies there, by its name, without what says how long something took."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink() or path.is_dir():
            found.setdefault(str(path.relative_to(place)), b"")
            continue
        found[str(path.relative_to(place))] = timeless(path)
    return found


def timeless(path: Path) -> bytes:
    if path.name == "summary.json":
        return json.dumps(without_times(json.loads(path.read_bytes())), sort_keys=True).encode()
    if path.name == "checkpoint.safetensors":
        tensors, facts = checkpoint.read(path)
        return safetensors.torch.save(tensors) + str(facts["step"]).encode()
    return b"" if path.name in TIMED or path.suffix == ".svg" else path.read_bytes()


def without_times(table):
    if not isinstance(table, dict):
        return table
    timed = {"seconds", "parts", "untimed", "peak_memory_bytes"}
    return {name: without_times(value) for name, value in table.items() if name not in timed}


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def run_all(folder: Path, every: int) -> list[str]:
    prepare()
    store = folder / "store"
    store.mkdir(parents=True)
    write_texts(store / "text")
    failures = []
    for one in COMMANDS:
        failures += trials(one, store, every)
        print(f"{one.name}: {len(failures)} failures so far", file=sys.stderr, flush=True)
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        failures = run_all(Path(place), options.every)
    print("\n".join(failures) or "killed at every point: each command went on to the same bits")
    sys.exit(bool(failures))
