"""Streams of tokens for tests of counts."""

import torch


def repeating_tokens(count: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (count,) in which stretches of eight come back, so that contexts do too."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (count,), generator=generator)
    for _ in range(count // 12):
        source, target = torch.randint(0, count - 9, (2,), generator=generator).tolist()
        tokens[target : target + 8] = tokens[source : source + 8].clone()
    return tokens
