"""Tuning, profiles, the page on profiling and the script for a GPU machine, as far as no GPU is needed."""

import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import profiling, tune
from bench.benchmarks import BENCHMARKS, Place
from bench.floors import kernel_of, training_floors
from bench.profiling import Kernel
from pgolf.config import load_preset
from pgolf.kernels.compile import OPERATORS, cases
from pgolf.kernels.launch import Launch

ROOT = Path(__file__).parent.parent.parent


# ---- tuning


def valley(best: Launch):
    """Seconds that fall towards one choice, which is not a neighbour of the start."""

    def seconds_of(launch):
        steps = sum(abs(launch.tiles[name].bit_length() - size.bit_length()) for name, size in best.tiles.items())
        return 1.0 + steps + abs(launch.num_warps.bit_length() - best.num_warps.bit_length())

    return seconds_of


START = Launch({"BM": 64, "BN": 64, "TMA": 1}, num_warps=4, num_stages=3)


def test_the_search_walks_down_to_the_fastest():
    best = Launch({"BM": 256, "BN": 32, "TMA": 1}, num_warps=8, num_stages=3)
    ranking = tune.search(START, valley(best))
    assert ranking[0].launch == best and ranking[0].seconds == 1
    assert [found.seconds for found in ranking] == sorted(found.seconds for found in ranking)
    assert len({str(found.launch) for found in ranking}) == len(ranking)


def test_a_choice_that_does_not_work_is_passed_over():
    best = Launch({"BM": 256, "BN": 32, "TMA": 1}, num_warps=8, num_stages=3)
    works = lambda launch: None if launch.tiles["BN"] < 64 else valley(best)(launch)
    assert tune.search(START, works)[0].launch.tiles == {"BM": 256, "BN": 64, "TMA": 1}
    with pytest.raises(RuntimeError, match="own choice"):
        tune.search(START, lambda launch: None)


def test_the_search_ends_when_the_time_is_over():
    asked = []
    slow = lambda launch: asked.append(launch) or 1.0 / len(asked)
    assert len(tune.search(START, slow, until=lambda: len(asked) >= 4)) == 4


def test_neighbours_change_one_thing_and_leave_flags_alone():
    for launch in tune.neighbours(replace(START, max_registers=128)):
        changed = [name for name in START.tiles if launch.tiles[name] != START.tiles[name]]
        changed += [name for name in ("num_warps", "num_stages") if getattr(launch, name) != getattr(START, name)]
        assert len(changed) + (launch.max_registers is None) == 1 and "TMA" not in changed


@pytest.mark.parametrize("knob", tune.KNOBS, ids=lambda knob: knob.name)
def test_every_knob_is_there_and_has_its_benchmark(knob):
    assert knob.benchmark in {entry.name for entry in BENCHMARKS} and knob.operator in OPERATORS
    assert callable(getattr(importlib.import_module(f"pgolf.kernels.{knob.operator}.op"), knob.function))


def test_a_launch_that_changes_the_result_is_refused(monkeypatch):
    """On a CPU nothing asks for a launch, so a benchmark is made that does."""
    from pgolf.kernels.mlp import op

    knob = tune.Knob("mlp", "launch_up", "MLP", "forward")
    entry = next(entry for entry in BENCHMARKS if entry.name == "MLP")
    benchmark = entry.build(Place("cpu", "tiny"), "forward", *entry.shapes["tiny"])
    right = benchmark.ours
    benchmark.ours = lambda: right() * (1.0 if op.launch_up(20, 32, 90).tiles["BM"] % 128 == 0 else 2.0)
    monkeypatch.setattr(tune, "BENCHMARKS", [replace(entry, build=lambda *arguments: benchmark)])
    own = op.launch_up(20, 32, 90)
    record = tune.tune(knob, Place("cpu", "tiny"), lambda work: 1.0 / op.launch_up(0, 0, 90).tiles["BM"], seconds=60)
    assert "BM=8192" in record["winner"]["launch"] and record["table"]["launch"] == str(own)
    assert "BM=4096" in record["runner-up"]["launch"] or "BM=8192" in record["runner-up"]["launch"]
    assert op.launch_up(20, 32, 90) == own
    assert "runner-up" in tune.line(record)


# ---- profiles


def test_shares_and_floors_of_a_profile():
    kernels = [Kernel("small", 1.0, 10), Kernel("xsa_fwd_kernel", 3.0, 2)]
    text = profiling.table(kernels, lambda name: 0.75 if name == "xsa_fwd_kernel" else None)
    first, second = text.splitlines()[1:]
    assert re.split(r"  +", first) == ["xsa_fwd_kernel", "2", "1.5 s", "75.0%", "50%"]
    assert re.split(r"  +", second) == ["small", "10", "100 ms", "25.0%"]
    assert "1 more" in profiling.table(kernels, lambda name: None, top=1)


def test_summaries_of_nsys_and_ncu_are_read():
    nsys = 'note\n"Time (%)","Total Time (ns)","Instances","Name"\n75.0,3000000,2,"a(int, float)"\n25.0,1000000,1,b\n'
    assert profiling.kernels_in_csv(nsys) == [Kernel("a(int, float)", 0.003, 2), Kernel("b", 0.001, 1)]
    head = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    rows = '"0","a","gpu__time_duration.sum","ns","1,500"\n"1","a","gpu__time_duration.sum","us","2.5"\n'
    rows += '"1","a","other","%","9"\n'
    assert profiling.kernels_in_csv("==PROF== x\n" + head + rows) == [Kernel("a", pytest.approx(4e-6), 2)]
    with pytest.raises(ValueError, match="neither"):
        profiling.kernels_in_csv("nothing\n")


def test_floors_are_the_compile_tables_at_the_same_shape():
    """pr549's share of a step is the shape that the tables state their traffic for."""
    settings = load_preset("pr549")
    floors = training_floors(settings, 98_304)
    stated = {case.kernel.__name__: case for operator in OPERATORS for case in cases(operator, 90) if " d=64" in case.name}
    for kernel in ("xsa_fwd_kernel", "xsa_bwd_kernel", "rotary_fwd_kernel", "rotary_bwd_kernel"):
        case = next(
            c for operator in OPERATORS for c in cases(operator, 90) if c.kernel.__name__ == kernel and "bf16" in c.name
        )
        assert floors[kernel] == (case.bytes, case.flops), kernel
    assert set(floors) <= kernels_of_the_project() and stated


def test_a_profilers_name_finds_its_kernel():
    floors = {"mlp_fwd_kernel_up": (1, 1), "xsa_fwd_kernel": (1, 1)}
    assert kernel_of("xsa_fwd_kernel", floors) == kernel_of("xsa_fwd_kernel_0d1d2d3de", floors) == "xsa_fwd_kernel"
    assert kernel_of("mlp_fwd_kernel_up(CUtensorMap)", floors) == "mlp_fwd_kernel_up"
    assert kernel_of("ampere_bf16_gemm", floors) is None


# ---- the page, the script


def kernels_of_the_project() -> set[str]:
    return {case.kernel.__name__ for operator in OPERATORS for case in cases(operator, 90)}


def test_the_page_has_a_command_for_every_kernel():
    page = (ROOT / "docs" / "profiling.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (.+) \|$", page, re.M)
    named = {kernel for kernels, _ in rows for kernel in re.findall(r"`(\w+)`", kernels)}
    assert named == kernels_of_the_project()
    assert {benchmark for _, benchmark in rows} <= {entry.name for entry in BENCHMARKS}


def test_the_page_of_profiling_and_the_scripts_name_files_that_exist():
    text = (ROOT / "docs" / "profiling.md").read_text() + (ROOT / "bench" / "gpu.py").read_text()
    for module in set(re.findall(r"-m (bench\.\w+)", text)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for path in set(re.findall(r"(?<![\w/])((?:bench|tests)/[\w/]+\.?\w*)", text)):
        assert (ROOT / path).exists() or path == "bench/results", path
