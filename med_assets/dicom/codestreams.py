"""JPEG and JPEG-LS streams of one frame, rebuilt from what decoding needs: nothing else in them can carry text.

The image is not encoded again: entropy-coded data keep their bytes, and decode to the same pixels. Comments, application
segments, tables that no scan refers to, and bytes after the end are left out. ISO/IEC 10918-1 (annex B), 14495-1 (annex C).
"""

import re
import struct
from dataclasses import dataclass, field
from itertools import accumulate

from med_assets.errors import CaseRejected

JPEG_START = b"\xff\xd8"


@dataclass(frozen=True)
class Codestream:
    """A rebuilt stream, and what it says of its image: bits per sample and (rows, columns, samples).

    `coded` are the places in `data`, from and to, of coded data that a decoder reads in one go.
    """

    data: bytes
    precision: int
    shape: tuple[int, int, int]
    coded: tuple[tuple[int, int], ...] = ()


def unsafe(detail: str) -> CaseRejected:
    """The refusal of a stream that holds something of which it is not known that it carries no text."""
    return CaseRejected(
        "unsafe_pixel_stream",
        f"expected a compressed image with known segments alone, got {detail}; export it uncompressed, or compress it again",
    )


def cut_off(name: str) -> CaseRejected:
    """The refusal of a stream that ends too early."""
    return CaseRejected(
        "truncated_file", f"expected a whole {name} stream, got one whose bytes end too early; send the file again"
    )


_EOI, _SOS, _DQT, _DHT, _DRI, _DNL, _LSE, _COM = 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xDC, 0xF8, 0xFE
_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
_FRAMES = {_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _JPEG_LS}
_JFIF, _HP_COLOUR, _ADOBE = 0xE0, 0xE8, 0xEE
_MARKER_IN_SCAN = {
    False: re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])"),  # FF00 is a stuffed byte, FFD0 to FFD7 are restarts
    True: re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])"),  # JPEG-LS stuffs a bit: below 0x80 is data
}
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_COMPONENT_IDS = frozenset({(1, 2, 3), (0, 1, 2), tuple(b"RGB"), tuple(b"rgb")})
_LSE_THRESHOLDS_LENGTH = 13
_MAX_DC_CATEGORY = 16


@dataclass
class _Jpeg:
    """Tables in force while a stream is read, and the parts that are kept."""

    name: str
    colour: dict[int, bytes] = field(default_factory=dict)
    tables: dict[tuple[int, int], bytes] = field(default_factory=dict)
    written: dict[tuple[int, int], bytes] = field(default_factory=dict)
    restart: bytes = b""
    restart_written: bytes = b""
    presets: bytes = b""
    process: int = 0
    frame: bytes = b""
    quantisation: dict[int, int] = field(default_factory=dict)
    ids: dict[int, int] = field(default_factory=dict)
    precision: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    scans: list[bytes] = field(default_factory=list)
    coded: list[tuple[int, int, int]] = field(default_factory=list)

    def segment(self, marker: int, body: bytes) -> None:
        """Take a segment other than SOS: what decoding needs of it."""
        if marker == _DQT:
            self._quantisation_tables(body)
        elif marker == _DHT:
            self._huffman_tables(body)
        elif marker == _DRI:
            self.restart = segment_bytes(_DRI, self._exactly(body, 2, "DRI"))
        elif marker == _DNL:
            rows = self._exactly(body, 2, "DNL")
            if self.frame and not self.shape[0]:  # decoders that look for the end of no rows may never find it
                self.frame = self.frame[:5] + rows + self.frame[7:]
                self.shape = (int.from_bytes(rows), *self.shape[1:])
        elif marker == _LSE:
            if len(body) != _LSE_THRESHOLDS_LENGTH - 2 or body[0] != 1:
                raise unsafe(f"a mapping table in {self.name}")
            self.presets = segment_bytes(_LSE, body)
        elif marker in _FRAMES:
            self._frame(marker, body)
        elif marker == _JFIF and body.startswith(b"JFIF\0"):
            self.colour[marker] = segment_bytes(marker, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0")
        elif marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12 and body[11] in (0, 1, 2):
            self.colour[marker] = segment_bytes(marker, b"Adobe\0\x64\0\0\0\0" + body[11:12])
        elif marker == _HP_COLOUR and body[:4] == b"mrfx" and len(body) == 5 and body[4] <= 3:
            self.colour[marker] = segment_bytes(marker, body)
        elif marker != _COM and not 0xE0 <= marker <= 0xEF:
            raise unsafe(f"marker FF{marker:02X} in {self.name}")

    def scan(self, body: bytes, data: bytes) -> None:
        """Take a scan: its tables, its header and its entropy-coded data."""
        count = body[0] if body else 0
        self._exactly(body, 4 + 2 * count, "SOS")
        chosen = [(body[k], body[k + 1]) for k in range(1, 1 + 2 * count, 2)]
        if not self.frame or not 1 <= count <= 4 or any(key not in self.ids for key, _ in chosen):
            raise unsafe(f"a scan without its frame in {self.name}")
        needed: list[tuple[int, int]] = []
        if self.process == _JPEG_LS:
            if any(table for _, table in chosen):
                raise unsafe(f"a mapping table in {self.name}")
        else:
            if self.process != _LOSSLESS:
                needed += [(_DQT, self.quantisation[key]) for key, _ in chosen]
                needed += [(_DHT, 0x10 | table & 15) for _, table in chosen]
            needed += [(_DHT, table >> 4) for _, table in chosen]
        head = bytearray()
        for key in dict.fromkeys(needed):
            content = self.tables.get(key)  # a progressive scan names tables that it does not use
            if content is not None and self.written.get(key) != content:
                self.written[key] = content
                head += segment_bytes(key[0], content)
        if self.restart != self.restart_written:
            head += self.restart
            self.restart_written = self.restart
        head += self.presets
        self.presets = b""
        fixed = bytes([count]) + b"".join(bytes([self.ids[key], table]) for key, table in chosen) + body[-3:]
        restarts = [restart.start() for restart in _RESTART.finditer(data)]
        if restarts and not self.restart:
            raise unsafe(f"restart markers without an interval in {self.name}")
        self.scans += [bytes(head), segment_bytes(_SOS, fixed)]
        self.coded += [
            (len(self.scans), start, end) for start, end in zip([0, *restarts], [*restarts, len(data)], strict=True)
        ]
        self.scans.append(data)

    def stream(self) -> tuple[bytes, tuple[tuple[int, int], ...]]:
        """The rebuilt stream (markers of colour, frame header, tables and scans), and the places of its coded data."""
        if not self.scans:
            raise cut_off(self.name)
        head = b"".join([JPEG_START, *[self.colour[marker] for marker in sorted(self.colour)], self.frame])
        places = list(accumulate(map(len, self.scans), initial=len(head)))
        coded = tuple((places[scan] + start, places[scan] + end) for scan, start, end in self.coded)
        return b"".join([head, *self.scans, b"\xff\xd9"]), coded

    def _frame(self, marker: int, body: bytes) -> None:
        if self.frame:
            raise unsafe(f"a second frame in {self.name}")
        if len(body) < 6:
            raise cut_off(self.name)
        precision, rows, columns, samples = struct.unpack(">BHHB", body[:6])
        self._exactly(body, 6 + 3 * samples, "a frame header")
        ids = tuple(body[6::3])
        fixed = (1,) if samples == 1 else ids if ids in _COMPONENT_IDS else tuple(range(1, samples + 1))
        if len(set(ids)) != samples:
            raise unsafe(f"components of one name in {self.name}")
        self.ids = dict(zip(ids, fixed, strict=True))
        uses_tables = marker not in (_LOSSLESS, _JPEG_LS)
        self.quantisation = {key: table if uses_tables else 0 for key, table in zip(ids, body[8::3], strict=True)}
        parts = [bytes([self.ids[key], body[7 + 3 * k], self.quantisation[key]]) for k, key in enumerate(ids)]
        self.process, self.precision, self.shape = marker, precision, (rows, columns, samples)
        self.frame = segment_bytes(marker, body[:6] + b"".join(parts))

    def _quantisation_tables(self, body: bytes) -> None:
        while body:
            size = 1 + 64 * (1 + (body[0] >> 4 & 1))
            if len(body) < size or body[0] & 0xEC:
                raise unsafe(f"a quantisation table of another form in {self.name}")
            self.tables[_DQT, body[0] & 15] = body[:size]
            body = body[size:]

    def _huffman_tables(self, body: bytes) -> None:
        while body:
            size = 17 + sum(body[1:17])
            symbols = body[17:size]
            alike = len(set(symbols)) != len(symbols)
            if (
                len(body) < size
                or body[0] & 0xEC
                or alike
                or (body[0] < 16 and max(symbols, default=0) > _MAX_DC_CATEGORY)
            ):
                raise unsafe(f"a Huffman table of another form in {self.name}")
            self.tables[_DHT, body[0]] = body[:size]
            body = body[size:]

    def _exactly(self, body: bytes, length: int, what: str) -> bytes:
        if len(body) != length:
            raise unsafe(f"{what} of {len(body)} bytes for {length} in {self.name}")
        return body


def rebuilt_jpeg(stream: bytes, name: str) -> Codestream:
    """A JPEG or JPEG-LS stream of what its scans need alone; `name` is that of the transfer syntax.

    Raises CaseRejected: unsafe_pixel_stream, truncated_file (the end of image is missing).
    """
    jpeg, position = _Jpeg(name), 2
    while True:
        start = re.compile(rb"\xff+([^\x00\xff])").match(stream, position)
        if start is None:
            if len(stream) - position > 1 and stream[position] != 0xFF:
                raise unsafe(f"bytes between segments of {name}")
            raise cut_off(name)
        marker, position = start[1][0], start.end()
        if marker == _EOI:
            data, coded = jpeg.stream()
            return Codestream(data, jpeg.precision, jpeg.shape, coded)
        body = segment_body(stream, position, name)
        position += 2 + len(body)
        if marker != _SOS:
            jpeg.segment(marker, body)
            continue
        end = _MARKER_IN_SCAN[jpeg.process == _JPEG_LS].search(stream, position)
        if end is None:
            raise cut_off(name)
        jpeg.scan(body, stream[position : end.start()])
        position = end.start()


def segment_bytes(marker: int, body: bytes) -> bytes:
    """A marker segment: marker, length and `body`."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def segment_body(stream: bytes, position: int, name: str) -> bytes:
    """What follows the two bytes of length at `position`, which count themselves."""
    length = int.from_bytes(stream[position : position + 2])
    if length < 2 or position + length > len(stream):
        raise cut_off(name)
    return stream[position + 2 : position + length]
