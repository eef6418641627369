"""The submissions' own arithmetic, and the plainest loops there are: what the mixer is measured against."""

import torch

from pgolf.kernels.hedge import HedgeMixer


class EagerFive:
    """The five experts as the submissions compute them for each batch: eager torch, float32 tables, whole tables first."""

    def __init__(self, mixer: HedgeMixer):
        self.unigram, self.bigram, _, self.trigram, self.trigram_total = (table.float() for table in mixer.tables)
        self.tokens, self.log_weights = mixer.tokens, mixer.log_weights.float()

    def step(self, neural, entropy, inputs, targets, valid):
        """Score a batch of windows (B, T) from its neural NLLs and entropies, and learn from it."""
        vocabulary, buckets = self.bigram.shape[0], len(self.trigram)
        previous, y = inputs.reshape(-1), targets.reshape(-1)
        unigram = -((self.unigram + 0.1) / (self.tokens + 0.1 * vocabulary)).log()[targets]
        rows = self.bigram.sum(1, keepdim=True)
        bigram = -((self.bigram + 0.1) / (rows + 0.1 * vocabulary)).log()[previous, y].reshape(targets.shape)
        before = torch.zeros_like(inputs)
        before[:, 1:] = inputs[:, :-1]
        bucket = (((before * 36_313) ^ (inputs * 27_191)) % buckets).reshape(-1)
        total = self.trigram_total[bucket].clamp(min=1)
        trigram = -((self.trigram[bucket, y] + 0.01) / (total + 0.01 * vocabulary)).log().reshape(targets.shape)
        experts = torch.stack([neural, unigram, bigram, trigram, entropy], -1)
        nll = -(self.log_weights.log_softmax(0) - experts).logsumexp(-1)
        self.log_weights = self.log_weights - 0.1 * (experts * valid[..., None]).sum((0, 1)) / valid.sum()
        return nll

    def step_from_logits(self, logits, inputs, targets, valid):
        log_probs = torch.log_softmax(logits, -1)
        neural = -log_probs.gather(-1, targets[..., None]).squeeze(-1)
        return self.step(neural, -(log_probs.exp() * log_probs).sum(-1), inputs, targets, valid)


def ngram_backoff_in_dictionaries(tokens: list[int], starts: list[bool], orders: tuple[int, ...]) -> list[list[int]]:
    """Per token the counts of an back-off of document-local levels, as a dictionary loop keeps them: (hits, total) a level."""
    tables: list[dict] = [{} for _ in orders]
    found, document = [], []
    for token, start in zip(tokens, starts, strict=True):
        row = []
        contexts = [tuple(document[len(document) - order :]) if len(document) >= order else None for order in orders]
        for context, table in zip(contexts, tables, strict=True):
            successors = table.get(context)
            row += [successors.get(token, 0), sum(successors.values())] if successors else [0, 0]
        found.append(row)
        if start:
            tables, document = [{} for _ in orders], []
        else:
            for context, table in zip(contexts, tables, strict=True):
                if context is not None:
                    successors = table.setdefault(context, {})
                    successors[token] = successors.get(token, 0) + 1
        document.append(token)
    return found


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
