"""Reading machine code: loops, what a branch may skip, what each instruction costs; and the time that follows."""

import pytest

from pgolf.kernels import sass
from pgolf.kernels.compile import Case, cases
from pgolf.kernels.estimate import DEVICES, estimate, floor_microseconds, hottest, occupancy, resident

TEXT = """
kernel:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R13], desc[UR24][R4.64], P0 ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/                   MUFU.EX2 R8, R8 ;
        /*0070*/                   STG.E.128 desc[UR8][R4.64], R8 ;
.L_x_2:
        /*0080*/                   FFMA R1, R2, R3, R4 ;
        /*0090*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*00a0*/                   IADD3 R1, R2, R3, RZ ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   BRA `(.L_x_3);
"""


def instruction(form: str) -> sass.Instruction:
    return sass.Instruction(form.partition(".")[0], form, "")


def test_loops_and_what_they_may_skip():
    code = sass.read(TEXT)
    assert len(code.instructions) == 13 and len(code.loops) == 1
    (loop,) = code.loops
    assert [x.name for x in loop.body] == ["LDGSTS", "BAR", "HGMMA", "BRA", "FFMA", "BRA"]
    assert [x.name for x in loop.optional] == ["MUFU", "STG"] and loop.multiplies and loop.asynchronous
    assert [x.name for x in code.outside] == ["S2R", "BRA", "IADD3", "EXIT"]
    assert hottest(code) is loop


@pytest.mark.parametrize(
    "form, pipe, expected",
    [
        ("FFMA", "fp32", 0.25),
        ("IMAD.WIDE.U32", "fp32", 0.5),
        ("LOP3.LUT", "int", 0.5),
        ("MUFU.EX2", "mufu", 2.0),
        ("LDS.128", "lsu", 4.0),
        ("LDS", "lsu", 1.0),
        ("LDSM.16.M88.4", "lsu", 4.0),
        ("LDG.E.128", "lsu", 8.0),
        ("LDG.E.U8", "lsu", 1.0),
        ("SHFL.BFLY", "lsu", 1.0),
        ("HGMMA.64x128x16.F32.BF16", "tensor", 2 * 64 * 128 * 16 / 4 / 4096),
        ("HMMA.16816.F32.BF16", "tensor", 2 * 16 * 8 * 16 / 4096),
        ("UTCHMMA", "tensor", 100 / 4096),
    ],
)
def test_cycles_of_an_instruction_on_hopper(form, pipe, expected):
    spent = sass.cycles([instruction(form)], sass.RATES[90], flops_of_an_mma=100)
    assert spent[pipe] == expected and spent["issue"] == 0.25
    assert sum(spent.values()) == expected + 0.25, "one pipe beside the issue slot"


def test_what_only_issues():
    for form in ("BAR.SYNC.DEFER_BLOCKING", "UIADD3", "BRA", "UTMALDG.2D", "S2R"):
        assert sum(sass.cycles([instruction(form)], sass.RATES[90]).values()) == 0.25, form


def test_traffic_and_narrow_loads():
    code = [instruction(form) for form in ("LDG.E.128", "LDG.E.U16", "STG.E.64", "LDS.128")]
    assert sass.global_bytes(code) == 4 * (128 + 16 + 64)
    assert sass.narrow_share(code) == 16 / 144 and sass.narrow_share(code[2:]) == 0


def test_programs_of_a_multiprocessor():
    hopper = DEVICES[90]
    assert resident(hopper, 128, 100_000, 8) == 2 and occupancy(hopper, 128, 100_000, 8) == 0.25
    assert resident(hopper, 32, 0, 4) == 16 and occupancy(hopper, 32, 0, 4) == 1.0
    assert resident(DEVICES[86], 32, 0, 4) == 12, "48 warps"


def of(case: Case, text: str = TEXT, **changes):
    from dataclasses import replace

    return estimate(replace(case, **changes), sass.read(text), 90, DEVICES[90], 1, 0.0)


def test_estimate_counts_iterations_by_flops_and_by_what_the_case_says():
    case = cases("mlp", 90)[0]
    one = of(case, bytes=0, flops=4096 * 132 * 1_000_000, rarely=0.0)
    # 64 x 128 x 16 by each of two warpgroups: 128 cycles an iteration of eight warps; 4096 FLOPs a cycle
    assert one.cycles["tensor"] == 128 and one.pipes_us["tensor"] == pytest.approx(1e6 / 1755)
    assert one.cycles["mufu"] == 0 and one.cycles["lsu"] == 64 and one.bound == "tensor"
    assert one.at_best_us == pytest.approx(1e6 / 1755) == one.floor_us
    # products and the busiest other pipe in turns
    assert one.estimate_us == pytest.approx(1e6 / 1755 * (1 + 64 / 128))
    more = of(case, bytes=0, flops=4096 * 132 * 1_000_000, rarely=0.5)
    assert more.cycles["mufu"] == 8 * 2.0 * 0.5 and more.cycles["lsu"] == 64 + 8 * 8.0 * 0.5
    said = of(case, bytes=0, flops=1, programs=132, iterations=1000.0, rarely=0.0)
    assert said.pipes_us["tensor"] == pytest.approx(1000 * 128 / 1755)
    assert said.pipes_us["issue"] == pytest.approx((1000 * 8 * 6 + 8 * 4) / 4 / 1755), "with what lies outside of the loop"


def test_memory_and_latency_bound_estimates():
    straight = TEXT.replace("HGMMA.64x128x16.F32.BF16", "FADD").replace("LDGSTS.E.BYPASS.128", "LDG.E.128")
    case = cases("mlp", 90)[0]
    stream = of(case, straight, bytes=3_350_000_000, flops=0)
    assert stream.floor_us == pytest.approx(1000) and "tensor" != stream.bound
    alone = of(case, straight, bytes=1, flops=0, programs=132, iterations=10.0)
    assert alone.bound == "latency" and alone.estimate_us == pytest.approx(10 * 700 / 1755)


def test_floor():
    assert floor_microseconds((3_350_000, 0), DEVICES[90], 90) == pytest.approx(1.0)
    assert floor_microseconds((0, 4096 * 132 * 1755), DEVICES[90], 90) == pytest.approx(1.0)
