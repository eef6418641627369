"""Ranks: who am I, how many are we, and the few collectives that training needs, over NCCL or gloo."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pgolf.errors import PgolfError

# for the first rank to pack, while the others wait to score
JOIN_SECONDS = 1800.0
# of one collective: compiling may keep a rank away from it for minutes
COLLECTIVE_SECONDS = 600.0
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class World:
    """This process among its peers; a world of one needs no process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @staticmethod
    def current(device: str | torch.device = "cpu") -> "World":
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return World(device=torch.device(device))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def broadcast(self, tensors: Sequence[torch.Tensor]) -> None:
        """Everyone gets the first rank's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place, over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_average(self, tensors: Sequence[torch.Tensor]) -> list["Pending"]:
        """Begin to average every tensor over the ranks, in place: small ones travel together, one message a dtype."""
        if self.size == 1:
            return []
        groups: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            groups.setdefault(tensor.dtype, []).append(tensor)
        return [AverageInPlace(group, self.size) for group in groups.values()]


class Pending:
    """A collective in flight."""

    def wait(self):
        raise NotImplementedError


class AverageInPlace(Pending):
    def __init__(self, tensors: list[torch.Tensor], size: int):
        self.tensors, self.size = tensors, size
        self.flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.work = dist.all_reduce(self.flat, async_op=True)

    def wait(self) -> None:
        self.work.wait()
        parts = self.flat.div_(self.size).split([tensor.numel() for tensor in self.tensors])
        torch._foreach_copy_(self.tensors, [part.view_as(t) for part, t in zip(parts, self.tensors, strict=True)])


class ReduceScatterAverage(Pending):
    """wait() gives this rank's share of the leading dimension of `full`, averaged over the ranks."""

    def __init__(self, full: torch.Tensor, world: World):
        self.world, self.full = world, full
        self.share = full.shape[0] // world.size
        self.native = full.is_cuda
        if self.native:
            self.shard = full.new_empty((self.share, *full.shape[1:]))
            self.work = dist.reduce_scatter_tensor(self.shard, full, op=dist.ReduceOp.AVG, async_op=True)
        else:
            # gloo cannot scatter every dtype, nor average
            self.work = dist.all_reduce(full, async_op=True)

    def wait(self) -> torch.Tensor:
        self.work.wait()
        if self.native:
            return self.shard
        return self.full[self.world.rank * self.share :][: self.share].div_(self.world.size)


class AllGather(Pending):
    """wait() gives the shards of all ranks, one after the other along the leading dimension."""

    def __init__(self, shard: torch.Tensor, world: World):
        self.shard = shard
        self.full = shard.new_empty((shard.shape[0] * world.size, *shard.shape[1:]))
        if shard.is_cuda:
            self.work = dist.all_gather_into_tensor(self.full, shard, async_op=True)
        else:
            self.work = dist.all_gather(list(self.full.chunk(world.size)), shard, async_op=True)

    def wait(self) -> torch.Tensor:
        self.work.wait()
        return self.full


class DistributedError(PgolfError):
    """Ranks that do not come together, in one line."""


@contextmanager
def launch(device: str | torch.device = "cpu", stage: str = "train") -> Iterator[World]:
    """Join the ranks that torchrun started (or stay alone where it did not) and leave them cleanly at the end.

    On CUDA a rank's device is the one of its LOCAL_RANK. Each stage of a run meets under a name of its own: torchrun's
    store outlives the processes of a stage, and would hand the next one the addresses of the last. No wait is without end:
    a rank that is missing is named.
    """
    device = torch.device(device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or dist.is_initialized():
        yield World.current(device)
        return
    try:
        shared, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except RuntimeError as error:
        raise DistributedError(
            f"the ranks did not meet within {JOIN_SECONDS:.0f} s: {' '.join(str(error).split())[:200]}"
        ) from error
    store: Any = dist.PrefixStore(stage, shared)
    _join(store, rank, size, stage)
    backend, place = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    timeout = timedelta(seconds=COLLECTIVE_SECONDS)
    with Heartbeat(store.clone(), rank, size) as heartbeat:
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=place, timeout=timeout)
            yield World.current(device)
            # leave together: the first rank keeps the store that the others still talk to
            dist.barrier()
        except RuntimeError as error:
            silent = heartbeat.silent()
            if silent or any(word in str(error).lower() for word in ("timed out", "timeout", "connection closed", "reset by")):
                raise DistributedError(_complaint(silent)) from error
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _join(store: dist.Store, rank: int, size: int, stage: str) -> None:
    """Wait for all ranks to come to this stage; the first one may still be busy with the one before it."""
    store.set(f"joined/{rank}", "")
    try:
        store.wait([f"joined/{other}" for other in range(size)], timedelta(seconds=JOIN_SECONDS))
    except RuntimeError:
        missing = [str(other) for other in range(size) if not store.check([f"joined/{other}"])]
        raise DistributedError(
            f"rank {', '.join(missing)} of {size} did not come to the stage {stage} within {JOIN_SECONDS:.0f} s"
        ) from None


def _complaint(silent: list[int]) -> str:
    if not silent:
        return f"the ranks did not finish together within {COLLECTIVE_SECONDS:.0f} s, though all of them are there"
    return f"rank {', '.join(map(str, silent))} is missing: it has ended, or does not move; see what it said, and start again"


class Heartbeat:
    """A count in the store that a thread of each rank raises, by which the others know that its process is there."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.store, self.rank, self.size = store, rank, size
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone: ranks that wait for it get an error of their own
            while not self._over.wait(HEARTBEAT_SECONDS):
                self.store.add(f"heartbeat/{self.rank}", 1)

    def silent(self) -> list[int]:
        """The ranks whose count stands still."""
        try:
            before = self._counts()
            time.sleep(3 * HEARTBEAT_SECONDS)
            after = self._counts()
        except RuntimeError:
            return []
        return [rank for rank in range(self.size) if rank != self.rank and before[rank] == after[rank]]

    def _counts(self) -> list[int]:
        return [self.store.add(f"heartbeat/{rank}", 0) for rank in range(self.size)]
