"""What the published mixtures give to every symbol is what they give to the one that came."""

import numpy as np
import pytest
import torch

from pgolf.audit.published import boost_row
from pgolf.kernels.hedge import BoostedCache


@pytest.mark.parametrize("buckets", [16, 4096])
def test_a_row_of_the_boost_holds_the_score_of_each_target(buckets):
    """With few buckets, contexts share them: what was counted more often than its context gets no boost."""
    rng = np.random.default_rng(2)
    tokens = np.tile(rng.integers(0, 6, 40), 6)
    rows = np.log(rng.dirichlet(np.ones(6), len(tokens)))
    cache = BoostedCache(buckets=buckets)
    for target in range(1, len(tokens)):
        expected = boost_row(cache, tokens, target, rows[target])[tokens[target]]
        entropy = -(np.exp(rows[target]) * rows[target]).sum()
        numbers = (torch.tensor([value], dtype=torch.float64) for value in (rows[target][tokens[target]], entropy))
        found = cache.score(torch.from_numpy(tokens), target, target + 1, *numbers)[0, 0]
        assert float(found) == pytest.approx(-expected, rel=1e-9), target
