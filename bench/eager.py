"""The submissions' own arithmetic, and the plainest loops there are: what the mixer is measured against."""

import torch


def ngram_backoff_in_dictionaries(tokens: list[int], starts: list[bool], orders: tuple[int, ...]) -> list[list[int]]:
    """Per token the counts of an back-off of document-local levels, as a dictionary loop keeps them: (hits, total) a level."""
    tables: list[dict] = [{} for _ in orders]
    counts, document = [], []
    for token, start in zip(tokens, starts, strict=True):
        row = []
        contexts = [tuple(document[len(document) - order :]) if len(document) >= order else None for order in orders]
        for context, table in zip(contexts, tables, strict=True):
            successors = table.get(context)
            row += [successors.get(token, 0), sum(successors.values())] if successors else [0, 0]
        counts.append(row)
        if start:
            tables, document = [{} for _ in orders], []
        else:
            for context, table in zip(contexts, tables, strict=True):
                if context is not None:
                    successors = table.setdefault(context, {})
                    successors[token] = successors.get(token, 0) + 1
        document.append(token)
    return counts


def markov_stream(count: int, vocabulary: int) -> torch.Tensor:
    """Tokens with Zipf's frequencies, 70 % of which follow one of four habits of the two tokens before them."""
    generator = torch.Generator().manual_seed(1)
    zipf = 1 / torch.arange(1, vocabulary + 1) ** 1.1
    drawn = lambda n: torch.multinomial(zipf, n, replacement=True, generator=generator)
    habits, fresh = drawn(4 * 65_536).tolist(), drawn(count).tolist()
    kept = torch.rand(count, generator=generator).lt(0.7).tolist()
    which = torch.randint(4, (count,), generator=generator).tolist()
    tokens, a, b = [], 0, 0
    for t in range(count):
        a, b = b, habits[(a * 977 + b) % 65_536 * 4 + which[t]] if kept[t] else fresh[t]
        tokens.append(b)
    return torch.tensor(tokens)


def plain_gptq(weight: torch.Tensor, scale: torch.Tensor, largest: int, inverse: torch.Tensor) -> torch.Tensor:
    """Codes of one matrix, column after column, each error spread over all columns that follow at once."""
    left, codes = weight.clone(), torch.empty_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = (left[:, j] / scale).round().clamp(-largest, largest)
        error = (left[:, j] - codes[:, j] * scale) / inverse[j, j]
        left[:, j + 1 :] -= error[:, None] * inverse[j, j + 1 :]
    return codes
