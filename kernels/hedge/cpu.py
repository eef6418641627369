"""The mixer on a CPU, in numba: the row statistics, the rule sets' arithmetic, and the counts of the n-gram back-off.

Every function releases the interpreter's lock, so that threads can share the work. Constants arrive as arguments:
numba keeps what it compiled, and would not notice that an imported one has changed.
"""

import math

import numpy as np

from pgolf.kernels.jit import contracted_inlined, exact, exact_inlined, reordered_inlined

# ---- the elementary functions, in forms that vectorise. Not reassociated: the rounding below would be optimised away


@contracted_inlined
def exp_below(x):
    """e^x for x <= 0, relative error under 1e-12; what is smaller than 1e-306 becomes 1e-306."""
    x = max(x, -706.0)
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    k = shifted - 6755399441055744.0
    r = (x - k * 0.693145751953125) - k * 1.4286068203094172e-06
    p = 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    # the low bits of the shifted number hold k: into the exponent with it
    bits = np.float64(p).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)
    return np.int64(bits).view(np.float64)


@contracted_inlined
def log_normal(x):
    """log x for positive x that is neither denormal nor infinite, absolute error under 1e-12."""
    bits = np.float64(x).view(np.int64)
    # the exponent that leaves a mantissa between sqrt(1/2) and sqrt(2)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = np.int64(bits - (k << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1 / 15.0
    p = p * z + 1 / 13.0
    p = p * z + 1 / 11.0
    p = p * z + 1 / 9.0
    p = p * z + 1 / 7.0
    p = p * z + 1 / 5.0
    p = p * z + 1 / 3.0
    p = p * z + 1.0
    return np.float64(k) * 0.6931471805599453 + 2.0 * s * p


# ---- statistics of the neural distribution


@exact
def peaks_of(rows, peaks):
    """The largest number of each row in float32, NaN if there is one. Comparisons of integers fill vector registers: numbers
    are ordered like their bits, the negative ones' turned round."""
    magnitude, infinite = np.int32(0x7FFFFFFF), 0x7F800000
    for i in range(rows.shape[0]):
        bits = rows[i].view(np.int32)
        most, furthest = np.int32(-(2**31)), np.int32(0)
        for j in range(bits.shape[0]):
            most = max(most, np.int32(bits[j] ^ (bits[j] >> np.int32(31) & magnitude)))
            furthest = max(furthest, np.int32(bits[j] & magnitude))
        most = np.int32(most ^ (most >> np.int32(31) & magnitude))
        peaks[i] = most.view(np.float32) if furthest <= infinite else np.float32(np.nan)


@reordered_inlined
def row_sums(row, inverse, peak):
    """Sum of e^(z - peak), and of (z - peak) e^(z - peak), over one row of z = row * inverse."""
    total = 0.0
    weighted = 0.0
    for j in range(row.shape[0]):
        x = max(np.float64(row[j]) * inverse - peak, -706.0)
        e = exp_below(x)
        total += e
        weighted += e * x
    return total, weighted


@exact
def statistics(logits, peaks, targets, candidates, temperature, lse, entropy, target, picked):
    for i in range(logits.shape[0]):
        row = logits[i]
        inverse = 1.0 / temperature[i if temperature.shape[0] > 1 else 0]
        peak = np.float64(peaks[i]) * inverse
        total, weighted = row_sums(row, inverse, peak)
        log_total = math.log(total)
        lse[i] = peak + log_total
        entropy[i] = log_total - weighted / total
        target[i] = np.float64(row[targets[i]]) * inverse - lse[i]
        for k in range(candidates.shape[1]):
            c = candidates[i, k]
            picked[i, k] = np.float64(row[c]) * inverse - lse[i] if c >= 0 else -np.inf


# ---- `published`: five experts

BLOCK = 256


@reordered_inlined
def five_block(neural, entropy, valid, counts, weights, tokens, vocabulary, smoothing, trigram_smoothing, nll, experts, sums):
    inverse = 1.0 / (tokens + smoothing * vocabulary)
    sum0 = sum1 = sum2 = sum3 = sum4 = 0.0
    for i in range(neural.shape[0]):
        p1 = (counts[0, i] + smoothing) * inverse
        p2 = (counts[1, i] + smoothing) / (counts[2, i] + smoothing * vocabulary)
        p3 = (counts[3, i] + trigram_smoothing) / (max(counts[4, i], 1.0) + trigram_smoothing * vocabulary)
        mixed = weights[0] * exp_below(neural[i]) + weights[4] * exp_below(-entropy[i])
        mixed += weights[1] * p1 + weights[2] * p2 + weights[3] * p3
        nll[i] = -log_normal(mixed)
        e1, e2, e3 = -log_normal(p1), -log_normal(p2), -log_normal(p3)
        experts[0, i] = -neural[i]
        experts[1, i] = e1
        experts[2, i] = e2
        experts[3, i] = e3
        experts[4, i] = entropy[i]
        kept = np.float64(valid[i])
        sum0 -= neural[i] * kept
        sum1 += e1 * kept
        sum2 += e2 * kept
        sum3 += e3 * kept
        sum4 += entropy[i] * kept
    sums[0] += sum0
    sums[1] += sum1
    sums[2] += sum2
    sums[3] += sum3
    sums[4] += sum4


@exact
def five(
    neural, entropy, inputs, targets, valid, unigram, bigram, bigram_total, trigram, trigram_total, weights, tokens,
    smoothing, trigram_smoothing, nll, experts, sums,
):  # fmt: skip
    """Score windows (B, T). Experts are laid out (5, B, T): each is written in one stream."""
    buckets, vocabulary = trigram.shape
    counts = np.empty((5, BLOCK))
    for window in range(inputs.shape[0]):
        before = 0
        for begin in range(0, inputs.shape[1], BLOCK):
            end = min(begin + BLOCK, inputs.shape[1])
            for i in range(begin, end):
                previous, y = inputs[window, i], targets[window, i]
                bucket = ((36_313 * before) ^ (27_191 * previous)) % buckets
                before = previous
                counts[0, i - begin] = unigram[y]
                counts[1, i - begin] = bigram[previous, y]
                counts[2, i - begin] = bigram_total[previous]
                counts[3, i - begin] = trigram[bucket, y]
                counts[4, i - begin] = trigram_total[bucket]
            five_block(
                neural[window, begin:end], entropy[window, begin:end], valid[window, begin:end], counts, weights, tokens,
                vocabulary, smoothing, trigram_smoothing, nll[window, begin:end], experts[:, window, begin:end], sums[window],
            )  # fmt: skip


@reordered_inlined
def block_logs(counts, tokens, vocabulary, smoothing, trigram_smoothing, probabilities, losses):
    inverse = 1.0 / (tokens + smoothing * vocabulary)
    for i in range(probabilities.shape[1]):
        p1 = (counts[0, i] + smoothing) * inverse
        p2 = (counts[1, i] + smoothing) / (counts[2, i] + smoothing * vocabulary)
        p3 = (counts[3, i] + trigram_smoothing) / (max(counts[4, i], 1.0) + trigram_smoothing * vocabulary)
        probabilities[0, i], probabilities[1, i], probabilities[2, i] = p1, p2, p3
        losses[0, i], losses[1, i], losses[2, i] = -log_normal(p1), -log_normal(p2), -log_normal(p3)


@exact
def five_ngrams(
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
        block_logs(counts, counted, vocabulary, smoothing, trigram_smoothing, probabilities[:, begin:end], losses)
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
def mix_five(neural, entropy, probabilities, weights, nll):
    for i in range(neural.shape[0]):
        mixed = weights[0] * exp_below(neural[i]) + weights[4] * exp_below(-entropy[i])
        mixed += weights[1] * probabilities[0, i] + weights[2] * probabilities[1, i] + weights[3] * probabilities[2, i]
        nll[i] = -log_normal(mixed)


@exact
def five_windows(
    neural, entropy, tokens, begins, lengths, scored, probabilities, cumulative, trigram, trigram_total, trigram_smoothing,
    weights, nll, experts, sums,
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
        mix_five(rows, columns, probabilities[:, end - kept : end], weights, nll[here])
        for i in range(kept):
            target = end - kept + i
            experts[0, done + i], experts[4, done + i] = -rows[i], columns[i]
            for k in range(3):
                experts[k + 1, done + i] = cumulative[k, target + 1] - cumulative[k, target]
        if kept == length:
            own = weights[0] * math.exp(rows[0]) + weights[4] * math.exp(-columns[0]) + weights[3] * p3
            own += weights[1] * probabilities[0, first] + weights[2] * probabilities[1, first]
            nll[done], experts[3, done] = -math.log(own), -math.log(p3)
        done += kept


@exact
def five_count(tokens, unigram, bigram, bigram_total, trigram, trigram_total):
    buckets = trigram.shape[0]
    for i in range(tokens.shape[0]):
        y = tokens[i]
        unigram[y] += 1
        if i >= 1:
            previous = tokens[i - 1]
            bigram[previous, y] += 1
            bigram_total[previous] += 1
            if i >= 2:
                bucket = ((36_313 * np.int64(tokens[i - 2])) ^ (27_191 * np.int64(previous))) % buckets
                trigram[bucket, y] += 1
                trigram_total[bucket] += 1


# ---- `published_boost`: hashed counts of nine orders, two experts


@exact
def boost_window(tokens, begin, end, scored, neural, entropy, contexts, fulls, primes, multiplier, losses):
    """Score the last `scored` targets of tokens[begin:end] with the tables as they are, then count all of them."""
    levels, buckets = contexts.shape
    mask = np.uint64(buckets - 1)
    multiplier = np.uint64(multiplier)
    length = end - begin
    context_of = np.full((length, levels), -1, np.int32)
    full_of = np.empty((length, levels), np.int32)
    # the orders share their hashes along a common start: order n + 1 there continues order n
    for start in range(max(0, begin - levels - 1), end - 2):
        h = np.uint64(0)
        for level in range(min(levels, end - 2 - start)):
            h = (h ^ (np.uint64(tokens[start + level]) * primes[level % 7])) * multiplier
            target = start + level + 2
            if target >= begin:
                full = (h ^ (np.uint64(tokens[target]) * primes[(level + 1) % 7])) * multiplier
                context_of[target - begin, level] = np.int32(h & mask)
                full_of[target - begin, level] = np.int32(full & mask)
    for offset in range(scored):
        at = length - scored + offset
        boost = 0.0
        for level in range(levels):
            if context_of[at, level] >= 0:
                seen = np.int64(contexts[level, context_of[at, level]])
                hits = np.int64(fulls[level, full_of[at, level]])
                if seen > 0 and hits > 0:
                    boost = max(boost, math.log(1.0 + hits) - math.log(1.0 + max(seen - hits, np.int64(1))))
        alpha = 0.05 + 0.55 / (1.0 + math.exp(2.0 * (entropy[offset] - 4.0))) if boost > 0 else 0.0
        losses[offset, 1] = -neural[offset]
        losses[offset, 2] = -(neural[offset] + alpha * boost)
    for at in range(length):
        for level in range(levels):
            if context_of[at, level] >= 0:
                contexts[level, context_of[at, level]] += np.uint32(1)
                fulls[level, full_of[at, level]] += np.uint32(1)


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


# ---- `normalised`: counts
#
# A trie of contexts. The edge by which token y leaves a context of order o is also the context of order o + 1 that
# ends in y, so one look-up a level serves the score, the count and the next token's context. A record is 32 bytes;
# records are numbered in the order of their birth, 0 being the empty context.

TOTAL, DISTINCT, TOP, TOP_EDGE, TOP_COUNT, COUNT, PARENT, SYMBOL = range(8)
ROOT, ABSENT = 0, -1

# the scalars of a trie: records in use, table size less one, entries in the table, tokens that wait to be counted
USED, MASK, ENTERED, WAITING = range(4)
SMALLEST_TABLE = 256


@exact
def hashed(node, symbol, multiplier):
    h = (np.int64(node) * 0x2545F4914F6CDD1D + symbol) * multiplier
    return h ^ (h >> 29)


@exact
def tag_of(h):
    return (h >> 32) & 0x7FFFFFFF


@exact_inlined
def find(records, table, scalars, multiplier, node, symbol):
    """The edge from a context by a symbol, or ABSENT. A hit in the table counts only if its record says the same."""
    if node < 0:
        return ABSENT
    if records[node, TOP] == symbol:
        return np.int64(records[node, TOP_EDGE])
    if records[node, DISTINCT] < 2:
        return ABSENT
    h = hashed(node, symbol, multiplier)
    slot, tag, mask = h & scalars[MASK], tag_of(h), scalars[MASK]
    while table[slot] != 0:
        if table[slot] >> 32 == tag:
            edge = table[slot] & 0xFFFFFFFF
            if records[edge, PARENT] == node and records[edge, SYMBOL] == symbol:
                return edge
        slot = (slot + 1) & mask
    return ABSENT


@exact
def enter(records, table, scalars, multiplier, edge):
    h = hashed(records[edge, PARENT], records[edge, SYMBOL], multiplier)
    slot, mask = h & scalars[MASK], scalars[MASK]
    while table[slot] != 0:
        slot = (slot + 1) & mask
    table[slot] = tag_of(h) << 32 | np.int64(edge)
    scalars[ENTERED] += 1


@exact
def make_room(records, table, scalars, multiplier):
    """Keep the table at most half full: enter every edge anew into one four times as large."""
    if 2 * scalars[ENTERED] <= scalars[MASK]:
        return
    size = 4 * (scalars[MASK] + 1)
    scalars[MASK], scalars[ENTERED] = size - 1, 0
    table[:size] = 0
    for edge in range(1, scalars[USED]):
        # a context's only successor is kept in its own record, not in the table
        if records[records[edge, PARENT], DISTINCT] > 1:
            enter(records, table, scalars, multiplier, edge)


@exact
def clear(records, table, scalars):
    records[ROOT, :] = 0
    records[ROOT, TOP] = -1
    scalars[USED], scalars[MASK], scalars[ENTERED] = 1, SMALLEST_TABLE - 1, 0
    table[:SMALLEST_TABLE] = 0


@exact_inlined
def add(records, table, scalars, multiplier, node, symbol, edge):
    """Count one more `symbol` after a context; `edge` leads there, or is ABSENT. Returns the edge."""
    if edge == ABSENT:
        edge = scalars[USED]
        scalars[USED] += 1
        records[edge, TOTAL], records[edge, DISTINCT], records[edge, TOP] = 0, 0, -1
        records[edge, TOP_EDGE], records[edge, TOP_COUNT], records[edge, COUNT] = 0, 0, 0
        records[edge, PARENT], records[edge, SYMBOL] = node, symbol
        if records[node, DISTINCT] > 0:
            if records[node, DISTINCT] == 1:
                enter(records, table, scalars, multiplier, records[node, TOP_EDGE])
            enter(records, table, scalars, multiplier, edge)
        records[node, DISTINCT] += 1
    records[node, TOTAL] += 1
    records[edge, COUNT] += 1
    count = records[edge, COUNT]
    # of equal counts the symbol that came last for the first time: its edge has the larger number
    if count > records[node, TOP_COUNT] or (count == records[node, TOP_COUNT] and edge > records[node, TOP_EDGE]):
        records[node, TOP], records[node, TOP_EDGE], records[node, TOP_COUNT] = symbol, edge, count
    return edge


@exact
def count_waiting(records, table, scalars, multiplier, waiting, edges, reading, writing):
    """Count the tokens that wait; after it, what can be read is all there is. `edges` are those found when reading."""
    last = writing.shape[0] - 1
    for i in range(scalars[WAITING]):
        symbol = waiting[i]
        for order in range(last, -1, -1):
            node = writing[order]
            if node >= 0:
                edge = np.int64(edges[i, order])
                # since the first token was read nothing has been counted; what was absent for a later one may be there
                if edge == ABSENT and i > 0:
                    edge = find(records, table, scalars, multiplier, node, symbol)
                edge = add(records, table, scalars, multiplier, node, symbol, edge)
                if order < last:
                    writing[order + 1] = edge
        make_room(records, table, scalars, multiplier)
    scalars[WAITING] = 0
    for order in range(last + 1):
        reading[order] = writing[order]


@exact
def cell_of(total, distinct):
    """Where a context stands in a level's table, 0 if it is new; without branches, which would be guessed wrongly."""
    size = (total > 1) + (total > 2) + (total > 4) + (total > 8) + (total > 16) + (total > 64) + (total > 256)
    spread = (distinct > 1) * (1 + (4 * distinct > total) + (2 * distinct > total))
    return (total > 0) * (1 + 4 * size + spread)


@exact_inlined
def peek(records, table, scalars, multiplier, granularity, waiting, edges, reading, writing, orders, t, top, cell, total):
    """What the levels know before the next token, into row t."""
    if scalars[WAITING] == granularity:
        count_waiting(records, table, scalars, multiplier, waiting, edges, reading, writing)
    for level in range(orders.shape[0]):
        node = reading[orders[level]]
        if node >= 0:
            seen = records[node, TOTAL]
            top[t, level], total[t, level] = records[node, TOP], seen
            cell[t, level] = cell_of(seen, records[node, DISTINCT])
        else:
            top[t, level], total[t, level], cell[t, level] = -1, 0, 0


@exact
def open_document(records, table, scalars, multiplier, shared, waiting, edges, reading, writing):
    """Forget the context, and, unless tables are shared between documents, all counts."""
    if shared:
        count_waiting(records, table, scalars, multiplier, waiting, edges, reading, writing)
    else:
        clear(records, table, scalars)
    reading[:] = ABSENT
    reading[0] = ROOT
    writing[:] = reading
    scalars[WAITING] = 0


@exact
def successors(records, table, scalars, multiplier, reading, orders, counts):
    """How often each symbol of the vocabulary followed the context of each level: (L, V)."""
    for level in range(orders.shape[0]):
        node = reading[orders[level]]
        counts[level] = 0
        if node < 0 or records[node, DISTINCT] < 2:
            if node >= 0 and records[node, DISTINCT] == 1:
                counts[level, records[node, TOP]] = records[node, TOP_COUNT]
            continue
        for symbol in range(counts.shape[1]):
            edge = find(records, table, scalars, multiplier, node, symbol)
            counts[level, symbol] = records[edge, COUNT] if edge >= 0 else 0


@exact
def follow(
    tokens, starts, records, table, scalars, multiplier, granularity, shared, waiting, edges, reading, writing, orders,
    top, cell, count, total, dense_at, dense,
):  # fmt: skip
    """Read one token after another, and count each group when the next one begins; starts[t]: token t opens a document.

    Such a token is still read in the old document's context, since what a token will be is not known before it.
    """
    last = reading.shape[0] - 1
    next_dense = 0
    for t in range(tokens.shape[0]):
        y = tokens[t]
        peek(
            records, table, scalars, multiplier, granularity, waiting, edges, reading, writing, orders, t, top, cell, total
        )  # fmt: skip
        if next_dense < dense_at.shape[0] and dense_at[next_dense] == t:
            successors(records, table, scalars, multiplier, reading, orders, dense[next_dense])
            next_dense += 1
        at = scalars[WAITING]
        for order in range(last + 1):
            edges[at, order] = find(records, table, scalars, multiplier, reading[order], y)
        for level in range(orders.shape[0]):
            edge = edges[at, orders[level]]
            count[t, level] = records[edge, COUNT] if edge >= 0 else 0
        if starts[t]:
            open_document(records, table, scalars, multiplier, shared, waiting, edges, reading, writing)
            at = 0
            for order in range(last + 1):
                edges[at, order] = find(records, table, scalars, multiplier, reading[order], y)
        for order in range(last):
            reading[order + 1] = edges[at, order]
        waiting[at] = y
        scalars[WAITING] = at + 1


# ---- `normalised`: the mixture


@exact
def q_cell_of(log_prob, cuts):
    cell = 0
    for k in range(cuts.shape[0]):
        cell += log_prob >= cuts[k]
    return cell


@exact
def finish(neural, left, backed):
    """NLL of an n-gram back-off that kept the part `left` of the neural probability e^neural, and that part's share."""
    kept = left * math.exp(neural)
    probability = kept + backed
    if probability > 1e-30:
        return -math.log(probability), kept / probability
    return -(neural + math.log(left)), 1.0


@exact
def mix(target, candidates, cell, count, total, weights, cuts, nll, share):
    for t in range(target.shape[0]):
        left, backed = 1.0, 0.0
        for level in range(cell.shape[1]):
            if cell[t, level]:
                w = weights[level, q_cell_of(candidates[t, level], cuts), cell[t, level]]
                left *= 1 - w
                backed = (1 - w) * backed + w * (count[t, level] / total[t, level])
        nll[t], share[t] = finish(target[t], left, backed)


@exact
def mix_dense(log_probs, top, cell, counts, total, weights, cuts, mixed):
    """The whole distribution `mixed` (V,) of one token, carried through the levels of one row."""
    for level in range(cell.shape[0]):
        if cell[level]:
            w = weights[level, q_cell_of(log_probs[top[level]], cuts), cell[level]]
            kept, share = 1 - w, w / total[level]
            for symbol in range(mixed.shape[0]):
                mixed[symbol] = kept * mixed[symbol] + share * counts[level, symbol]


@exact
def settle(weights, visits, places, posteriors, waiting, floor, least, most):
    """Move each cell that waits towards its posterior, in order."""
    for i in range(waiting[0]):
        place = places[i]
        rate = max(floor, 1.0 / (visits[place] + 20))
        weights[place] = min(max(weights[place] + rate * (posteriors[i] - weights[place]), least), most)
        visits[place] += 1
    waiting[0] = 0


@exact
def mix_online(
    target, candidates, cell, count, total, fresh, weights, visits, places, posteriors, waiting, cuts, floor, least, most,
    nll, share,
):  # fmt: skip
    """As `mix`, learning the weights; what a row teaches waits in `places` and `posteriors` for the next fresh row."""
    levels, q_cells, n_cells = weights.shape
    flat_weights, flat_visits = weights.reshape(-1), visits.reshape(-1)
    for t in range(target.shape[0]):
        if fresh[t]:
            settle(flat_weights, flat_visits, places, posteriors, waiting, floor, least, most)
        left, backed = 1.0, 0.0
        neural = math.exp(target[t])
        for level in range(levels):
            if cell[t, level]:
                place = (level * q_cells + q_cell_of(candidates[t, level], cuts)) * n_cells + cell[t, level]
                w = flat_weights[place]
                counted = w * (count[t, level] / total[t, level])
                left *= 1 - w
                backed = (1 - w) * backed + counted
                after = left * neural + backed
                places[waiting[0]] = place
                posteriors[waiting[0]] = counted / after if after > 0 else w
                waiting[0] += 1
        nll[t], share[t] = finish(target[t], left, backed)
