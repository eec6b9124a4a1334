"""What a DICOM file may ask of its reader: measured on the bytes, without recursion, before pydicom reads them."""

from __future__ import annotations

import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from pydicom.datadict import dictionary_has_tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from med_assets.errors import CaseRejected

MAX_DEPTH = 32
"""Sequences inside each other: structured reports use about ten, and each reader after this recurses per level."""

MAX_INFLATED_BYTES = 512 << 20
"""Bytes of a deflated dataset: an image of this size is never sent deflated."""

MAX_INFLATED_RATIO = 200
"""Inflated bytes per deflated byte above `FREE_INFLATED_BYTES`: images deflate to a third, zeros to a thousandth."""

FREE_INFLATED_BYTES = 16 << 20
"""Inflated bytes that need no ratio: a small image of one value deflates to nearly nothing."""

UNDEFINED = 0xFFFFFFFF
SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_LAST_GROUPS = 0x3006
"""Objects without pixels that intake knows (structures, plans) end in this group or later."""


class ElementBounds(NamedTuple):
    """Where an element of the outermost level lies: its tag, the code of its value representation (empty in implicit VR), the length
    that it states, and the first byte of its header and of its value."""

    tag: int
    code: bytes
    length: int
    start: int
    value: int


@dataclass(frozen=True)
class Extent:
    """Where the dataset of a file ends, in bytes from its start; what lies behind is no part of the object."""

    end: int
    trailing_bytes: int
    inflated: bytes | None = None
    """The file with its dataset inflated and cut at its end, where it was deflated."""

    regular: bool = False
    """Whether the walk went through all elements to the last byte of the file, so that nothing of it can be read otherwise."""

    places: tuple[ElementBounds, ...] = ()
    """The elements of a regular file in their order, which begin behind its file meta."""


@dataclass
class _Level:
    sequence: bool
    end: int | None
    explicit: bool


def measure(data: bytes | mmap.mmap) -> Extent:
    """Return the extent of the DICOM file `data` (bytes or a memory map).

    Raises `CaseRejected`: "malformed_element" (sequences nested deeper than `MAX_DEPTH`, a dataset that inflates to more
    than it may); EOFError where an element is longer than
    the file.
    """
    start, syntax = _meta(data)
    if syntax == DeflatedExplicitVRLittleEndian:
        content = _inflate(bytes(data[start:]))
        end = _Walk(content, 0, order="<").end()
        if end == len(content):
            return Extent(len(data), 0)
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return Extent(
            len(data), len(content) - end, bytes(data[:start]) + packer.compress(content[:end]) + packer.flush()
        )
    big = syntax == "1.2.840.10008.1.2.2" or (not syntax and bytes(data[start : start + 2]) == b"\x00\x08")
    walk = _Walk(data, start, order=">" if big else "<")
    end = walk.end()
    return Extent(end, len(data) - end, regular=walk.regular, places=tuple(walk.places) if walk.regular else ())


def _meta(data: bytes | mmap.mmap) -> tuple[int, str]:
    """Return where the dataset starts and the transfer syntax, empty where the file names none."""
    position, syntax = (132 if bytes(data[128:132]) == b"DICM" else 0), ""
    while bytes(data[position : position + 2]) == b"\x02\x00" and position + 8 <= len(data):
        header = bytes(data[position : position + 12])
        if header[4:6] in LONG and len(header) == 12:
            first, length = 12, struct.unpack("<I", header[8:])[0]
        else:
            first, length = 8, struct.unpack("<H", header[6:8])[0]
        if header[:4] == b"\x02\x00\x10\x00":
            syntax = bytes(data[position + 8 : position + 8 + min(length, 64)]).decode("ascii", "replace").strip("\0 ")
        position += first + length
    return min(position, len(data)), syntax


def _inflate(content: bytes) -> bytes:
    limit = min(MAX_INFLATED_BYTES, max(FREE_INFLATED_BYTES, MAX_INFLATED_RATIO * len(content)))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, size = [], 0
    while not unpacker.eof:
        part = unpacker.decompress(content, 1 << 20)
        size += len(part)
        if size > limit:
            raise CaseRejected(
                "malformed_element",
                f"Expected a deflated dataset of at most {limit} bytes ({len(content)} deflated, at most "
                f"{MAX_INFLATED_RATIO} times that); got more than {size} bytes, inflating. Send the object uncompressed.",
            )
        parts.append(part)
        content = unpacker.unconsumed_tail
        if not part and not content:
            raise EOFError
    return b"".join(parts)


class _Walk:
    """A walk over the elements of a dataset. Where it can't go on, pydicom reads what there is and says what is wrong."""

    def __init__(self, data: bytes | mmap.mmap, start: int, order: str) -> None:
        self.data, self.position = data, start
        self._head, self._short, self._long = (struct.Struct(order + form).unpack_from for form in ("HHI", "H", "I"))
        explicit = bytes(data[start + 4 : start + 6]) in SHORT | LONG
        self.levels = [_Level(False, None, explicit)]
        self.last = 0
        self.pixels = False
        self.cut = False
        self.regular = False
        self.places: list[ElementBounds] = []

    def end(self) -> int:
        size, left = len(self.data), False
        while self.position < size:
            level = self.levels[-1]
            if level.end is not None and self.position >= level.end:
                self.position = level.end
                self.levels.pop()
                continue
            if len(self.levels) == 1:
                before = self.position
                if not self._element(level):
                    if self._trails(before):
                        return before
                    if self.cut:
                        raise EOFError
                    return size
            elif not (self._item(level) if level.sequence else self._element(level)):
                # A sequence of stated length ends where it says; one without can't be left.
                outer = next((one.end for one in self.levels[1:] if one.end is not None), None)
                if outer is None or self.levels[1].end is None:
                    return size
                self.position, left = outer, True
                del self.levels[1:]
        self.regular = not left and self.position == size and all(one.end == size for one in self.levels[1:])
        return size

    def _words(self) -> tuple[int, int, int]:
        """Tag, length as of an item, and end of this header of 8 bytes; tag -1 where the bytes end."""
        if self.position + 8 > len(self.data):
            return -1, 0, len(self.data)
        group, element, length = self._head(self.data, self.position)
        return group << 16 | element, length, self.position + 8

    def _item(self, level: _Level) -> bool:
        tag, length, after = self._words()
        self.position = after
        if tag == _SEQUENCE_END:
            self.levels.pop()
            return True
        if tag != _ITEM:
            return False
        return self._push(False, length, level.explicit)

    def _push(self, sequence: bool, length: int, explicit: bool) -> bool:
        end = None if length == UNDEFINED else self.position + length
        if end is not None and end > len(self.data):
            return False
        self.levels.append(_Level(sequence, end, explicit))
        depth = sum(one.sequence for one in self.levels)
        if depth > MAX_DEPTH:
            raise CaseRejected(
                "malformed_element",
                f"Expected sequences nested at most {MAX_DEPTH} deep; got {depth} or more. Export the object again.",
            )
        return True

    def _element(self, level: _Level) -> bool:
        tag, length, after = self._words()
        if len(self.levels) > 1 and tag == _ITEM_END:
            self.position = after
            self.levels.pop()
            return True
        if tag < 0x20000 or tag >> 16 == 0xFFFE:
            return False
        code = self.data[self.position + 4 : self.position + 6] if level.explicit else b""
        if code in SHORT:
            (length,) = self._short(self.data, self.position + 6)
        elif code in LONG:
            if self.position + 12 > len(self.data):
                return False
            (length,), after = self._long(self.data, self.position + 8), self.position + 12
        elif level.explicit:
            return False
        top = len(self.levels) == 1
        if top and self.pixels and tag <= self.last:
            return False
        if length != UNDEFINED and after + length > len(self.data):
            self.cut = True
            return False
        start, self.position = self.position, after
        if top:
            self.places.append(ElementBounds(tag, code, length, start, after))
        if top and tag in _PIXELS:
            if not (self._fragments() if length == UNDEFINED else self._skip(length)):
                self.position = start
                return False
            self.pixels = True
        elif length == UNDEFINED or code == b"SQ" or (code in (b"", b"UN") and self._holds_item(length)):
            if not self._push(True, length, level.explicit and code != b"UN"):
                return False
        else:
            self.position += length
        if top:
            self.last = tag
        return True

    def _holds_item(self, length: int) -> bool:
        return length >= 8 and self._words()[0] == _ITEM

    def _skip(self, length: int) -> bool:
        self.position += length
        return True

    def _fragments(self) -> bool:
        while True:
            tag, length, after = self._words()
            if tag == _SEQUENCE_END:
                self.position = after
                return True
            if tag != _ITEM or after + length > len(self.data):
                return False
            self.position = after + length

    def _trails(self, position: int) -> bool:
        """Say whether what begins at `position` of the outermost level is no element but bytes behind the dataset."""
        if self.pixels:
            return True
        if not self.last:
            return False
        if not any(bytes(self.data[position : position + 8])) and not bytes(self.data[position:]).strip(b"\0"):
            return True
        tag = self._words()[0]
        foreign = tag <= self.last or not dictionary_has_tag(tag)
        return self.last >> 16 >= _LAST_GROUPS and foreign
