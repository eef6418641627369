"""Read a kernel's machine code (SASS), as nvdisasm prints it: its loops, and which pipe each instruction occupies.

Costs are in cycles of a whole multiprocessor for one warp's instruction: 32 lanes over the pipe's lanes a cycle. Lanes are
those of the CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"; what the guide leaves open is marked
as assumed.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PIPES = ("tensor", "mufu", "fp32", "int", "lsu", "issue")
SCHEDULERS = 4  # instructions that a multiprocessor issues a cycle
SHARED_BYTES = 128  # bytes that shared memory gives or takes a cycle
GLOBAL_BYTES = 64  # bytes that the path to the L2 cache gives or takes a cycle (assumed)


@dataclass(frozen=True)
class Rates:
    """Lanes a cycle of one multiprocessor's pipes, and the FLOPs of its tensor cores a cycle (dense, 16-bit floats)."""

    fp32: int = 128
    integer: int = 64
    special: int = 16  # MUFU; conversions between integers and floats are taken to share it (assumed)
    fp64: int = 64
    tensor: int = 4096


# Tensor cores: from the data sheets' dense bfloat16 rate over multiprocessors and clock. sm_100 and sm_120 are taken to have
# Hopper's integer lanes (assumed).
RATES = {
    80: Rates(fp32=64, fp64=32, tensor=2048),
    86: Rates(fp64=2, tensor=1024),
    89: Rates(fp64=2, tensor=1024),
    90: Rates(),
    100: Rates(tensor=8192),
    120: Rates(fp64=2, tensor=1024),
}

TENSOR = ("HGMMA", "HMMA", "UTCHMMA")
FP32 = ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "HFMA2", "HADD2", "HMUL2", "HMNMX2")
# integer multiplication runs in half of the float lanes
HALF_FP32 = ("IMAD", "IDP")
SPECIAL = ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV")
FP64 = ("DFMA", "DADD", "DMUL", "DSETP")
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS", "LDL", "STL")
GLOBAL = ("LDG", "STG", "LD", "ST", "LDGSTS", "RED", "ATOM", "ATOMG")
ASYNCHRONOUS = ("LDGSTS", "UTMALDG")
SHUFFLES = ("SHFL", "REDUX")
BARRIERS = ("BAR",)
LOCAL = ("LDL", "STL")
# issued, without a pipe of their own here: control flow, the uniform datapath, waiting, the memory accelerator
ISSUED_ONLY = (
    "BRA", "BRX", "EXIT", "RET", "CALL", "BSSY", "BSYNC", "WARPSYNC", "NOP", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "SYNCS",
    "FENCE", "MEMBAR", "ERRBAR", "CCTL", "NANOSLEEP", "YIELD", "ELECT", "BAR", "BREAK", "JMP", "S2R", "S2UR", "CS2R", "LDC",
    "ACQBULK", "VOTE", "R2UR", "PREEXIT", "DEPBAR", "ARRIVES", "LDT", "STT",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    name: str  # HGMMA
    form: str  # HGMMA.64x64x16.F32.BF16
    operands: str

    @property
    def bits(self) -> int:
        """Bits a lane that a load or store moves."""
        if match := re.search(r"\.M88\.(\d)", self.form):
            return 32 * int(match[1])
        widths = {"8": 8, "16": 16, "64": 64, "128": 128, "256": 256}
        suffixes = re.findall(r"\.[US]?(8|16|64|128|256)(?=\.|$)", self.form)
        return widths[suffixes[-1]] if suffixes else 32

    @property
    def flops(self) -> int:
        """Of one warp's share of a product; 0 for a product whose shape is not in its name (tcgen05)."""
        if match := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", self.form):
            rows, columns, depth = map(int, match.groups())
            return 2 * rows * columns * depth // 4
        if match := re.match(r"HMMA\.(\d{2})(\d)(\d+)", self.form):
            rows, columns, depth = map(int, match.groups())
            return 2 * rows * columns * depth
        return 0


@dataclass
class Loop:
    """An innermost loop: its instructions, and those of them that a branch inside the loop may jump over."""

    body: list[Instruction]
    optional: list[Instruction] = field(default_factory=list)

    @property
    def multiplies(self) -> bool:
        return any(instruction.name in TENSOR for instruction in self.body)

    @property
    def asynchronous(self) -> bool:
        """Are its loads on their way before they are needed?"""
        return any(instruction.name in ASYNCHRONOUS for instruction in self.body)


@dataclass
class Code:
    """A kernel's instructions: all of them, the innermost loops, and what lies outside of those."""

    instructions: list[Instruction]
    loops: list[Loop]
    outside: list[Instruction]


def disassemble(cubin: bytes) -> str:
    """The machine code of a kernel, by the nvdisasm that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), "-c", file.name], check=True, capture_output=True, text=True).stdout


LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P[T\d]+\s+)?(?P<form>[A-Z][\w.]*)(?P<operands>[^;]*);")
TARGET = re.compile(r"`\((\.L_x?_?\d+)\)")


def read(text: str) -> Code:
    """Loops are found by their branches backwards; of nested ones the innermost counts."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"(\.L_x?_?\d+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif match := LINE.search(line):
            form = match["form"]
            instructions.append(Instruction(form.partition(".")[0], form, match["operands"]))
    jumps = [
        (labels[target[1]], i)
        for i, instruction in enumerate(instructions)
        if instruction.name == "BRA" and (target := TARGET.search(instruction.operands)) and target[1] in labels
    ]
    # what follows the last EXIT is a loop that nothing enters
    last = max((i for i, instruction in enumerate(instructions) if instruction.name == "EXIT"), default=len(instructions))
    backwards = [(start, end) for start, end in jumps if start <= end <= last]
    # a spin on a barrier of the memory accelerator is no loop of the kernel's
    backwards = [(start, end) for start, end in backwards if end - start > 3]
    innermost = [
        (start, end)
        for start, end in sorted(set(backwards))
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in backwards)
    ]
    loops = []
    for start, end in innermost:
        skipped: set[int] = set()
        for goal, i in jumps:
            # a part with products in it is the loop's work, not an exception to it
            part = range(i + 1, goal)
            if start <= i < goal <= end and not any(instructions[j].name in TENSOR for j in part):
                skipped.update(part)
        loops.append(
            Loop(
                [instructions[i] for i in range(start, end + 1) if i not in skipped],
                [instructions[i] for i in sorted(skipped)],
            )
        )
    inside = {i for start, end in innermost for i in range(start, end + 1)}
    return Code(instructions, loops, [x for i, x in enumerate(instructions) if i not in inside and i <= last])


def cycles(instructions: Iterable[Instruction], rates: Rates, flops_of_an_mma: float = 0.0) -> dict[str, float]:
    """Cycles of each pipe for one warp. `flops_of_an_mma` serves products whose shape is not in their name."""
    spent = dict.fromkeys(PIPES, 0.0)
    for instruction in instructions:
        name = instruction.name
        spent["issue"] += 1 / SCHEDULERS
        if name in TENSOR:
            spent["tensor"] += (instruction.flops or flops_of_an_mma) / rates.tensor
        elif name in SPECIAL:
            spent["mufu"] += 32 / rates.special
        elif name in FP32:
            spent["fp32"] += 32 / rates.fp32
        elif name in HALF_FP32:
            spent["fp32"] += 32 / (rates.fp32 / 2 if rates.fp32 > 64 else rates.fp32)
        elif name in FP64:
            spent["fp32"] += 32 / rates.fp64
        elif name in SHARED:
            spent["lsu"] += max(1.0, 4 * instruction.bits / SHARED_BYTES)
        elif name in GLOBAL:
            spent["lsu"] += max(1.0, 4 * instruction.bits / GLOBAL_BYTES)
        elif name in SHUFFLES:
            spent["lsu"] += 1.0
        elif name not in ISSUED_ONLY and not name.startswith("U"):
            spent["int"] += 32 / rates.integer
    return spent


def global_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes that one warp's loads and stores of global memory move, were none masked."""
    return sum(4 * x.bits for x in instructions if x.name in GLOBAL)


def narrow_share(instructions: Sequence[Instruction]) -> float:
    """The share of the bytes loaded from global memory that come 32 bits a lane or less."""
    loads = [x for x in instructions if x.name in ("LDG", "LDGSTS")]
    total = sum(x.bits for x in loads)
    return sum(x.bits for x in loads if x.bits <= 32) / total if total else 0.0
