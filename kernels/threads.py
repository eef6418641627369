"""How a CPU shares an operator's work among threads."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

# tokens of one span, for operators whose sums over tokens must not depend on the number of threads
SPAN = 1024
# asked once: the answer comes from the file system
CORES = os.cpu_count() or 1


def in_parallel(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """Run work(part) for each part; the interpreter's lock is free while numba computes. `work` should leave torch's own
    operators to the caller: in a thread of the pool they would start a second team of threads."""
    parts = list(parts)
    workers = min(len(parts), torch.get_num_threads(), CORES)
    return list(_pool(workers).map(work, parts)) if workers > 1 else [work(part) for part in parts]


def tokens_in_float32(x: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """(batch, time, ...) as (tokens, ...) in float32, without gaps; a copy where it is to be overwritten."""
    x = x.detach().to(torch.float32, copy=copy, memory_format=torch.contiguous_format)
    return x.contiguous().flatten(0, 1)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for what is inside, torch's operators and ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)


# a forked process has the pools but not their threads; where nothing forks there is nothing to register
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
