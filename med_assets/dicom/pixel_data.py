"""Pixel data as it is stored: of the declared length, without unused bits, compressed streams rebuilt from what decoding needs.

What is not a pixel can carry text through: bytes behind the last pixel, bits above the stored ones, comments in a compressed
stream, fragments behind the last frame, tables of offsets and of colours. The values of the pixels stay as they are.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from med_assets.dicom.codestreams import JPEG_START, Codestream, cut_off, rebuilt_jpeg, unsafe
from med_assets.dicom.element_values import read_element
from med_assets.dicom.elements import decoding, quietly, syntax_name, text, uncompressed
from med_assets.dicom.jpeg2000 import JPEG_2000_STARTS, rebuilt_jpeg_2000
from med_assets.dicom.sop_classes import LABELMAP_STORAGE, PIXEL_CLASSES, USUALLY_BURNED_IN
from med_assets.dicom.undecoded import Facts, plain_integer, tag_of_keyword
from med_assets.errors import CaseRejected

_NATIVE = frozenset({
    uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian, uids.ExplicitVRBigEndian, uids.DeflatedExplicitVRLittleEndian,
})  # fmt: skip
_JPEG = frozenset({
    uids.JPEGBaseline8Bit, uids.JPEGExtended12Bit, uids.JPEGLossless, uids.JPEGLosslessSV1, uids.JPEGLSLossless,
    uids.JPEGLSNearLossless,
})  # fmt: skip
_JPEG_2000 = frozenset({
    uids.JPEG2000Lossless, uids.JPEG2000, uids.HTJ2KLossless, uids.HTJ2KLosslessRPCL, uids.HTJ2K,
})  # fmt: skip
_COMPRESSED = _JPEG | _JPEG_2000 | {uids.RLELossless}
_DECODABLE = _NATIVE | _COMPRESSED
DEFLATED_FRAMES = UID("1.2.840.10008.1.2.8.1")
"""Deflated Image Frame Compression, a transfer syntax that pydicom 3.0 does not know."""

_LAYOUT = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_BESIDE_PIXELS = frozenset(
    map(tag_of_keyword, ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData"))
)
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_RLE_HEADER_BYTES = 64
_SEARCHED_BYTES = 512
_TEXT_AT_END = re.compile(rb"(?:\0?[ -~]){5,}\0*\Z")
"""Five letters and more, of one or two bytes each, at the end of coded data."""

_READ_AS_TEXT_BY_CHANCE = 6
"""As many bytes of coded data may read as letters before those that are."""
_PALETTE = "PALETTE COLOR"


MAX_DECODED_BYTES = 4 << 30
"""Pixels of one object: thousands of frames of CT, hundreds of mammograms."""

MAX_FRAME_SAMPLES = 1 << 25
"""Samples of one compressed frame, whose decoders take up to thirty bytes for each: 5800 x 5800 in grey."""

FREE_DECODED_BYTES = 256 << 20
"""Decoded bytes that need no ratio where a stream can hold any number of pixels of one value."""

MOST_DECODED_PER_BYTE = {
    uids.RLELossless: 64,  # two bytes are a run of 128
    uids.JPEGBaseline8Bit: 256,  # a block of 64 pixels takes two bits
    uids.JPEGExtended12Bit: 512,
    uids.JPEGLossless: 16,  # a pixel takes a bit
    uids.JPEGLosslessSV1: 16,
}
"""What a byte of a compressed stream can decode to at most."""

USUAL_DECODED_PER_BYTE = 4000
"""The same above `FREE_DECODED_BYTES` of the others (JPEG-LS, JPEG 2000), which pack an even image into nothing."""


@dataclass(frozen=True)
class Layout:
    """How pixels lie in memory, by the elements of the image pixel module."""

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str

    @property
    def frame_pixels(self) -> int:
        """Samples of one frame; of a native YBR_FULL_422 two in three are there (PS3.3, C.7.6.3.1.2)."""
        return self.rows * self.columns * self.samples

    def length(self) -> int:
        """Bytes of all native frames, without padding."""
        bits = self.frame_pixels * self.frames * self.allocated
        return (bits // 3 * 2 if self.photometric == "YBR_FULL_422" else bits) + 7 >> 3

    @property
    def has_unused_bits(self) -> bool:
        """Whether a pixel has bits that are no part of its value."""
        return self.allocated > 1 and self.stored < self.allocated


@dataclass(frozen=True)
class Pixels:
    """Cleaned pixels, their transfer syntax, and values of elements that follow from the cleaning."""

    data: bytes
    syntax: UID
    elements: dict[str, str | int] = field(default_factory=dict)
    vr: str = "OB"

    def put_into(self, ds: Dataset) -> None:
        """Set PixelData, and what follows, in a de-identified object without."""
        for keyword, value in self.elements.items():
            if (
                keyword == "HighBit"
                and plain_integer(ds.get_item(tag_of_keyword(keyword), keep_deferred=True)) == value
            ):
                continue
            setattr(ds, keyword, value)
        ds.add_new("PixelData", self.vr, self.data)


def require_syntax(syntax: str) -> None:
    """Raise CaseRejected("undecodable_pixels") for a transfer syntax that cannot be read here, or that nobody registered."""
    if syntax in _DECODABLE:
        return
    raise CaseRejected(
        "undecodable_pixels",
        f"expected a transfer syntax that can be decoded here, got {syntax_name(syntax)}; {uncompressed(syntax)}",
    )


def clean_pixels(ds: Dataset, syntax: UID) -> Pixels | None:
    """The pixels of an object, rebuilt; None of one without pixels, or of a class that has none.

    Raises CaseRejected: malformed_element, truncated_file, undecodable_pixels, unsafe_pixel_stream, overlay_in_pixels.
    """
    element = ds.get_item("PixelData") if "PixelData" in ds else None
    if element is None or text(ds, "SOPClassUID") not in PIXEL_CLASSES:
        return None
    layout = pixel_layout(ds)
    _require_overlays_outside(ds, layout)
    raw = element.value
    if not isinstance(raw, bytes | bytearray) or not raw:
        raise CaseRejected("truncated_file", "expected pixel data, got an empty element; send the file again")
    raw = bytes(raw)
    if syntax in _NATIVE:
        if getattr(element, "is_undefined_length", False) or getattr(element, "length", 0) == 0xFFFFFFFF:
            raise unsafe(f"compressed frames in {syntax.name}")
        big = syntax == uids.ExplicitVRBigEndian
        data, layout = _native(raw, layout, big=big, swapped=big and layout.allocated <= 8 and element.VR == "OW")
        implicit = syntax == uids.ImplicitVRLittleEndian
        pixels = Pixels(data, syntax, vr="OW" if implicit or layout.allocated > 8 or element.VR == "OW" else "OB")
    elif syntax == uids.RLELossless:
        frames = [_rebuilt_rle(frame, layout) for frame in _frames(raw, layout.frames, rle=True)]
        layout = replace(layout, high=layout.stored - 1)
        pixels = Pixels(encapsulate(frames, has_bot=False), syntax)
    else:
        pixels, layout = _encapsulated(raw, layout, syntax)
    pixels.elements["HighBit"] = layout.high
    return _without_palette(pixels, ds, layout)


def _read_layout(ds: Dataset) -> Layout:
    values = []
    for keyword in _LAYOUT:
        default = {"PixelRepresentation": 0, "SamplesPerPixel": 1}.get(keyword)
        value = ds.get(keyword, default)
        if not isinstance(value, int):
            raise _wrong_layout(keyword)
        values.append(int(value))
    rows, columns, samples, allocated, stored, high, representation = values
    frames = _frame_count(ds)
    checks = {
        "Rows": rows > 0, "Columns": columns > 0, "SamplesPerPixel": 1 <= samples <= 4,
        "BitsAllocated": allocated in (1, 8, 16, 32, 64), "BitsStored": 1 <= stored <= allocated,
        "HighBit": stored - 1 <= high < allocated, "PixelRepresentation": representation in (0, 1),
    }  # fmt: skip
    for keyword, right in checks.items():
        if not right:
            raise _wrong_layout(keyword)
    photometric = str(ds.get("PhotometricInterpretation") or "")
    return Layout(rows, columns, samples, frames, allocated, stored, high, bool(representation), photometric)


pixel_layout = Facts(_read_layout, *_LAYOUT, "NumberOfFrames", "PhotometricInterpretation")
"""The layout of an object's pixels. Raises CaseRejected("malformed_element")."""


def _frame_count(ds: Dataset) -> int:
    try:
        count = int(ds.get("NumberOfFrames") or 1)
    except (TypeError, ValueError):
        raise _wrong_layout("NumberOfFrames") from None
    if count < 1:
        raise _wrong_layout("NumberOfFrames")
    return count


def _wrong_layout(keyword: str) -> CaseRejected:
    return CaseRejected(
        "malformed_element",
        f"expected {keyword} to say how the pixels are stored, got none or a value that fits no pixels; export the object again",
    )


def _require_overlays_outside(ds: Dataset, layout: Layout) -> None:
    """An overlay in unused bits goes with these; one that shares a bit with the image cannot be distinguished from it."""
    low = layout.high - layout.stored + 1
    for tag in sorted([tag for tag, _ in ds.items() if tag & 0xFF01FFFF == 0x60000102]):
        position = read_element(ds, tag).value
        if position and (not isinstance(position, int) or low <= position <= layout.high):
            raise CaseRejected(
                "overlay_in_pixels",
                f"expected overlays outside of bits {low} to {layout.high} of the pixels, got one within; export it without",
            )


# Native pixels


def _native(raw: bytes, layout: Layout, *, big: bool = False, swapped: bool = False) -> tuple[bytes, Layout]:
    """Native pixels of the declared length, without unused bits, padded to an even number with zero.

    `swapped` are pixels of 8 bits or fewer in big-endian words, whose bytes are exchanged.
    """
    length = layout.length()
    if len(raw) < length:
        raise CaseRejected(
            "truncated_file",
            f"expected {length} bytes of pixels ({layout.frames} frames of {layout.rows} x {layout.columns}), got {len(raw)}; "
            "send the file again",
        )
    if swapped:
        even = length + length % 2
        raw = np.frombuffer(raw[:even].ljust(even, b"\0"), ">u2").astype("<u2").tobytes()
    data = raw if len(raw) == length else raw[:length]
    if layout.has_unused_bits:
        data = _stored_bits(np.frombuffer(data, f"{'>' if big else '<'}u{layout.allocated // 8}"), layout).tobytes()
        layout = replace(layout, high=layout.stored - 1)
    used = layout.frame_pixels * layout.frames % 8 if layout.allocated == 1 else 0
    if used and data[-1] >> used:
        data = data[:-1] + bytes([data[-1] & (1 << used) - 1])
    data += b"\0" * (len(data) % 2)
    return (np.frombuffer(data, "<u2").astype(">u2").tobytes() if swapped else data), layout


def _stored_bits(words: np.ndarray, layout: Layout) -> np.ndarray:
    """Unsigned words of which only the stored bits are left, in the lowest places; bits above repeat the sign, or are zero."""
    kind = words.dtype
    if not layout.signed:
        return (words >> kind.type(layout.high - layout.stored + 1) & kind.type(2**layout.stored - 1)).astype(kind)
    above, unused = layout.allocated - 1 - layout.high, layout.allocated - layout.stored
    native = kind.newbyteorder("=")
    shifted = (words.astype(native) << native.type(above)).view(np.dtype(f"i{layout.allocated // 8}"))
    return (shifted >> shifted.dtype.type(unused)).view(native).astype(kind)


# Encapsulated pixels


def _encapsulated(raw: bytes, layout: Layout, syntax: UID) -> tuple[Pixels, Layout]:
    """Rebuilt frames; stored uncompressed where the streams hold bits above the stored ones that are no sign."""
    streams = []
    for frame in _frames(raw, layout.frames):
        stream = _rebuilt(frame, layout, syntax)
        _require_no_text_at_end(stream, layout, syntax)
        streams.append(stream)
    pixels = Pixels(encapsulate([stream.data for stream in streams], has_bot=False), syntax)
    if layout.high == layout.stored - 1 and max(stream.precision for stream in streams) <= layout.stored:
        return pixels, layout
    if layout.samples > 1:
        raise unsafe(f"colours of more than the {layout.stored} bits that the header says in {syntax.name}")
    decoded = _decoded(pixels, layout)
    native, cleaned = _native(decoded, layout)
    if native[: len(decoded)] == decoded:
        return pixels, layout
    return Pixels(native, uids.ExplicitVRLittleEndian, vr="OW" if layout.allocated > 8 else "OB"), cleaned


def _rebuilt(frame: bytes, layout: Layout, syntax: UID) -> Codestream:
    """The stream of a frame, whose size is that of the layout: a decoder goes by the stream's own, and may never end with it."""
    if frame.startswith(JPEG_2000_STARTS):
        stream = rebuilt_jpeg_2000(frame, syntax.name)
    elif frame.startswith(JPEG_START):
        stream = rebuilt_jpeg(frame, syntax.name)
    else:
        raise unsafe(f"no start of an image in {syntax.name}")
    if stream.shape != (layout.rows, layout.columns, layout.samples):
        raise CaseRejected(
            "undecodable_pixels",
            f"expected compressed images of {layout.rows} x {layout.columns} pixels of {layout.samples} samples as the header "
            f"says, got {stream.shape[0]} x {stream.shape[1]} of {stream.shape[2]}; export the object again",
        )
    return stream


def _require_no_text_at_end(stream: Codestream, layout: Layout, syntax: UID) -> None:
    """Refuse a stream with text at an end of its coded data that decodes to nothing: behind its last pixel a decoder reads no
    further.

    One end in a hundred reads as text by chance, and the stream is decoded with and without it.
    """
    ends = [_TEXT_AT_END.search(stream.data, max(start, end - _SEARCHED_BYTES), end) for start, end in stream.coded]
    texts = [end for end in ends if end is not None]
    if not texts:
        return
    one = replace(layout, frames=1)
    with decoding(syntax):
        expected = _decode(Pixels(encapsulate([stream.data], has_bot=False), syntax), one)
    for end in texts:
        for start in range(end.start(), min(end.start() + _READ_AS_TEXT_BY_CHANCE, end.end() - 4)):
            blanked = stream.data[:start] + bytes(end.end() - start) + stream.data[end.end() :]
            try:
                without = _decode(Pixels(encapsulate([blanked], has_bot=False), syntax), one)
            except MemoryError:  # says nothing of the data
                raise
            except Exception:  # decoders raise what they like of data that they need
                continue
            if without == expected:
                raise unsafe(f"text behind the coded pixels in {syntax.name}")


def _decode(pixels: Pixels, layout: Layout) -> bytes:
    """Decoded frames, without any correction; raises what the decoder raises."""
    from pydicom.pixels import get_decoder

    ds = Dataset()
    ds.Rows, ds.Columns, ds.NumberOfFrames = layout.rows, layout.columns, layout.frames
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = layout.samples, 0, layout.photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = layout.allocated, layout.stored, layout.stored - 1
    ds.PixelRepresentation = int(layout.signed)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pixels.syntax
    ds.PixelData = pixels.data
    with quietly():
        return b"".join(bytes(frame) for frame, _ in get_decoder(pixels.syntax).iter_buffer(ds))


def _decoded(pixels: Pixels, layout: Layout) -> bytes:
    """Decoded frames of one sample as words of the allocated bits, without any correction."""
    with decoding(pixels.syntax):
        data = _decode(pixels, layout)
    if len(data) != layout.length():
        raise CaseRejected(
            "undecodable_pixels",
            f"expected {layout.length()} bytes of decoded pixels, got {len(data)}; export the object uncompressed",
        )
    return data


def normalise_pixels(ds: Dataset) -> None:
    """Leave PixelData alone of the elements with pixels; of compressed frames make one fragment each, rebuilt, without what lies
    behind the last one and without tables of offsets. Deflated frames, which pydicom does not know, are inflated, and the syntax is set so.

    Raises CaseRejected: malformed_element, truncated_file, unsafe_pixel_stream.
    """
    syntax = UID(text(ds.file_meta, "TransferSyntaxUID"))
    for tag in _BESIDE_PIXELS & ds.keys():
        del ds[tag]
    if syntax == DEFLATED_FRAMES and "PixelData" in ds:
        _inflate(ds)
    if syntax not in _COMPRESSED or "PixelData" not in ds:
        return
    raw = ds.get_item("PixelData").value
    if isinstance(raw, bytes) and raw:
        layout = pixel_layout(ds)
        _require_decodable_size(len(raw), layout, syntax)
        frames = _frames(raw, layout.frames, rle=syntax == uids.RLELossless)
        if syntax != uids.RLELossless:
            frames = [_rebuilt(frame, layout, syntax).data for frame in frames]
        ds["PixelData"].value = encapsulate(frames, has_bot=False)


def _inflate(ds: Dataset) -> None:
    """Put native pixels in place of frames that were deflated one by one (PS3.5, A.4.13; RFC 1951)."""
    layout = pixel_layout(ds)
    raw = ds.get_item("PixelData").value
    fragments = list(_items(raw))[1:] if isinstance(raw, bytes) else []
    streams = [b"".join(fragments)] if layout.frames == 1 else fragments[: layout.frames]
    length = layout.frame_pixels * layout.allocated + 7 >> 3
    frames = []
    for stream in streams:
        try:
            frame = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, length)
        except zlib.error as error:
            raise CaseRejected(
                "undecodable_pixels",
                f"expected deflated frames (RFC 1951) in {syntax_name(DEFLATED_FRAMES)}, got others; {uncompressed(DEFLATED_FRAMES)}",
            ) from error
        frames.append(frame)
    if len(frames) < layout.frames or any(len(frame) < length for frame in frames):
        raise cut_off(syntax_name(DEFLATED_FRAMES))
    data = b"".join(frames)
    if layout.allocated == 1:  # each frame ends with a whole byte, while native ones follow bit by bit
        bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(len(frames), -1), axis=1, bitorder="little")
        data = np.packbits(bits[:, : layout.frame_pixels].ravel(), bitorder="little").tobytes()
    del ds["PixelData"]
    ds.add_new("PixelData", "OW" if layout.allocated > 8 else "OB", data + b"\0" * (len(data) % 2))
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian


def _frames(raw: bytes, count: int, *, rle: bool = False) -> list[bytes]:
    """The stream of each of `count` frames: its fragments joined. Tables of offsets are not relied on."""
    fragments = list(_items(raw))[1:]
    starts = (JPEG_START, *JPEG_2000_STARTS)
    if count == 1 and not rle:
        frames = [b"".join(fragments)]
    elif rle or len(fragments) == count:
        frames = fragments[:count]
    else:
        firsts = [k for k, fragment in enumerate(fragments) if fragment.startswith(starts)]
        frames = [b"".join(fragments[a:b]) for a, b in zip(firsts, [*firsts[1:], None], strict=True)][:count]
    if len(frames) < count or not all(frames):
        raise CaseRejected(
            "truncated_file", f"expected {count} compressed frames, got {sum(map(bool, frames))}; send the file again"
        )
    return frames


def _require_decodable_size(n_bytes: int, layout: Layout, syntax: UID) -> None:
    """Refuse pixels that decode to more than may be, or than `n_bytes` of compressed data can hold, before they are decoded."""
    decoded = layout.length()
    if layout.frame_pixels > MAX_FRAME_SAMPLES:
        got = f"{layout.rows} x {layout.columns} of {layout.samples}"
        raise _too_large(f"compressed frames of at most {MAX_FRAME_SAMPLES} samples, got {got}")
    most = MOST_DECODED_PER_BYTE.get(syntax)
    limit = most * n_bytes if most else max(FREE_DECODED_BYTES, USUAL_DECODED_PER_BYTE * n_bytes)
    limit = min(MAX_DECODED_BYTES, limit)
    if decoded > limit:
        got = f"{decoded} ({layout.frames} frames of {layout.rows} x {layout.columns})"
        raise _too_large(f"pixels of at most {limit} bytes in {n_bytes} bytes of {syntax.name}, got {got}")


def _too_large(expected: str) -> CaseRejected:
    return CaseRejected("pixels_too_large", f"expected {expected}; export the object again, or in parts")


def _items(raw: bytes) -> Iterator[bytes]:
    """The table of offsets and the fragments of encapsulated pixel data."""
    position = 0
    while position < len(raw) and raw[position : position + 4] != _DELIMITER:
        if raw[position : position + 4] != _ITEM or position + 8 > len(raw):
            raise unsafe("bytes between the fragments of compressed frames")
        length = struct.unpack("<I", raw[position + 4 : position + 8])[0]
        if position + 8 + length > len(raw):
            raise cut_off("compressed")
        yield raw[position + 8 : position + 8 + length]
        position += 8 + length


def _rebuilt_rle(frame: bytes, layout: Layout) -> bytes:
    """A frame of RLE Lossless, decoded and encoded again: the same pixels without unused bits (PS3.5, annex G)."""
    from rle.utils import encode_segment

    pixels, width = layout.rows * layout.columns, max(1, layout.allocated // 8)
    expected = layout.samples * width
    count, *offsets = struct.unpack("<16I", frame[:_RLE_HEADER_BYTES].ljust(_RLE_HEADER_BYTES, b"\0"))
    ends = [*offsets[1:expected], len(frame)]
    if count != expected or len(frame) <= _RLE_HEADER_BYTES:
        raise unsafe(f"{count} segments for {expected} in RLE Lossless")
    planes = []
    for start, end in zip(offsets, ends, strict=False):
        if not _RLE_HEADER_BYTES <= start < end <= len(frame):
            raise unsafe("segments of RLE Lossless that do not follow each other")
        planes.append(_unpacked(frame[start:end], pixels))
    packed = layout.allocated == 1 and len(planes[0]) < pixels
    length = pixels + 7 >> 3 if packed else pixels
    if any(len(plane) < length for plane in planes):
        raise cut_off("RLE Lossless")
    values: np.ndarray = np.stack([np.frombuffer(plane, np.uint8, length) for plane in planes])
    if layout.allocated == 1:
        values = values & (255 if packed else 1)
        if packed and pixels % 8:
            values[:, -1] &= (1 << pixels % 8) - 1
    elif layout.has_unused_bits:
        order = values.reshape(layout.samples, width, length).transpose(0, 2, 1)
        words = _stored_bits(np.ascontiguousarray(order).view(f">u{width}")[..., 0], layout)
        values = words[..., None].view(np.uint8).transpose(0, 2, 1).reshape(expected, length)
    step = length if packed else layout.columns
    segments = [bytes(encode_segment(np.ascontiguousarray(plane).tobytes(), step)) for plane in values]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    places = np.cumsum([_RLE_HEADER_BYTES, *map(len, segments)])[:-1].tolist()
    header = struct.pack("<16I", expected, *places, *[0] * (15 - expected))
    return header + b"".join(segments)


def _unpacked(segment: bytes, length: int) -> bytes:
    """Bytes of a segment of RLE, at least `length` of them where it has so many; what lies behind these is no run."""
    from rle.utils import decode_segment

    try:
        return bytes(decode_segment(segment))
    except ValueError:
        position = unpacked = 0
        while position < len(segment) and unpacked < length:
            head = segment[position]
            count = head + 1 if head < 128 else 257 - head if head > 128 else 0
            unpacked += count
            position += 1 + (count if head < 128 else head != 128)
    with decoding(uids.RLELossless):
        return bytes(decode_segment(segment[:position]))


# Palettes


def _without_palette(pixels: Pixels, ds: Dataset, layout: Layout) -> Pixels:
    """Colours in place of numbers of colours in ultrasound; a label map keeps its numbers, and has no colours."""
    if layout.photometric != _PALETTE:
        return pixels
    kind = text(ds, "SOPClassUID")
    if kind not in USUALLY_BURNED_IN | {LABELMAP_STORAGE}:
        return pixels
    if kind == LABELMAP_STORAGE:
        pixels.elements["PhotometricInterpretation"] = "MONOCHROME2"
        return pixels
    from pydicom.pixels import apply_color_lut

    order = ">" if pixels.syntax == uids.ExplicitVRBigEndian else "<"
    if layout.samples != 1 or layout.allocated not in (8, 16) or layout.signed:
        raise _wrong_layout("PhotometricInterpretation")
    data = pixels.data if pixels.syntax in _NATIVE else _decoded(pixels, layout)
    numbers = np.frombuffer(data, f"{order}u{layout.allocated // 8}", layout.frame_pixels * layout.frames)
    with decoding(pixels.syntax):
        colours = apply_color_lut(numbers, ds)
    data = (colours >> 8 * (colours.dtype.itemsize - 1)).astype(np.uint8).tobytes()
    elements: dict[str, str | int] = {
        "PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8,
        "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
    }  # fmt: skip
    return Pixels(data + b"\0" * (len(data) % 2), uids.ExplicitVRLittleEndian, pixels.elements | elements)
