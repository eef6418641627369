"""The Hedge mixers on a CPU, in numba: the five experts of #688 and the two of #1014.

Every function releases the interpreter's lock, so that threads can share the work. Constants arrive as arguments:
numba caches what it compiled, and would not notice that an imported one has changed.
"""

import math

import numpy as np

from pgolf.kernels.elementary import exp_below, log_normal
from pgolf.kernels.jit import exact, reordered_inlined

# ---- five experts (#688)

BLOCK = 256


@reordered_inlined
def ngram_block(counts, tokens, vocabulary, smoothing, trigram_smoothing, probabilities, losses):
    inverse = 1.0 / (tokens + smoothing * vocabulary)
    for i in range(probabilities.shape[1]):
        p1 = (counts[0, i] + smoothing) * inverse
        p2 = (counts[1, i] + smoothing) / (counts[2, i] + smoothing * vocabulary)
        p3 = (counts[3, i] + trigram_smoothing) / (max(counts[4, i], 1.0) + trigram_smoothing * vocabulary)
        probabilities[0, i], probabilities[1, i], probabilities[2, i] = p1, p2, p3
        losses[0, i], losses[1, i], losses[2, i] = -log_normal(p1), -log_normal(p2), -log_normal(p3)


@exact
def ngrams(
    tokens, unigram, bigram, bigram_total, trigram, trigram_total, counted, smoothing, trigram_smoothing, probabilities,
    cumulative,
):  # fmt: skip
    """Probability of each token after the first under the three n-gram experts, and running sums of the NLLs before it."""
    buckets, vocabulary = trigram.shape
    counts, losses = np.empty((5, BLOCK)), np.empty((3, BLOCK))
    cumulative[:, :2] = 0.0
    probabilities[:, 0] = 1.0
    for begin in range(1, tokens.shape[0], BLOCK):
        end = min(begin + BLOCK, tokens.shape[0])
        for i in range(begin, end):
            before, previous, y = tokens[i - 2] if i > 1 else 0, tokens[i - 1], tokens[i]
            bucket = ((36_313 * np.int64(before)) ^ (27_191 * np.int64(previous))) % buckets
            counts[0, i - begin] = unigram[y]
            counts[1, i - begin] = bigram[previous, y]
            counts[2, i - begin] = bigram_total[previous]
            counts[3, i - begin] = trigram[bucket, y]
            counts[4, i - begin] = trigram_total[bucket]
        ngram_block(counts, counted, vocabulary, smoothing, trigram_smoothing, probabilities[:, begin:end], losses)
        for k in range(3):
            running = cumulative[k, begin]
            for i in range(begin, end):
                running += losses[k, i - begin]
                cumulative[k, i + 1] = running


@reordered_inlined
def total_of(row):
    total = 0.0
    for i in range(row.shape[0]):
        total += row[i]
    return total


@reordered_inlined
def mix_block(neural, entropy, probabilities, weights, nll):
    for i in range(neural.shape[0]):
        mixed = weights[0] * exp_below(neural[i]) + weights[4] * exp_below(-entropy[i])
        mixed += weights[1] * probabilities[0, i] + weights[2] * probabilities[1, i] + weights[3] * probabilities[2, i]
        nll[i] = -log_normal(mixed)


@exact
def score_windows(
    neural, entropy, tokens, begins, lengths, scored, probabilities, cumulative, trigram, trigram_total, trigram_smoothing,
    weights, nll, sums,
):  # fmt: skip
    """Score the last positions of windows whose n-grams are known; the sums over all positions come from running sums."""
    buckets, vocabulary = trigram.shape
    done = 0
    for window in range(begins.shape[0]):
        first, length, kept = begins[window] + 1, lengths[window], scored[window]
        end = first + length
        # the window's first target has no token before its predecessor, whatever the stream has
        y, bucket = tokens[first], (27_191 * np.int64(tokens[first - 1])) % buckets
        p3 = trigram[bucket, y] + trigram_smoothing
        p3 /= max(trigram_total[bucket], 1) + trigram_smoothing * vocabulary
        sums[0] -= total_of(neural[window, :length])
        sums[4] += total_of(entropy[window, :length])
        for k in range(3):
            sums[k + 1] += cumulative[k, end] - cumulative[k, first]
        sums[3] += -math.log(p3) - (cumulative[2, first + 1] - cumulative[2, first])
        here = slice(done, done + kept)
        rows, columns = neural[window, length - kept : length], entropy[window, length - kept : length]
        mix_block(rows, columns, probabilities[:, end - kept : end], weights, nll[here])
        if kept == length:
            own = weights[0] * math.exp(rows[0]) + weights[4] * math.exp(-columns[0]) + weights[3] * p3
            own += weights[1] * probabilities[0, first] + weights[2] * probabilities[1, first]
            nll[done] = -math.log(own)
        done += kept


@exact
def count(tokens, unigram, bigram, bigram_total, trigram, trigram_total):
    """Add a chunk's tokens to the tables, which are flat. A table after the other, a block of tokens at a time: each sweep is
    short enough for the processor to have many cache misses under way at once. Unsigned places spare numba's test for
    negative ones."""
    vocabulary, buckets = np.uint64(unigram.shape[0]), np.uint64(trigram_total.shape[0])
    masked = buckets & (buckets - np.uint64(1)) == 0
    pairs, rows, cells = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for i in range(min(tokens.shape[0], 2)):
        unigram[np.uint64(tokens[i])] += 1
    if tokens.shape[0] > 1:
        bigram[np.uint64(tokens[0]) * vocabulary + np.uint64(tokens[1])] += 1
        bigram_total[np.uint64(tokens[0])] += 1
    for begin in range(2, tokens.shape[0], BLOCK):
        size = min(BLOCK, tokens.shape[0] - begin)
        for i in range(size):
            before, previous = np.uint64(tokens[begin + i - 2]), np.uint64(tokens[begin + i - 1])
            y = np.uint64(tokens[begin + i])
            mixed = (np.uint64(36_313) * before) ^ (np.uint64(27_191) * previous)
            rows[i] = mixed & (buckets - np.uint64(1)) if masked else mixed % buckets
            cells[i] = rows[i] * vocabulary + y
            pairs[i] = previous * vocabulary + y
        for i in range(size):
            trigram[cells[i]] += 1
        for i in range(size):
            bigram[pairs[i]] += 1
        for i in range(size):
            trigram_total[rows[i]] += 1
        for i in range(size):
            unigram[np.uint64(tokens[begin + i])] += 1
            bigram_total[np.uint64(tokens[begin + i - 1])] += 1


# ---- hashed counts of nine orders, two experts (#1014)


@exact
def boost_window(tokens, begin, end, scored, neural, entropy, contexts, fulls, primes, multiplier, losses):
    """Score the last `scored` targets of tokens[begin:end] with the tables as they are, then count all of them."""
    orders, buckets = contexts.shape
    mask = np.uint64(buckets - 1)
    multiplier = np.uint64(multiplier)
    length = end - begin
    context_of = np.full((length, orders), -1, np.int32)
    full_of = np.empty((length, orders), np.int32)
    # the orders share their hashes along a common start: order n + 1 there continues order n
    for start in range(max(0, begin - orders - 1), end - 2):
        h = np.uint64(0)
        for k in range(min(orders, end - 2 - start)):
            h = (h ^ (np.uint64(tokens[start + k]) * primes[k % 7])) * multiplier
            target = start + k + 2
            if target >= begin:
                full = (h ^ (np.uint64(tokens[target]) * primes[(k + 1) % 7])) * multiplier
                context_of[target - begin, k] = np.int32(h & mask)
                full_of[target - begin, k] = np.int32(full & mask)
    for offset in range(scored):
        at = length - scored + offset
        boost = 0.0
        for k in range(orders):
            if context_of[at, k] >= 0:
                seen = np.int64(contexts[k, context_of[at, k]])
                hits = np.int64(fulls[k, full_of[at, k]])
                # as in the published code, where the difference is unsigned: below zero it wraps, and the boost is lost
                if 0 < hits <= seen:
                    boost = max(boost, math.log(1.0 + hits) - math.log(1.0 + max(seen - hits, np.int64(1))))
        alpha = 0.05 + 0.55 / (1.0 + math.exp(2.0 * (entropy[offset] - 4.0))) if boost > 0 else 0.0
        losses[offset, 1] = -neural[offset]
        losses[offset, 2] = -(neural[offset] + alpha * boost)
    for at in range(length):
        for k in range(orders):
            if context_of[at, k] >= 0:
                contexts[k, context_of[at, k]] += np.uint32(1)
                fulls[k, full_of[at, k]] += np.uint32(1)


@exact
def boost_mix(losses, weights, eta):
    """Mixture of the two experts of one window, then the weights' step."""
    mean0 = mean1 = 0.0
    for i in range(losses.shape[0]):
        plain, boosted = -losses[i, 1], -losses[i, 2]
        peak = max(plain, boosted)
        mixed = weights[0] * math.exp(plain - peak) + weights[1] * math.exp(boosted - peak)
        # the published floor, added after the shift by the peak
        losses[i, 0] = -(peak + math.log(mixed + 1e-30))
        mean0 -= plain
        mean1 -= boosted
    if losses.shape[0]:
        weights[0] *= math.exp(-eta * mean0 / losses.shape[0])
        weights[1] *= math.exp(-eta * mean1 / losses.shape[0])
        total = weights[0] + weights[1]
        weights[0] /= total
        weights[1] /= total
