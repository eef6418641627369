"""Source text to few bytes and back: contexts' predictions of the next bit, mixed, drive a range coder.

The method is lpaq's and paq8's (M. Mahoney, "Adaptive Weighing of Context Models for Lossless Data Compression", 2005): for
each context an adaptive probability, and one more for the recent bits that were seen in it; a match with the longest earlier
occurrence; nine gated logistic mixers, and one that mixes theirs; and two adaptive probability maps at the end. All of it in
integers, so that every machine decodes the same. `transcode` is carried by the counted script, without its branches for
encoding.

Digits are of base 253: a byte of the script may be anything but "\\0", "\\n" and "\\r" (of which Python makes "\\n").
"""

import numpy as np
from numba import njit

BASE = 253
DIGITS = bytes(sorted(set(range(256)) - set(b"\0\n\r")))


def compressed(text: bytes) -> bytes:
    source = np.frombuffer(text, np.uint8).copy()
    digits, used = transcode(source, np.zeros(len(text) * 2 + 64, np.uint8), True)
    return digits[:used].tobytes().translate(DIGITS + bytes(3))


@njit(cache=True)
def transcode(text, digits, encoding):
    """Fill `text` from `digits`, or encoding, `digits` from `text`; returns what was filled and how many digits there are.

    A probability is that of a 1, of 16 bits; of 22 where it is learnt. Its stretched form is 256 ln(p / (1 - p)).
    """
    contexts, slots, sets = 19, 1 << 22, 9
    inputs = 2 * contexts + 3
    # squash[2048 + x] = 65536 / (1 + exp(-x / 256)), by repeated growth; stretch is its inverse
    squash, stretch = np.zeros(4096, np.int64), np.zeros(4096, np.int64)
    growth = 1 << 20
    for x in range(2048):
        squash[2048 + x] = (growth << 16) // (growth + (1 << 20))
        squash[2047 - x] = 65536 - squash[2048 + x]
        growth += growth >> 8
    x = 0
    for p in range(4096):
        while squash[x] >> 4 < p and x < 4095:
            x += 1
        stretch[p] = x - 2048
    # of each context's slot: a probability, how often it was seen, and its last bits behind a leading 1
    chance = np.full((contexts, slots), 1 << 21, np.int32)
    seen, history = np.zeros((contexts, slots), np.uint8), np.ones((contexts, slots), np.uint8)
    of_history = np.full((contexts, 256), 1 << 21, np.int64)
    of_match = np.full((64, 2), 1 << 21, np.int64)
    weights = np.full((sets, 65536, inputs), 5898, np.int32)
    shares = np.full((256, sets), 65536 // sets, np.int64)
    refined = np.zeros((2, 65536, 33), np.int64)
    for x in range(33):
        refined[:, :, x] = squash[min(x * 128, 4095)]
    keys, places, values = np.zeros(contexts, np.int64), np.zeros(contexts, np.int64), np.zeros(inputs, np.int64)
    mixed, rows = np.zeros(sets, np.int64), np.zeros(sets, np.int64)
    last_seen = np.zeros(1 << 18, np.int64)
    brackets = np.zeros(256, np.int64)
    depth = match = length = word = before = earlier = indent = first = marks = line = above = start = size = newest = 0
    # the range coder: what is left of a window of five digits
    low = code = at = 0
    width = 253**5
    if not encoding:
        for at in range(5):
            code = code * 253 + digits[at]
        at = 5
    for place in range(len(text)):
        a = b = c = d = e = f = 0
        if place > 5:
            a, b, c = np.int64(text[place - 1]), np.int64(text[place - 2]), np.int64(text[place - 3])
            d, e, f = np.int64(text[place - 4]), np.int64(text[place - 5]), np.int64(text[place - 6])
        two = a | b << 8
        three = two | c << 16
        four = three | d << 24
        six = four | e << 32 | f << 40
        inside = brackets[depth]
        keys[:] = (
            0, a, two, three, four, six, six >> 8, word, word * 77777 + marks, word * 77777 + inside * 77 + a,
            (indent * 777 + first) * 77777 + word, three >> 8, four >> 8, two & 61695 | d << 16, word * 77777 + earlier * 3,
            (above * 77777 + line) * 77777 + word, inside * 777777777 + three,
            (newest * 777 + a) * 77777 + word + (start == place), (newest * 77777 + two) * 777 + first,
        )  # fmt: skip
        for j in range(contexts):
            x = (keys[j] + j * 19088743) * 0x1E3779B97F4A7C15
            keys[j] = x ^ x >> 29
        key = (six & 0xFFFFFFFFFF) * 0x1E3779B97F4A7C15 >> 40 & 0x3FFFF
        if not length:
            match = last_seen[key]
            while match and length < 40 and match > length and text[match - length - 1] == text[place - length - 1]:
                length += 1
        last_seen[key] = place
        part = 1
        for shift in range(7, -1, -1):
            for j in range(contexts):
                s = ((keys[j] + part * 1664525) * 0x1E3779B97F4A7C15 >> 30) & slots - 1
                places[j] = s
                values[2 * j] = values[2 * j + 1] = 0
                if seen[j, s]:
                    values[2 * j] = stretch[chance[j, s] >> 10]
                    values[2 * j + 1] = stretch[of_history[j, history[j, s]] >> 10]
            expected = known = 0
            values[-3], values[-2], values[-1] = 256, 0, 0
            if length and (text[match] | 256) >> shift + 1 == part:
                expected, known = text[match] >> shift & 1, min(length, 31) + 1
                values[-2] = stretch[of_match[known, expected] >> 10]
                values[-1] = (32 * expected - 16) * length
            else:
                length = 0
            rows[:] = (
                part, known * 8 + shift, a, a * 8 + shift, (inside * 77 & 255) << 8 | part,
                first << 8 | (indent & 7) << 3 | shift, min(size, 7) << 8 | part, newest << 8 | part, b << 8 | part,
            )  # fmt: skip
            total = 0
            for k in range(sets):
                x = 0
                for j in range(inputs):
                    x += weights[k, rows[k], j] * values[j]
                mixed[k] = max(-2047, min(2047, x >> 16))
                total += shares[part, k] * mixed[k]
            total = max(-2047, min(2047, total >> 16)) + 2048
            left, share = total >> 7, total & 127
            rows_of_map = part | a << 8, ((two * 40503 + part * 30011 + c * 77777) >> 3) & 65535
            p = 2 * squash[total]
            for k in range(2):
                cell = refined[k, rows_of_map[k]]
                p += cell[left] * (128 - share) + cell[left + 1] * share >> 7
            p = max(24, min(65512, p >> 2))
            # one bit
            x = (width >> 16) * p
            if encoding:
                bit = np.int64(text[place]) >> shift & 1
                if not bit:
                    low += x
            else:
                bit = np.int64(code < x)
                if not bit:
                    code -= x
            width = x if bit else width - x
            if encoding and low >= 253**5:
                low -= 253**5
                k = at - 1
                while digits[k] == 252:
                    digits[k] = 0
                    k -= 1
                digits[k] += 1
            while width < 253**4:
                width *= 253
                if encoding:
                    digits[at] = low // 253**4
                    low = low % 253**4 * 253
                else:
                    code = code * 253 + (digits[at] if at < len(digits) else 0)
                at += 1
            # everything learns it
            goal = bit << 16
            for k in range(sets):
                shares[part, k] += mixed[k] * (goal - squash[total]) * 2 + 131072 >> 18
                x = (goal - squash[mixed[k] + 2048]) * 10
                for j in range(inputs):
                    weights[k, rows[k], j] += values[j] * x + 131072 >> 18
            for k in range(2):
                cell = refined[k, rows_of_map[k]]
                cell[left + (share >> 6)] += goal - cell[left + (share >> 6)] >> 5
            goal <<= 6
            if known:
                of_match[known, expected] += goal - of_match[known, expected] >> 6
            for j in range(contexts):
                s = places[j]
                n, h = seen[j, s], history[j, s]
                chance[j, s] += (goal - chance[j, s]) * 2 // (2 * n + 3)
                seen[j, s] = min(n + 1, 127)
                of_history[j, h] += goal - of_history[j, h] >> 7
                x = h * 2 + bit
                history[j, s] = x & 127 | 128 if x > 255 else x
            part = part * 2 + bit
        x = part & 255
        text[place] = x
        if length:
            length, match = min(length + 1, 60), match + 1
        if 47 < x < 58 or 64 < x < 91 or 96 < x < 123 or x == 95:
            word, size = (word + x + 1) * 0x2F0B4C47 & 0xFFFFFFFF, size + 1
        else:
            # a function's names are letters in the order in which they come first
            if size == 1 and a > 96:
                newest = max(newest, a)
            elif size == 3 and c == 100 and b == 101 and a == 102:
                newest = 0
            size = 0
            if word:
                earlier, before = before, word
            word, marks = 0, x | (marks & 255) << 8
        if x == 10:
            start, indent, first, above, line, depth = place + 1, 0, 0, line, 0, 0
        elif place == start and x == 32:
            indent, start = indent + 1, start + 1
        elif not first:
            first, line = x, indent * 256 + x
        if x in (40, 91, 123):
            depth = depth + 1 & 255
            brackets[depth] = x + before * 256
        if x in (41, 93, 125) and depth:
            depth -= 1
    if encoding:
        for _ in range(5):
            digits[at] = low // 253**4
            low = low % 253**4 * 253
            at += 1
        return digits, at
    return text, at
