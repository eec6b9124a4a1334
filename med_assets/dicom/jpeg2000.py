"""JPEG 2000 and High-Throughput JPEG 2000 codestreams of one frame, rebuilt from what decoding needs.

The image is not encoded again: packets keep their bytes, and decode to the same pixels. Boxes around the codestream, comments,
pointers to packets and bytes after the end are left out. ISO/IEC 15444-1 (annexes A and I), 15444-15 (annex A).
"""

import re
import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise

from med_assets.dicom.codestreams import Codestream, cut_off, segment_body, segment_bytes, unsafe

JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
JPEG_2000_STARTS = (b"\xff\x4f\xff\x51", JP2_START)

_COD, _COC, _QCD, _QCC, _RGN, _CAP, _SOT, _SOD = 0x52, 0x53, 0x5C, 0x5D, 0x5E, 0x50, 0x90, 0x93
_END = b"\xff\xd9"
_NOT_NEEDED = frozenset({0x55, 0x57, 0x58, 0x59, 0x63, 0x64})
"""TLM, PLM, PLT (lengths of tile parts and packets), CPF (profile), CRG (registration of components) and COM (comments)."""

_NOT_IN_PACKETS = re.compile(rb"\xff[\x90\x93-\xff]")
"""Codes above FF8F do not occur in packets, other than the markers of their starts and headers (FF91, FF92)."""

MAX_TILES = 65535
"""Tiles of an image (15444-1, A.5.1); a decoder takes memory for each before it reads one."""

_PALETTE_BOXES = (b"pclr", b"cmap")


@dataclass
class _Stream:
    """A codestream that is read from its start to its end."""

    data: bytes
    name: str
    position: int = 2
    samples: int = 0
    levels: int = 0

    def marker(self) -> int:
        """The marker at this position, which is left behind."""
        code = self.data[self.position : self.position + 2]
        if len(code) < 2:
            raise cut_off(self.name)
        if code[0] != 0xFF:
            raise unsafe(f"bytes between segments of {self.name}")
        self.position += 2
        return code[1]

    def body(self) -> bytes:
        """The content of the segment whose marker was read."""
        content = segment_body(self.data, self.position, self.name)
        self.position += 2 + len(content)
        return content

    def header(self, end: int) -> bytes:
        """Segments that decoding needs, up to the marker `end`, which is left behind."""
        segments = []
        while (marker := self.marker()) != end:
            body = self.body()
            if marker in _NOT_NEEDED:
                continue
            if marker not in (_COD, _COC, _QCD, _QCC, _RGN, _CAP):
                raise unsafe(f"marker FF{marker:02X} in {self.name}")
            segments.append((marker, body))
        index = 1 if self.samples < 257 else 2
        for marker, body in segments:
            if marker in (_COD, _COC):
                self._coding(body, 5 if marker == _COD else index + 1, body[0 if marker == _COD else index :][:1])
        for marker, body in segments:
            bands = {0: 1, 2: 2}
            if marker == _CAP and (len(body) < 4 or len(body) != 4 + 2 * int.from_bytes(body[:4]).bit_count()):
                raise self._other_form(marker)
            if marker == _RGN and len(body) != index + 2:
                raise self._other_form(marker)
            if marker in (_QCD, _QCC):
                steps = body[0 if marker == _QCD else index :]
                size = bands.get(steps[0] & 31 if steps else 1)
                longest = 3 if size is None else 1 + size * (3 * self.levels + 1)
                if not steps or len(steps) > longest:
                    raise self._other_form(marker)
        return b"".join(segment_bytes(marker, body) for marker, body in segments)

    def _coding(self, body: bytes, start: int, style: bytes) -> None:
        """Coding style: five values from `start` on, then the sizes of precincts where `style` says so."""
        levels = body[start] if len(body) > start else 0
        if len(body) != start + 5 + (levels + 1 if style and style[0] & 1 else 0) or levels > 32:
            raise self._other_form(_COD)
        self.levels = max(self.levels, levels)

    def _other_form(self, marker: int) -> Exception:
        return unsafe(f"a segment FF{marker:02X} of another length in {self.name}")

    def tile_part(self, tiles: int) -> bytes:
        """A tile part whose SOT marker was read, with its length set anew."""
        start = self.position - 2
        body = self.body()
        if len(body) != 8:
            raise self._other_form(_SOT)
        tile, length, part, parts = struct.unpack(">HIBB", body)
        if tile >= tiles:
            raise unsafe(f"a tile outside of the image in {self.name}")
        header = self.header(_SOD)
        end = start + length if length else self.data.find(_END, self.position)
        if not self.position <= end <= len(self.data):
            raise cut_off(self.name)
        packets = self.data[self.position : end]
        if _NOT_IN_PACKETS.search(packets):
            raise unsafe(f"a marker within packets of {self.name}")
        self.position = end
        whole = 12 + len(header) + 2 + len(packets)
        return segment_bytes(_SOT, struct.pack(">HIBB", tile, whole, part, parts)) + header + b"\xff\x93" + packets


def rebuilt_jpeg_2000(stream: bytes, name: str) -> Codestream:
    """The codestream alone, out of its JP2 boxes where it has some; `name` is that of the transfer syntax.

    Raises CaseRejected: unsafe_pixel_stream, truncated_file (the end of the codestream is missing).
    """
    stream = _out_of_boxes(stream, name) if stream.startswith(JP2_START) else stream
    if not stream.startswith(JPEG_2000_STARTS[0]):
        raise unsafe(f"no start of a codestream in {name}")
    reading = _Stream(stream, name, 4)
    size = reading.body()
    if len(size) < 36:
        raise cut_off(name)
    width, height, left, top, tile_width, tile_height, tile_left, tile_top, samples = struct.unpack(">8IH", size[2:36])
    if len(size) != 36 + 3 * samples or not samples or not tile_width or not tile_height:
        raise unsafe(f"a SIZ segment of another length in {name}")
    tiles = -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height)
    if not 0 < tiles <= MAX_TILES:
        raise unsafe(f"{tiles} tiles in {name}")
    reading.samples = samples
    parts = [segment_bytes(0x51, size), reading.header(_SOT)]
    marker = _SOT
    while marker == _SOT:
        parts.append(reading.tile_part(tiles))
        marker = reading.marker()
    if marker != _END[1]:
        raise unsafe(f"marker FF{marker:02X} between tile parts of {name}")
    precision = max((size[36 + 3 * k] & 0x7F) + 1 for k in range(samples))
    places = list(accumulate(map(len, parts), initial=2))[2:]
    shape = height - top, width - left, samples
    return Codestream(b"".join([b"\xff\x4f", *parts, _END]), precision, shape, tuple(pairwise(places)))


def _out_of_boxes(stream: bytes, name: str) -> bytes:
    """The contiguous codestream of a JP2 file."""
    position = 0
    while position + 8 <= len(stream):
        length, kind = struct.unpack(">I4s", stream[position : position + 8])
        header = 8
        if length == 1:
            length, header = int.from_bytes(stream[position + 8 : position + 16]), 16
        if length and length < header:
            raise unsafe(f"a box of {length} bytes in {name}")
        end = position + length if length else len(stream)
        content = stream[position + header : end]
        if kind == b"jp2h" and any(box in content for box in _PALETTE_BOXES):
            raise unsafe(f"a palette in the boxes of {name}")
        if kind == b"jp2c":
            return content
        position = end
    raise cut_off(name)
