"""The n-gram back-off on a CPU, in numba: counts in a trie of contexts, the mixture, and its weights' updates.

Every function releases the interpreter's lock, so that threads can share the work. Constants arrive as arguments:
numba caches what it compiled, and would not notice that an imported one has changed.
"""

import math

import numpy as np

from pgolf.kernels.jit import exact, exact_inlined

# ---- counts
#
# A trie of contexts. The edge by which token y leaves a context of order o is also the context of order o + 1 that
# ends in y, so one look-up an order serves the score, the count and the next token's context. A record is 32 bytes;
# records are numbered in the order of their birth, 0 being the empty context.

TOTAL, DISTINCT, TOP, TOP_EDGE, TOP_COUNT, COUNT, PARENT, SYMBOL = range(8)
ROOT, ABSENT = 0, -1

# the scalars of a trie: records in use, table size less one, entries in the table, tokens that wait to be counted; records
# that were looked through for new symbols, and how many symbols they have
USED, MASK, ENTERED, WAITING, SCANNED, KNOWN = range(6)
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
    scalars[SCANNED], scalars[KNOWN] = 1, 0
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
    """Where a context stands in its order's table, 0 if it is new; without branches, which would be guessed wrongly."""
    size = (total > 1) + (total > 2) + (total > 4) + (total > 8) + (total > 16) + (total > 64) + (total > 256)
    spread = (distinct > 1) * (1 + (4 * distinct > total) + (2 * distinct > total))
    return (total > 0) * (1 + 4 * size + spread)


@exact_inlined
def peek(records, table, scalars, multiplier, granularity, waiting, edges, reading, writing, orders, t, top, cell, total):
    """Each order's top symbol, cell and total before the next token, into row t."""
    if scalars[WAITING] == granularity:
        count_waiting(records, table, scalars, multiplier, waiting, edges, reading, writing)
    for k in range(orders.shape[0]):
        node = reading[orders[k]]
        if node >= 0:
            seen = records[node, TOTAL]
            top[t, k], total[t, k] = records[node, TOP], seen
            cell[t, k] = cell_of(seen, records[node, DISTINCT])
        else:
            top[t, k], total[t, k], cell[t, k] = -1, 0, 0


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
def successors(records, table, scalars, multiplier, reading, orders, known, counts):
    """How often each symbol of the vocabulary followed the context of each order, orders rising: (K, V). What followed a
    longer context has followed every shorter one, so no other symbol is looked up; `known` (V,) keeps those of the empty
    context from call to call."""
    for edge in range(scalars[SCANNED], scalars[USED]):
        if records[edge, PARENT] == ROOT:
            known[scalars[KNOWN]] = records[edge, SYMBOL]
            scalars[KNOWN] += 1
    scalars[SCANNED] = scalars[USED]
    left = scalars[KNOWN]
    candidates = known[:left].copy()
    for k in range(orders.shape[0]):
        node = reading[orders[k]]
        counts[k] = 0
        if node < 0 or records[node, DISTINCT] < 2:
            if node >= 0 and records[node, DISTINCT] == 1:
                counts[k, records[node, TOP]] = records[node, TOP_COUNT]
            continue
        kept = 0
        for i in range(left):
            edge = find(records, table, scalars, multiplier, node, candidates[i])
            if edge >= 0:
                counts[k, candidates[i]] = records[edge, COUNT]
                candidates[kept] = candidates[i]
                kept += 1
                if kept == records[node, DISTINCT]:
                    break
        left = kept


@exact
def follow(
    tokens, starts, records, table, scalars, multiplier, granularity, shared, waiting, edges, reading, writing, orders,
    top, cell, count, total, dense_at, known, dense,
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
            successors(records, table, scalars, multiplier, reading, orders, known, dense[next_dense])
            next_dense += 1
        at = scalars[WAITING]
        for order in range(last + 1):
            edges[at, order] = find(records, table, scalars, multiplier, reading[order], y)
        for k in range(orders.shape[0]):
            edge = edges[at, orders[k]]
            count[t, k] = records[edge, COUNT] if edge >= 0 else 0
        if starts[t]:
            open_document(records, table, scalars, multiplier, shared, waiting, edges, reading, writing)
            at = 0
            for order in range(last + 1):
                edges[at, order] = find(records, table, scalars, multiplier, reading[order], y)
        for order in range(last):
            reading[order + 1] = edges[at, order]
        waiting[at] = y
        scalars[WAITING] = at + 1


# ---- the mixture


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
        for k in range(cell.shape[1]):
            if cell[t, k]:
                w = weights[k, q_cell_of(candidates[t, k], cuts), cell[t, k]]
                left *= 1 - w
                backed = (1 - w) * backed + w * (count[t, k] / total[t, k])
        nll[t], share[t] = finish(target[t], left, backed)


@exact
def mix_dense(log_probs, top, cell, counts, total, weights, cuts, mixed):
    """The whole distribution `mixed` (V,) of one token, mixed order by order."""
    for k in range(cell.shape[0]):
        if cell[k]:
            w = weights[k, q_cell_of(log_probs[top[k]], cuts), cell[k]]
            kept, share = 1 - w, w / total[k]
            for symbol in range(mixed.shape[0]):
                mixed[symbol] = kept * mixed[symbol] + share * counts[k, symbol]


@exact
def flush(weights, visits, places, posteriors, pending, floor, least, most):
    """Move each pending cell towards its posterior, in order."""
    for i in range(pending[0]):
        place = places[i]
        rate = max(floor, 1.0 / (visits[place] + 20))
        weights[place] = min(max(weights[place] + rate * (posteriors[i] - weights[place]), least), most)
        visits[place] += 1
    pending[0] = 0


@exact
def mix_online(
    target, candidates, cell, count, total, group_starts, weights, visits, places, posteriors, pending, cuts, floor,
    least, most, nll, share,
):  # fmt: skip
    """As `mix`, learning the weights; a row's `places` and `posteriors` are pending until the next group starts."""
    num_orders, q_cells, n_cells = weights.shape
    flat_weights, flat_visits = weights.reshape(-1), visits.reshape(-1)
    for t in range(target.shape[0]):
        if group_starts[t]:
            flush(flat_weights, flat_visits, places, posteriors, pending, floor, least, most)
        left, backed = 1.0, 0.0
        neural = math.exp(target[t])
        for k in range(num_orders):
            if cell[t, k]:
                place = (k * q_cells + q_cell_of(candidates[t, k], cuts)) * n_cells + cell[t, k]
                w = flat_weights[place]
                counted = w * (count[t, k] / total[t, k])
                left *= 1 - w
                backed = (1 - w) * backed + counted
                after = left * neural + backed
                places[pending[0]] = place
                posteriors[pending[0]] = counted / after if after > 0 else w
                pending[0] += 1
        nll[t], share[t] = finish(target[t], left, backed)
