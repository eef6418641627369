"""CaseOps (PR #1729): capital letters as marks before lower-case words, so that "The" and "the" share their tokens.

Applied to text before SentencePiece, which knows the four marks as symbols of their own. A word is a maximal run of ASCII
letters; everything else, capitals outside ASCII included, passes unchanged.

    the    the             all lower case
    The    TITLE the       one capital, in front; also words of one letter
    NASA   ALLCAPS nasa    two letters or more, all capitals
    iPhone i CAPNEXT phone any other word: a mark before each capital, TITLE before the first letter's
    a mark in the text     ESC mark

`decode(encode(text)) == text` for every text.
"""

import re
from collections.abc import Iterator

from pgolf.data.errors import DataError

TITLE, ALLCAPS, CAPNEXT, ESC = MARKS = ("\ue001", "\ue002", "\ue003", "\ue004")
WORD_OR_MARK = re.compile(f"[A-Za-z]+|[{''.join(MARKS)}]")
CAPITAL = re.compile("[A-Z]")


def encode(text: str) -> str:
    """The text in lower case and marks."""
    return WORD_OR_MARK.sub(lambda match: _encode_word(match[0]), text)


def _encode_word(word: str) -> str:
    if word in MARKS:
        return ESC + word
    lower = word.lower()
    if word == lower:
        return word
    if len(word) >= 2 and word.isupper():
        return ALLCAPS + lower
    head = TITLE if word[0].isupper() else ""
    return head + lower[0] + CAPITAL.sub(lambda capital: CAPNEXT + capital[0].lower(), word[1:])


def decode(encoded: str) -> str:
    """The text that `encode` made this of. A mark where `encode` puts none is a DataError."""
    return "".join(_decoded(encoded, strict=True))


def decode_excerpt(encoded: str) -> str:
    """The same for a stretch that begins or ends anywhere: marks that miss their word are left out."""
    return "".join(_decoded(encoded, strict=False))


def _decoded(encoded: str, strict: bool) -> Iterator[str]:
    """For each character of the encoded text what it stands for: a character, or nothing for a mark."""

    def misplaced(mark: str, why: str) -> None:
        if strict:
            raise DataError(f"this is no CaseOps text: mark U+{ord(mark):04X} {why}")

    pending = ""  # TITLE or ALLCAPS, until the word begins
    capital_next = escaped = in_word = all_caps = False
    for character in encoded:
        letter = character.isascii() and character.isalpha()
        if escaped:
            escaped, in_word = False, letter
            all_caps = all_caps and letter
            yield character
        elif character == ESC:
            escaped = True
            yield ""
        elif character in (TITLE, ALLCAPS):
            if pending or capital_next or in_word:
                misplaced(character, "stands inside a word or behind another mark")
            pending = character
            yield ""
        elif character == CAPNEXT:
            if capital_next:
                misplaced(character, "stands twice before one letter")
            capital_next = True
            yield ""
        elif letter:
            if in_word and pending:
                misplaced(pending, "is followed by no word")
            if not in_word:
                all_caps = pending == ALLCAPS
            yield character.upper() if pending or capital_next or all_caps else character
            pending, capital_next, in_word = "", False, True
        else:
            if pending or capital_next:
                misplaced(pending or CAPNEXT, "is followed by no letter")
            pending, capital_next, in_word, all_caps = "", False, False, False
            yield character
    if escaped or pending or capital_next:
        misplaced(pending or (ESC if escaped else CAPNEXT), "ends the text")
