"""Every kernel compiles within its limits, and its machine code has nothing that its case does not accept.
No GPU needed."""

import dataclasses
import json
import subprocess
import sys

import pytest

from pgolf.kernels.__main__ import WIDTH, table
from pgolf.kernels.compile import (
    BARRIERS,
    CAPABILITIES,
    NARROW,
    OPERATORS,
    SERIALISED,
    Compiled,
    Row,
    cases,
    compile_all,
    compile_case,
    one_of_each,
    workers,
)
from pgolf.kernels.estimate import Estimate
from pgolf.kernels.launch import Launch


@pytest.fixture(scope="module")
def pool():
    with workers() as pool:
        yield pool


def troubles(rows):
    return "\n".join(f"{row.case.name} [{row.case.launch}] {row.trouble}" for row in rows if row.trouble)


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles(operator, pool):
    """A launch of each kernel for one target; `.ci/run` has `python -m pgolf.kernels` compile them all, for more."""
    rows = list(compile_all([operator], [90], pool, one_of_each))
    assert {row.case.kernel.__name__ for row in rows} == {case.kernel.__name__ for case in cases(operator, 90)}
    assert not troubles(rows), troubles(rows)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_card_gets_a_launch(operator):
    """Cards without an entry of their own in any table, among them such as did not exist when it was written."""
    for capability in (86, 89, 103, 120, 121):
        assert all(isinstance(case.launch, Launch) for case in cases(operator, capability))
    assert [str(c.launch) for c in cases(operator, 89)] == [str(c.launch) for c in cases(operator, 86)]


GUESS = Estimate(cycles={"tensor": 1.0}, pipes_us={}, bound="tensor", floor_us=1.0, at_best_us=1.0, estimate_us=2.0)
GOOD = Compiled(
    registers=100, spilled=0, shared=1000, tensor_core="wgmma", occupancy=1.0, serialised=False, narrow=0.1, barriers=0,
    estimate=GUESS,
)  # fmt: skip


@pytest.mark.parametrize(
    "change, trouble",
    [
        ({}, ""),
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 300_000}, "shared memory"),
        ({"registers": 255}, "registers"),
        ({"tensor_core": ""}, "no tensor-core"),
        ({"tensor_core": "mma"}, "not wgmma"),
        ({"serialised": True}, "serialised"),
        ({"narrow": 0.6}, "60% of its loads"),
        ({"barriers": 2}, "2 barriers"),
    ],
)
def test_what_counts_as_trouble(change, trouble):
    case = dataclasses.replace(cases("mlp", 90)[0], matmul=True, max_registers=200)
    found = Row("mlp", 90, case, dataclasses.replace(GOOD, **change)).trouble
    assert trouble in found and bool(found) == bool(trouble)


def test_narrow_loads_and_barriers_are_only_reported_for_other_targets():
    row = Row("mlp", 100, cases("mlp", 100)[0], dataclasses.replace(GOOD, narrow=0.6, barriers=2))
    assert set(row.findings) == {NARROW, BARRIERS} and not row.trouble


def test_a_case_may_say_why_it_lives_with_a_finding():
    bad = dataclasses.replace(GOOD, serialised=True, narrow=1.0, barriers=1, spilled=4)
    reasons = {SERIALISED: "because", NARROW: "because", BARRIERS: "because"}
    case = dataclasses.replace(cases("mlp", 90)[0], accepts=reasons)
    assert list(Row("mlp", 90, case, bad).findings) == ["spills"]


def test_a_serialising_change_is_noticed():
    """The register cap that once made ptxas serialise the wgmma of dQ at the challenge's shape."""
    case = next(c for c in cases("attention", 90) if c.name.startswith("backward q d=64 bf16"))
    capped = Launch({"BM": 128, "BN": 64}, num_warps=8, num_stages=2, max_registers=128)
    made = compile_case(dataclasses.replace(case, launch=capped), 90)
    assert made.serialised and "serialised" in Row("attention", 90, case, made).trouble
    assert compile_case(dataclasses.replace(case, launch=capped), 90).serialised, "from Triton's cache, too"


def test_the_table_is_narrow_and_the_record_whole():
    case = cases("mlp", 90)[0]
    lines = table([Row("mlp", 90, dataclasses.replace(case, name="a name that is longer " * 4), GOOD)])
    assert len(lines) == 2 and all(len(line) <= WIDTH for line in lines)
    assert "2.00" in lines[1] and len(table([Row("mlp", 90, case, GOOD)], full=True)) == 3
    record = json.loads(json.dumps(Row("mlp", 90, case, GOOD).record()))
    wanted = "kernel case target triton registers spills serialised occupancy bytes flops cycles bound estimate_us floor_us"
    assert set(wanted.split()) <= set(record) and record["target"] == "sm_90"


def test_without_triton_there_is_one_clear_line():
    code = "import sys; sys.modules['triton'] = None; from pgolf.kernels.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.strip().count("\n") == 0 and "pip install triton" in done.stderr


def test_targets():
    assert CAPABILITIES == (80, 86, 89, 90, 100, 120)
