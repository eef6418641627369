"""Compile every kernel ahead of time, for every target, without a GPU, and read what came out.

`python -m pgolf.kernels` prints the table; the test suite asserts on it.
"""

import contextlib
import hashlib
import importlib
import io
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.kernels import sass
from pgolf.kernels.estimate import DEVICES, Estimate, estimate, hottest, occupancy, resident
from pgolf.kernels.launch import Launch

if TYPE_CHECKING:
    from triton import JITFunction

OPERATORS = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/cases.py")))
CAPABILITIES = tuple(DEVICES)
# what of a kernel's code is worse than it could be; a case that lists a reason is excused from one of these
NARROW = "narrow loads"
BARRIERS = "barriers in a loop"
SERIALISED = "serialised"


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration: all that compiling it needs, and the work of one example launch.

    Attributes:
        signature: the Triton type of every argument that is not a constant; a suffix ":16" promises divisibility by 16, as
            a launch finds it for aligned pointers and for sizes that are multiples of 16 ("*bf16:16", "i32:16")
        bytes, flops: of the example launch, every tensor crossing memory once
        matmul: tensor-core instructions must appear
        max_registers: the launch table's expectation
        programs, iterations: of the example launch, and of each program's hottest loop; where they are not given, the
            estimate derives the work from flops or bytes
        rarely: how often an iteration of the loop runs what a branch in it guards (the end of a tile in a persistent kernel)
        accepts: findings that the case lives with (`NARROW`, `BARRIERS`, `SERIALISED`), and why
    """

    kernel: "JITFunction"
    name: str
    signature: dict[str, str]
    constants: dict[str, object]
    launch: Launch
    shape: str
    bytes: int
    flops: int
    matmul: bool = False
    max_registers: int = 255
    programs: int = 0
    iterations: float = 0.0
    rarely: float = 1.0
    accepts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What one case became for one target."""

    registers: int
    spilled: int
    shared: int
    tensor_core: str
    occupancy: float
    serialised: bool
    narrow: float  # share of loaded bytes that come 32 bits a lane or less, in the hottest loop or, without one, anywhere
    barriers: int  # in the hottest loop, unless its operands pass through shared memory, as those of a product do
    estimate: Estimate


def cases(operator: str, capability: int) -> list[Case]:
    """Every kernel of one operator, in every configuration its launch table holds for that capability."""
    return importlib.import_module(f"pgolf.kernels.{operator}.cases").compile_cases(capability)


def sample(operator: str, capability: int) -> list[Case]:
    """The first case of each kernel and launch: enough for a target whose code differs from another's by little."""
    first: dict[tuple[str, str], Case] = {}
    for case in cases(operator, capability):
        first.setdefault((case.kernel.__name__, str(case.launch)), case)
    return list(first.values())


def one_of_each(operator: str, capability: int) -> list[Case]:
    """The most work of each kernel, whatever its launch: the least that shows whether all of them still compile."""
    most: dict[str, Case] = {}
    for case in cases(operator, capability):
        other = most.get(case.kernel.__name__)
        if other is None or (case.flops, case.bytes) > (other.flops, other.bytes):
            most[case.kernel.__name__] = case
    return list(most.values())


def compile_case(case: Case, capability: int) -> Compiled:
    """Compile one case with the Triton at hand and read its code."""
    binary, log = _compile(case, capability)
    cubin, ptx = binary.asm["cubin"], binary.asm["ptx"]
    registers, spilled = _resources(cubin)
    shared, warps, device = binary.metadata.shared, case.launch.num_warps, DEVICES[capability]
    code = sass.read(sass.disassemble(cubin))
    programs_resident = resident(device, registers, shared, warps)
    loop = hottest(code)
    streaming = loop is not None and not loop.multiplies and not loop.asynchronous
    made = estimate(case, code, capability, device, programs_resident, _flops_of_an_mma(binary.asm.get("ttgir", "")))
    return Compiled(
        registers=registers,
        spilled=spilled,
        shared=shared,
        tensor_core=_tensor_core(ptx),
        occupancy=occupancy(device, registers, shared, warps),
        serialised=bool(re.search(r"C75\d\d|wgmma.*seriali[sz]ed", log)),
        narrow=sass.narrow_share(loop.body if loop else code.instructions),
        barriers=sum(x.name in sass.BARRIERS for x in loop.body) if loop and streaming else 0,
        estimate=made,
    )


def _compile(case: Case, capability: int) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas said of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**case.constants, **case.launch.tiles}
    names = case.kernel.arg_names
    missing = [name for name in names if name not in case.signature and name not in constants]
    if missing:
        raise ValueError(f"{case.name}: neither a type nor a value for {', '.join(missing)}")
    signature, attributes = {}, {}
    for position, name in enumerate(names):
        kind, _, aligned = case.signature.get(name, "constexpr").partition(":")
        signature[name] = kind
        if aligned:
            attributes[(position,)] = [["tt.divisibility", int(aligned)]]
    source = ASTSource(case.kernel, signature, {k: v for k, v in constants.items() if k in names}, attrs=attributes)
    options = {
        "num_warps": case.launch.num_warps,
        "num_stages": case.launch.num_stages,
        "enable_fp_fusion": True,
        "maxnreg": case.launch.max_registers,
    }
    knobs, said = triton.knobs, io.StringIO()
    for anew in (False, True):
        with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(said):
            knobs.nvidia.dump_ptxas_log, knobs.compilation.always_compile = True, anew
            binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        if "wgmma" not in binary.asm["ptx"]:
            return binary, ""
        # from Triton's cache a kernel comes without ptxas's words: they are kept beside it
        kept = Path(knobs.cache.dir) / "ptxas" / hashlib.sha256(binary.asm["cubin"]).hexdigest()
        if said.getvalue():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(said.getvalue())
        if kept.exists():
            break
    return binary, kept.read_text()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    operator: str
    capability: int
    case: Case
    compiled: Compiled

    @property
    def findings(self) -> dict[str, str]:
        """What is wrong with the code, by kind, without what the case accepts."""
        made, case = self.compiled, self.case
        most = DEVICES[self.capability].shared_per_block
        wrong = {
            "spills": f"spills {made.spilled} bytes" if made.spilled else "",
            "shared memory": f"wants {made.shared} bytes of shared memory, there are {most}" if made.shared > most else "",
            "registers": f"uses {made.registers} registers, its table expects at most {case.max_registers}"
            if made.registers > case.max_registers
            else "",
            "tensor cores": self._tensor_core(),
            SERIALISED: "its wgmma is serialised (ptxas C75xx)" if made.serialised else "",
            NARROW: f"{made.narrow:.0%} of its loads are 32 bits a lane or less" if made.narrow > 0.5 else "",
            BARRIERS: f"{made.barriers} barriers in a loop" if made.barriers else "",
        }
        return {kind: text for kind, text in wrong.items() if text and kind not in case.accepts}

    def _tensor_core(self) -> str:
        made = self.compiled
        if self.case.matmul and not made.tensor_core:
            return "has no tensor-core instruction"
        if self.case.matmul and self.capability == 90 and made.tensor_core != "wgmma":
            return f"uses {made.tensor_core}, not wgmma"
        return ""

    @property
    def trouble(self) -> str:
        """The findings that fail a check, in one line, or nothing. Narrow loads and barriers fail on Hopper, whose code the
        cases' reasons were written for."""
        reported = () if self.capability == 90 else (NARROW, BARRIERS)
        return "; ".join(text for kind, text in self.findings.items() if kind not in reported)

    def record(self) -> dict[str, object]:
        """The row as `--json` prints it."""
        import triton

        made, case, guess = self.compiled, self.case, self.compiled.estimate
        return {
            "operator": self.operator,
            "kernel": case.kernel.__name__,
            "case": case.name,
            "launch": str(case.launch),
            "shape": case.shape,
            "target": f"sm_{self.capability}",
            "device": DEVICES[self.capability].name,
            "triton": triton.__version__,
            "registers": made.registers,
            "spills": made.spilled,
            "shared": made.shared,
            "tensor_core": made.tensor_core,
            "serialised": made.serialised,
            "occupancy": round(made.occupancy, 4),
            "bytes": case.bytes,
            "flops": case.flops,
            "cycles": {pipe: round(count, 1) for pipe, count in guess.cycles.items()},
            "pipes_us": {pipe: round(time, 3) for pipe, time in guess.pipes_us.items()},
            "bound": guess.bound,
            "estimate_us": round(guess.estimate_us, 3),
            "at_best_us": round(guess.at_best_us, 3),
            "floor_us": round(guess.floor_us, 3),
            "findings": self.findings,
            "accepted": dict(case.accepts),
        }


def workers() -> ProcessPoolExecutor:
    """Processes to compile in, one a core."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def compile_all(
    operators: Sequence[str],
    capabilities: Sequence[int],
    pool: ProcessPoolExecutor,
    choose: Callable[[str, int], list[Case]] = cases,
) -> Iterator[Row]:
    """Every case of these operators (or those that `choose`, a function of this module, takes), in order, compiled by the
    pool."""
    listed = {(name, capability): choose(name, capability) for name in operators for capability in capabilities}
    work = [(choose, name, capability, i) for (name, capability), listing in listed.items() for i in range(len(listing))]
    for (_, name, capability, i), made in zip(work, pool.map(_compile_numbered, work, chunksize=2), strict=True):
        yield Row(name, capability, listed[name, capability][i], made)


def _compile_numbered(place: tuple[Callable[[str, int], list[Case]], str, int, int]) -> Compiled:
    """A case by its place: kernels cannot be sent to another process, but looked up there."""
    choose, operator, capability, i = place
    return compile_case(choose(operator, capability)[i], capability)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of local memory, as the driver's own tool reports them for a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if not match:
        raise RuntimeError(f"cuobjdump's answer has changed its form: {text!r}")
    registers, stack, local = map(int, match.groups())
    return registers, stack + local


def _tensor_core(ptx: str) -> str:
    for mark, name in (("wgmma.mma_async", "wgmma"), ("tcgen05.mma", "tcgen05"), ("mma.sync", "mma")):
        if mark in ptx:
            return name
    return ""


def _flops_of_an_mma(ttgir: str) -> float:
    """FLOPs of one tcgen05 product of depth 16, on average over those in the kernel; 0 where there are none."""
    sizes = []
    for line in ttgir.splitlines():
        shapes = re.findall(r"!ttg\.memdesc<(\d+)x(\d+)x", line)
        if "tc_gen5_mma" in line and len(shapes) >= 2:
            (rows, _), (_, columns) = shapes[0], shapes[1]
            sizes.append(2 * int(rows) * int(columns) * 16)
    return sum(sizes) / len(sizes) if sizes else 0.0
