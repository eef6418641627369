"""The submissions' own mixtures, flaws included. Their mass exceeds one: they are for comparison and no code lengths.

Both go by windows and not by targets: weights move with batches of windows, over positions that were scored long ago.
`ranks` is how many processes the submission ran on; each had weights (for #1014 tables and a bias too) of its own. They
are reproduced here one after another, on any number of real ranks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pgolf.evaluation.predictors.base import Predictor, Span
from pgolf.evaluation.statistics import Statistics, array, heat_of
from pgolf.evaluation.windows import Window, share
from pgolf.kernels.hedge import BoostedCache, HedgeMixer
from pgolf.kernels.logit_stats import logit_stats
from pgolf.model.parts import softcapped

if TYPE_CHECKING:
    from pgolf.evaluation.observer import Observer


class Published(Predictor):
    """What both have in common. With `tail`, windows cut off by the stream's end score their last `stride` targets again,
    as the submissions do; what they score again is in `repeated`: the first target, and the nats from there on.

    targets   of the whole stream
    shortest  windows cut off below this length are not used at all
    batch     windows the submission scored at once, on each of its ranks
    """

    legal = False
    document_local = False
    observer: "Observer | None" = None
    """Told of windows before they are scored; the pass sets it."""
    batchwise = False
    """A span is one batch of one rank, because what a batch teaches changes how the next one is forwarded."""

    def __init__(
        self,
        vocab: int,
        *,
        targets: int,
        window: int,
        stride: int,
        tail: bool = True,
        shortest: int = 1,
        batch: int = 32,
        ranks: int = 1,
    ):
        self.vocab, self.targets, self.window, self.stride = vocab, targets, window, stride
        self.tail, self.shortest, self.batch, self.ranks = tail, shortest, batch, ranks
        self.repeated: list[tuple[int, np.ndarray]] = []

    # ---- which windows

    def further_windows(self, last: Window) -> list[Window]:
        """After the honest plan's last window: those that score nothing but what was scored already."""
        first = (last.start // self.stride + 1) * self.stride
        starts = range(first, self.targets - self.shortest + 1, self.stride) if self.tail else ()
        return [Window(start, self.targets, self.targets) for start in starts]

    def scored_from(self, window: Window) -> int:
        """The first target that the published rule scores in a window."""
        if not self.tail or window.start == 0 or window.stop < self.targets:
            return window.score_from
        return min(window.score_from, max(window.start, window.stop - self.stride))

    def batches(self, windows: Sequence[Window]) -> list[Sequence[Window]]:
        """The windows of a span that are forwarded together."""
        return [windows]

    # ---- what is asked of the model

    def wants(self, window: Window) -> bool:
        """Whether it needs the logits of all positions of this window."""
        return True

    def open_batch(self, windows: Sequence[Window]) -> None:
        """Before a batch is forwarded."""

    def of_window(self, logits: torch.Tensor, targets: np.ndarray, softcap: float | None, temperature) -> tuple:
        """What is kept of one window: raw logits (T, V) and targets (T,) of all its positions, padding included."""
        ids = torch.from_numpy(targets).to(logits.device)
        neural = logit_stats(logits, ids, temperature=heat_of(temperature, logits, softcap), softcap=softcap)
        # float32: there are 32 times as many of these as there are targets, and all ranks get all of them
        return array(neural.target).astype(np.float32), array(neural.entropy).astype(np.float32)

    def close_batch(self, everywhere: list[tuple]) -> None:
        """After a batch was forwarded, with what `of_window` kept of its windows, on every rank."""

    def announce(self, span: Span, windows: Sequence[Window], statistics: Statistics) -> None:
        """These windows of the span are scored next, by the mixture as it is now."""
        if self.observer:
            self.observer.before_windows(self, span, windows, statistics)

    def kept(self, statistics: Statistics) -> list:
        """What `of_window` kept of each window of the span; None of a window it did not want."""
        return [window.get(self.name) for window in statistics.by_window or ()]

    # ---- where scores go

    def file(self, span: Span, windows: Sequence[Window], nats: np.ndarray, out: np.ndarray) -> None:
        """The scores of windows, each from its `scored_from` on: what was scored before counts again, apart."""
        first = windows[0].score_from
        if sum(window.scored for window in windows) == len(nats):
            out[first - span.start : first - span.start + len(nats)] = nats
            return
        done = 0
        for window in windows:
            again = window.score_from - self.scored_from(window)
            own = nats[done : done + again + window.scored]
            out[window.score_from - span.start : window.stop - span.start] = own[again:]
            done += len(own)
            if again:
                self.repeated.append((window.score_from - again, own[:again]))


class PublishedTail(Published):
    """The neural model alone, as the submissions report it: only the stream's end differs from the honest predictor."""

    tempered = False

    def __init__(self, name: str, vocab: int, **windows):
        super().__init__(vocab, **windows)
        self.name = name

    def wants(self, window):
        return self.tail and window.stop == self.targets

    def of_window(self, logits, targets, softcap, temperature):
        return super().of_window(logits, targets, softcap, None)

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        for window, known in zip(span.windows, self.kept(statistics), strict=True):
            if known is not None:
                scored = slice(self.scored_from(window) - window.start, window.stop - window.start)
                self.file(span, [window], -known[0][scored], np.empty(len(span)))
        return statistics.nats


class PublishedHedge(Published):
    """#688's, #745's and #953's five experts. A span is a chunk: its windows go in contiguous shares to the ranks, in
    batches whose mean losses move the rank's weights; the tables count the chunk afterwards.

    (A stream that ends less than a stride into its last chunk is the one case where windows belong elsewhere: there the
    submissions score the last targets with the chunk before.)
    """

    name = "published"

    def __init__(self, vocab: int, eta: float, device: str = "cpu", **windows):
        super().__init__(vocab, **windows)
        self.mixer = HedgeMixer(vocab, eta=eta, device=device)
        self.log_weights = [self.mixer.log_weights.clone() for _ in range(self.ranks)]

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        mixer, base, device = self.mixer, span.context_start, self.mixer.log_weights.device
        context, nats = torch.from_numpy(span.context).to(device), np.full(len(span), np.nan)
        target, entropy = (torch.from_numpy(np.stack(kind)).to(device) for kind in zip(*self.kept(statistics), strict=True))
        plans = [share(span.windows, rank, self.ranks) for rank in range(self.ranks)]
        triples = [(w.start - base, w.stop - w.start, w.stop - self.scored_from(w)) for plan in plans for w in plan]
        shares = np.cumsum([0, *map(len, plans)]).tolist()
        weights = torch.stack(self.log_weights)
        scores = mixer.score_chunk(target, entropy, context, triples, batch=self.batch, shares=shares, log_weights=weights)
        nll, filed = scores.nll.cpu().numpy(), 0
        for rank, plan in enumerate(plans):
            history = list(scores.log_weights[rank])
            for i, at in enumerate(range(0, len(plan), self.batch)):
                batch = plan[at : at + self.batch]
                mixer.log_weights, self.log_weights[rank] = history[i], history[i + 1]
                self.announce(span, batch, statistics)
                count = sum(window.stop - self.scored_from(window) for window in batch)
                self.file(span, batch, nll[filed : filed + count], nats)
                filed += count
        mixer.count(context[span.start - base :])
        return nats

    def trace(self):
        names = ("neural", "unigram", "bigram", "trigram", "entropy")
        means = torch.stack(self.log_weights).softmax(1).mean(0)
        return dict(zip(names, means.tolist(), strict=True))


class PublishedBoost(Published):
    """#1014's boosted log-probability, two experts, and an online bias that is added to all logits before anything else.

    A rank has a contiguous share of all windows, and begins it with empty tables, even weights and no bias. What a batch
    teaches the bias is counted over every position of its windows, context and padding included.
    """

    name = "published"
    batchwise = True

    def __init__(self, vocab: int, eta: float, bias_rate: float, buckets: int = 1 << 22, **windows):
        super().__init__(vocab, **windows)
        self.eta, self.buckets, self.bias_rate = eta, buckets, bias_rate
        reach = self.targets if self.tail else max(self.targets - self.window + self.stride, 1)
        total = math.ceil(reach / self.stride)
        self.firsts = [total * rank // self.ranks for rank in range(self.ranks)]
        self.bias, self.bias_rank = torch.zeros(vocab), -1
        self.batch_bias = self.bias
        """The one that the last batch was forwarded with; what the batch teaches `bias` comes before its scores."""
        self.cache: BoostedCache | None = None
        self.cache_rank = -1

    def rank_of(self, window: Window) -> int:
        return int(np.searchsorted(self.firsts, window.start // self.stride, side="right")) - 1

    def batches(self, windows):
        return list(grouped(windows, self.batch, self.rank_of))

    def open_batch(self, windows):
        rank = self.rank_of(windows[0])
        if rank != self.bias_rank:
            self.bias, self.bias_rank = torch.zeros(self.vocab), rank
        self.batch_bias = self.bias

    def of_window(self, logits, targets, softcap, temperature):
        raised = softcapped(logits, softcap) + self.bias.to(logits.device)
        ids = torch.from_numpy(targets).to(logits.device)
        neural = logit_stats(raised, ids)
        predicted = (raised - neural.lse[:, None]).exp().sum(0)
        return array(neural.target), array(neural.entropy), array(predicted), np.bincount(targets, minlength=self.vocab)

    def close_batch(self, everywhere):
        _, _, predicted, came = (sum(kind) for kind in zip(*everywhere, strict=True))
        positions = len(everywhere) * self.window
        self.bias = self.bias + self.bias_rate * torch.from_numpy((came - predicted) / positions).float()

    def score(self, span: Span, statistics: Statistics) -> np.ndarray:
        context, base = torch.from_numpy(span.context), span.context_start
        nats = np.full(len(span), np.nan)
        for window, (target, entropy, _, _) in zip(span.windows, self.kept(statistics), strict=True):
            rank = self.rank_of(window)
            if self.cache is None or rank != self.cache_rank:
                self.cache, self.cache_rank = BoostedCache(buckets=self.buckets, eta=self.eta), rank
            self.announce(span, [window], statistics)
            scored = slice(self.scored_from(window) - window.start, window.stop - window.start)
            known = [torch.from_numpy(numbers[scored]) for numbers in (target, entropy)]
            losses = self.cache.score(context, window.start + 1 - base, window.stop + 1 - base, *known)
            self.file(span, [window], losses[:, 0].numpy(), nats)
        return nats

    def trace(self):
        if self.cache is None:
            return {}
        return dict(zip(("neural", "boosted"), map(float, self.cache.weights), strict=True))


def grouped(windows: Sequence[Window], size: int, key) -> Iterator[list[Window]]:
    """Consecutive windows of one key, at most `size` together."""
    group: list[Window] = []
    for window in windows:
        if group and (len(group) == size or key(window) != key(group[0])):
            yield group
            group = []
        group.append(window)
    if group:
        yield group
