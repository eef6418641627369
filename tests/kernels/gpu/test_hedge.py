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
            scores.append(mixer.score_windows(stats, mixer.ngrams(span.to(place)), begins, lengths, scored))
            mixer.learn(scores[-1])
        assert_close(scores[1].nll, scores[0].nll, 1e-5)
        assert_close(scores[1].experts, scores[0].experts, 1e-5)
        assert_close(device.log_weights, host.log_weights, 1e-5)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(host.tables, device.tables, strict=True))
