"""What the predictors know of the neural distribution at some targets, and how ranks put theirs together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pgolf.kernels.logit_stats import logit_stats

COLUMNS = ("nats", "target", "entropy", "candidates")


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
    """(n, K) log-probabilities of the symbols that predictors asked for, -inf where they asked for none"""
    rows: np.ndarray | None = None
    """(n, V) logits / temperature in float32, only for predictors that want them"""
    everywhere: list[dict] | None = None
    """of each window, what the published predictors keep, by their names; None where there are none"""
    kept: np.ndarray | None = None
    """(m, V) logits in float32 of the targets that somebody watches, in order; None where nobody does"""

    def __getitem__(self, part: slice) -> "Statistics":
        """Some of the targets."""
        rows = None if self.rows is None else self.rows[part]
        return Statistics(self.nats[part], self.target[part], self.entropy[part], self.candidates[part], rows)

    def of_candidates(self, columns: slice) -> "Statistics":
        """As one predictor sees it: only the candidates it asked for itself."""
        return replace(self, candidates=self.candidates[:, columns])


def statistics_of(
    logits: torch.Tensor,
    targets: np.ndarray,
    candidates: np.ndarray | None = None,
    *,
    temperature=None,
    keep_rows: bool = False,
    watched: np.ndarray | None = None,
) -> Statistics:
    """From logits (n, V), softcap applied, targets (n,) and candidates (n, K), -1 for none.

    temperature  None for one, or a policy of pgolf.evaluation.predictors.temperature
    watched      indices of targets whose logits are kept
    """
    device = logits.device
    ids = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64)).to(device)
    plain = logit_stats(logits, ids)
    used, scaled = plain, logits
    if temperature is not None:
        heat = temperature.of(plain.entropy, logits.shape[-1])
        used, scaled = logit_stats(logits, ids, temperature=heat), over(logits, heat)
    if candidates is None or not candidates.shape[-1]:
        picked = np.empty((len(targets), 0))
    else:
        symbols = torch.from_numpy(np.ascontiguousarray(candidates, dtype=np.int64)).to(device)
        found = scaled.gather(1, symbols.clamp_min(0)).to(used.lse.dtype) - used.lse[:, None]
        picked = array(torch.where(symbols >= 0, found, -torch.inf))
    rows = scaled.float().cpu().numpy() if keep_rows else None
    kept = None
    if watched is not None and len(watched):
        kept = logits[torch.from_numpy(watched).to(device)].detach().float().cpu().numpy()
    return Statistics(array(-plain.target), array(used.target), array(used.entropy), picked, rows, kept=kept)


def array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def heat_of(temperature, logits: torch.Tensor) -> float | torch.Tensor:
    """What each row of logits (n, V) is divided by."""
    if temperature is None:
        return 1.0
    nothing = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return temperature.of(logit_stats(logits, nothing).entropy, logits.shape[-1])


def over(logits: torch.Tensor, heat: float | torch.Tensor) -> torch.Tensor:
    return logits / torch.as_tensor(heat, dtype=logits.dtype, device=logits.device).reshape(-1, 1)


def log_probabilities(logits: torch.Tensor, temperature=None) -> np.ndarray:
    """Whole rows (n, V) of what `statistics_of` reads single entries of; for a decoder and an audit."""
    scaled = over(logits.detach(), heat_of(temperature, logits))
    return array(scaled.double() - logit_stats(scaled, torch.zeros_like(scaled[:, 0]).long()).lse[:, None])


def join(parts: Sequence[Statistics]) -> Statistics:
    """Parts of one span, in order."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    if parts[0].rows is not None:
        columns["rows"] = np.concatenate([part.rows for part in parts])
    windows = None
    if parts[0].everywhere is not None:
        windows = [window for part in parts for window in part.everywhere or ()]
    kept = [part.kept for part in parts if part.kept is not None]
    return Statistics(**columns, everywhere=windows, kept=np.concatenate(kept) if kept else None)


def gathered(mine: Sequence, world: int) -> list:
    """Every rank's list, joined in rank order, on every rank."""
    if world == 1:
        return list(mine)
    parts: list = [None] * world
    torch.distributed.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
