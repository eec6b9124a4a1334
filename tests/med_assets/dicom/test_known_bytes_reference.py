"""The quick search in bytes finds what a slow one, which looks for every form at every place, finds."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from med_assets.deidentification.known_bytes import (
    ENCODINGS,
    MARGIN_BITS,
    PIXEL_CHARS,
    PIXEL_DISTINCT,
    KnownBytes,
    _evidence_bits,
    _forms,
)

UIDS = frozenset({"1.2.3", *(f"1.2.826.0.1.3680043.{number}" for number in range(40))})
NAMES = (
    "kim",
    "lee",
    "anna",
    "annamaria",
    "müller",
    "kowalski",
    "mrn778899",
    "1500",
    "山田",
    "иванов",
    "kowalski^anna",
    "aab",
)


def reference(known: frozenset[str], value: bytes, pixels: bool) -> bool:
    """Every string in every encoding at every place, one after the other."""
    uids = {text for text in known if text in UIDS}
    if any(value.lower()[at:].startswith(uid.encode()) for at in range(len(value)) for uid in uids):
        return True
    others = known - uids
    needed = MARGIN_BITS + math.log2(max(len(others), 1)) + math.log2(max(len(value), 1))
    for form in {form for text in others for form in _forms(text)}:
        for at in range(len(value) - len(form) + 1):
            if value[at : at + len(form)].lower() != form:
                continue
            if pixels and len(form) >= PIXEL_CHARS and len(set(form)) >= PIXEL_DISTINCT:
                return True
            if not pixels and _evidence_bits(value, at, at + len(form)) >= needed:
                return True
    return False


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding, errors="ignore")


BORDERS = st.sampled_from((b"", b" ", b"^", b"\0", b"x", b"7", b"\xff", b"\xd9comment: ", b"\x1b$B"))
WORDS = st.builds(
    lambda text, case, encoding: encoded(getattr(text, case)(), encoding),
    st.sampled_from((*NAMES, *sorted(UIDS)[:3], "1.2.826.0.1.9")),
    st.sampled_from(("lower", "upper", "title", "swapcase", "casefold")),
    st.sampled_from(ENCODINGS),
)
VALUES = st.lists(st.one_of(st.binary(max_size=60), BORDERS, WORDS), max_size=8).map(b"".join)


@settings(max_examples=400)
@given(st.frozensets(st.sampled_from((*NAMES, *sorted(UIDS)))), VALUES, st.booleans())
def test_it_finds_what_the_reference_finds(known: frozenset[str], value: bytes, pixels: bool) -> None:
    assert KnownBytes(known).found(value, pixels=pixels) == reference(known, value, pixels)
