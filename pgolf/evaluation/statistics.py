"""What the readers know of the neural distribution at some targets, and how ranks put theirs together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from pgolf.kernels.hedge import neural_statistics


@dataclass(frozen=True)
class Statistics:
    """One row a target. Probabilities are those of softmax(logits / temperature), unless said otherwise."""

    nats: np.ndarray
    """(n,) -log p(target) at temperature one"""
    target: np.ndarray
    """(n,) log p(target)"""
    entropy: np.ndarray
    """(n,) in nats"""
    candidates: np.ndarray
    """(n, K) log-probabilities of the symbols that readers asked for, -inf where they asked for none"""
    rows: np.ndarray | None = None
    """(n, V) logits / temperature in float32, only for readers that want them"""
    everywhere: np.ndarray | None = None
    """(windows, 2, T) log p(target) and entropy at every position of every window, only for readers that want them"""

    def __getitem__(self, part: slice) -> "Statistics":
        """Some of the targets."""
        rows = None if self.rows is None else self.rows[part]
        return Statistics(self.nats[part], self.target[part], self.entropy[part], self.candidates[part], rows)

    def of_candidates(self, columns: slice) -> "Statistics":
        """As one reader sees it: only the candidates it asked for itself."""
        return Statistics(
            self.nats, self.target, self.entropy, self.candidates[:, columns], self.rows, self.everywhere
        )


def statistics_of(
    logits: torch.Tensor,
    targets: np.ndarray,
    candidates: np.ndarray | None = None,
    *,
    temperature=None,
    keep_rows: bool = False,
) -> Statistics:
    """From logits (n, V), softcap applied, targets (n,) and candidates (n, K), -1 for none.

    temperature  None for one, or a policy of pgolf.evaluation.readers.temperature
    """
    device = logits.device
    ids = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64)).to(device)
    plain = neural_statistics(logits, ids)
    used, heat = plain, None
    if temperature is not None:
        heat = temperature.of(plain.entropy, logits.shape[-1])
        used = neural_statistics(logits, ids, temperature=heat)
    scaled = logits if heat is None else logits / torch.as_tensor(heat, dtype=logits.dtype, device=device).reshape(-1, 1)
    if candidates is None or not candidates.shape[-1]:
        picked = np.empty((len(targets), 0))
    else:
        symbols = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.int64)).to(device)
        found = scaled.gather(1, symbols.clamp_min(0)).to(used.lse.dtype) - used.lse[:, None]
        picked = array(torch.where(symbols >= 0, found, -torch.inf))
    rows = scaled.float().cpu().numpy() if keep_rows else None
    return Statistics(array(-plain.target), array(used.target), array(used.entropy), picked, rows)


def array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def log_probabilities(logits: torch.Tensor, temperature=None) -> np.ndarray:
    """Whole rows (n, V) of the distribution that `statistics_of` reads single entries of; for a decoder and an audit."""
    logits = logits.detach()
    plain = neural_statistics(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    if temperature is None:
        return array(logits.to(plain.lse.dtype) - plain.lse[:, None])
    heat = temperature.of(plain.entropy, logits.shape[-1])
    used = neural_statistics(logits, torch.zeros_like(plain.lse, dtype=torch.int64), temperature=heat)
    scaled = logits / torch.as_tensor(heat, dtype=logits.dtype, device=logits.device).reshape(-1, 1)
    return array(scaled.to(used.lse.dtype) - used.lse[:, None])


def join(parts: Sequence[Statistics]) -> Statistics:
    """Parts of one span, in order."""
    if len(parts) == 1:
        return parts[0]
    columns = {}
    for field in fields(Statistics):
        found = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if found[0] is None else np.concatenate(found)
    return Statistics(**columns)


def gathered(mine: Sequence, world: int) -> list:
    """Every rank's list, joined in rank order, on every rank."""
    if world == 1:
        return list(mine)
    parts: list = [None] * world
    torch.distributed.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
