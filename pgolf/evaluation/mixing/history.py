"""The bytes so far, what of them a context looks at, and the contexts themselves: hashes of 64 bits.

After the contexts of lpaq and paq8 (M. Mahoney): the last bytes, words, places of the line, what stood above, what followed
the same bytes before; and of the tokens, those before and the beginning of this one.
"""

import numpy as np

from pgolf.kernels.jit import exact, exact_merged

# before the first byte lie so many zeros, which contexts may look at
MARGIN = 16
CONTEXTS = 44
# how many of the last bytes contexts 1 to 9 look at
BY_LENGTH = (1, 2, 3, 4, 5, 6, 8, 10, 14)

# the state: bytes so far; hashes of the word at the end, of the three before it, and of the sentence; the last mark; where in
# the line; hashes of how this line and the last one begin, and where; hashes of digits and of the word above; the last three
# tokens
(
    LENGTH, WORD, WORD_1, WORD_2, WORD_3, SENTENCE, MARK, COLUMN, INDENT, AT_INDENT, LINE, LINE_BEFORE, BEGIN, BEGIN_BEFORE,
    DIGITS, ABOVE, TOKEN_1, TOKEN_2, TOKEN_3, STATE,
) = range(20)  # fmt: skip


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
    lower, upper, digit = 97 <= byte <= 122, 65 <= byte <= 90, 48 <= byte <= 57
    if lower or upper or digit or byte >= 128 or byte == 95:
        state[WORD] = mixed(state[WORD] + 1, byte | 32)
    else:
        if state[WORD] != 0:
            state[WORD_3], state[WORD_2], state[WORD_1] = state[WORD_2], state[WORD_1], state[WORD]
            state[SENTENCE] = mixed(state[SENTENCE], state[WORD])
        state[WORD] = 0
        if byte != 32:
            state[MARK] = byte
        if byte == 46 or (byte == 10 and before == 10):
            state[SENTENCE] = 0
    if digit:
        state[DIGITS] = mixed(state[DIGITS] + 1, 1)
    elif byte != 46:
        state[DIGITS] = mixed(5, 1 if lower else 2 if upper else byte)
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
    c, d = np.int64(text[at - 3]), np.int64(text[at - 4])
    word, one, two, three = state[WORD], state[WORD_1], state[WORD_2], state[WORD_3]
    line, before, column, indent = state[LINE], state[LINE_BEFORE], state[COLUMN], state[INDENT]
    token, second, third = state[TOKEN_1], state[TOKEN_2], state[TOKEN_3]
    contexts[0] = 0
    hash_, count = np.int64(0x1234567), 1
    for length in range(1, BY_LENGTH[-1] + 1):
        hash_ = mixed(hash_, np.int64(text[at - length]) + 1)
        if length == BY_LENGTH[count - 1]:
            contexts[count] = hash_
            count += 1
    # words
    pair = mixed(mixed(word, 12), one)
    contexts[10], contexts[11] = mixed(word, 11), pair
    contexts[12], contexts[13] = mixed(pair, two), mixed(mixed(word, 14), two)
    contexts[14], contexts[15] = mixed(mixed(pair, 113), three), mixed(mixed(pair, two), three)
    contexts[16], contexts[17] = mixed(mixed(word, 16), a * 256 + b), mixed(mixed(word, 17), line)
    # bytes with gaps
    contexts[18], contexts[19] = mixed(18, b | c << 8), mixed(19, a | c << 8)
    contexts[20], contexts[21] = mixed(20, c | d << 8), mixed(21, b | d << 8)
    # the line, and the one above
    above = state[BEGIN_BEFORE] + column
    over = np.int64(text[above]) if above < state[BEGIN] else np.int64(0)
    next_over = np.int64(text[above + 1]) if above + 1 < state[BEGIN] else np.int64(0)
    contexts[22] = mixed(22, over | next_over << 8 | a << 16)
    contexts[23] = mixed(23, min(column, 63) | over << 8 | min(indent, 31) << 16)
    contexts[24] = mixed(24, min(column, 127) | a << 8)
    contexts[25], contexts[26] = mixed(mixed(25, line), before), mixed(mixed(26, indent), mixed(word, a))
    contexts[27], contexts[35] = mixed(mixed(27, line), mixed(before, word)), mixed(mixed(35, state[ABOVE]), word)
    # what followed before
    last = b << 8 | a
    contexts[28], contexts[29] = mixed(28, (after_one[a] & 0xFFFF) | a << 16), mixed(29, after_one[a])
    contexts[30], contexts[31] = mixed(30, (after_two[last] & 0xFFFF) | a << 32), mixed(mixed(31, after_two[last]), last)
    contexts[32] = mixed(mixed(32, state[SENTENCE]), word)
    contexts[33] = mixed(mixed(33, state[MARK]), mixed(word, one))
    contexts[34] = mixed(mixed(34, state[DIGITS]), a)
    # tokens
    pair = mixed(mixed(38, place), token)
    contexts[36], contexts[37] = mixed(36, place), mixed(pair, 37)
    contexts[38], contexts[39] = mixed(pair, second), mixed(mixed(39, place), second)
    contexts[40], contexts[41] = mixed(mixed(pair, second), third), mixed(mixed(mixed(41, place), second), third)
    contexts[42], contexts[43] = mixed(mixed(42, one), mixed(place, a)), mixed(mixed(43, one), mixed(two, a))
    inside = 1 if place else 0
    for i in range(CONTEXTS):
        contexts[i] = mixed(contexts[i] + i * 0x632BE59BD9B4E01, inside)
