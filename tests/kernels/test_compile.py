"""Every kernel, in every configuration of its launch table, compiles for every target within its limits. No GPU needed."""

import dataclasses

import pytest

from pgolf.kernels.compile import CAPABILITIES, OPERATORS, Compiled, Row, cases, compile_all, workers


@pytest.fixture(scope="module")
def pool():
    with workers() as pool:
        yield pool


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c}")
@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles(operator, capability, pool):
    rows = list(compile_all([operator], [capability], pool))
    assert len(rows) == len(cases(operator, capability)) > 0
    troubles = [f"{row.case.name} [{row.case.launch}] {row.trouble}" for row in rows if row.trouble]
    assert not troubles, "\n".join(troubles)


@pytest.mark.parametrize(
    "change, trouble",
    [
        ({}, ""),
        ({"spilled": 8}, "spills 8 bytes"),
        ({"shared": 300_000}, "shared memory"),
        ({"registers": 255}, "registers"),
        ({"tensor_core": ""}, "no tensor-core"),
        ({"tensor_core": "mma"}, "not wgmma"),
    ],
)
def test_what_counts_as_trouble(change, trouble):
    case = dataclasses.replace(cases("mlp", 90)[0], matmul=True, max_registers=200)
    good = Compiled(registers=100, spilled=0, shared=1000, tensor_core="wgmma", occupancy=1.0)
    found = Row("mlp", 90, case, dataclasses.replace(good, **change)).trouble
    assert trouble in found and bool(found) == bool(trouble)
