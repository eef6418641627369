"""The mixer's mathematics in plain torch and plain Python: slow, exact, the oracle of every test."""

import math

import torch

# ---- what every rule set needs of the neural model


def statistics_reference(logits, targets, candidates, temperature):
    """Log-sum-exp, entropy, target and candidate log-probabilities of softmax(logits / temperature).

    A candidate of -1 is absent: its log-probability is -inf.
    """
    z = logits / temperature.reshape(-1, 1)
    lse = z.logsumexp(1)
    log_probs = z - lse[:, None]
    probs = log_probs.exp()
    entropy = -(probs * torch.where(probs > 0, log_probs, 0)).sum(1)
    target = log_probs.gather(1, targets.long()[:, None]).squeeze(1)
    picked = log_probs.gather(1, candidates.long().clamp_min(0))
    return lse, entropy, target, torch.where(candidates >= 0, picked, -math.inf)


def statistics_backward_reference(
    logits, targets, candidates, temperature, lse, entropy, d_lse, d_entropy, d_target, d_candidates
):
    """Gradients of the logits and of each row's temperature."""
    inverse = 1 / temperature.reshape(-1, 1).to(lse.dtype)
    raw = logits.to(lse.dtype)
    log_probs = raw * inverse - lse[:, None]
    probs = log_probs.exp()
    spread = torch.where(probs > 0, probs * (log_probs + entropy[:, None]), 0)
    d_picked = torch.where(candidates >= 0, d_candidates, 0)
    d_z = probs * (d_lse - d_target - d_picked.sum(1))[:, None] - spread * d_entropy[:, None]
    d_z.scatter_add_(1, targets.long()[:, None], d_target[:, None])
    d_z.scatter_add_(1, candidates.long().clamp_min(0), d_picked)
    d_logits = d_z * inverse
    d_rows = -(d_logits * raw * inverse).nan_to_num(nan=0.0).sum(1)
    return d_logits.to(logits.dtype), d_rows


# ---- `published`: five experts, Hedge over batches

ETA = 0.1
SMOOTHING = 0.1
TRIGRAM_SMOOTHING = 0.01


def trigram_bucket(before, previous, buckets):
    return ((36_313 * before.long()) ^ (27_191 * previous.long())) % buckets


def shifted(inputs):
    """The token before each input of a window, 0 where the window begins."""
    before = torch.zeros_like(inputs)
    before[:, 1:] = inputs[:, :-1]
    return before


def five_reference(
    neural, entropy, inputs, targets, valid, unigram, bigram, bigram_total, trigram, trigram_total, log_weights, tokens
):
    """Mixture NLL (B, T), the five experts' NLLs (B, T, 5) and their sums over the valid positions (5)."""
    vocabulary, buckets = bigram.shape[0], trigram.shape[0]
    exact = neural.dtype
    previous, target = inputs.long(), targets.long()
    bucket = trigram_bucket(shifted(inputs), inputs, buckets)
    unigram_p = (unigram[target].to(exact) + SMOOTHING) / (tokens + SMOOTHING * vocabulary)
    bigram_p = (bigram[previous, target].to(exact) + SMOOTHING) / (bigram_total[previous].to(exact) + SMOOTHING * vocabulary)
    row = trigram_total[bucket].clamp_min(1).to(exact)
    trigram_p = (trigram[bucket, target].to(exact) + TRIGRAM_SMOOTHING) / (row + TRIGRAM_SMOOTHING * vocabulary)
    experts = torch.stack([-neural, -unigram_p.log(), -bigram_p.log(), -trigram_p.log(), entropy], -1)
    weights = log_weights.to(exact).log_softmax(0)
    nll = -(weights - experts).logsumexp(-1)
    sums = torch.where(valid[..., None], experts, 0).sum((0, 1))
    return nll, experts, sums.to(log_weights.dtype)


def five_count_reference(tokens, unigram, bigram, bigram_total, trigram, trigram_total):
    """Add one chunk's tokens to the tables, in place."""
    tokens = tokens.long()
    previous, following = tokens[:-1], tokens[1:]
    bucket = trigram_bucket(tokens[:-2], tokens[1:-1], trigram.shape[0])
    for table, index in (
        (unigram, (tokens,)),
        (bigram, (previous, following)),
        (bigram_total, (previous,)),
        (trigram, (bucket, tokens[2:])),
        (trigram_total, (bucket,)),
    ):
        table.index_put_(index, torch.ones((), dtype=table.dtype, device=table.device), accumulate=True)


# ---- `published_boost`: hashed counts that raise the target's log-probability, two experts

BOOST_ORDERS = tuple(range(2, 11))
BOOST_PRIMES = (36_313, 27_191, 51_647, 81_929, 131_071, 175_447, 209_591)
BOOST_MULTIPLIER = 2_654_435_761
WORD = (1 << 64) - 1


def boost_buckets_reference(tokens, target, order, buckets):
    """Context and full bucket of one order for the target at one index of the stream. The context stops one token short."""
    h = 0
    for k in range(order - 1):
        h ^= int(tokens[target - order + k]) * BOOST_PRIMES[k % 7]
        h = h * BOOST_MULTIPLIER & WORD
    full = (h ^ int(tokens[target]) * BOOST_PRIMES[(order - 1) % 7]) * BOOST_MULTIPLIER & WORD
    return h & (buckets - 1), full & (buckets - 1)


def boost_window_reference(tokens, begin, end, scored, neural, entropy, contexts, fulls, weights):
    """One window of targets tokens[begin:end], the last `scored` of them scored; changes the tables and the weights."""
    buckets = contexts.shape[1]
    found = []
    for offset, target in enumerate(range(end - scored, end)):
        boost = 0.0
        for level, order in enumerate(BOOST_ORDERS):
            if target < order:
                continue
            context, full = boost_buckets_reference(tokens, target, order, buckets)
            seen, hits = int(contexts[level, context]), int(fulls[level, full])
            if seen and hits:
                boost = max(boost, math.log(1 + hits) - math.log(1 + max(seen - hits, 1)))
        alpha = (0.05 + 0.55 / (1 + math.exp(2 * (float(entropy[offset]) - 4)))) if boost > 0 else 0.0
        plain = float(neural[offset])
        boosted = plain + alpha * boost
        peak = max(plain, boosted)
        mixed = float(weights[0]) * math.exp(plain - peak) + float(weights[1]) * math.exp(boosted - peak)
        # the floor of 1e-30 is added to the mixture after the shift by its peak
        found.append((-(peak + math.log(mixed + 1e-30)), -plain, -boosted))
    losses = torch.tensor(found, dtype=torch.float64).reshape(-1, 3)
    if scored:
        weights.mul_(torch.exp(-ETA * losses[:, 1:].mean(0)))
        weights.div_(weights.sum())
    for target in range(begin, end):
        for level, order in enumerate(BOOST_ORDERS):
            if target >= order:
                context, full = boost_buckets_reference(tokens, target, order, buckets)
                contexts[level, context] += 1
                fulls[level, full] += 1
    return losses


# ---- `normalised`: an n-gram back-off of document-local counts that backs off to the neural distribution

Q_CUTS = (-9.0, -6.0, -4.0, -2.5, -1.5, -0.8, -0.35, -0.1)
N_CUTS = (1, 2, 4, 8, 16, 64, 256)
Q_CELLS = len(Q_CUTS) + 1
N_CELLS = 4 * (len(N_CUTS) + 1) + 1
FIRST_WEIGHT = 0.05
LEAST_WEIGHT, MOST_WEIGHT = 1e-4, 0.9995


def evidence_cell(total, distinct):
    """Where a context with `total` successors, `distinct` of them different, stands in a level's table; 0 if it is new."""
    if total == 0:
        return 0
    size = sum(total > cut for cut in N_CUTS)
    spread = 0 if distinct == 1 else 1 if 4 * distinct <= total else 2 if 2 * distinct <= total else 3
    return 1 + 4 * size + spread


def evidence_reference(tokens, starts, orders, granularity, shared):
    """Per token and order: top symbol (-1 if the context is new), cell, the token's count and the context's total."""
    tokens, starts = tokens.tolist(), starts.tolist()
    shape = (len(tokens), len(orders))
    top = torch.full(shape, -1, dtype=torch.int32)
    cell = torch.zeros(shape, dtype=torch.uint8)
    count, total = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    tables: list[dict] = [{} for _ in orders]
    document: list[int] = []
    counted = 0

    def learn():
        nonlocal counted
        for position in range(counted, len(document)):
            for order, table in zip(orders, tables, strict=True):
                if position >= order:
                    successors = table.setdefault(tuple(document[position - order : position]), {})
                    successors[document[position]] = successors.get(document[position], 0) + 1
        counted = len(document)

    for t, token in enumerate(tokens):
        if len(document) % granularity == 0:
            learn()
        for level, order in enumerate(orders):
            successors = tables[level].get(tuple(document[len(document) - order :])) if len(document) >= order else None
            if successors:
                most = max(successors.values())
                top[t, level] = [symbol for symbol, c in successors.items() if c == most][-1]
                total[t, level] = sum(successors.values())
                cell[t, level] = evidence_cell(int(total[t, level]), len(successors))
                count[t, level] = successors.get(token, 0)
        if starts[t]:
            learn()
            if not shared:
                tables = [{} for _ in orders]
            document, counted = [], 0
        document.append(token)
    return top, cell, count, total


def ngram_backoff_weights(candidates, cell, table):
    """The weight of each level at each token, 0 where its context is new: (N, L)."""
    levels = torch.arange(cell.shape[1], device=cell.device)
    return torch.where(cell > 0, table[levels, q_cells(candidates), cell.long()].to(candidates.dtype), 0)


def q_cells(candidates):
    cuts = torch.tensor(Q_CUTS, dtype=candidates.dtype, device=candidates.device)
    return torch.searchsorted(cuts, candidates.contiguous(), right=True)


def mix_reference(target, candidates, cell, count, total, table):
    """The n-gram back-off's NLL of each target, and the part of its probability that the neural model gave."""
    weights = ngram_backoff_weights(candidates, cell, table)
    neural = target.exp()
    backed = torch.zeros_like(neural)
    left = torch.ones_like(neural)
    for level in range(cell.shape[1]):
        w = weights[:, level]
        q = count[:, level].to(neural.dtype) / total[:, level].clamp_min(1)
        backed = (1 - w) * backed + w * q
        left = (1 - w) * left
    probability = left * neural + backed
    safe = probability > 1e-30
    nll = torch.where(safe, -torch.where(safe, probability, 1).log(), -(target + left.log()))
    return nll, torch.where(safe, left * neural / torch.where(safe, probability, 1), 1)


def mix_dense_reference(log_probs, candidates, cell, counts, total, table):
    """The n-gram back-off's whole distribution (N, V); counts (N, L, V) are those of every symbol."""
    weights = ngram_backoff_weights(candidates, cell, table)
    mixed = log_probs.exp()
    for level in range(cell.shape[1]):
        w = weights[:, level, None]
        mixed = (1 - w) * mixed + w * counts[:, level] / total[:, level, None].clamp_min(1)
    return mixed


def settle_reference(waiting, table, visits, floor):
    """Move the table by the posteriors that wait, each (place, posterior) in its turn."""
    for place, posterior in waiting:
        rate = max(floor, 1 / (int(visits[place]) + 20))
        moved = float(table[place]) + rate * (posterior - float(table[place]))
        table[place] = min(max(moved, LEAST_WEIGHT), MOST_WEIGHT)
        visits[place] += 1
    waiting.clear()


def mix_online_reference(target, candidates, cell, count, total, fresh, table, visits, waiting, floor):
    """As `mix_reference`, with the table learnt on the way, in place; what a row teaches waits for the next fresh row."""
    nlls, shares = [], []
    for t in range(len(target)):
        if fresh[t]:
            settle_reference(waiting, table, visits, floor)
        row = slice(t, t + 1)
        nll, share = mix_reference(target[row], candidates[row], cell[row], count[row], total[row], table)
        nlls.append(nll)
        shares.append(share)
        mixed = float(target[t].exp())
        for level in range(cell.shape[1]):
            if cell[t, level]:
                place = (level, int(q_cells(candidates[t, level])), int(cell[t, level]))
                w, q = float(table[place]), int(count[t, level]) / int(total[t, level])
                after = (1 - w) * mixed + w * q
                waiting.append((place, w * q / after if after > 0 else w))
                mixed = after
    return torch.cat(nlls), torch.cat(shares)
