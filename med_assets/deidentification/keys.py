"""Whether a pseudonym key can be guessed: the pseudonym of each known patient id can be computed by who has the key."""

import hashlib
import math
import re
import string
from itertools import pairwise

MIN_KEY_CHARS = 16
"""Shortest key that is taken: below it, patient ids could be recovered by trying keys."""

MIN_BITS = 64
"""Least information of a key: 16 random hexadecimal digits."""

MIN_DISTINCT_CHARS = 6
"""Fewest different characters: of 16 random hexadecimal digits, fewer come once in 30,000 keys."""

MAX_RUN_SHARE = 0.6
"""Largest share of characters that may repeat the one before or stand beside it in the alphabet."""

MIN_RUN = 5
"""Shortest run through the alphabet, a keyboard or one character that counts as one character."""

PUBLISHED = (
    "14af099994f097d2",
    "ef573deee598fad1",
)
"""Starts of the SHA-256 of keys that stand in this repository: those of the demo and of the published OpenKBP patients."""

RUNS = (
    string.ascii_lowercase, "0123456789012345", "qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p", "1q2w3e4r5t6y7u8i9o0p", "!@#$%^&*()",
)  # fmt: skip
"""What fingers and counting run through, in both directions."""

WORDS = (
    "abc123", "admin", "batterystaple", "changeme", "clinic", "correcthorse", "default", "demo", "dicom", "dragon", "example",
    "football", "foobar", "geheim", "hello", "hospital", "iloveyou", "imaging", "is", "key", "klinik", "letmein", "login", "master",
    "medassets", "medical", "monkey", "mykey", "our", "passphrase", "passwort", "password", "patient", "private", "pseudonym", "pw",
    "radiology", "research", "root", "sample", "secret", "schluessel", "sunshine", "test", "testing", "the", "this", "trustno1",
    "user", "welcome", "winter", "summer", "spring", "autumn", "your",
)  # fmt: skip
"""Words that keys are made of by people; each counts as one character."""

DATE = re.compile(
    r"(19|20)\d\d[-./]?(0[1-9]|1[0-2])[-./]?(0[1-9]|[12]\d|3[01])|(0[1-9]|[12]\d|3[01])[-./]?(0[1-9]|1[0-2])[-./]?(19|20)\d\d"
)
"""A day, written in digits."""

SEPARATORS = "-_ .,:;/+!"
"""Signs between words, which add nothing to them."""

LEET = str.maketrans("@430157$", "aaeolsts")
"""Digits and signs that stand for letters in words."""


def published(key: str) -> bool:
    """Whether a key stands in this repository, so that everybody has it."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16] in PUBLISHED


def key_weakness(key: str) -> str | None:
    """Why a pseudonym key holds next to nothing that must be guessed, None where nothing of the kind shows."""
    if len(set(key)) < MIN_DISTINCT_CHARS:
        return f"has {len(set(key))} different characters, fewer than {MIN_DISTINCT_CHARS}"
    if any(key == (key[:period] * len(key))[: len(key)] for period in range(1, len(key) // 2 + 1)):
        return "repeats one pattern"
    if sum(abs(ord(after) - ord(before)) <= 1 for before, after in pairwise(key)) > MAX_RUN_SHARE * (len(key) - 1):
        return "counts through the alphabet"
    characters, bits = _free_characters(key), math.log2(_alphabet(key))
    if characters * bits >= MIN_BITS:
        return None
    if characters < len(key) / 2:
        return "is made of common words, dates, repeats or rows of the keyboard"
    return f"can be tried out: about {characters * bits:.0f} bits must be guessed, fewer than {MIN_BITS}; use more and other characters"


def _alphabet(key: str) -> int:
    """Number of characters that those of a key seem to be drawn from."""
    for alphabet in (string.digits, "0123456789abcdef", "0123456789ABCDEF"):
        if set(key) <= set(alphabet):
            return len(alphabet)
    classes = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
    found = sum(len(one) for one in classes if set(one) & set(key))
    return found + (32 if set(key) - set("".join(classes)) else 0)


def _free_characters(key: str) -> int:
    """Characters of a key that must be guessed: each word, date, run or repeat of what came before is one, or none."""
    lower, position, count = key.lower(), 0, 0
    seen: set[str] = set()
    while position < len(lower):
        length = _pattern(lower, position)
        token = lower[position : position + max(length, 1)]
        if length:
            count += token not in seen
            seen.add(token)
        elif token not in SEPARATORS:
            again = len(lower) - position >= MIN_RUN and lower[position : position + MIN_RUN] in lower[:position]
            token = lower[position : position + MIN_RUN] if again else token
            count += not again
        position += len(token)
    return count


def _pattern(text: str, position: int) -> int:
    """Length of the word, date, run or row of one character that begins at a position; 0 where none does."""
    rest = text[position:]
    plain = rest.translate(LEET)
    lengths = [len(word) for word in WORDS if rest.startswith(word) or plain.startswith(word)]
    if date := DATE.match(rest):
        lengths.append(date.end())
    for row in (*RUNS, *(row[::-1] for row in RUNS), rest[0] * len(rest)):
        size = MIN_RUN
        while size <= len(rest) and rest[:size] in row:
            lengths.append(size)
            size += 1
    return max(lengths, default=0)
