"""Score a span of a stream in windows, on one rank or many."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from pgolf.evaluation.stream import Opened
from pgolf.evaluation.windows import Window


def batches(windows: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    """Windows of equal length together, at most `size` of them, in order."""
    group: list[Window] = []
    for window in windows:
        if group and (len(group) == size or window.stop - window.start != group[0].stop - group[0].start):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


@torch.inference_mode()
def score_windows(
    model,
    opened: Opened,
    windows: Sequence[Window],
    *,
    batch: int,
    device,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Nats of every scored target of `windows`, in the windows' order. Only scored positions go through the output head."""
    model.eval()
    found = [np.empty(0)]
    for group in batches(windows, batch):
        tokens = torch.from_numpy(np.stack([opened.inputs(w.start, w.stop) for w in group]).astype(np.int64)).to(device)
        hidden = model.hidden(tokens)
        # windows of one batch may score different numbers of targets (the first scores all), so rows are gathered flat
        rows = torch.cat([hidden[i, w.score_from - w.start :] for i, w in enumerate(group)])
        targets = np.concatenate([opened.targets(w.score_from, w.stop) for w in group]).astype(np.int64)
        found.append(nats_of(model.head(rows), torch.from_numpy(targets).to(device)))
        if progress:
            progress(len(targets))
    return np.concatenate(found)


def nats_of(logits: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """-log softmax at the targets, float64: what is added up must not lose what float32 cannot hold."""
    return torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none").cpu().numpy()


def share(windows: Sequence[Window], rank: int, world: int) -> Sequence[Window]:
    """The contiguous part of the windows that one rank scores."""
    return windows[len(windows) * rank // world : len(windows) * (rank + 1) // world]


def gather(mine: np.ndarray, world: int) -> np.ndarray:
    """Every rank's scores, in rank order, on every rank."""
    if world == 1:
        return mine
    parts: list = [None] * world
    torch.distributed.all_gather_object(parts, mine)
    return np.concatenate(parts)
