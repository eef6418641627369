"""Tune launch tables on the GPU at hand and print what to paste: `python -m bench.tune [KNOB ...] [--seconds N]`.

A developer's switch: nothing is ever tuned inside a run. From the table's own choice the search goes to whichever
neighbour is fastest (a tile halved or doubled, more or fewer warps or stages), until none is. A choice that does not
compile, does not fit or computes something else is passed over.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.benchmarks import BENCHMARKS, BOTH, FORWARD, Place, disagreement
from bench.timing import Work, device_clock, interleave
from pgolf.kernels.launch import Launch

SMALLEST_TILE, LARGEST_TILE = 16, 8192
WARPS, STAGES = (1, 2, 4, 8, 16), (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Knob:
    """A launch function, and the benchmark that it is tuned on."""

    operator: str
    function: str
    benchmark: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.operator}.{self.function}"


KNOBS = [
    Knob("attention", "launch_attention_fwd", "attention with XSA", FORWARD),
    Knob("attention", "launch_attention_bwd_kv", "attention with XSA", BOTH),
    Knob("attention", "launch_attention_bwd_q", "attention with XSA", BOTH),
    Knob("attention", "launch_attention_bwd_prepare", "attention with XSA", BOTH),
    Knob("attention", "launch_xsa", "XSA alone", BOTH),
    Knob("rotary", "launch_rotary", "rotary with QK-norm", BOTH),
    Knob("cross_entropy", "launch_forward", "cross-entropy, small vocabulary", BOTH),
    Knob("mlp", "launch_up", "MLP", FORWARD),
    Knob("mlp", "launch_down", "MLP", FORWARD),
    Knob("mlp", "launch_hidden", "MLP", BOTH),
    Knob("mlp", "launch_w_down", "MLP", BOTH),
    Knob("lora", "launch_product", "LoRA, rank 8", FORWARD),
    Knob("lora", "launch_shrink", "LoRA, rank 80", FORWARD),
    Knob("lora", "launch_expand", "LoRA, rank 80", FORWARD),
    Knob("lora", "launch_adapters", "LoRA, rank 80", BOTH),
    Knob("logit_stats", "launch_forward", "logit statistics, small vocabulary", FORWARD),
    Knob("hedge", "launch_tokens", "Hedge mixer counting", FORWARD),
    Knob("packed", "launch_gemv", "packed GEMV, 6 bits, large", FORWARD),
    Knob("packed", "launch_expand", "packed matrices expanded", FORWARD),
    Knob("newton_schulz", "launch_symmetric", "Newton-Schulz, wide", FORWARD),
    Knob("scan", "launch_forward", "scan", FORWARD),
    Knob("scan", "launch_states", "scan", BOTH),
    Knob("scan", "launch_chunks", "scan", BOTH),
]


def neighbours(launch: Launch) -> Iterator[Launch]:
    """One change each. Tiles are those that the table names B...; a choice of another kind (TMA) stays as it is."""
    for name, size in launch.tiles.items():
        if name.startswith("B"):
            for other in (size // 2, size * 2):
                if SMALLEST_TILE <= other <= LARGEST_TILE:
                    yield dataclasses.replace(launch, tiles={**launch.tiles, name: other})
    for field, choices in (("num_warps", WARPS), ("num_stages", STAGES)):
        place = choices.index(getattr(launch, field))
        for other in choices[max(0, place - 1) : place] + choices[place + 1 : place + 2]:
            yield dataclasses.replace(launch, **{field: other})
    if launch.max_registers:
        yield dataclasses.replace(launch, max_registers=None)


@dataclass(frozen=True)
class Trial:
    launch: Launch
    seconds: float


def search(
    start: Launch, seconds_of: Callable[[Launch], float | None], until: Callable[[], bool] = lambda: False
) -> list[Trial]:
    """Every choice that was tried and works, fastest first; `seconds_of` gives None for one that does not."""
    tried: dict[str, Trial | None] = {}

    def attempt(launch: Launch) -> Trial | None:
        if str(launch) not in tried:
            seconds = seconds_of(launch)
            tried[str(launch)] = None if seconds is None else Trial(launch, seconds)
        return tried[str(launch)]

    best = attempt(start)
    if best is None:
        raise RuntimeError(f"the table's own choice does not run: {start}")
    while not until():
        step = best
        for launch in neighbours(best.launch):
            if until():
                break
            trial = attempt(launch)
            if trial and trial.seconds < step.seconds:
                step = trial
        if step is best:
            break
        best = step
    return sorted((trial for trial in tried.values() if trial), key=lambda trial: trial.seconds)


class Tried:
    """A benchmark with one launch function replaced."""

    def __init__(self, knob: Knob, place: Place, seconds_of_work: Callable[[Work], float]):
        self.knob, self.seconds_of_work = knob, seconds_of_work
        self.op = importlib.import_module(f"pgolf.kernels.{knob.operator}.op")
        self.original = getattr(self.op, knob.function)
        entry = next(entry for entry in BENCHMARKS if entry.name == knob.benchmark)
        self.benchmark = entry.build(place, knob.form, *entry.shapes[place.size])
        self.asked: list[Launch] = []
        self.right = self._with(self._listening)

    def _listening(self, *arguments, **named) -> Launch:
        self.asked.append(self.original(*arguments, **named))
        return self.asked[-1]

    def _with(self, function: Callable):
        setattr(self.op, self.knob.function, function)
        try:
            return self.benchmark.ours()
        finally:
            setattr(self.op, self.knob.function, self.original)

    def __call__(self, launch: Launch) -> float | None:
        setattr(self.op, self.knob.function, lambda *arguments, **named: launch)
        try:
            if disagreement(self.benchmark.ours(), self.right) > self.benchmark.tolerance:
                return None
            return self.seconds_of_work(self.benchmark.ours)
        except Exception as error:  # what a compiler or a device says of a choice it cannot take has no common type
            print(f"    {launch}: {type(error).__name__}", file=sys.stderr)
            return None
        finally:
            setattr(self.op, self.knob.function, self.original)


def tune(knob: Knob, place: Place, seconds_of_work: Callable[[Work], float], seconds: float) -> dict:
    """The winner, the runner-up and the table's own choice, with their times, as a record to keep."""
    tried = Tried(knob, place, seconds_of_work)
    if not tried.asked:
        raise RuntimeError(f"{knob.benchmark}, {knob.form}, does not ask {knob.name}")
    begun = time.perf_counter()
    own = tried.asked[0]
    ranking = search(own, tried, lambda: time.perf_counter() - begun > seconds)
    before = next(trial for trial in ranking if trial.launch == own)
    places = {"winner": ranking[0], "runner-up": ranking[min(1, len(ranking) - 1)], "table": before}
    described = {name: {"launch": str(trial.launch), "seconds": trial.seconds} for name, trial in places.items()}
    return {"knob": knob.name, "benchmark": f"{knob.benchmark}, {knob.form}", "tried": len(ranking), **described}


def line(record: dict) -> str:
    """What to paste, as a comment and a table entry's content."""
    winner, second, table = (record[name] for name in ("winner", "runner-up", "table"))
    return (
        f"{record['knob']}, by {record['benchmark']} ({record['tried']} choices ran)\n"
        f"    {winner['launch']}    # {1e6 * winner['seconds']:.1f} us; runner-up {second['launch']}: "
        f"{1e6 * second['seconds']:.1f} us; table had {table['launch']}: {1e6 * table['seconds']:.1f} us"
    )


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument(
        "knobs", nargs="*", metavar="KNOB", help=f"OPERATOR or OPERATOR.function; all of {len(KNOBS)} if not given"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="for one knob; default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the records here as well")
    options = parser.parse_args()
    chosen = [knob for knob in KNOBS if not options.knobs or knob.operator in options.knobs or knob.name in options.knobs]
    if not chosen:
        parser.error(f"no such knob; there are {', '.join(knob.name for knob in KNOBS)}")
    if not torch.cuda.is_available():
        print("error: tuning times kernels on an NVIDIA GPU, and torch sees none here", file=sys.stderr)
        return 1
    clock, records = device_clock(), []
    timed = lambda work: interleave({"ours": work}, clock, 0.0).of("ours").median
    for knob in chosen:
        try:
            records.append(tune(knob, Place("cuda", "full"), timed, options.seconds))
            print(line(records[-1]), flush=True)
        except RuntimeError as error:
            print(f"{knob.name}: {error}", file=sys.stderr)
        torch.cuda.empty_cache()
        if options.json:
            options.json.write_text(json.dumps({"device": torch.cuda.get_device_name(), "records": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
