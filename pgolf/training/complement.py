"""Complementary training (#1014): tokens that bigram counts predict well weigh less, so that the network learns the rest.

    weight of y after x = max(0.1, 1 - alpha c(x, y) / (c(x) + 1)),   the loss is the weighted mean

c counts every pair of the training text that was read in earlier steps, by all ranks: weights depend neither on the cut into
micro-batches nor on the number of ranks. (#1014's code counts a pair once a batch, however often it comes.)
"""

import torch
from torch import Tensor

from pgolf.distributed import AllGather, World

LEAST = 0.1


class Complement:
    def __init__(self, alpha: float, vocabulary: int, world: World):
        self.alpha, self.world = alpha, world
        self.pairs = torch.zeros(vocabulary, vocabulary, dtype=torch.int32, device=world.device)
        self.firsts = torch.zeros(vocabulary, dtype=torch.int64, device=world.device)
        self._seen: list[Tensor] = []

    def weights(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One for each target (B, T); the pairs wait for the next `count`."""
        self._seen.append((tokens * len(self.pairs) + targets).reshape(-1))
        share = self.pairs[tokens, targets] / (self.firsts[tokens] + 1)
        return (1 - self.alpha * share).clamp_min(LEAST)

    def count(self) -> None:
        """Count the pairs of all ranks that wait; collective."""
        seen = torch.cat(self._seen)
        self.forget()
        if self.world.size > 1:
            seen = AllGather(seen, self.world).wait()
        self.pairs.view(-1).scatter_add_(0, seen, torch.ones_like(seen, dtype=torch.int32))
        firsts = seen // len(self.pairs)
        self.firsts.scatter_add_(0, firsts, torch.ones_like(firsts))

    def forget(self) -> None:
        """Drop the pairs that wait."""
        self._seen.clear()

    def restore(self, pairs: Tensor) -> None:
        self.pairs.copy_(pairs)
        self.firsts.copy_(self.pairs.sum(1))
