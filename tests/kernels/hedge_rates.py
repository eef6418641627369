"""How fast the mixer is on one CPU core, beside the submissions' own arithmetic: `python -m tests.kernels.hedge_rates`.

Times are the thread's CPU time, the best of a few runs, so that a busy machine disturbs them little.
"""

import time

import torch

from pgolf.kernels.hedge import BoostedCache, Chain, FiveExperts, NeuralStatistics, neural_statistics


class EagerFive:
    """The five experts as the submissions compute them for each batch: eager torch, float32 tables, whole tables first."""

    def __init__(self, mixer: FiveExperts):
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


def markov_stream(count: int, vocabulary: int) -> torch.Tensor:
    """Tokens with Zipf's frequencies, 70 % of which follow one of four habits of the two tokens before them."""
    generator = torch.Generator().manual_seed(1)
    zipf = 1 / torch.arange(1, vocabulary + 1) ** 1.1
    drawn = lambda n: torch.multinomial(zipf, n, replacement=True, generator=generator)
    habits, fresh = drawn(4 * 65_536).tolist(), drawn(count).tolist()
    kept, which = (
        torch.rand(count, generator=generator).lt(0.7).tolist(),
        torch.randint(4, (count,), generator=generator).tolist(),
    )
    tokens, a, b = [], 0, 0
    for t in range(count):
        a, b = b, habits[(a * 977 + b) % 65_536 * 4 + which[t]] if kept[t] else fresh[t]
        tokens.append(b)
    return torch.tensor(tokens)


def seconds(work, runs: int = 5) -> float:
    work()
    best = float("inf")
    for _ in range(runs):
        begin = time.thread_time()
        work()
        best = min(best, time.thread_time() - begin)
    return best


def main(vocabulary: int = 1024, windows: int = 32, length: int = 2048, stride: int = 64) -> None:
    torch.set_num_threads(1)
    stream = markov_stream(400_000, vocabulary)
    report = lambda name, count, took, note="": print(f"{name:44s} {count / took / 1e6:8.2f} M tokens/s  {note}")
    positions = windows * length

    mixer = FiveExperts(vocabulary)
    for begin in range(0, 300_000, 32_768):
        mixer.count(stream[begin : begin + 32_769])
    report("published: count a chunk", 32_769, seconds(lambda: mixer.count(stream[:32_769])))
    span = stream[300_000 : 300_000 + 32_768 + length + 1]
    begins = [stride * i for i in range(windows)]
    inputs = torch.stack([span[b : b + length] for b in begins])
    targets = torch.stack([span[b + 1 : b + 1 + length] for b in begins])
    logits, valid = torch.randn(windows, length, vocabulary) * 2, torch.ones(windows, length, dtype=torch.bool)
    statistics = neural_statistics(logits, targets)
    report("statistics of the logits", positions, seconds(lambda: neural_statistics(logits, targets), 3))
    ngrams = mixer.ngrams(span)
    # the n-grams of a chunk serve all its batches
    share = seconds(lambda: mixer.ngrams(span)) * windows * stride / 32_768

    def in_windows(known):
        mixer.learn(mixer.score_windows(known, ngrams, begins, [length] * windows, [stride] * windows))

    eager = EagerFive(mixer)
    neural, entropy = -statistics.target.float(), statistics.entropy.float()
    slow = seconds(lambda: eager.step(neural, entropy, inputs, targets, valid))
    report("published: the submissions' eager arithmetic", positions, slow)
    plain = seconds(lambda: mixer.learn(mixer.score(statistics, inputs, targets)))
    report("published: score and learn", positions, plain, f"{slow / plain:.1f} x eager")
    fast = seconds(lambda: in_windows(statistics)) + share
    report("published: score_windows, ngrams and learn", positions, fast, f"{slow / fast:.1f} x eager")
    slow = seconds(lambda: eager.step_from_logits(logits, inputs, targets, valid), 2)
    fast = seconds(lambda: in_windows(neural_statistics(logits, targets)), 3) + share
    report("published: from raw logits", positions, fast, f"{slow / fast:.1f} x eager")

    cache = BoostedCache()
    rows = statistics.target[0, -stride:], statistics.entropy[0, -stride:]
    took = seconds(lambda: [cache.score(stream, b + 1, b + 1 + length, *rows) for b in range(0, 100 * stride, stride)], 2)
    report("published_boost: scored tokens", 100 * stride, took, f"each window of {length} counted whole")

    for documents, name in (
        (torch.arange(0, 400_001, 1000), "documents of 1000"),
        (torch.tensor([0, 400_000]), "one document"),
    ):
        for granularity in (1, 8):
            chain = Chain((1, 2, 3, 4, 5, 6), granularity=granularity)
            evidence = chain.evidence(stream, documents)
            target = torch.randn(len(stream), dtype=torch.float64) - 3
            known = NeuralStatistics(target, target, target, torch.randn(len(stream), 6, dtype=torch.float64) - 2)
            counting = seconds(lambda: chain.evidence(stream, documents), 3)  # noqa: B023
            mixing = seconds(lambda: chain.mix(known, evidence), 3)  # noqa: B023
            learning = seconds(lambda: chain.mix_and_learn(known, evidence), 3)  # noqa: B023
            note = f"counting {len(stream) / counting / 1e6:.2f}, mixing {len(stream) / mixing / 1e6:.1f}, "
            note += f"mixing and learning {len(stream) / learning / 1e6:.1f}"
            report(f"normalised: 6 levels, {name}, G={granularity}", len(stream), counting + mixing, note)


if __name__ == "__main__":
    main()
