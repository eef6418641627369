"""What a rank reads at a step: sequential or coprime-stride, each a pure function of (seed, rank, step, micro-step).

The global batch is cut into `slices` (8 for the published systems). Micro-step m of rank r, out of
world * accumulation parts, reads the slices of part m * world + r. So every world size that divides 8 sees the same
sequences at a step, whatever its accumulation, and nothing has to be saved to continue a run.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pgolf.data.errors import DataError
from pgolf.data.shards import check_tokens, open_shard, token_count


class Read(NamedTuple):
    """A stretch of tokens: index of the shard in sorted order, first token, number of tokens."""

    shard: int
    offset: int
    length: int


class Loader(ABC):
    """Cuts the global batch into slices, reads what a plan says and checks every token that it hands out."""

    def __init__(
        self,
        shards: Sequence[str | Path],
        *,
        batch_tokens: int,
        sequence_length: int,
        accumulation: int,
        world_size: int,
        rank: int,
        seed: int,
        vocab_size: int | None = None,
        held_out: int = 0,
    ):
        """held_out   tokens at the end of the last shard that are not read"""
        self.shards = sorted((Path(shard) for shard in shards), key=lambda path: path.name)
        self.sequence_length = sequence_length
        self.world_size = world_size
        self.rank = rank
        self.seed = seed % 2**64
        self.vocab_size = vocab_size
        self.sequences = batch_tokens // sequence_length
        parts = world_size * accumulation
        if self.sequences * sequence_length != batch_tokens or self.sequences % parts or self.sequences == 0:
            raise DataError(
                f"a batch of {batch_tokens} tokens cannot be shared out: it must be whole sequences of "
                f"{sequence_length}, their number a multiple of {parts} (ranks x accumulation)"
            )
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} is not one of {world_size}")
        self.slices = math.gcd(self.sequences, math.lcm(8, parts))
        self._slices_per_part = self.slices // parts
        self.accumulation = accumulation
        self.counts = [token_count(shard) for shard in self.shards]
        if held_out:
            self.counts[-1] -= held_out
        self._open: dict[int, np.ndarray] = {}

    @abstractmethod
    def _rows(self, step: int, piece: int) -> list[list[Read]]:
        """What slice number `piece` of a step reads: rows of targets and inputs, each one stretch of text."""

    def _slices(self, step: int, micro: int) -> list[list[Read]]:
        if step < 0 or not 0 <= micro < self.accumulation:
            raise DataError(f"no micro-step {micro} in step {step}: a step has {self.accumulation}")
        first = (micro * self.world_size + self.rank) * self._slices_per_part
        return [row for piece in range(first, first + self._slices_per_part) for row in self._rows(step, piece)]

    def plan(self, step: int, micro: int) -> list[Read]:
        """Every stretch of tokens that this rank reads at this micro-step, in order."""
        return [read for row in self._slices(step, micro) for read in row]

    def batch(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64, [sequences, sequence_length]."""
        rows = [np.concatenate([self._read(*read) for read in row]) for row in self._slices(step, micro)]
        x = np.concatenate([row[:-1] for row in rows]).astype(np.int64)
        y = np.concatenate([row[1:] for row in rows]).astype(np.int64)
        shape = (-1, self.sequence_length)
        return torch.from_numpy(x).view(shape), torch.from_numpy(y).view(shape)

    def _read(self, shard: int, offset: int, length: int) -> np.ndarray:
        if shard not in self._open:
            self._open[shard] = open_shard(self.shards[shard])
        tokens = self._open[shard][offset : offset + length]
        if self.vocab_size is not None:
            check_tokens(tokens, self.vocab_size, self.shards[shard], offset)
        return tokens


class SequentialLoader(Loader):
    """The submissions' loader: one pass through the shards in the order of their names, then again from the start.

    A slice is a run of local + 1 tokens, local = batch_tokens / slices, and slices follow each other: the last target
    of one is not the first input of the next. The order is the same for every seed.
    """

    def __init__(self, shards: Sequence[str | Path], **settings):
        super().__init__(shards, **settings)
        self._ends = np.cumsum(self.counts)
        if not self.shards or self._ends[-1] < 2:
            raise DataError("there are no training tokens to read; add training shards (NAME_train_000000.bin)")
        self._span = self.sequences // self.slices * self.sequence_length + 1

    def _rows(self, step: int, piece: int) -> list[list[Read]]:
        total = int(self._ends[-1])
        position = (step * self.slices + piece) * self._span % total
        row, wanted = [], self._span
        while wanted:
            shard = int(np.searchsorted(self._ends, position, side="right"))
            length = min(wanted, int(self._ends[shard]) - position)
            row.append(Read(shard, position - (int(self._ends[shard]) - self.counts[shard]), length))
            position = (position + length) % total
            wanted -= length
        return [row]


class CoprimeStrideLoader(Loader):
    """Sequences from many shards at once, each shard visited in strides coprime to its number of blocks.

    In an epoch a shard has a random phase below the sequence length, a number of blocks, a random start and a random
    stride coprime to that number; its k-th block is (start + k * stride) mod blocks, so each block is read once. A
    step draws m shards without replacement, m growing from 8 to 64 over 1,800 steps, with probability proportional to
    remaining_blocks^alpha, alpha falling from 0.90 to 0.50. Each gets one sequence and a multinomial share of
    the rest; a shard's sequences are shuffled and shards are interleaved. Slice j takes every slices-th window from j.

    The random numbers (PCG64) depend on the seed, the shards' names, the epoch and the step. The blocks left after a step
    depend on the steps before, so the loader replays those draws when it is asked for a step out of order.
    """

    RAMP_STEPS = 1800
    SHARDS = (8, 64)
    ALPHA = (0.90, 0.50)
    # these stay at hand: a prefetching caller is ahead of its own questions, and a burst asks for a hundred steps again
    KEPT_STEPS = 128

    def __init__(self, shards: Sequence[str | Path], **settings):
        super().__init__(shards, **settings)
        self._names = _fnv1a("\n".join(path.name for path in self.shards))
        self._usable = [shard for shard, count in enumerate(self.counts) if count > self.sequence_length]
        if not self._usable:
            raise DataError(
                f"no training shard holds one sequence of {self.sequence_length} tokens and its target; "
                "use a shorter sequence or more text"
            )
        self._lock = threading.Lock()
        self._restart()

    def _restart(self) -> None:
        self._next_step = 0
        self._drawn: dict[int, list[Read]] = {}
        self._begin_epoch(0)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._names, self.seed, *key])))

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        random = self._random(0, epoch)
        length = self.sequence_length
        self._phase = np.zeros(len(self.shards), dtype=np.int64)
        self._blocks = np.zeros_like(self._phase)
        self._start = np.zeros_like(self._phase)
        self._stride = np.ones_like(self._phase)
        for shard in self._usable:
            count = self.counts[shard]
            self._phase[shard] = random.integers(min(length, count - length))
            blocks = (count - 1 - int(self._phase[shard])) // length
            self._blocks[shard] = blocks
            self._start[shard] = random.integers(blocks)
            self._stride[shard] = _coprime(random, blocks)
        self._used = np.zeros_like(self._phase)

    def _draw(self, step: int) -> list[Read]:
        """The windows of the next step in order; counts them as used."""
        random = self._random(1, step)
        ramp = min(1.0, step / self.RAMP_STEPS)
        alpha = self.ALPHA[0] + ramp * (self.ALPHA[1] - self.ALPHA[0])
        most = round(self.SHARDS[0] + ramp * (self.SHARDS[1] - self.SHARDS[0]))
        windows: list[Read] = []
        while (needed := self.sequences - len(windows)) > 0:
            if not (self._blocks - self._used).any():
                self._begin_epoch(self._epoch + 1)
            left = self._blocks - self._used
            weight = np.where(left > 0, left.astype(np.float64), 0.0) ** alpha * (left > 0)
            number = min(most, needed, int(np.count_nonzero(left)))
            chosen = random.choice(len(left), size=number, replace=False, p=weight / weight.sum())
            share = random.multinomial(needed - number, weight[chosen] / weight[chosen].sum())
            # a shard cannot give more than it has left; what is missing is drawn in the next round
            take = np.minimum(1 + share, left[chosen])
            queues = [self._take(random, int(shard), int(blocks)) for shard, blocks in zip(chosen, take, strict=True)]
            windows += [queue[turn] for turn in range(max(take)) for queue in queues if turn < len(queue)]
        return windows

    def _take(self, random: np.random.Generator, shard: int, number: int) -> list[Read]:
        k = self._used[shard] + np.arange(number)
        self._used[shard] += number
        blocks = (self._start[shard] + k * self._stride[shard]) % self._blocks[shard]
        offsets = self._phase[shard] + random.permutation(blocks) * self.sequence_length
        return [Read(shard, int(offset), self.sequence_length + 1) for offset in offsets]

    def _rows(self, step: int, piece: int) -> list[list[Read]]:
        with self._lock:
            if step < self._next_step and step not in self._drawn:
                self._restart()
            while self._next_step <= step:
                self._drawn[self._next_step] = self._draw(self._next_step)
                self._drawn.pop(self._next_step - self.KEPT_STEPS, None)
                self._next_step += 1
            return [[window] for window in self._drawn[step][piece :: self.slices]]


def _coprime(random: np.random.Generator, number: int) -> int:
    """A random stride below `number` that visits all of its residues."""
    while True:
        stride = int(random.integers(1, max(2, number)))
        if math.gcd(stride, number) == 1:
            return stride


def _fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


class Prefetch:
    """A loader whose next batch is read in the background, into pinned memory when it goes to a CUDA device."""

    def __init__(self, loader: Loader, device: str | torch.device = "cpu"):
        self.loader = loader
        self.device = torch.device(device)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: tuple[tuple[int, int], Future] | None = None

    def batch(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._ahead and self._ahead[0] == (step, micro):
            future = self._ahead[1]
        else:
            future = self._request(step, micro)
        x, y = future.result()
        follows = (step + 1, 0) if micro + 1 == self.loader.accumulation else (step, micro + 1)
        self._ahead = follows, self._request(*follows)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _request(self, step: int, micro: int) -> Future:
        return self._worker.submit(self._load, step, micro)

    def _load(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.loader.batch(step, micro)
        return (x.pin_memory(), y.pin_memory()) if self.device.type == "cuda" else (x, y)

    def plan(self, step: int, micro: int) -> list[Read]:
        return self.loader.plan(step, micro)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_) -> None:
        self.close()
