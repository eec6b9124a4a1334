"""Finds strings that identify a patient in binary values, where letters also stand side by side by chance.

A hit counts by its evidence in bits: how much less likely it is in bytes at random than a byte of any value is. Each byte of the
string, each blank or punctuation mark on its border and each printable byte beyond these adds to it; a letter or digit on a border
(part of a longer word) rules it out. It must outweigh the number of places in the value, the number of strings looked for and
MARGIN_BITS. So a name of three letters is found in a comment of a short value, and not in megabytes of compressed pixels unless
text surrounds it.
"""

import math
import re
from collections.abc import Callable, Collection
from itertools import groupby

import numpy as np

MARGIN_BITS = 16
"""Chance alone gives less than one hit in 2^16 values, whatever their size."""

PIXEL_CHARS = 8
"""Uncompressed pixels are not at random: neighbours are alike and zeros are frequent. Only strings of this length are looked for."""

PIXEL_DISTINCT = 4
"""And only those with so many different bytes, since an even area repeats one."""

ENCODINGS = (
    "latin-1", "utf-8", "utf-16-le", "utf-16-be", "iso8859-2", "iso8859-5", "iso8859-6", "iso8859-7", "iso8859-8", "iso8859-9",
    "cp1252", "tis-620", "shift-jis", "iso2022_jp", "iso2022_kr", "euc-jp", "euc-kr", "gb18030", "big5",
)  # fmt: skip
"""Encodings of the DICOM standard (PS3.3, C.12.1.1.2) and those that systems use beside it."""

_SHIFT_BACK = re.compile(rb"\x1b\([BJ]\Z|\x0f\Z")
_KOREAN = b"\x1b$)C"
CONTEXT_BYTES = 16
"""Bytes on each side of a hit whose being printable counts."""

_CASE = 0xDF
"""Clears the bit of a byte in which a small letter differs from the capital one."""

_TABLE_BITS = 16
"""Leading bits of a hash that are the place in a table of hashes (multiplicative hashing with the golden ratio)."""

FEW_FORMS = 6
"""So few are found sooner one by one than by one pattern."""

_DELIMITERS = frozenset(b"\0\t\n\r ^=,;:/\\()[]{}<>\"'_-.|&+*")
_PRINTABLE = frozenset((*range(32, 127), 9, 10, 13, 0))
_DELIMITER_BITS = math.log2(256 / len(_DELIMITERS))
_PRINTABLE_BITS = math.log2(256 / len(_PRINTABLE))


class KnownBytes:
    """Known strings, prepared to be looked for in many values."""

    def __init__(self, known: Collection[str]) -> None:
        numbers = {
            text for text in known if re.fullmatch(r"[0-9]+(\.[0-9]+){2,}", text)
        }  # UIDs, of which a case has hundreds
        self._uids = frozenset(text.encode() for text in numbers)
        shared = [(start, list(group)) for start, group in groupby(sorted(self._uids), lambda uid: uid[:PIXEL_CHARS])]
        self._starts = [start for start, _ in shared]
        others = set(known) - numbers
        self._forms = sorted({form for text in others for form in _forms(text)})
        self._needed = MARGIN_BITS + math.log2(max(len(others), 1))
        self._long = [form for form in self._forms if len(form) >= PIXEL_CHARS and len(set(form)) >= PIXEL_DISTINCT]
        self._any_form = _any_of([*self._starts, *self._forms])
        self._short = [start for start in self._starts if len(start) < PIXEL_CHARS]
        self._beginnings = _Beginnings([start for start in [*self._starts, *self._long] if len(start) >= PIXEL_CHARS])

    def found(self, value: bytes, *, pixels: bool = False) -> bool:
        """Whether a known string is in `value`; `pixels` says that it holds uncompressed (or run-length coded) pixels."""
        if pixels and not (self._beginnings.may_be_in(value) or any(start in value for start in self._short)):
            return False
        folded = value.lower()
        if not pixels and not self._any_form(folded):  # one pass, and mostly the last
            return False
        if any(folded.find(start) >= 0 for start in self._starts) and any(uid in folded for uid in self._uids):
            return True
        if pixels:
            return any(form in folded for form in self._long)
        needed = self._needed + math.log2(max(len(value), 1))
        return any(_counts(value, folded, form, needed) for form in self._forms)


def _any_of(forms: Collection[bytes]) -> Callable[[bytes], bool]:
    """Whether any of `forms` is in given bytes; one that contains another needs no search of its own.

    One pass of a pattern takes about a quarter of the time of looking for each of many (`python -m bench.residual_scan`).
    """
    shortest: list[bytes] = []
    for form in sorted(forms, key=len):
        if not any(part in form for part in shortest):
            shortest.append(form)
    if len(shortest) <= FEW_FORMS:
        return lambda folded: any(form in folded for form in shortest)
    search = re.compile(b"|".join(map(re.escape, shortest))).search
    return lambda folded: search(folded) is not None


class _Beginnings:
    """Says of bytes whether the first PIXEL_CHARS of one of `forms` may be in them, whatever the case of letters; no form is shorter.

    Wherever they are, four of these fill a word that begins at a multiple of four. One pass over such words leaves few places,
    at which all eight are compared. It takes about as long for any number of forms as looking for one of them byte by byte.
    """

    def __init__(self, forms: Collection[bytes]) -> None:
        self._words = _Hashes({form[at : at + 4] for form in forms for at in range(4)})
        self._whole = _Hashes({form[:PIXEL_CHARS] for form in forms})

    def may_be_in(self, value: bytes) -> bool:
        words = np.frombuffer(value, "<u4", len(value) // 4)
        places = 4 * np.flatnonzero(self._words.may_have(words))
        if not places.size or len(value) < PIXEL_CHARS:
            return False
        windows: np.ndarray = np.ndarray((len(value) - PIXEL_CHARS + 1,), "<u8", value, 0, (1,))  # one at each byte
        for before in range(4):
            at = places - before
            if self._whole.has_any(windows[at[(at >= 0) & (at < len(windows))]]):
                return True
        return False


class _Hashes:
    """Hashes of byte strings of one length, four or eight."""

    def __init__(self, strings: Collection[bytes]) -> None:
        n_bytes = len(next(iter(strings), b"")) or 4
        self._kind = np.dtype(f"u{n_bytes}").type
        self._case = self._kind(int.from_bytes(bytes([_CASE]) * n_bytes))
        self._factor = self._kind(0x9E3779B97F4A7C15 >> 64 - 8 * n_bytes | 1)
        self._shift = self._kind(8 * n_bytes - _TABLE_BITS)
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        known = np.array([int.from_bytes(string, "little") for string in strings], self._kind)
        self._table[self._hash(known)] = True
        self._folded = frozenset((known & self._case).tolist())

    def _hash(self, words: np.ndarray) -> np.ndarray:
        hashed = words & self._case
        hashed *= self._factor
        hashed >>= self._shift
        return hashed

    def may_have(self, words: np.ndarray) -> np.ndarray:
        """For each of `words`, unsigned numbers of little-endian bytes, whether its hash is one of these."""
        return np.asarray(self._table.take(self._hash(words)))

    def has_any(self, words: np.ndarray) -> bool:
        """Whether one of `words` is one of the strings, but for the case of letters."""
        alike = words[self.may_have(words)]
        return not self._folded.isdisjoint((alike & self._case).tolist())


def _forms(text: str) -> set[bytes]:
    """The bytes of a string in all encodings that have its letters, in lower case where a byte is an ASCII letter."""
    forms = set()
    for spelling in {text, text.lower(), text.upper(), text.title()}:
        for encoding in ENCODINGS:
            try:
                content = spelling.encode(encoding)
            except UnicodeEncodeError:
                continue
            if encoding.startswith("utf-16"):  # without the outer zero byte it is the same in both byte orders
                content = content.strip(b"\0")
            elif encoding.startswith("iso2022"):
                content = _SHIFT_BACK.sub(b"", content.removeprefix(_KOREAN))
            forms.add(content.lower())
    return {form for form in forms if len(form) >= 3}


def _counts(value: bytes, folded: bytes, form: bytes, needed: float) -> bool:
    at = folded.find(form)
    while at >= 0:
        if _evidence_bits(value, at, at + len(form)) >= needed:
            return True
        at = folded.find(form, at + 1)
    return False


def _evidence_bits(value: bytes, start: int, end: int) -> float:
    word = value[start:end]
    bits = 8.0 * len(word) - 2 if word in (word.lower(), word.upper(), word.title()) else 7.0 * len(word)
    if word[0] < ord(" "):  # shifted into a set of ideographs, where bytes are no letters
        return bits
    if word[1] == 0:
        return (
            0.0
            if _continues_wide(value[max(0, start - 3) : start][::-1]) or _continues_wide(value[end : end + 3])
            else bits + 8
        )
    for side in (value[max(0, start - CONTEXT_BYTES) : start][::-1], value[end : end + CONTEXT_BYTES]):
        if side[:1].isalnum():
            return 0.0
        if side and side[0] not in _DELIMITERS:
            continue
        bits += _DELIMITER_BITS
        for byte in side[1:]:
            if byte not in _PRINTABLE:
                break
            bits += _PRINTABLE_BITS
    return bits


def _continues_wide(side: bytes) -> bool:
    """Whether a letter in UTF-16 is next on a side, read away from the word; zero bytes are before or behind it."""
    return len(side) == 3 and side[0] == side[2] == 0 and side[1:2].isalnum()
