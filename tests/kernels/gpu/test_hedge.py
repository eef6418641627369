"""The five-expert mixer on a GPU follows the one on a CPU; counts exactly."""

import pytest
import torch

from pgolf.kernels.hedge import HedgeMixer
from pgolf.kernels.logit_stats import logit_stats
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory")]


def test_five_experts_follow_the_cpu():
    vocabulary = 257
    host, device = (HedgeMixer(vocabulary, warmup=0, device=place) for place in ("cpu", "cuda"))
    stream = repeating_tokens(30_000, vocabulary)
    begins, lengths, scored = [0, 64, 128, 192], [512, 512, 512, 500], [512, 64, 64, 0]
    for begin in range(0, 20_000, 5000):
        for mixer in (host, device):
            mixer.count(stream[begin : begin + 5001].to(mixer.unigram.device))
        span = stream[begin : begin + 1000]
        targets = torch.stack([span[b + 1 : b + 513] for b in begins])
        logits = torch.randn(4, 512, vocabulary) * 3
        scores = []
        for mixer in (host, device):
            place = mixer.unigram.device
            stats = logit_stats(logits.to(place), targets.to(place))
            windows = list(zip(begins, lengths, scored, strict=True))
            # the same numbers on both, so that what differs is the mixer's
            numbers = (x.float().cpu().to(place) for x in (stats.target, stats.entropy))
            scores.append(mixer.score_chunk(*numbers, span.to(place), windows, batch=3))
            mixer.log_weights = scores[-1].log_weights[0, -1]
        assert_close(scores[1].nll, scores[0].nll, 1e-5)
        assert_close(device.log_weights, host.log_weights, 1e-5)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(host.tables, device.tables, strict=True))
