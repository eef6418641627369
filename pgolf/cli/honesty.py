"""The stage honesty: the submissions' published scores beside honest ones, in one table."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pgolf.audit.honesty import SYSTEMS, honest_row, said, table
from pgolf.cli.common import dataset_of
from pgolf.cli.parse import parse
from pgolf.config import read_toml
from pgolf.errors import OVER_LIMIT
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.process import run_child
from pgolf.progress import Display


@dataclass(frozen=True)
class Options:
    """The submissions' published and honest numbers, from short runs of their presets."""

    out: str = "runs/honesty"
    """Folder for the runs, one a system, and for honesty.json and honesty.md. Runs that are there are not made again."""
    steps: int = 100
    """Training steps of each run."""
    decode: int = 4096
    """Tokens that are compressed and decoded with each; 0: none."""


def main(words: list[str]) -> int:
    return honesty(parse(Options, words, "honesty"))


def honesty(options: Options) -> int:
    place, rows = Path(options.out), []
    with Display() as display:
        for preset in SYSTEMS:
            path = place / preset
            if not RunFolder(path).read_summary().score:
                display.say(f"{preset}: training and scoring")
                words = ["--resume"] if RunFolder(path).config.exists() else []
                # with time enough to give nothing up: the table is about what the scores are, not about speed
                words += ["--preset", preset, "--scale", "tiny", "--steps", str(options.steps), "--evaluation.seconds", "3600"]
                done = run_child([sys.executable, "-m", "pgolf.run", *words, "--out", str(path)])
                if done.returncode not in (0, OVER_LIMIT):
                    return done.returncode
            folder = RunFolder.existing(path)
            display.say(f"{preset}: weighing and decoding")
            rows.append(honest_row(folder, dataset_of(read_toml(folder.config)), options.decode))
        text = f"{table(rows)}\n\n{said(rows, options.steps)}\n"
        print(text)
        write_whole(place / "honesty.json", json.dumps({"steps": options.steps, "rows": rows}, indent=1) + "\n")
        write_whole(place / "honesty.md", text)
    return 0
