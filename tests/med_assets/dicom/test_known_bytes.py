"""Names in binary values: found where chance does not explain them, in the encodings of DICOM, and not in bytes at random."""

import numpy as np
import pytest

from med_assets.deidentification.known_bytes import KnownBytes

NAMES = ("kim", "lee", "rose", "anna", "meier", "müller", "kowalski", "mrn778899", "1500", "山田", "иванов")
RANDOM = np.random.default_rng(15)


def planted(content: bytes, size: int) -> bytes:
    """Bytes at random with `content` between two that are no letters."""
    return RANDOM.bytes(size // 2) + b"\xff" + content + b"\xd9" + RANDOM.bytes(size // 2)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"Name: Kim^Lee", 2**12),
        (b"Patient Kim^Lee, ward 9", 2**20),
        (b" Rose ", 2**12),
        (b"comment=ROSE", 2**20),
        (b"Meier", 2**12),
        (b"MEIER ", 2**17),
        (b"Kowalski", 2**20),
        ("Müller".encode(), 2**20),
        ("MÜLLER".encode("latin-1"), 2**20),
        ("Meier".encode("utf-16-le"), 2**20),
        ("Rose".encode("utf-16-be"), 2**20),
        ("comment: 山田 ".encode("shift-jis"), 2**12),
        (" 山田 comment".encode("iso2022_jp"), 2**12),
        ("Иванов".encode("iso8859-5"), 2**20),
    ],
)
def test_a_name_is_found_in_its_encoding(content: bytes, size: int) -> None:
    assert KnownBytes(NAMES).found(planted(content, size))


@pytest.mark.parametrize("content", [b"akim ", b" kimono ", b"Roseanne", b"21500"])
def test_a_part_of_a_longer_word_is_no_name(content: bytes) -> None:
    assert not KnownBytes(NAMES).found(b" comment" + content + b"comment")


def test_bytes_at_random_hold_no_name() -> None:
    known = KnownBytes(NAMES)
    assert not any(known.found(RANDOM.bytes(2**16)) for _ in range(300))
    assert not known.found(RANDOM.bytes(10 * 2**20))


def test_in_pixels_long_names_alone_are_found_and_even_areas_are_no_id() -> None:
    pixels = np.tile(np.arange(48, 123, dtype=np.uint8), (100, 10)).tobytes() + b" Kim Rose "
    known = KnownBytes((*NAMES, "00000000"))
    assert not known.found(pixels + b"0" * 1000, pixels=True)
    assert known.found(pixels + b"KOWALSKI", pixels=True)


def test_uids_are_found_as_they_are() -> None:
    known = KnownBytes([f"1.2.826.0.1.3680043.{number}" for number in range(300)])
    assert known.found(planted(b"1.2.826.0.1.3680043.7", 2**12), pixels=True)
    assert not known.found(planted(b"1.2.826.0.1.9999", 2**12), pixels=True)
