"""Damaged files of a run: whatever is in them, a stage says in one line what is wrong, or goes on.

    python -m tests.fuzz [--mutations 20000] [--seed 0]

Each target is a file and the code that reads it. A mutation may be refused (PgolfError) or read; anything else (another
exception, more than 10 seconds, more than 256 MiB of memory on top) is a failure, and the mutated file is kept.
"""

import argparse
import contextlib
import io
import json
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pgolf.cli.pack import load_weights
from pgolf.cli.train import write_weights
from pgolf.config import Settings, read_toml, to_toml
from pgolf.errors import PgolfError
from pgolf.model import build_model
from pgolf.report.files import read_run
from pgolf.report.page import further_tables, page
from pgolf.report.tables import tables
from pgolf.summary import read_summary
from pgolf.training import checkpoint
from tests.report.folders import scored, trained
from tests.training.tiny import MODEL, Stream, run, tiny

SECONDS = 10
EXTRA_BYTES = 256 << 20
ODD_VALUES = (None, True, -1, 0, 1e308, 10**30, "", "x" * 300, [], {}, [[]], {"a": {}}, "nan", float("nan"), 2**63, "\0")


@dataclass(frozen=True)
class Target:
    name: str
    share: int
    """Of 20 mutations."""
    path: Path
    read: Callable[[], object]
    mutate: Callable[[bytes, random.Random], bytes]


# ---- mutations


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes cut out, repeated or put in, the end cut off."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 8, 64))
        kind = rng.randrange(5)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at : at + length]
        elif kind == 2:
            content[at:at] = content[at : at + length]
        elif kind == 3:
            content[at:at] = rng.randbytes(length)
        else:
            del content[at:]
    return bytes(content)


def of_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file's header, where its names, shapes, types and lengths are."""
    length = min(8 + int.from_bytes(data[:8], "little"), len(data))
    head = of_bytes(data[:length], rng)
    if rng.random() < 0.5 and len(head) > 8:
        head = (len(head) - 8).to_bytes(8, "little") + head[8:]
    return head + data[length:]


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in a JSON text becomes another, or goes, or changes its name."""
    table = json.loads(data)
    for _ in range(rng.choice((1, 1, 3))):
        _change(table, rng)
    return json.dumps(table).encode()


def _change(table, rng: random.Random) -> None:
    places = []

    def collect(inside) -> None:
        items = inside.items() if isinstance(inside, dict) else enumerate(inside)
        for key, value in list(items):
            places.append((inside, key))
            if isinstance(value, (dict, list)):
                collect(value)

    collect(table)
    if not places:
        return
    inside, key = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        inside[key] = rng.choice(ODD_VALUES)
    elif kind == 1:
        del inside[key]
    elif isinstance(inside, dict):
        inside[str(rng.choice(ODD_VALUES))] = inside.pop(key)


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """One line of JSON lines."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = of_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def either(*mutations: Callable) -> Callable:
    return lambda data, rng: rng.choice(mutations)(data, rng)


# ---- targets


def targets(folder: Path) -> list[Target]:
    scored_run = scored(folder / "scored", steps=20)
    training_run = trained(folder / "trained", steps=20)
    (folder / "packed").mkdir()
    settings = replace(Settings(), model=MODEL)
    config = folder / "config.toml"
    config.write_text(to_toml(settings))
    weights, model = folder / "weights.safetensors", build_model(MODEL, seed=1)
    write_weights(weights, model.state_dict())
    small = tiny(steps=1)
    resumed = folder / "resumed"
    run(small, resumed, Stream(small))
    saved = resumed / checkpoint.NAME

    def shown(path: Path) -> None:
        found = read_run(path)
        page(found)
        further_tables(found)
        tables(found.summary)

    def resume() -> None:
        run(small, resumed, Stream(small), resume=True)

    def of_facts(data: bytes, rng: random.Random) -> bytes:
        """Facts and tensors changed, and signed again."""
        saved.write_bytes(data)
        tensors, facts = checkpoint.read(saved)
        if rng.random() < 0.7:
            _change(facts, rng)
        else:
            name = rng.choice(sorted(tensors))
            odd = (tensors[name].double(), tensors[name].reshape(-1)[:1], torch.zeros(0), tensors[name].bool())
            tensors[name] = rng.choice(odd).clone()
            if rng.random() < 0.3:
                del tensors[name]
        checkpoint.write(saved, tensors, facts)
        return saved.read_bytes()

    return [
        Target("summary.json", 6, scored_run / "summary.json", lambda: read_summary(scored_run / "summary.json"),
               either(of_json, of_bytes)),
        Target("summary.json on the page", 1, scored_run / "summary.json", lambda: shown(scored_run), of_json),
        Target("config.toml", 4, config, lambda: read_toml(config), of_bytes),
        Target("train.jsonl", 1, training_run / "train.jsonl", lambda: shown(training_run), either(of_lines, of_bytes)),
        Target("score.jsonl", 1, scored_run / "score.jsonl", lambda: shown(scored_run), either(of_lines, of_bytes)),
        Target("weights.safetensors", 5, weights, lambda: load_weights(weights, model), either(of_header, of_bytes)),
        Target("checkpoint's header", 1, saved, lambda: checkpoint.read(saved), either(of_header, of_bytes)),
        Target("checkpoint, signed again", 1, saved, resume, of_facts),
    ]  # fmt: skip


# ---- the run


def fuzz(mutations: int, seed: int, folder: Path) -> list[str]:
    """The failures, one line each."""
    found, failures = targets(folder), []
    for target in found:
        content = target.path.read_bytes()
        target.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(mutations * target.share // 20):
            rng = random.Random(f"{seed} {target.name} {number}")
            mutated = target.mutate(content, rng)
            target.path.write_bytes(mutated)
            complaint = outcome(target.read)
            extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if not complaint and extra > EXTRA_BYTES:
                complaint = f"{extra >> 20} MiB of memory"
                before += extra // 1024
            if complaint:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{target.path.name}-{number}"
                kept.write_bytes(mutated)
                failures.append(f"{target.name}, mutation {number}: {complaint}; kept as {kept}")
        target.path.write_bytes(content)
    return failures


def outcome(read: Callable[[], object]) -> str:
    """What is wrong with how a mutation ended; nothing if it was read, or refused in one line."""

    def late(*_) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read()
    except PgolfError as error:
        return "" if str(error) and "\n" not in str(error) else f"not one line: {str(error)!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        failures = fuzz(options.mutations, options.seed, Path(place))
    print("\n".join(failures) or f"{options.mutations:,} mutations: each was read, or refused in one line")
    sys.exit(bool(failures))
