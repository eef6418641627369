"""An estimate of a kernel's time from its machine code: what its pipes, memory and tensor cores need at least.

Nothing here was measured. The work of a case is counted in iterations of the kernel's hottest loop (or, without a loop, in
programs): as many as the case says, or as its FLOPs or bytes ask for. Each pipe's cycles follow from the instructions
(sass.py), and three times from them:

    floor     bytes over the memory's nominal rate, or FLOPs over the tensor cores' nominal rate, whichever is longer
    at best   the busiest pipe or the memory, everything else hidden behind it
    estimate  the same, but in a kernel that multiplies matrices the tensor cores, the busiest of the other pipes and loads
              that are not on their way beforehand one after the other: products wait for what is computed from products
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf.kernels import sass
from pgolf.kernels.launch import nearest

if TYPE_CHECKING:
    from pgolf.kernels.compile import Case

# cycles from a load of global memory to its value, past the caches (assumed; published microbenchmarks say 500 to 800)
LATENCY = 700


@dataclass(frozen=True)
class Device:
    """A card: nominal memory rate and clock, multiprocessors, and what one of them holds."""

    name: str
    bytes_per_second: float
    hertz: float
    multiprocessors: int
    shared_per_block: int
    shared_per_sm: int
    registers: int = 65_536
    warps: int = 64
    blocks: int = 32


# by capability; nominal figures of the vendor's data sheets, limits of the CUDA C++ Programming Guide's table of compute
# capabilities
DEVICES = {
    80: Device("A100", 2.04e12, 1.41e9, 108, 166_912, 167_936),
    86: Device("A10", 0.60e12, 1.695e9, 72, 101_376, 102_400, warps=48, blocks=16),
    89: Device("L40S", 0.864e12, 2.52e9, 142, 101_376, 102_400, warps=48, blocks=24),
    90: Device("H100", 3.35e12, 1.755e9, 132, 232_448, 233_472),
    100: Device("B200", 8.0e12, 1.85e9, 148, 232_448, 233_472),
    120: Device("RTX 5090", 1.79e12, 2.41e9, 170, 101_376, 102_400, warps=48, blocks=24),
}


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one launch, and what it is bound by; `cycles` are those of one iteration of one program's hottest
    loop (of one program, where there is none), by pipe; `pipes_us` are the launch's, by pipe, memory and latency."""

    cycles: dict[str, float]
    pipes_us: dict[str, float]
    bound: str
    floor_us: float
    at_best_us: float
    estimate_us: float


def occupancy(device: Device, registers: int, shared: int, warps: int) -> float:
    """Resident warps over the most a multiprocessor can hold. Registers are granted per warp in units of 256."""
    return warps * resident(device, registers, shared, warps) / device.warps


def resident(device: Device, registers: int, shared: int, warps: int) -> int:
    """Programs that one multiprocessor holds at a time."""
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = device.registers // per_warp // warps if registers else device.blocks
    by_shared = device.shared_per_sm // (shared + 1024)
    return min(device.blocks, device.warps // warps, by_registers, by_shared)


def floor_microseconds(work: tuple[int, int], device: Device, capability: int) -> float:
    """The least time for (bytes, FLOPs), the FLOPs on the tensor cores."""
    peak = nearest(sass.RATES, capability).tensor * device.multiprocessors * device.hertz
    return 1e6 * max(work[0] / device.bytes_per_second, work[1] / peak)


def hottest(code: sass.Code) -> sass.Loop | None:
    """The loop that does the work: of those that multiply, the one with the least instructions a FLOP; else the one with the
    most global traffic, the longest of equals."""
    if products := [loop for loop in code.loops if loop.multiplies]:
        return min(products, key=lambda loop: len(loop.body) / sum(x.name in sass.TENSOR for x in loop.body))
    if any(x.name in sass.TENSOR for x in code.outside):
        return None
    loads = [loop for loop in code.loops if sass.global_bytes(loop.body)]
    return max(loads, key=lambda loop: (sass.global_bytes(loop.body), len(loop.body)), default=None)


def estimate(
    case: "Case", code: sass.Code, capability: int, device: Device, programs_resident: int, flops_of_an_mma: float
) -> Estimate:
    """The estimate for one case on one device.

    Args:
        case: its bytes, FLOPs, launch, and (where it says so) programs and iterations
        code: its machine code
        capability: of the target
        device: a card of that capability
        programs_resident: programs that a multiprocessor holds at a time
        flops_of_an_mma: FLOPs of an instruction whose name does not give its shape (tcgen05)
    """
    rates, warps = nearest(sass.RATES, capability), case.launch.num_warps
    loop = hottest(code)
    unit = loop.body if loop else [*code.outside, *(x for other in code.loops for x in other.body)]

    def of_a_program(instructions: Sequence[sass.Instruction]) -> dict[str, float]:
        # a tcgen05 product is issued once for the whole program, all others by every warp
        spent = sass.cycles(instructions, rates, flops_of_an_mma / warps)
        return {pipe: warps * count for pipe, count in spent.items()}

    cycles = of_a_program(unit)
    if loop and loop.optional:
        for pipe, count in of_a_program(loop.optional).items():
            cycles[pipe] += case.rarely * count
    units = _units(case, unit, cycles, rates, warps, has_loop=loop is not None)
    total = {pipe: count * units / device.multiprocessors for pipe, count in cycles.items()}
    if loop and case.programs:
        for pipe, count in of_a_program(code.outside).items():
            total[pipe] += count * case.programs / device.multiprocessors
    # loads into registers are waited for once an iteration; only other programs fill the time
    waits = any(x.name == "LDG" for x in unit) and not (loop and loop.asynchronous)
    beside = max(1.0, min(programs_resident, (case.programs or units) / device.multiprocessors))
    total["latency"] = LATENCY * units / device.multiprocessors / beside if waits else 0.0
    seconds = {pipe: count / device.hertz for pipe, count in total.items()}
    seconds["memory"] = case.bytes / device.bytes_per_second
    floor = floor_microseconds((case.bytes, case.flops if cycles["tensor"] else 0), device, capability)
    bound = max(seconds, key=seconds.__getitem__)
    rest = max(time for pipe, time in seconds.items() if pipe not in ("tensor", "memory", "latency"))
    at_best = 1e6 * max(seconds.values())
    in_turns = 1e6 * (seconds["tensor"] + rest + seconds["latency"]) if seconds["tensor"] else 0.0
    pipes_us = {pipe: 1e6 * time for pipe, time in seconds.items()}
    return Estimate(cycles, pipes_us, bound, floor, max(at_best, floor), max(at_best, in_turns, floor))


def _units(
    case: "Case", unit: Sequence[sass.Instruction], cycles: dict[str, float], rates: sass.Rates, warps: int, has_loop: bool
) -> float:
    """Iterations of the loop (or programs) of one launch."""
    if case.programs and (case.iterations or not has_loop):
        return case.programs * (case.iterations if has_loop and case.iterations else 1)
    if cycles["tensor"]:
        return case.flops / (cycles["tensor"] * rates.tensor)
    moved = warps * sass.global_bytes(unit)
    return case.bytes / moved if moved else 1.0
