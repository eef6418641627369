"""How numba compiles what an operator computes on a CPU.

Sums may be taken in any order, so that they fill vector registers. A function whose rounding is left to the compiler like
this must be inlined where another one calls it: a shared copy would be optimised once more in each caller, and which of the
copies runs, and so the last bit of a result, would depend on what a process has loaded before.
"""

from typing import Any

from numba import njit

REORDERED = {"reassoc", "contract", "nsz"}
# numpy's errors: a division that may raise is a branch, and would not vectorise
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

exact = njit(**OPTIONS)
exact_inlined = njit(**OPTIONS, inline="always")
# the same for numbers, by LLVM: numba takes an argument that is assigned in a loop for a constant
exact_merged = njit(**OPTIONS, forceinline=True)
reordered = njit(**OPTIONS, fastmath=REORDERED)
reordered_inlined = njit(**OPTIONS, fastmath=REORDERED, forceinline=True)
# products and sums may fuse, but keep their order
contracted_inlined = njit(**OPTIONS, fastmath={"contract"}, forceinline=True)
