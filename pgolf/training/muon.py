"""Muon (Keller Jordan): momentum, then every matrix orthogonalised, on banks of matrices and on one or many ranks.

For a bank p (n, rows, columns) with gradient g, momentum buffer b, momentum mu, learning rate lr:

    b <- mu b + g
    p <- p (1 - lr weight_decay) - lr sqrt(max(1, rows / columns)) newton_schulz(g + mu b)

With row_norm (MuonEq-R, PR #1394 of openai/parameter-golf) each row of g + mu b is scaled to norm 1 first.

Two layouts share the work out differently, with the same result:

ParallelMuon    #549's: every rank owns a contiguous share of each bank (padded with zeros to a multiple of the ranks):
                gradients are reduce-scattered, shares updated, updates gathered while the next bank is worked on
RoundRobinMuon  #688's: every rank sees all averaged gradients, owns every size-th matrix of the whole list, and the
                updates of all ranks travel in one message

Messages are bfloat16 on CUDA, of the parameters' dtype on a CPU.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from pgolf.distributed import AllGather, Pending, ReduceScatterAverage, World
from pgolf.kernels.newton_schulz import newton_schulz


class Muon:
    """What both layouts share; an `Optimiser`. Matrices of two dimensions count as banks of one."""

    sharded = True

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        *,
        rates: Sequence[float] | None = None,
        weight_decay: float,
        iterations: int,
        coefficients: str,
        world: World,
        iterate_in: torch.dtype | None = None,
        row_norm: bool = False,
    ):
        self.row_norm = row_norm
        self.parameters = list(parameters)
        self.rates = list(rates) if rates else [1.0] * len(self.parameters)
        self.weight_decay = weight_decay
        self.iterations = iterations
        self.coefficients = coefficients
        self.iterate_in = iterate_in
        self.world = world

    def start(self) -> None:
        raise NotImplementedError

    def averaged(self) -> list[torch.Tensor]:
        """The averaged gradients that this rank owns; over all ranks, each matrix once."""
        raise NotImplementedError

    def step(self, multiplier: float, momentum: float) -> None:
        raise NotImplementedError

    @property
    def momenta(self) -> list[torch.Tensor]:
        """The momentum buffers that this rank owns, one for each parameter."""
        raise NotImplementedError

    def owned(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For one parameter: which matrices of its bank this rank owns, and in which rows of its momentum they are."""
        raise NotImplementedError

    def reset(self) -> None:
        for momentum in self.momenta:
            momentum.zero_()

    def state(self) -> list[dict[str, torch.Tensor]]:
        """The momentum of whole banks, the same on every rank, whatever the layout and the number of ranks."""
        full = []
        for index, (parameter, momentum) in enumerate(zip(self.parameters, self.momenta, strict=True)):
            matrices, rows = self.owned(index)
            whole = torch.zeros(_bank(parameter).shape, dtype=momentum.dtype, device=momentum.device)
            whole[matrices] = momentum[rows]
            full.append({"momentum": self.world.sum(whole).view(parameter.shape)})
        return full

    def restore(self, state: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self.reset()
        for index, (kept, momentum) in enumerate(zip(state, self.momenta, strict=True)):
            matrices, rows = self.owned(index)
            whole = _bank(kept["momentum"])
            momentum[rows] = whole[matrices.to(whole.device)].to(momentum)

    def orthogonal(self, momentum: torch.Tensor, gradient: torch.Tensor, mu: float) -> torch.Tensor:
        momentum.mul_(mu).add_(gradient)
        update = torch.add(gradient, momentum, alpha=mu)
        if self.row_norm:
            update = update / update.norm(dim=-1, keepdim=True).clamp_min(1e-7)
        return newton_schulz(update, self.iterations, self.coefficients, self.iterate_in)

    def apply(self, index: int, update: torch.Tensor, multiplier: float) -> None:
        parameter, lr = self.parameters[index], self.rates[index] * multiplier
        rows, columns = parameter.shape[-2:]
        parameter.mul_(1 - lr * self.weight_decay)
        parameter.add_(update.view_as(parameter), alpha=-lr * math.sqrt(max(1.0, rows / columns)))


class ParallelMuon(Muon):
    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        size = self.world.size
        # the largest bank first: its message is the longest
        self.order = sorted(range(len(self.parameters)), key=lambda i: -self.parameters[i].numel())
        self.share = [-(-_bank(p).shape[0] // size) for p in self.parameters]
        self._momenta = [
            torch.zeros((share, *_bank(p).shape[1:]), dtype=_wire(p), device=p.device)
            for p, share in zip(self.parameters, self.share, strict=True)
        ]
        self._gradients: list[torch.Tensor | ReduceScatterAverage] = []

    @property
    def momenta(self):
        return self._momenta

    def owned(self, index):
        share, count = self.share[index], _bank(self.parameters[index]).shape[0]
        first = min(self.world.rank * share, count)
        matrices = torch.arange(first, min(first + share, count), device=self.parameters[index].device)
        return matrices, matrices - first

    def start(self):
        self._gradients = list(self.parameters)
        for index in self.order:
            parameter = self.parameters[index]
            gradient = _bank(_gradient(parameter)).to(_wire(parameter))
            if self.world.size > 1:
                padding = self.share[index] * self.world.size - gradient.shape[0]
                padded = torch.nn.functional.pad(gradient, (0, 0, 0, 0, 0, padding)).contiguous()
                self._gradients[index] = ReduceScatterAverage(padded, self.world)
            else:
                self._gradients[index] = gradient

    def _wait(self, index) -> torch.Tensor:
        gradient = self._gradients[index]
        if isinstance(gradient, ReduceScatterAverage):
            gradient = self._gradients[index] = gradient.wait()
        return gradient

    def averaged(self):
        return [self._wait(index) for index in range(len(self.parameters))]

    @torch.no_grad()
    def step(self, multiplier, momentum):
        before: tuple[int, AllGather] | None = None
        for index in self.order:
            update = self.orthogonal(self._momenta[index], self._wait(index), momentum)
            if self.world.size == 1:
                self.apply(index, update, multiplier)
                continue
            gathering = AllGather(update, self.world)
            if before:
                self._finish(*before, multiplier)
            before = index, gathering
        if before:
            self._finish(*before, multiplier)
        self._gradients = []

    def _finish(self, index, gathering, multiplier):
        self.apply(index, gathering.wait()[: _bank(self.parameters[index]).shape[0]], multiplier)


class RoundRobinMuon(Muon):
    def __init__(self, parameters, **options):
        super().__init__(parameters, **options)
        counts = [_bank(p).shape[0] for p in self.parameters]
        firsts = [sum(counts[:index]) for index in range(len(counts))]
        rank, size = self.world.rank, self.world.size
        self._owned = [
            torch.tensor([i for i in range(count) if (first + i) % size == rank], dtype=torch.long, device=p.device)
            for p, first, count in zip(self.parameters, firsts, counts, strict=True)
        ]
        self._momenta = [
            torch.zeros((len(own), *_bank(p).shape[1:]), dtype=p.dtype, device=p.device)
            for p, own in zip(self.parameters, self._owned, strict=True)
        ]
        self._averaging: list[Pending] = []
        self._gradients: list[torch.Tensor] | None = None

    @property
    def momenta(self):
        return self._momenta

    def owned(self, index):
        own = self._owned[index]
        return own, torch.arange(len(own), device=own.device)

    def start(self):
        for parameter in self.parameters:
            self._averaging += self.world.start_average([_gradient(parameter)])
        self._gradients = None

    def averaged(self):
        if self._gradients is None:
            for pending in self._averaging:
                pending.wait()
            self._averaging = []
            banks = [_bank(_gradient(p)) for p in self.parameters]
            self._gradients = banks if self.world.size == 1 else [b[own] for b, own in zip(banks, self._owned, strict=True)]
        return self._gradients

    @torch.no_grad()
    def step(self, multiplier, momentum):
        updates = [
            self.orthogonal(buffer, gradient, momentum) if len(buffer) else gradient
            for buffer, gradient in zip(self._momenta, self.averaged(), strict=True)
        ]
        if self.world.size > 1:
            updates = self._exchange(updates)
        for index, update in enumerate(updates):
            self.apply(index, update, multiplier)
        self._gradients = None

    def _exchange(self, updates: list[torch.Tensor]) -> list[torch.Tensor]:
        """Every rank writes its own matrices into one vector of zeros; the sum is the whole."""
        first = self.parameters[0]
        flat = torch.zeros(sum(p.numel() for p in self.parameters), dtype=_wire(first), device=first.device)
        parts = flat.split([p.numel() for p in self.parameters])
        for part, parameter, own, update in zip(parts, self.parameters, self._owned, updates, strict=True):
            part.view(_bank(parameter).shape)[own] = update.to(flat.dtype)
        self.world.sum(flat)
        return list(parts)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None, "every matrix takes part in every step"
    return parameter.grad


def _bank(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.dim() == 3 else matrix.unsqueeze(0)


def _wire(parameter: torch.Tensor) -> torch.dtype:
    return torch.bfloat16 if parameter.is_cuda else parameter.dtype
