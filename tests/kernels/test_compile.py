"""Every kernel, in every configuration of its launch table, compiles for every target within its limits. No GPU needed."""

import pytest
from pgolf.kernels.compile import CAPABILITIES, OPERATORS, TARGETS, cases, compile_case


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c}")
@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles(operator, capability):
    found = cases(operator, capability)
    assert found, f"{operator} lists nothing to compile for sm_{capability}"
    for case in found:
        made = compile_case(case, capability)
        where = f"{operator}/{case.name} [{case.launch}] sm_{capability}"
        assert made.spilled == 0, f"{where} spills {made.spilled} bytes"
        assert made.shared <= TARGETS[capability].shared_per_block, f"{where} wants {made.shared} bytes shared"
        assert made.registers <= case.max_registers, f"{where}: {made.registers} registers, not {case.max_registers}"
        if case.matmul:
            assert made.tensor_core, f"{where} has no tensor-core instruction"
            if capability == 90:
                assert made.tensor_core == "wgmma", f"{where} uses {made.tensor_core}, not wgmma"
