"""The submissions' mixtures, written down once more from their description: plain loops, nothing shared with the package.

Both take `logits(rows)`, the model's logits for rows of tokens (B, L), and the token stream; they return the losses with
their target positions in the order they are scored (targets may come twice), and the state at the end.
"""

import math

import torch

ETA = 0.1


def published_windows(total, length, stride, shortest):
    """(start, length, scored positions at the end) of every window."""
    found = []
    for start in range(0, total, stride):
        size = min(length, total - start)
        if start and size < shortest:
            continue
        found.append((start, size, size if start == 0 else min(size, stride)))
    return found


def padded(tokens, start, size, length):
    row = torch.zeros(length, dtype=torch.long)
    row[:size] = tokens[start : start + size]
    return row


def five_experts(logits, tokens, *, vocab, length, stride, chunk, ranks, batch, t0, eta=ETA, buckets=65_536):
    tokens = torch.as_tensor(tokens.astype("int64"))
    total = len(tokens) - 1
    unigram, bigram = torch.zeros(vocab), torch.zeros(vocab, vocab)
    trigram, rows = torch.zeros(buckets, vocab), torch.zeros(buckets)
    seen = 0
    log_weights = [torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64) for _ in range(ranks)]
    losses, weights_over_time = {}, []
    windows = published_windows(total, length, stride, stride)
    for first in range(0, total, chunk):
        members = [(s, n, kept) for s, n, kept in windows if first <= s + n - kept < first + chunk]
        for rank in range(ranks):
            mine = members[len(members) * rank // ranks : len(members) * (rank + 1) // ranks]
            for at in range(0, len(mine), batch):
                group = mine[at : at + batch]
                z = logits(torch.stack([padded(tokens, s, n, length) for s, n, _ in group]))
                sums, count = torch.zeros(5, dtype=torch.float64), 0
                for (start, size, scored), own in zip(group, z, strict=True):
                    x, y = tokens[start : start + size], tokens[start + 1 : start + 1 + size]
                    before = torch.cat([torch.zeros(1, dtype=torch.long), x[:-1]])
                    plain = own[:size].log_softmax(-1)
                    entropy = -(plain.exp() * plain).sum(-1)
                    heat = torch.ones_like(entropy)
                    if t0 != 1:
                        heat = (1 - (1 - t0) * (1 - entropy / math.log(vocab))).clamp(0.9, 1.05)
                    log_p = (own[:size] / heat[:, None]).log_softmax(-1)
                    entropy = -(log_p.exp() * log_p).sum(-1)
                    h = ((36_313 * before) ^ (27_191 * x)) % buckets
                    experts = torch.stack(
                        [
                            -log_p[torch.arange(size), y],
                            -torch.log((unigram[y] + 0.1) / (seen + 0.1 * vocab)).double(),
                            -torch.log((bigram[x, y] + 0.1) / (bigram[x].sum(-1) + 0.1 * vocab)).double(),
                            -torch.log((trigram[h, y] + 0.01) / (rows[h].clamp(min=1) + 0.01 * vocab)).double(),
                            entropy,
                        ]
                    )
                    if seen < 10_000:
                        nll = experts[0]
                    else:
                        normalised = log_weights[rank] - log_weights[rank].logsumexp(0)
                        nll = -(normalised[:, None] - experts).logsumexp(0)
                        sums += experts.sum(1)
                        count += size
                    for i in range(size - scored, size):
                        losses.setdefault(start + i, []).append(nll[i].item())
                if count:
                    log_weights[rank] = log_weights[rank] - eta * sums / count
        new = tokens[first : min(first + chunk, total) + 1]
        for i, y in enumerate(new.tolist()):
            unigram[y] += 1
            if i > 0:
                bigram[new[i - 1], y] += 1
            if i > 1:
                h = ((36_313 * int(new[i - 2])) ^ (27_191 * int(new[i - 1]))) % buckets
                trigram[h, y] += 1
                rows[h] += 1
        seen += len(new)
        weights_over_time.append([w.softmax(0) for w in log_weights])
    return losses, weights_over_time, (unigram, bigram, trigram, rows)


PRIMES = (36_313, 27_191, 51_647, 81_929, 131_071, 175_447, 209_591)
WRAP = (1 << 64) - 1


def boosted(logits, tokens, *, vocab, length, stride, ranks, batch, rate, buckets, eta=ETA):
    stream = [int(t) for t in tokens]
    tokens = torch.as_tensor(tokens.astype("int64"))
    total = len(tokens) - 1
    windows = published_windows(total, length, stride, 1)
    losses, states = {}, []
    for rank in range(ranks):
        mine = windows[len(windows) * rank // ranks : len(windows) * (rank + 1) // ranks]
        context = [dict() for _ in range(11)]
        full = [dict() for _ in range(11)]
        weights = [0.5, 0.5]
        bias = torch.zeros(vocab)

        def keys(n, g):
            h = 0
            for k in range(n - 1):
                h ^= (stream[g - n + k] * PRIMES[k % 7]) & WRAP
                h = h * 2_654_435_761 & WRAP
            f = ((h ^ (stream[g] * PRIMES[(n - 1) % 7]) & WRAP) * 2_654_435_761) & WRAP
            return h % buckets, f % buckets

        for at in range(0, len(mine), batch):
            group = mine[at : at + batch]
            z = logits(torch.stack([padded(tokens, s, n, length) for s, n, _ in group])) + bias
            log_p = z.log_softmax(-1)
            for (start, size, scored), own in zip(group, log_p, strict=True):
                means = [0.0, 0.0]
                for i in range(size - scored, size):
                    g = start + i + 1
                    lp = own[i, stream[g]].item()
                    entropy = -(own[i].exp() * own[i]).sum().item()
                    best = 0.0
                    for n in range(2, 11):
                        if g - n < 0:
                            continue
                        c, f = keys(n, g)
                        seen, hits = context[n].get(c, 0), full[n].get(f, 0)
                        if seen > 0 and hits > 0:
                            best = max(best, math.log(1 + hits) - math.log(1 + max((seen - hits) % 2**64, 1)))
                    alpha = 0.05 + 0.55 / (1 + math.exp(2 * (entropy - 4))) if best else 0.0
                    raised = lp + alpha * best
                    losses.setdefault(start + i, []).append(
                        -math.log(weights[0] * math.exp(lp) + weights[1] * math.exp(raised) + 1e-30)
                    )
                    means[0] -= lp / scored
                    means[1] -= raised / scored
                weights = [w * math.exp(-eta * m) for w, m in zip(weights, means, strict=True)]
                weights = [w / sum(weights) for w in weights]
                for i in range(size):
                    for n in range(2, 11):
                        if start + i + 1 - n >= 0:
                            c, f = keys(n, start + i + 1)
                            context[n][c] = context[n].get(c, 0) + 1
                            full[n][f] = full[n].get(f, 0) + 1
            came = torch.zeros(vocab, dtype=torch.float64)
            for start, size, _ in group:
                row = torch.zeros(length, dtype=torch.long)
                row[:size] = tokens[start + 1 : start + 1 + size]
                came += torch.bincount(row, minlength=vocab)
            positions = len(group) * length
            bias = bias + rate * (came / positions - log_p.exp().sum((0, 1)) / positions).float()
        states.append((weights, bias, context, full))
    return losses, states
