"""Ways to damage a file; the same seed gives the same bytes."""

import random
import re
import struct
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
    if at < 0:
        return bits(data, rng)
    (size,) = struct.unpack("<H", data[at + 6 : at + 8])
    return data[: at + 8] + rng.choice(SYNTAXES)[:size].ljust(size, b"\0") + data[at + 8 + size :]


def _pixels(data: bytes, rng: random.Random) -> int:
    """Where the value of the last pixel element begins; any place where there is none."""
    at = data.rfind(b"\xe0\x7f\x10\x00")
    return min(at + 12, len(data) - 1) if at >= 0 else rng.randrange(len(data))


def stream_header(data: bytes, rng: random.Random) -> bytes:
    """Bits of the pixel element's length, tables and headers."""
    changed, at = bytearray(data), _pixels(data, rng)
    for _ in range(rng.choice((1, 4, 32))):
        changed[min(at - 8 + rng.randrange(250), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def stream_noise(data: bytes, rng: random.Random) -> bytes:
    changed, at = bytearray(data), _pixels(data, rng)
    for _ in range(rng.choice((1, 20, 400))):
        changed[rng.randrange(at, len(data))] = rng.randrange(256)
    return bytes(changed)


def stream_size(data: bytes, rng: random.Random) -> bytes:
    """A compressed image that says it is of another size: in a frame header of JPEG, or in SIZ of JPEG 2000."""
    sizes = struct.pack(">HH", *(rng.choice((0, 1, 255, 4000, 65535)) for _ in range(2)))
    for marker in (b"\xff\xc0", b"\xff\xc3", b"\xff\xf7"):
        if (at := data.find(marker, _pixels(data, rng))) >= 0:
            return data[: at + 5] + sizes + data[at + 9 :]
    if (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        place = at + 8 + 4 * rng.randrange(8)
        return data[:place] + bytes(2) + sizes[:2] + data[place + 4 :]
    return stream_header(data, rng)


def fragments(data: bytes, rng: random.Random) -> bytes:
    """An item of the pixels more, or one of another length."""
    places = [match.start() for match in re.finditer(rb"\xfe\xff\x00\xe0", data)]
    if not places:
        return insertion(data, rng)
    at = rng.choice(places)
    if rng.random() < 0.5:
        text = MARK * rng.choice((1, 400))
        return data[:at] + b"\xfe\xff\x00\xe0" + struct.pack("<I", len(text)) + text + data[at:]
    return data[: at + 4] + struct.pack("<I", rng.choice((0, 1, 7, 2**31, 2**32 - 1))) + data[at + 8 :]


def declared(data: bytes, rng: random.Random) -> bytes:
    """Rows, columns, frames or bits of another number than there are."""
    element = rng.choice(
        (b"\x10\x00US", b"\x11\x00US", b"\x00\x01US", b"\x01\x01US", b"\x02\x01US", b"\x03\x01US", b"\x02\x00US")
    )
    if rng.random() < 0.3 and (at := data.find(b"\x28\x00\x08\x00IS")) >= 0:
        (size,) = struct.unpack("<H", data[at + 6 : at + 8])
        number = rng.choice((b"99999999", b"0 ", b"-1", b"1e9 ", b"2147483647")).ljust(12)
        return data[: at + 6] + struct.pack("<H", len(number)) + number + data[at + 8 + size :]
    at = data.find(b"\x28\x00" + element)
    if at < 0:
        return bits(data, rng)
    return data[: at + 8] + struct.pack("<H", rng.choice((0, 1, 7, 13, 64, 255, 65535))) + data[at + 10 :]


def unchanged(data: bytes, rng: random.Random) -> bytes:
    return data


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    bits, length, representation, tag, value, nesting, truncation, insertion, duplication, syntax, stream_header, stream_noise,
    stream_size, fragments, declared, unchanged,
)  # fmt: skip
