"""What each context has seen: runs of one symbol, slots of counted bits, and histories of bits.

The byte that came after a context, or the token's end, is remembered
  as a run     one symbol and how often it came without another: 32 bits with a check
  in slots     once a second symbol has come: for each bit of half a byte a probability and a history of bits, as counts of
               zeros and ones that forget (paq's nonstationary states); 64 bytes with a check
"""

import numpy as np

from pgolf.evaluation.mixing.history import mixed
from pgolf.evaluation.mixing.tree import END
from pgolf.kernels.jit import exact, exact_inlined, exact_merged

f32, i32, u32 = np.float32, np.int32, np.uint32

# a run is counted up to so many; in a table of runs or slots an entry is looked for at so many places
MOST_RUN, RUN_PLACES, SLOT_PLACES = 127, 4, 2
ENDS = 256  # the symbol of a token's end


def _histories(most: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Histories of bits as (zeros, ones, last two bits): what comes after each, by the bit; the share of ones that each
    suggests; and, for those that have seen one kind of bit alone, a signed certainty in 1/256."""
    limits = {0: most, 1: 30, 2: 20, 3: 14, 4: 10, 5: 10}
    # the other kind is remembered less the more often it came
    fewer = [0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 6] + [6] * 14 + [7] * (most - 30)
    order: list[tuple[int, ...]] = [(0, 0, 0)]
    numbers, after = {order[0]: 0}, []
    for zeros, ones, last in order:
        row = []
        for bit in (0, 1):
            counts = [zeros, ones]
            other = counts[1 - bit] if counts[1 - bit] <= 2 else fewer[counts[1 - bit]]
            counts[1 - bit], counts[bit] = other, min(counts[bit] + 1, limits.get(other, 8))
            state = (*counts, (last << 1 | bit) & 3 if zeros + ones else 3 * bit)
            if state not in numbers:
                numbers[state] = len(order)
                order.append(state)
            row.append(numbers[state])
        after.append(row)
    zeros, ones, _ = np.array(order).T
    certainty = np.where(zeros + ones > 3, 256, 102) * ((zeros == 0).astype(int) - (ones == 0).astype(int))
    return np.array(after, np.uint8), ((ones + 0.3) / (zeros + ones + 0.6)).astype(f32), certainty.astype(i32)


AFTER, SUGGESTED, CERTAINTY = _histories()
HISTORIES = len(AFTER)
# ---- where a context's memory is


@exact_inlined
def run_of(runs, key):
    """Where the run of a key is, or -1."""
    first, check, at = (key >> 21) & (len(runs) - 1), u32((key >> 48) & 0xFFFF | 1), np.int64(-1)
    for q in range(RUN_PLACES):
        if runs[first ^ q] >> u32(16) == check:
            at = first ^ q
            break
    return at


@exact_inlined
def room_for_run(runs, key):
    """Where a run of a key may begin: where one is, in an empty place, or instead of the shortest run there."""
    first, check = (key >> 21) & (len(runs) - 1), u32((key >> 48) & 0xFFFF | 1)
    best, least = first, np.int64(1000)
    for q in range(RUN_PLACES):
        entry = runs[first ^ q]
        worth = np.int64(entry & u32(127))
        if entry >> u32(16) == check:
            best, least = first ^ q, np.int64(-2)
            break
        if entry == 0:
            worth = np.int64(-1)
        elif worth == 0:
            worth = np.int64(100)
        if worth < least:
            best, least = first ^ q, worth
    runs[best] = check << u32(16)
    return best


@exact_inlined
def glance(slots, key):
    """Reads where a slot may be, so that whoever looks for it later does not wait: memory answers many such reads at once."""
    first = (key >> 20) & (len(slots) - 1)
    return np.int64(slots[first, 0] ^ slots[first ^ 1, 0])


@exact_inlined
def slot_of(slots, key):
    """Which slot a key has, or -1."""
    first, check, at = (key >> 20) & (len(slots) - 1), u32((key >> 48) & 0xFFFF | 1), np.int64(-1)
    for q in range(SLOT_PLACES):
        if slots[first ^ q, 0] & u32(0xFFFF) == check:
            at = first ^ q
            break
    return at


@exact_inlined
def room_for_slot(slots, key):
    """The key's slot, or a new one in the place of the least visited; it counts one visit more."""
    first, check = (key >> 20) & (len(slots) - 1), u32((key >> 48) & 0xFFFF | 1)
    best, least = first, np.int64(1000)
    for q in range(SLOT_PLACES):
        entry = slots[first ^ q, 0]
        visits = np.int64(entry >> u32(24)) if entry else np.int64(-1)
        if entry & u32(0xFFFF) == check:
            best, least = first ^ q, np.int64(-2)
            break
        if visits < least:
            best, least = first ^ q, visits
    if least > -2:
        for q in range(16):
            slots[best, q] = 0
        slots[best, 0] = check
    if slots[best, 0] >> u32(24) < 255:
        slots[best, 0] += u32(1 << 24)
    return best


@exact_merged
def cell_of(part, shift):
    """A decision's place within the slot of its half byte; an end's is the first."""
    cell = part
    if shift == END:
        cell = np.int64(0)
    elif shift < 4:
        cell = part & ((1 << (3 - shift)) - 1) | 1 << (3 - shift)
    return cell


@exact_merged
def half_of(part, shift):
    """The first half byte behind a 1 where a decision is of the second one, else 0."""
    high = part
    while high > 31:
        high >>= 1
    return high if shift < 4 else np.int64(0)


@exact_merged
def low_key(key, high):
    """The key of the second half byte's slot; `high` is the first half behind a 1."""
    return mixed(key, high + 1000)


@exact_inlined
def count_bit(slots, slot, cell, bit):
    entry = slots[slot, cell]
    if cell == 0:
        after = AFTER[np.int64(entry >> u32(16)) & 255, bit]
        slots[slot, 0] = entry & u32(0xFF00FFFF) | u32(after) << u32(16)
    else:
        count = np.int64(entry >> u32(8)) & 255
        p = (f32(entry >> u32(16)) + f32(0.5)) * f32(1 / 65536) if count else f32(0.5)
        p += (f32(bit) - p) / (f32(count) + f32(1.6))
        p16 = min(max(int(p * f32(65536)), 16), 65519)
        after = AFTER[np.int64(entry & u32(255)), bit]
        slots[slot, cell] = u32(p16) << u32(16) | u32(min(count + 1, 15)) << u32(8) | u32(after)


@exact
def spell(slots, key, symbol, times):
    """A symbol that was a run goes into slots."""
    slot = room_for_slot(slots, key)
    for _ in range(times):
        count_bit(slots, slot, 0, 1 if symbol == ENDS else 0)
        if symbol != ENDS:
            for shift in range(7, 3, -1):
                count_bit(slots, slot, (symbol | 256) >> (shift + 1), symbol >> shift & 1)
    if symbol != ENDS:
        slot = room_for_slot(slots, low_key(key, symbol >> 4 | 16))
        for _ in range(times):
            for shift in range(3, -1, -1):
                count_bit(slots, slot, cell_of((symbol | 256) >> (shift + 1), shift), symbol >> shift & 1)
