"""The probability of a decision on a token's path: what each context has seen there, mixed by gated weights.

For each context (history.py) the next byte, or the token's end, is remembered in a run or in slots (memory.py).
What either says becomes inputs in the logistic domain; sets of weights, each chosen by something else, give one logit each; a
last mixture of these and three adaptive probability maps give the probability (M. Mahoney, "Adaptive Weighing of Context
Models for Lossless Data Compression", 2005). The network's probability of the decision is one more input.

Sums over inputs are of integers, in 1/256 of a logit and 2^-16 of a weight, so that their order does not matter, and tables
come from exact arithmetic: every processor computes the same bits. Nothing is learnt before the token is known.
"""

import math
from typing import NamedTuple

import numpy as np

from pgolf.evaluation.mixing.history import (
    AT_INDENT,
    BY_LENGTH,
    COLUMN,
    CONTEXTS,
    LENGTH,
    MARGIN,
    TOKEN_1,
    TOKEN_2,
    TOKEN_3,
    WORD,
    advance,
    contexts_of,
    mixed,
    new_state,
    note_successors,
)
from pgolf.evaluation.mixing.logistic import SQUASH, WIDEST, product, squash, stretch, towards
from pgolf.evaluation.mixing.memory import (
    CERTAINTY,
    ENDS,
    HISTORIES,
    MOST_RUN,
    SUGGESTED,
    cell_of,
    count_bit,
    f32,
    glance,
    half_of,
    i32,
    low_key,
    room_for_run,
    room_for_slot,
    run_of,
    slot_of,
    spell,
    u32,
)
from pgolf.evaluation.mixing.tree import END, Tree, cumulate
from pgolf.kernels.jit import exact

# inputs: of each context four, of each match two, a constant, and two of the network; filled up to whole vectors
PER_CONTEXT, MATCHES = 4, 3
MATCH_INPUTS = PER_CONTEXT * CONTEXTS
CONSTANT = MATCH_INPUTS + 2 * MATCHES
NETWORK = CONSTANT + 1
INPUTS = (NETWORK + 2 + 15) // 16 * 16
# the shortest matches, in bytes
MATCH_LENGTHS = (4, 7, 14)
LONGEST_MATCH = 40
# sets of weights, rows of each at most, maps at the end, and rows of them
SETS, MAPS, MAP_ROWS = 8, 3, 1 << 16
MOST_ROWS = 4608
LEARNING_RATES, SETTLED = (0.01, 0.004), 300_000  # from the first byte to this one, linearly


# ---- what is learnt


class Model(NamedTuple):
    text: np.ndarray  # the bytes so far, behind MARGIN zeros
    after_one: np.ndarray
    after_two: np.ndarray
    runs: np.ndarray  # check (16 bits), symbol (9), count (7); 0: in slots
    slots: np.ndarray  # (slots, 16): check (16), the end's history (8), visits (8); then p (16), count (8), history (8)
    of_history: np.ndarray  # (2 contexts, histories): the share of ones behind each; of ends in the second half
    seen_history: np.ndarray
    of_count: np.ndarray  # (contexts, 16, 33): the share of ones where a slot's probability is this, after so many bits
    of_run: np.ndarray  # (contexts, 4, MOST_RUN + 1): how often a run of this length is right
    of_match: np.ndarray  # (matches, 32): how often a match of this length is right
    weights: np.ndarray
    last_weights: np.ndarray
    maps: np.ndarray
    newest: np.ndarray  # (matches, N): where the bytes of a hash stood last
    # along the path at hand, by the depth of a place
    states: np.ndarray  # the first is that of the text so far
    matches: np.ndarray  # where each match goes on, 0 for none
    lengths: np.ndarray  # of the matches at the token's beginning
    place: np.ndarray  # which place is loaded, -1 for none
    loaded: np.ndarray  # whether its contexts are
    half: np.ndarray  # of which half byte the slots are
    keys: np.ndarray
    run_at: np.ndarray
    run_symbol: np.ndarray
    run_count: np.ndarray  # -1: nothing is known; 0: in slots
    slot: np.ndarray
    # along the path at hand, by the number of a decision on it
    inputs: np.ndarray
    history: np.ndarray
    bits_seen: np.ndarray
    shown: np.ndarray
    run: np.ndarray  # which entry of of_run was used, and what it said; -1 for none
    match: np.ndarray
    rows: np.ndarray
    logits: np.ndarray
    last_row: np.ndarray
    mixture: np.ndarray
    map_rows: np.ndarray
    node: np.ndarray
    said: np.ndarray  # the probability of a 1


def new_model(tree: Tree, capacity: int, run_bits: int, slot_bits: int) -> Model:
    """A model for texts of at most `capacity` bytes, that keeps 2^run_bits runs and 2^slot_bits slots."""
    levels, steps = int(tree.depth.max()) + 2, int(np.diff(tree.start).max())
    weights = np.zeros((SETS, MOST_ROWS, INPUTS), i32)
    weights[:, :, 0:MATCH_INPUTS:PER_CONTEXT], weights[:, :, 1:MATCH_INPUTS:PER_CONTEXT] = 7864, 5243
    weights[:, :, NETWORK] = 19660
    grid = SQUASH[WIDEST + 1 + 128 * (np.arange(33) - 16)]

    def whole(*shape):
        return np.zeros(shape, np.int64)

    return Model(
        text=np.zeros(MARGIN + capacity + levels, np.uint8), after_one=whole(256), after_two=whole(1 << 16),
        runs=np.zeros(1 << run_bits, u32), slots=np.zeros((1 << slot_bits, 16), u32),
        of_history=np.tile(SUGGESTED, (2 * CONTEXTS, 1)), seen_history=np.zeros((2 * CONTEXTS, HISTORIES), i32),
        of_count=np.tile(grid, (CONTEXTS, 16, 1)), of_run=np.full((CONTEXTS, 4, MOST_RUN + 1), 0.9, f32),
        of_match=np.full((MATCHES, 32), 0.9, f32), weights=weights.reshape(-1),
        last_weights=np.full((4096, SETS), 1 / SETS, f32), maps=np.tile(grid, (MAPS, MAP_ROWS, 1)),
        newest=np.zeros((MATCHES, 1 << run_bits - 4), i32),
        states=np.tile(new_state(), (levels, 1)), matches=whole(levels, MATCHES), lengths=whole(MATCHES),
        place=np.full(levels, -1), loaded=whole(levels), half=whole(levels), keys=whole(levels, CONTEXTS),
        run_at=whole(levels, CONTEXTS), run_symbol=whole(levels, CONTEXTS), run_count=whole(levels, CONTEXTS),
        slot=whole(levels, CONTEXTS),
        inputs=np.zeros(steps * INPUTS, i32), history=whole(steps, CONTEXTS), bits_seen=whole(steps, CONTEXTS),
        shown=whole(steps, CONTEXTS), run=whole(steps, CONTEXTS), match=whole(steps, MATCHES), rows=whole(steps, SETS),
        logits=whole(steps, SETS), last_row=whole(steps), mixture=np.zeros(steps, f32), map_rows=whole(steps, MAPS + 1),
        node=whole(steps), said=np.zeros(steps, f32),
    )  # fmt: skip


# ---- a decision


@exact
def begin(model):
    """A new token: nothing of its path is loaded yet."""
    model.place[:] = -1
    model.place[0] = 0
    model.loaded[:] = 0


@exact
def reach(model, tree, place):
    """Load a place: the state after its bytes, the matches that still agree, and what its contexts remember."""
    states, matches, text = model.states, model.matches, model.text
    depth = tree.depth[place]
    if model.place[depth] != place:
        above = place
        while model.place[tree.depth[above]] != above:
            above = tree.parent[above]
        for level in range(tree.depth[above] + 1, depth + 1):
            here = place
            while tree.depth[here] > level:
                here = tree.parent[here]
            byte = tree.byte[here]
            states[level] = states[level - 1]
            advance(states[level], text, byte)
            for j in range(MATCHES):
                at = matches[level - 1, j]
                matches[level, j] = at + 1 if at and text[at] == byte else 0
            model.place[level], model.loaded[level] = here, 0
            model.place[level + 1 :] = -1
    if model.loaded[depth]:
        return
    model.loaded[depth], model.half[depth] = 1, -1
    keys, runs = model.keys[depth], model.runs
    run_at, symbols, counts = model.run_at[depth], model.run_symbol[depth], model.run_count[depth]
    contexts_of(states[depth], text, model.after_one, model.after_two, place, keys)
    for i in range(CONTEXTS):  # a glance before all looks
        run_at[i] = np.int64(runs[(keys[i] >> 21) & (len(runs) - 1)])
    for i in range(CONTEXTS):
        at = run_of(runs, keys[i])
        run_at[i] = at
        entry = np.int64(runs[at]) if at >= 0 else np.int64(0)
        symbols[i] = entry >> 7 & 511
        counts[i] = entry & 127 if at >= 0 else -1


@exact
def load_half(model, depth, part, shift):
    """The slots of a place's half byte."""
    high, low = half_of(part, shift), shift < 4
    model.half[depth] = high
    slots, keys, slot, counts = model.slots, model.keys[depth], model.slot[depth], model.run_count[depth]
    for i in range(CONTEXTS):
        slot[i] = -1
        if counts[i] == 0:
            slot[i] = glance(slots, low_key(keys[i], high) if low else keys[i])
    for i in range(CONTEXTS):
        if counts[i] == 0:
            slot[i] = slot_of(slots, low_key(keys[i], high) if low else keys[i])


@exact
def probabilities(model, tree, nodes, step, stay, before, has_network, out):
    """That each of some decisions is 1, which follow one another on a path; the first is its number `step`. `before`: the
    network's probability of all leaves before each. With `stay` = 1 all are noted as that number: asked, but not learnt."""
    parts, shifts, tree_places, depths, bounds = tree.part, tree.shift, tree.place, tree.depth, tree.bounds
    places, loaded, halves, states, text, slots = model.place, model.loaded, model.half, model.states, model.text, model.slots
    symbols, counts, slot = model.run_symbol, model.run_count, model.slot
    of_history, of_count, of_run, of_match = model.of_history, model.of_count, model.of_run, model.of_match
    history, count, shown, run, match = model.history, model.bits_seen, model.shown, model.run, model.match
    inputs, rows, logits, map_rows, maps = model.inputs, model.rows, model.logits, model.map_rows, model.maps
    model_node, last_rows, mixture, weights = model.node, model.last_row, model.mixture, model.weights
    last_weights, matches, lengths = model.last_weights, model.matches, model.lengths
    for number in range(len(nodes)):
        node = nodes[number]
        part, shift, place = parts[node], shifts[node], tree_places[node]
        depth = depths[place]
        if places[depth] != place or not loaded[depth]:
            reach(model, tree, place)
        if halves[depth] != half_of(part, shift):
            load_half(model, depth, part, shift)
        base = step * INPUTS
        model_node[step] = node
        cell, longest = cell_of(part, shift), 0
        for i in range(CONTEXTS):
            at = PER_CONTEXT * i
            history[step, i], run[step, i] = -1, -1
            inputs[base + at], inputs[base + at + 1], inputs[base + at + 2], inputs[base + at + 3] = 0, 0, 0, 0
            if counts[depth, i] > 0:
                symbol = symbols[depth, i]
                if shift == END:
                    bit, kind = np.int64(symbol == ENDS), np.int64(symbol == ENDS)
                elif symbol != ENDS and (symbol | 256) >> (shift + 1) == part:
                    bit, kind = symbol >> shift & 1, np.int64(3 if shift < 4 else 2)
                else:
                    continue
                p, sign = of_run[i, kind, counts[depth, i]], 2 * bit - 1
                run[step, i] = 2 * kind + bit
                inputs[base + at], inputs[base + at + 2] = sign * stretch(p), sign * int((p - f32(0.5)) * f32(512))
                inputs[base + at + 3] = sign * (256 if counts[depth, i] > 3 else 102)
            elif slot[depth, i] >= 0:
                entry = slots[slot[depth, i], cell]
                if cell == 0:
                    seen = np.int64(entry >> u32(16)) & 255
                    if seen == 0:
                        continue
                    p = of_history[CONTEXTS + i, seen]
                else:
                    seen, bits = np.int64(entry & u32(255)), np.int64(entry >> u32(8)) & 255
                    if bits == 0:
                        continue
                    p = of_history[i, seen]
                    own = stretch((f32(entry >> u32(16)) + f32(0.5)) * f32(1 / 65536))
                    count[step, i], shown[step, i] = bits, min(max((own + 64 >> 7) + 16, 0), 32)
                    inputs[base + at + 1] = stretch(of_count[i, bits, shown[step, i]])
                history[step, i] = seen
                inputs[base + at], inputs[base + at + 2] = stretch(p), int((p - f32(0.5)) * f32(512))
                inputs[base + at + 3] = CERTAINTY[seen]
            else:
                continue
            if 1 <= i <= len(BY_LENGTH):
                longest = i
        length = 0
        for j in range(MATCHES):
            at, to = matches[depth, j], MATCH_INPUTS + 2 * j
            inputs[base + to], inputs[base + to + 1], match[step, j] = 0, 0, -1
            if at and shift != END and (np.int64(text[at]) | 256) >> (shift + 1) == part:
                bytes_ = lengths[j] + depth
                known = min(bytes_ if bytes_ < 16 else 16 + (bytes_ - 16) // 4, 31)
                bit = np.int64(text[at]) >> shift & 1
                sign = 2 * bit - 1
                match[step, j] = 2 * known + bit
                inputs[base + to], inputs[base + to + 1] = sign * stretch(of_match[j, known]), sign * 256
                length = max(length, known + 1)
        inputs[base + CONSTANT], inputs[base + NETWORK], inputs[base + NETWORK + 1] = 102, 0, 0
        confidence = 0
        if has_network:
            low, middle, high = bounds[node, 0], bounds[node, 1], bounds[node, 2]
            odds = math.log((before[high] - before[middle] + 1e-9) / (before[middle] - before[low] + 1e-9))
            logit = int(min(max(odds * 256, -WIDEST), WIDEST))
            inputs[base + NETWORK], inputs[base + NETWORK + 1] = logit, int((squash(logit) - f32(0.5)) * f32(512))
            confidence = 1 + min(abs(logit) // 128, 14)
        # which weights
        a, b = np.int64(text[states[depth, LENGTH] - 1]), np.int64(text[states[depth, LENGTH] - 2])
        inside = 1 if depth else 0
        kind = part + 256 * inside if shift != END else 512 + inside
        shape = 0 if 97 <= a <= 122 else 1 if a == 32 else 2 if a == 10 else 3 if 65 <= a <= 90 else 4 if 48 <= a <= 57 else 5
        rows[step, 0], rows[step, 1], rows[step, 2] = length, kind, a * 9 + shift
        rows[step, 3] = (longest * 9 + shift) * 2 + (1 if length else 0) + 256 * inside
        rows[step, 4] = b * 9 + shift
        rows[step, 5] = (states[depth, AT_INDENT] + 2 * min(states[depth, COLUMN], 15) + 32 * shape) * 9 + shift
        rows[step, 6], rows[step, 7] = node % MOST_ROWS, confidence * 9 + shift
        last_row = (longest * 16 + (1 + length // 4 if length else 0)) * 16 + confidence
        last_rows[step] = last_row
        total = f32(0)
        for k in range(SETS):
            weighed = np.int64(product(weights, (k * MOST_ROWS + rows[step, k]) * INPUTS, inputs, base, INPUTS)) >> 6
            logit = min(max(weighed, -WIDEST), WIDEST)
            logits[step, k] = logit
            total += last_weights[last_row, k] * f32(logit)
        total = min(max(total, f32(-WIDEST)), f32(WIDEST))
        p = squash(int(total))
        mixture[step] = p
        # the maps
        position = (min(max(total, f32(-2046)), f32(2046)) + f32(2048)) * f32(1 / 128)
        left = int(position)
        share = position - f32(left)
        map_rows[step, 0], map_rows[step, MAPS] = (a << 8 | part) & 0xFFFF, left
        map_rows[step, 1] = mixed(confidence << 8 | longest, mixed(node, 5)) >> 9 & 0xFFFF
        map_rows[step, 2] = mixed(mixed(states[depth, WORD], 3), kind) >> 9 & 0xFFFF
        p *= f32(0.4)
        for j in range(MAPS):
            at = map_rows[step, j]
            p += f32(0.2) * (maps[j, at, left] * (f32(1) - share) + maps[j, at, left + 1] * share)
        out[number] = min(max(p, f32(1e-5)), f32(1 - 1e-5))
        step += 1 - stay


# ---- tokens


@exact
def cost_of(model, tree, token, before, has_network):
    """What a token costs, in nats. Nothing is learnt."""
    begin(model)
    start, end, said, bits = tree.start[token], tree.start[token + 1], model.said, tree.bit
    probabilities(model, tree, tree.path[start:end], 0, 0, before, has_network, said)
    nats = 0.0
    for at in range(start, end):
        p = np.float64(said[at - start])
        nats -= math.log(p if bits[at] else 1.0 - p)
    return nats


@exact
def row_of(model, tree, before, has_network, log_probs):
    """The log-probabilities of all tokens, (V,)."""
    begin(model)
    so_far, said = np.zeros(len(tree.part)), np.empty(len(tree.part), f32)
    probabilities(model, tree, np.arange(len(tree.part)), 0, 1, before, has_network, said)
    for node in range(len(tree.part)):
        p = np.float64(said[node])
        for bit in range(2):
            nats, child = so_far[node] + math.log(p if bit else 1.0 - p), tree.child[node, bit]
            if child < 0:
                log_probs[-1 - child] = nats
            else:
                so_far[child] = nats


@exact
def learn(model, tree, token):
    """A token has come: `cost_of` was asked for it just before."""
    progress = f32(min(model.states[0, LENGTH], SETTLED)) / f32(SETTLED)
    rate = f32(LEARNING_RATES[0]) + (f32(LEARNING_RATES[1]) - f32(LEARNING_RATES[0])) * progress
    start, steps = tree.start[token], tree.start[token + 1] - tree.start[token]
    learn_decisions(model, tree, tree.bit[start : start + steps], rate * f32(1 << 22))
    step = 0
    while step < steps:
        place = tree.place[model.node[step]]
        depth, end = tree.depth[place], step
        while end < steps and tree.place[model.node[end]] == place:
            end += 1
        at = tree.first[token] + depth
        symbol = np.int64(tree.bytes[at]) if at < tree.first[token + 1] else np.int64(ENDS)
        remember(model, tree, depth, symbol, model.node[step:end], tree.bit[start + step : start + end])
        step = end
    for at in range(tree.first[token], tree.first[token + 1]):
        append(model, np.int64(tree.bytes[at]))
    state = model.states[0]
    state[TOKEN_3], state[TOKEN_2], state[TOKEN_1] = state[TOKEN_2], state[TOKEN_1], token + 1


@exact
def learn_decisions(model, tree, bits, rate):
    """Weights, maps, and what histories, counts, runs and matches are worth, from the decisions of a path."""
    tree_places, depths, shifts, nodes, mixture = tree.place, tree.depth, tree.shift, model.node, model.mixture
    of_history, seen_history, of_count, of_run = model.of_history, model.seen_history, model.of_count, model.of_run
    weights, last_weights, inputs, rows, logits = model.weights, model.last_weights, model.inputs, model.rows, model.logits
    last_rows, maps, map_rows, match, of_match = model.last_row, model.maps, model.map_rows, model.match, model.of_match
    history, run, counts, bits_seen, shown = model.history, model.run, model.run_count, model.bits_seen, model.shown
    for step in range(len(bits)):
        bit, node, last_row, base = bits[step], nodes[step], last_rows[step], step * INPUTS
        goal, depth = f32(bit), depths[tree_places[node]]
        error = (goal - mixture[step]) * f32(0.0005 / 256)
        for k in range(SETS):
            logit = logits[step, k]
            move, at = i32((goal - squash(logit)) * rate), (k * MOST_ROWS + rows[step, k]) * INPUTS
            for j in range(INPUTS):
                weights[at + j] += i32(i32(i32(inputs[base + j] * move) + i32(8192)) >> i32(14))
            last_weights[last_row, k] += error * f32(logit)
        left = map_rows[step, MAPS]
        for j in range(MAPS):
            at = map_rows[step, j]
            for q in range(left, left + 2):
                maps[j, at, q] += f32(0.02) * (goal - maps[j, at, q])
        for j in range(MATCHES):
            known = match[step, j]
            if known >= 0:
                right = f32((known & 1) == bit)
                of_match[j, known >> 1] = towards(of_match[j, known >> 1], right, f32(0.004), f32(0.0003))
        end = shifts[node] == END
        for i in range(CONTEXTS):
            if run[step, i] >= 0:
                kind, right, length = run[step, i] >> 1, f32((run[step, i] & 1) == bit), counts[depth, i]
                of_run[i, kind, length] = towards(of_run[i, kind, length], right, f32(0.005), f32(0.0003))
            elif history[step, i] >= 0:
                row, seen = CONTEXTS + i if end else i, history[step, i]
                times = seen_history[row, seen]
                of_history[row, seen] = towards(of_history[row, seen], goal, f32(1) / (f32(times) + f32(1.5)), f32(0.0005))
                seen_history[row, seen] = min(times + 1, 250)
                if not end:
                    many, was = bits_seen[step, i], shown[step, i]
                    of_count[i, many, was] = towards(of_count[i, many, was], goal, f32(0.015), f32(0.0005))


@exact
def remember(model, tree, depth, symbol, nodes, bits):
    """A place's symbol, in runs and slots of all its contexts."""
    runs, slots, keys = model.runs, model.slots, model.keys[depth]
    counts, symbols, run_at = model.run_count[depth], model.run_symbol[depth], model.run_at[depth]
    slot, parts, shifts = model.slot[depth], tree.part, tree.shift
    for i in range(CONTEXTS):
        if counts[i] > 0 and symbols[i] != symbol:
            was = low_key(keys[i], symbols[i] >> 4 | 16)
            slot[i] = glance(slots, keys[i]) ^ glance(slots, was) ^ glance(slots, low_key(keys[i], symbol >> 4 | 16))
    for i in range(CONTEXTS):
        key = keys[i]
        if counts[i] < 0:
            runs[room_for_run(runs, key)] |= u32(symbol << 7 | 1)
            continue
        if counts[i] > 0:
            if symbols[i] == symbol:
                if counts[i] < MOST_RUN:
                    runs[run_at[i]] += u32(1)
                continue
            spell(slots, key, symbols[i], min(counts[i], 6))
            runs[run_at[i]] &= u32(0xFFFF0000)
        high, low = np.int64(-1), np.int64(-1)
        for q in range(len(nodes)):
            part, shift = parts[nodes[q]], shifts[nodes[q]]
            if shift < 4:
                if low < 0:
                    low = room_for_slot(slots, low_key(key, symbol >> 4 | 16))
                count_bit(slots, low, cell_of(part, shift), bits[q])
            else:
                if high < 0:
                    high = room_for_slot(slots, key)
                count_bit(slots, high, cell_of(part, shift), bits[q])


@exact
def append(model, byte):
    """One more byte of text; matches go on, or are looked for anew."""
    state, text, matches, lengths, newest = model.states[0], model.text, model.matches[0], model.lengths, model.newest
    note_successors(state, text, byte, model.after_one, model.after_two)
    advance(state, text, byte)
    at = state[LENGTH]
    for j in range(MATCHES):
        if matches[j] and text[matches[j]] == byte:
            matches[j] += 1
            lengths[j] += 1
        else:
            matches[j], lengths[j] = 0, 0
        shortest, hash_ = MATCH_LENGTHS[j], np.int64(77 + j)
        for q in range(1, shortest + 1):
            hash_ = mixed(hash_, np.int64(text[at - q]) + 1)
        cell = hash_ >> 20 & (newest.shape[1] - 1)
        candidate = np.int64(newest[j, cell])
        if candidate and not matches[j]:
            same = np.int64(0)
            while same < LONGEST_MATCH and candidate > same and text[candidate - 1 - same] == text[at - 1 - same]:
                same += 1
            if same >= shortest:
                matches[j], lengths[j] = candidate, same
        newest[j, cell] = at


@exact
def follow(model, tree, tokens, logits, nats):
    """Tokens one after the other, with the network's logits (n, V), or without where there are no rows; fills what each of
    them costs."""
    before = np.zeros(len(tree.leaf) + 1)
    for t in range(len(tokens)):
        if len(logits):
            cumulate(tree, logits[t], before)
        nats[t] = cost_of(model, tree, tokens[t], before, len(logits) > 0)
        learn(model, tree, tokens[t])
