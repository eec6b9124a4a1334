"""Ways to damage a file; the same seed gives the same bytes."""

import gzip
import io
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable

MARK = b"ZZSMITH^MRN7788"
"""A name that no output may hold."""

SYNTAXES = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.50",
            b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.5", b"1.2.840.10008.9.9")  # fmt: skip
_ELEMENT = re.compile(rb"[\x08-\x30]\0..(?:AE|AS|AT|CS|DA|DS|FD|FL|IS|LO|PN|SH|SL|SQ|SS|ST|TM|UI|UL|US)", re.DOTALL)


def _header(data: bytes, rng: random.Random) -> int:
    """Where some element's header begins, after the meta header."""
    found = [match.start() for match in _ELEMENT.finditer(data[:20_000], 132)]
    return rng.choice(found) if found else rng.randrange(len(data))


def bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 8, 64))):
        changed[rng.randrange(min(len(data), rng.choice((4000, len(data)))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def length(data: bytes, rng: random.Random) -> bytes:
    at = _header(data, rng) + 6
    return data[:at] + struct.pack("<H", rng.choice((0, 1, 3, 15, 0x7FFF, 0xFFFF))) + data[at + 2 :]


def representation(data: bytes, rng: random.Random) -> bytes:
    at = _header(data, rng) + 4
    return data[:at] + rng.choice((b"FD", b"SQ", b"UN", b"AT", b"QQ", b"\0\0", b"OB", b"PN", b"US")) + data[at + 2 :]


def tag(data: bytes, rng: random.Random) -> bytes:
    at = _header(data, rng)
    return data[:at] + rng.randbytes(4) + data[at + 4 :]


def value(data: bytes, rng: random.Random) -> bytes:
    at = _header(data, rng)
    (size,) = struct.unpack("<H", (data[at + 6 : at + 8] + b"\0\0")[:2])
    return data[: at + 6] + struct.pack("<H", len(MARK)) + MARK + data[at + 8 + size :]


def nesting(data: bytes, rng: random.Random) -> bytes:
    at, depth = _header(data, rng), rng.choice((5, 40, 300, 2000))
    start = b"\x08\x00\x15\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    return data[:at] + start * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth + data[at:]


def truncation(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def insertion(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((_header(data, rng), rng.randrange(len(data)), len(data)))
    return data[:at] + rng.choice((MARK, MARK * 50, bytes(rng.randrange(600)), rng.randbytes(40))) + data[at:]


def duplication(data: bytes, rng: random.Random) -> bytes:
    first, second = sorted((_header(data, rng), _header(data, rng)))
    return data[:second] + data[first:second] + data[second:]


def syntax(data: bytes, rng: random.Random) -> bytes:
    at = data.find(b"\x02\x00\x10\x00UI")
    (size,) = struct.unpack("<H", data[at + 6 : at + 8])
    return data[: at + 8] + rng.choice(SYNTAXES)[:size].ljust(size, b"\0") + data[at + 8 + size :]


def packed(data: bytes, rng: random.Random) -> bytes:
    """The file in a zip or tar of which some bits are changed, with names that no file system has."""
    name = rng.choice((MARK.decode(), "n" * 300, "d/" * 2000 + "a", "../a", "a"))
    buffer = io.BytesIO()
    if rng.random() < 0.5:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    content = buffer.getvalue()
    content = content if rng.random() < 0.3 else bits(content, rng)
    return gzip.compress(content, 1) if rng.random() < 0.3 else content


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    bits, length, representation, tag, value, nesting, truncation, insertion, duplication, syntax, packed,
)  # fmt: skip
