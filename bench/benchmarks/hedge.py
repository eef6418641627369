"""The Hedge mixture of five experts: from raw logits, and its n-gram tables."""

import torch

from bench.benchmarks.registry import FORWARD, Benchmark, Place, benchmark
from pgolf.kernels import HedgeMixer, logit_stats
from pgolf.kernels.hedge import launch, reference
from pgolf.kernels.logit_stats.launch import traffic_forward


def eager_mixture(mixer: HedgeMixer, neural, entropy, inputs, targets, valid):
    """The mixture's NLL as the submissions compute it: eager torch in float32, from the network's
    log-probabilities of the targets and its entropies (B, T)."""
    weights = mixer.log_weights.float()
    return reference.score_reference(neural, entropy, inputs, targets, valid, *mixer.tables, weights, mixer.tokens)[0]


@benchmark("Hedge mixer from logits", tiny=(2, 12, 40), cpu=(4, 1024, 1024), full=(32, 2048, 1024), forms=(FORWARD,))
def _(place, form, windows, length, vocabulary):
    """Five experts on a batch of windows, from raw logits: what #688 computes for each batch."""
    mixer = HedgeMixer(vocabulary, warmup=0, device=place.device)
    mixer.count(place.randint(vocabulary, 20_000))
    logits = place.randn(windows, length, vocabulary)
    tokens = place.randint(vocabulary, windows * length + 1)
    inputs, targets = tokens[:-1].view(windows, length), tokens[1:].view(windows, length)
    triples = [(i * length, length, length) for i in range(windows)]
    valid = torch.ones(windows, length, dtype=torch.bool, device=place.device)

    def ours():
        stats = logit_stats(logits, targets)
        return mixer.score_chunk(stats.target, stats.entropy, tokens, triples, batch=windows).nll

    def theirs():
        log_probs = torch.log_softmax(logits.float(), -1)
        neural = log_probs.gather(-1, targets[..., None]).squeeze(-1)
        return eager_mixture(mixer, neural, -(log_probs.exp() * log_probs).sum(-1), inputs, targets, valid).flatten()

    count = windows * length
    moved, flops = traffic_forward(count, vocabulary, 0, place.element)
    more = launch.traffic_chunk(count, count, count)
    peer = "submissions' eager"
    min_speedup = {peer: 10.0 if place.on_gpu else 1.5}
    return Benchmark(ours, {peer: theirs}, (moved + more[0], flops + more[1]), (count, "tokens/s"), min_speedup=min_speedup)


@benchmark("Hedge mixer, a chunk", tiny=(4, 32, 40), cpu=(32, 2048, 1024), full=(512, 2048, 1024), forms=(FORWARD,))
def _(place, form, windows, length, vocabulary):
    """A chunk's windows at a stride of 64, in batches of 32, weights and all: the n-grams of a token are looked up once, in
    the submissions' arithmetic once for every window."""
    stride, batch = min(64, length // 4), 32
    mixer = HedgeMixer(vocabulary, warmup=0, device=place.device)
    mixer.count(place.randint(vocabulary, 20_000))
    tokens = place.randint(vocabulary, windows * stride + length + 1)
    begins = torch.arange(windows, device=place.device) * stride
    rows = tokens[begins[:, None] + torch.arange(length + 1, device=place.device)]
    neural, entropy = -place.randn(windows, length).float().abs() - 1, place.randn(windows, length).float().abs()
    triples = [(i * stride, length, stride) for i in range(windows)]
    valid = torch.ones(batch, length, dtype=torch.bool, device=place.device)

    def ours():
        return mixer.score_chunk(neural, entropy, tokens, triples, batch=batch).nll

    def theirs():
        weights, nll = mixer.log_weights.float(), []
        for at in range(0, windows, batch):
            here = slice(at, at + batch)
            known = (neural[here], entropy[here], rows[here, :-1], rows[here, 1:], valid[: len(neural[here])])
            losses, _, sums = reference.score_reference(*known, *mixer.tables, weights, mixer.tokens)
            weights = reference.hedge_step_reference(weights, sums, known[-1].sum())
            nll.append(losses[:, -stride:].flatten())
        return torch.cat(nll)

    peer = "submissions' eager"
    work = launch.traffic_chunk(windows * length, len(tokens), windows * stride)
    speedup = {peer: 2.0 if place.on_gpu else 8.0}
    return Benchmark(ours, {peer: theirs}, work, (windows * length, "positions/s"), min_speedup=speedup, tolerance=1e-4)


def counting_benchmark(place: Place, form: str, tokens: int, vocabulary: int):
    """A chunk's tokens into the five experts' tables, beside the submissions' scatter_add into their four (the bigram's
    totals are summed up where they are read)."""
    mixer, stream = HedgeMixer(vocabulary, device=place.device), place.randint(vocabulary, tokens)
    buckets = len(mixer.trigram)
    sizes = (vocabulary, vocabulary**2, buckets * vocabulary, buckets)
    unigram, bigram, trigram, trigram_total = (torch.zeros(size, device=place.device) for size in sizes)
    one = torch.ones(tokens, device=place.device)

    def ours():
        mixer.count(stream)
        # what repeats is the work; the counts themselves go on rising
        return (mixer.unigram > 0).float()

    def theirs():
        before, previous, y = stream[:-2], stream[1:-1], stream[2:]
        unigram.scatter_add_(0, stream, one)
        bigram.scatter_add_(0, stream[:-1] * vocabulary + stream[1:], one[1:])
        row = reference.trigram_bucket(before, previous, buckets)
        trigram.scatter_add_(0, row * vocabulary + y, one[2:])
        trigram_total.scatter_add_(0, row, one[2:])
        return (unigram > 0).float()

    peer = "submissions' scatter_add"
    min_speedup = {peer: 1.0 if place.on_gpu else 1.25}
    return Benchmark(ours, {peer: theirs}, launch.traffic_count(tokens), (tokens, "tokens/s"), min_speedup=min_speedup)


benchmark("Hedge mixer counting", tiny=(60, 16), cpu=(131_073, 1024), full=(131_073, 1024), forms=(FORWARD,))(
    counting_benchmark
)
