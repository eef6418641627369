"""What predictors are told of the network's distribution at some targets, and how ranks put theirs together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pgolf.kernels.logit_stats import logit_stats
from pgolf.model.parts import softcapped

COLUMNS = ("nats", "target", "entropy", "candidate_log_probs")


@dataclass(frozen=True)
class Statistics:
    """One row a target. Probabilities are those of softmax(logits / temperature), unless said otherwise."""

    nats: np.ndarray
    """(n,) -log p(target) at temperature one"""
    target: np.ndarray
    """(n,) log p(target)"""
    entropy: np.ndarray
    """(n,) in nats"""
    candidate_log_probs: np.ndarray
    """(n, K) of the symbols that predictors asked for, -inf where they asked for none"""
    logits: np.ndarray | None = None
    """(n, V) logits / temperature in float32, only for predictors that want them"""
    by_window: list[dict] | None = None
    """of each window, what the published predictors keep, by their names; None where there are none"""
    kept_logits: np.ndarray | None = None
    """(m, V) in float32 of the targets that an observer wants, in order; None where it wants none"""

    def __getitem__(self, part: slice) -> "Statistics":
        """Some of the targets."""
        logits = None if self.logits is None else self.logits[part]
        return Statistics(self.nats[part], self.target[part], self.entropy[part], self.candidate_log_probs[part], logits)

    def of_candidates(self, columns: slice) -> "Statistics":
        """As one predictor sees it: only the candidates it asked for itself."""
        return replace(self, candidate_log_probs=self.candidate_log_probs[:, columns])


def statistics_of(
    logits: torch.Tensor,
    targets: np.ndarray,
    candidates: np.ndarray | torch.Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature=None,
    whole_rows: bool = False,
    kept: np.ndarray | None = None,
) -> Statistics:
    """From raw logits (n, V), in whatever dtype the network computes, targets (n,) and candidates (n, K), -1 for none.

    softcap      the network's; None where the logits have it already
    temperature  None for one, or a policy of pgolf.evaluation.predictors.temperature
    whole_rows   keep the logits of all targets
    kept         indices of targets whose logits are kept for an observer
    """
    device = logits.device
    ids = torch.from_numpy(np.ascontiguousarray(targets, dtype=np.int64)).to(device)
    symbols = None
    if candidates is not None and candidates.shape[-1]:
        symbols = torch.as_tensor(candidates, dtype=torch.int32).contiguous().to(device)
    heat: float | torch.Tensor = 1.0
    if temperature is None:
        plain = used = logit_stats(logits, ids, symbols, softcap=softcap)
    else:
        plain = logit_stats(logits, ids, softcap=softcap)
        heat = temperature.of(plain.entropy, logits.shape[-1])
        used = logit_stats(logits, ids, symbols, heat, softcap)
    rows = kept_logits = None
    if whole_rows:
        rows = over(softcapped(logits.detach(), softcap), heat).float().cpu().numpy()
    if kept is not None and len(kept):
        chosen = logits[torch.from_numpy(kept).to(device)].detach()
        kept_logits = softcapped(chosen, softcap).float().cpu().numpy()
    nats, target, entropy, candidates = (array(x) for x in (-plain.target, used.target, used.entropy, used.candidates))
    return Statistics(nats, target, entropy, candidates, rows, kept_logits=kept_logits)


def array(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def heat_of(temperature, logits: torch.Tensor, softcap: float | None = None) -> float | torch.Tensor:
    """What each row of logits (n, V) is divided by, after the softcap if they are to have one."""
    if temperature is None:
        return 1.0
    nothing = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return temperature.of(logit_stats(logits, nothing, softcap=softcap).entropy, logits.shape[-1])


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
    if parts[0].logits is not None:
        columns["logits"] = np.concatenate([part.logits for part in parts])
    windows = None
    if parts[0].by_window is not None:
        windows = [window for part in parts for window in part.by_window or ()]
    kept = [part.kept_logits for part in parts if part.kept_logits is not None]
    return Statistics(**columns, by_window=windows, kept_logits=np.concatenate(kept) if kept else None)


def gathered(mine: Sequence, world: int) -> list:
    """Every rank's list, joined in rank order, on every rank."""
    if world == 1:
        return list(mine)
    parts: list = [None] * world
    torch.distributed.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
