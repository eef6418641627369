"""The bytes so far, what of them a context looks at, and the contexts themselves: hashes of 64 bits.

After the contexts of lpaq and paq8 (M. Mahoney): the last bytes, words, places of the line, what stood above, what followed
the same bytes before; and of the tokens, those before and the beginning of this one.
"""

import numpy as np

from pgolf.kernels.jit import exact, exact_merged

# before the first byte lie so many zeros, which contexts may look at
MARGIN = 16
CONTEXTS = 28
# the last bytes that contexts 1 to 8 look at
BY_LENGTH = (1, 2, 3, 4, 5, 6, 8, 12)

# the state: bytes so far; hashes of the word at the end, of the two before it, and of the sentence; the last mark; where in
# the line; hashes of how this line and the last one begin, and where; the hash of the word above; the last two tokens
(
    LENGTH, WORD, WORD_1, WORD_2, SENTENCE, MARK, COLUMN, INDENT, AT_INDENT, LINE, LINE_BEFORE, BEGIN, BEGIN_BEFORE, ABOVE,
    TOKEN_1, TOKEN_2, STATE,
) = range(17)  # fmt: skip


def new_state() -> np.ndarray:
    state = np.zeros(STATE, np.int64)
    state[[LENGTH, BEGIN, BEGIN_BEFORE]] = MARGIN
    state[AT_INDENT] = 1
    return state


@exact_merged
def mixed(hash_, value):
    spread = (hash_ ^ value) * 0x1E3779B97F4A7C15
    return spread ^ (spread >> 29)


@exact
def advance(state, text, byte):
    """The state after one more byte, which is written into the text."""
    at = state[LENGTH]
    text[at] = byte
    state[LENGTH] = at + 1
    before = np.int64(text[at - 1])
    letter = 97 <= byte <= 122 or 65 <= byte <= 90 or byte >= 128
    if letter or 48 <= byte <= 57 or byte == 95:
        state[WORD] = mixed(state[WORD] + 1, byte | 32)
    else:
        if state[WORD] != 0:
            state[WORD_2], state[WORD_1] = state[WORD_1], state[WORD]
            state[SENTENCE] = mixed(state[SENTENCE], state[WORD])
        state[WORD] = 0
        if byte != 32:
            state[MARK] = byte
        if byte == 46 or (byte == 10 and before == 10):
            state[SENTENCE] = 0
    if byte == 10:
        state[BEGIN_BEFORE], state[BEGIN], state[LINE_BEFORE] = state[BEGIN], at + 1, state[LINE]
        state[COLUMN], state[AT_INDENT], state[INDENT], state[LINE] = 0, 1, 0, 0
    else:
        state[COLUMN] += 1
        if state[AT_INDENT] and byte == 32:
            state[INDENT] += 1
        else:
            state[AT_INDENT] = 0
        if not state[AT_INDENT] and state[COLUMN] <= state[INDENT] + 5:
            state[LINE] = mixed(state[LINE] + 3, byte)
    above, word = state[BEGIN_BEFORE] + state[COLUMN], np.int64(0)
    end = min(state[BEGIN], above + 12)
    while above < end and text[above] != 32 and text[above] != 10:
        word = mixed(word + 1, np.int64(text[above]))
        above += 1
    state[ABOVE] = word


@exact
def note_successors(state, text, byte, after_one, after_two):
    """What followed the last byte, and the last two: the three newest."""
    last = np.int64(text[state[LENGTH] - 1])
    two = np.int64(text[state[LENGTH] - 2]) << 8 | last
    after_one[last] = (after_one[last] << 8 | byte) & 0xFFFFFF
    after_two[two] = (after_two[two] << 8 | byte) & 0xFFFFFF


@exact
def contexts_of(state, text, after_one, after_two, place, contexts):
    """Fill `contexts` for the byte that comes next; `place` is where in the tree of tokens, 0 where a token begins."""
    at = state[LENGTH]
    a, b = np.int64(text[at - 1]), np.int64(text[at - 2])
    c = np.int64(text[at - 3])
    word, one, two = state[WORD], state[WORD_1], state[WORD_2]
    line, before, column, indent = state[LINE], state[LINE_BEFORE], state[COLUMN], state[INDENT]
    token, second = state[TOKEN_1], state[TOKEN_2]
    contexts[0] = 0
    hash_, count = np.int64(0x1234567), 1
    for length in range(1, BY_LENGTH[-1] + 1):
        hash_ = mixed(hash_, np.int64(text[at - length]) + 1)
        if length == BY_LENGTH[count - 1]:
            contexts[count] = hash_
            count += 1
    # words
    pair = mixed(mixed(word, 9), one)
    contexts[9], contexts[10], contexts[11] = mixed(word, 10), pair, mixed(pair, two)
    contexts[12], contexts[13] = mixed(mixed(word, 12), two), mixed(mixed(13, state[SENTENCE]), word)
    contexts[14] = mixed(mixed(14, state[MARK]), mixed(word, one))
    # bytes with a gap
    contexts[15] = mixed(15, b | c << 8)
    # the line, and the one above
    above = state[BEGIN_BEFORE] + column
    over = np.int64(text[above]) if above < state[BEGIN] else np.int64(0)
    next_over = np.int64(text[above + 1]) if above + 1 < state[BEGIN] else np.int64(0)
    contexts[16] = mixed(16, over | next_over << 8 | a << 16)
    contexts[17] = mixed(17, min(column, 63) | over << 8 | min(indent, 31) << 16)
    contexts[18], contexts[19] = mixed(mixed(18, line), before), mixed(mixed(19, indent), mixed(word, a))
    contexts[20], contexts[21] = mixed(mixed(20, line), mixed(before, word)), mixed(mixed(word, 21), line)
    contexts[22] = mixed(mixed(22, state[ABOVE]), word)
    # what followed the same bytes before
    last = b << 8 | a
    contexts[23] = mixed(23, (after_one[a] & 0xFFFF) | a << 16)
    contexts[24] = mixed(mixed(24, after_two[last]), last)
    # tokens
    pair = mixed(mixed(25, place), token)
    contexts[25], contexts[26], contexts[27] = mixed(26, place), pair, mixed(pair, second)
    inside = 1 if place else 0
    for i in range(CONTEXTS):
        contexts[i] = mixed(contexts[i] + i * 0x632BE59BD9B4E01, inside)
