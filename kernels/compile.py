"""Compile every kernel ahead of time, for every target, without a GPU, and read what came out.

`python -m pgolf.kernels` prints the table; the test suite asserts on it.
"""

import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgolf.kernels.launch import Launch

if TYPE_CHECKING:
    from triton import JITFunction

ROOMS = Path(__file__).parent
OPERATORS = tuple(sorted({path.parent.name for name in ("op", "cases") for path in ROOMS.glob(f"*/{name}.py")}))
CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Target:
    """What one streaming multiprocessor offers, in bytes, registers and warps."""

    shared_per_block: int
    shared_per_sm: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32


TARGETS = {
    80: Target(shared_per_block=166_912, shared_per_sm=167_936),
    90: Target(shared_per_block=232_448, shared_per_sm=233_472),
    100: Target(shared_per_block=232_448, shared_per_sm=233_472),
}


@dataclass(frozen=True)
class Device:
    """Nominal ceilings that a floor is computed from."""

    bytes_per_second: float
    flops_per_second: float


H100 = Device(3.35e12, 989e12)
H200 = Device(4.80e12, 989e12)


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration: all that compiling it needs, and the traffic of one example launch.

    `signature` maps every argument that is not a constant to its Triton type; a suffix ":16" promises divisibility
    by 16, as a launch finds it for aligned pointers and for sizes that are multiples of 16 ("*bf16:16", "i32:16").
    `matmul` says that tensor-core instructions must appear; `max_registers` is the launch table's expectation.
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


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    shared: int
    tensor_core: str
    occupancy: float


def cases(operator: str, capability: int) -> list[Case]:
    """Every kernel of one operator, in every configuration its launch table holds for that capability."""
    home = next(name for name in ("cases", "op") if (ROOMS / operator / f"{name}.py").exists())
    return importlib.import_module(f"pgolf.kernels.{operator}.{home}").compile_cases(capability)


def floor_microseconds(case: Case, device: Device) -> float:
    return 1e6 * max(case.bytes / device.bytes_per_second, case.flops / device.flops_per_second)


def compile_case(case: Case, capability: int) -> Compiled:
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
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(binary.asm["cubin"])
    shared = binary.metadata.shared
    return Compiled(
        registers=registers,
        spilled=spilled,
        shared=shared,
        tensor_core=_tensor_core(binary.asm["ptx"]),
        occupancy=_occupancy(TARGETS[capability], registers, shared, case.launch.num_warps),
    )


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    operator: str
    capability: int
    case: Case
    compiled: Compiled

    @property
    def trouble(self) -> str:
        """What is wrong with it, or nothing."""
        made, case = self.compiled, self.case
        if made.spilled:
            return f"spills {made.spilled} bytes"
        if made.shared > TARGETS[self.capability].shared_per_block:
            return f"wants {made.shared} bytes of shared memory"
        if made.registers > case.max_registers:
            return f"uses {made.registers} registers, its table expects at most {case.max_registers}"
        if case.matmul and not made.tensor_core:
            return "has no tensor-core instruction"
        if case.matmul and self.capability == 90 and made.tensor_core != "wgmma":
            return f"uses {made.tensor_core}, not wgmma"
        return ""


def workers() -> ProcessPoolExecutor:
    """Processes to compile in, one a core."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def compile_all(operators: Sequence[str], capabilities: Sequence[int], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Every case of these operators, in order, compiled by the pool."""
    places = [(name, capability) for name in operators for capability in capabilities]
    work = [(name, capability, i) for name, capability in places for i in range(len(cases(name, capability)))]
    for (name, capability, i), made in zip(work, pool.map(_compile_numbered, work, chunksize=2), strict=True):
        yield Row(name, capability, cases(name, capability)[i], made)


def _compile_numbered(place: tuple[str, int, int]) -> Compiled:
    """A case by its place: kernels cannot be sent to another process, but looked up there."""
    operator, capability, i = place
    return compile_case(cases(operator, capability)[i], capability)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes spilled, as the driver's own tool reports them for a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if not found:
        raise RuntimeError(f"cuobjdump's answer has changed its form: {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _tensor_core(ptx: str) -> str:
    for mark, name in (("wgmma.mma_async", "wgmma"), ("tcgen05.mma", "tcgen05"), ("mma.sync", "mma")):
        if mark in ptx:
            return name
    return ""


def _occupancy(target: Target, registers: int, shared: int, warps: int) -> float:
    """Resident warps over the most a multiprocessor can hold. Registers are granted per warp in units of 256."""
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = target.registers // per_warp // warps if registers else target.blocks
    by_shared = target.shared_per_sm // (shared + 1024)
    return warps * min(target.blocks, target.warps // warps, by_registers, by_shared) / target.warps
