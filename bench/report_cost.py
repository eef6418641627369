"""What the page of a long stream costs: a run folder of made-up scores, read and drawn in a process of its own.

    python bench/report_cost.py [--tokens 10000000] [--predictors 8]

Prints seconds of processor time, the greatest memory and the page's size, and fails above 60 s, 2 GB or 3 MB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pgolf.summary import Score, Summary, write_summary

VOCAB, BOS, LINE, PATTERN = 8192, 1, 512, 500
KINDS = ["boundary", "byte", "space", "digit", "punctuation", "word start", "continuation"]


def write(folder: Path, tokens: int, results: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"reading_{i}" for i in range(results)]
    (folder / "config.toml").write_text('preset = "made up"\n')
    kinds = "".join(str(i) for i in rng.integers(0, len(KINDS), VOCAB))
    head = {"targets": tokens, "results": names, "unit": "nats", "bos": BOS, "kinds": KINDS, "kind_of_token": kinds}
    with open(folder / "score.jsonl", "w") as file:
        file.write(json.dumps(head) + "\n")
        # some hundred lines over and over: what is read costs the same, and writing it is quick
        bodies = [_line(rng, min(LINE, tokens), names) for _ in range(min(PATTERN, -(-tokens // LINE)))]
        for number in range(tokens // LINE):
            file.write(bodies[number % len(bodies)])
        if tokens % LINE:
            file.write(_line(rng, tokens % LINE, names))
    score = Score(bpb=1.0, loss=2.0, nats=2.0 * tokens, tokens=tokens, bytes=4 * tokens, legal=True, seconds=1.0)
    write_summary(folder / "summary.json", Summary(score=dict.fromkeys(names, score), main=names[-1]))


def _line(rng: np.random.Generator, count: int, names: list[str]) -> str:
    ids = rng.integers(2, VOCAB, count)
    ids[rng.random(count) < 1 / 900] = BOS
    nats = rng.gamma(1.5, 2.0, count)
    line = {"tokens": ids.tolist(), "bytes": rng.integers(1, 9, count).tolist()}
    line |= {name: (nats * (1 - 0.01 * i)).round(5).tolist() for i, name in enumerate(names)}
    return json.dumps(line, separators=(",", ":")) + "\n"


def draw(folder: Path) -> None:
    from pgolf.report.files import read_run
    from pgolf.report.page import page

    begun, wall = time.process_time(), time.perf_counter()
    run = read_run(folder)
    assert run.scores and not run.damaged
    text = page(run)
    figures = {
        "tokens": run.scores.tokens,
        "seconds of processor time": time.process_time() - begun,
        "seconds on the wall": time.perf_counter() - wall,
        "peak memory (GB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "page (MB)": len(text.encode()) / 1e6,
    }
    print(json.dumps(figures))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--predictors", type=int, default=8)
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        draw(options.draw)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.tokens, options.results)
        size = (Path(folder) / "score.jsonl").stat().st_size / 1e6
        # writing has used memory too, so drawing gets a process of its own
        done = subprocess.run([sys.executable, __file__, "--draw", folder], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return 1
    figures = json.loads(done.stdout)
    print(f"score.jsonl of {size:,.0f} MB, {options.results} predictors")
    for name, value in figures.items():
        print(f"  {name}: {value:,.3f}" if isinstance(value, float) else f"  {name}: {value:,}")
    limits = {"seconds of processor time": 60, "peak memory (GB)": 2, "page (MB)": 3}
    failed = [name for name, limit in limits.items() if figures[name] > limit]
    if failed:
        print(f"above its limit: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
