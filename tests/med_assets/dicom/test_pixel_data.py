"""Pixels that are stored: their values stay, and nothing that lies beside them in the element or in a compressed stream does."""

import io
import struct
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.pixels import compress
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.codestreams import rebuilt_jpeg
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.jpeg2000 import JP2_START, rebuilt_jpeg_2000
from med_assets.dicom.sop_classes import LABELMAP_STORAGE
from med_assets.errors import CaseRejected
from tests.invented import Study, ct, rtstruct, us

MARKER = b"QUIMBYZELDA47"
FORMS = [MARKER, MARKER.lower(), MARKER.decode().encode("utf-16-le"), MARKER.decode().encode("utf-16-be")]
BIG = np.random.default_rng(5).integers(0, 4096, (40, 36))


def image(stored: int = 16, *, signed: bool = False, frames: int = 1) -> Dataset:
    ds = ct(Study("pixels"), n=1)[0]
    kind = "<i2" if signed else "<u2"
    pixels = BIG - 2048 if signed else BIG
    ds.Rows, ds.Columns = BIG.shape
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = stored, stored - 1, int(signed)
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.PixelData = np.stack([pixels] * frames).astype(kind).tobytes()
    return ds


def compressed(syntax: str, *, frames: int = 1, stored: int = 16) -> Dataset:
    ds = image(stored, frames=frames)
    compress(ds, syntax, generate_instance_uid=False)
    return ds


def jpeg(quality: int = 90, **options: object) -> bytes:
    target = io.BytesIO()
    Image.fromarray((BIG >> 4).astype(np.uint8)).save(target, "JPEG", quality=quality, **options)
    return target.getvalue()


def baseline(stream: bytes, syntax: str = JPEGBaseline8Bit) -> Dataset:
    ds = image()
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].is_undefined_length = True
    return ds


def stored(ds: Dataset) -> tuple[Dataset, bytes]:
    content = to_bytes(Deidentifier(b"key").apply(ds))
    return dcmread(BytesIO(content)), content


def planted(content: bytes) -> list[bytes]:
    """Forms of the marker that are in a file, also in the highest bits of its words."""
    views = [content, *(bytes(content[k::2]) for k in (0, 1)), *(bytes(content[k::4]) for k in range(4))]
    return [form for form in FORMS for view in views if form in view]


def refusal(ds: Dataset) -> str:
    with pytest.raises(CaseRejected) as rejected:
        Deidentifier(b"key").apply(ds)
    assert MARKER.decode() not in str(rejected.value)
    return rejected.value.code


def segment(marker: int, body: bytes = MARKER) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def behind_header(stream: bytes, extra: bytes) -> bytes:
    """The stream with `extra` behind its first marker, and in JPEG 2000 behind SIZ."""
    place = 2 if stream[:2] == b"\xff\xd8" else 4 + int.from_bytes(stream[4:6])
    return stream[:place] + extra + stream[place:]


def test_bytes_behind_the_last_pixel_are_cut() -> None:
    ds = image()
    ds.PixelData += MARKER + b"\0"
    kept, content = stored(ds)
    assert planted(content) == []
    assert kept.PixelData == image().PixelData


def test_pixels_that_are_too_few_are_refused() -> None:
    ds = image()
    ds.PixelData = ds.PixelData[:-2]
    assert refusal(ds) == "truncated_file"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_bits_that_are_not_stored_are_cleared_and_values_stay(high: int, signed: bool, syntax: str) -> None:
    ds = image(12, signed=signed)
    values = np.frombuffer(ds.PixelData, "<u2") & 0xFFF
    noise = np.random.default_rng(1).integers(0, 2**16, values.size).astype("<u2")
    shift = high - 11
    ds.HighBit, mask = high, np.uint16(0xFFF << shift)
    words = (values << shift) | (noise & ~mask)
    ds.PixelData = words.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    kept, _ = stored(ds)
    expected = BIG - 2048 if signed else BIG
    assert kept.HighBit == 11
    assert np.array_equal(
        np.frombuffer(kept.PixelData, f"{'>' if 'Big' in syntax.name else '<'}{'i' if signed else 'u'}2"),
        expected.ravel(),
    )
    assert np.array_equal(kept.pixel_array, expected)


def test_a_marker_in_unused_bits_of_native_rle_and_jpeg_2000_pixels_is_cleared() -> None:
    """Half a letter in the four highest bits of each pixel."""
    halves = np.resize([half for letter in MARKER for half in (letter & 15, letter >> 4)], BIG.size)
    words = BIG.ravel() | (halves << 12)
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless):
        ds = image()
        ds.PixelData = words.astype("<u2").tobytes()
        if syntax != ExplicitVRLittleEndian:
            compress(ds, syntax, generate_instance_uid=False)
        ds.BitsStored, ds.HighBit = 12, 11
        kept, _ = stored(ds)
        if kept.file_meta.TransferSyntaxUID != RLELossless:
            assert kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert kept.PixelData == image().PixelData
        assert np.array_equal(kept.pixel_array, BIG)


def test_a_compressed_image_of_more_bits_than_stored_stays_compressed_where_these_are_zero() -> None:
    ds = compressed(JPEG2000Lossless)
    ds.BitsStored, ds.HighBit = 12, 11
    kept, _ = stored(ds)
    assert kept.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert np.array_equal(kept.pixel_array, BIG)


def test_pixels_of_objects_without_and_within_sequences_go() -> None:
    slices = ct(Study("pixels"), n=2)
    rois = rtstruct(Study("pixels"), slices, [("Rectum", None)])
    rois.PixelData, rois.Rows = MARKER + b"\0", 1
    rois["PixelData"].VR = "OB"
    nested = Dataset()
    nested.PixelData = MARKER + b"\0"
    nested["PixelData"].VR = "OB"
    rois.StructureSetROISequence[0].PixelData = MARKER + b"\0"
    rois.StructureSetROISequence[0]["PixelData"].VR = "OB"
    icon = image()
    icon.IconImageSequence = [nested]
    icon.FloatPixelData = MARKER + b"\0\0\0"
    icon.ModalityLUTSequence = [nested]
    icon.ExtendedOffsetTable = MARKER + b"\0\0\0"
    for ds in (rois, icon):
        kept, content = stored(ds)
        assert planted(content) == []
        assert ("PixelData" in kept) == (ds is icon)


def test_a_structure_set_in_a_compressed_syntax_is_stored_without() -> None:
    slices = ct(Study("pixels"), n=2)
    ds = rtstruct(Study("pixels"), slices, [("Rectum", None)])
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    kept, _ = stored(ds)
    assert kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.parametrize(
    "syntax", [MPEG2MPML, "1.2.840.10008.1.2.8.1", "1.2.840.10008.1.2.4.110", "1.3.6.1.4.1.777.47"]
)
def test_a_syntax_that_can_not_be_read_is_refused(syntax: str) -> None:
    ds = image()
    ds.file_meta.TransferSyntaxUID = syntax
    assert refusal(ds) == "undecodable_pixels"


JPEG_PLANTS: dict[str, Callable[[bytes], bytes]] = {
    "comment": lambda s: behind_header(s, segment(0xFE)),
    "application segments": lambda s: behind_header(s, b"".join(segment(0xE0 + k) for k in range(16))),
    "JFIF thumbnail": lambda s: behind_header(s, segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\1\1" + MARKER)),
    "long Adobe": lambda s: behind_header(s, segment(0xEE, b"Adobe" + MARKER[:6] + b"\1" + MARKER)),
    "unused Huffman table": lambda s: behind_header(s, segment(0xC4, b"\x13" + bytes([0] * 7 + [9]) + bytes(8) + b"QUIMBYZ47")),
    "unused quantisation table": lambda s: behind_header(s, segment(0xDB, b"\x03" + MARKER.ljust(64, b"Q"))),
    "behind the end": lambda s: s + MARKER,
    "fill bytes": lambda s: s[:2] + b"\xff" * 9 + s[2:] + b"\0" * 3 + MARKER,
}  # fmt: skip


@pytest.mark.parametrize("plant", JPEG_PLANTS.values(), ids=JPEG_PLANTS)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_planted_in_a_jpeg_goes_and_its_pixels_stay(plant: Callable[[bytes], bytes], progressive: bool) -> None:
    clean = jpeg(progressive=progressive)
    ds = baseline(plant(clean))
    kept, content = stored(ds)
    assert planted(content) == []
    assert MARKER[:6] not in content
    assert np.array_equal(kept.pixel_array, baseline(clean).pixel_array)


def test_colours_of_a_jpeg_stay_without_its_application_segments() -> None:
    for name in (
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_app14_dcmd.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
    ):
        source = dcmread(get_testdata_file(name))
        source.SOPClassUID, source.PatientID = CTImageStorage, "x"
        for keyword in ("ConversionType", "ImageType"):
            source.pop(keyword, None)
        kept, _ = stored(source)
        assert np.array_equal(kept.pixel_array, source.pixel_array), name


@pytest.mark.parametrize(
    ("plant", "code"),
    [
        (lambda s: behind_header(s, MARKER), "unsafe_pixel_stream"),
        (lambda s: behind_header(s, segment(0xF3)), "unsafe_pixel_stream"),
        (lambda s: behind_header(s, segment(0xDD, MARKER)), "unsafe_pixel_stream"),
        (lambda s: behind_header(s, segment(0xF8, b"\2" + MARKER)), "unsafe_pixel_stream"),
        (lambda s: s[:-2], "truncated_file"),
        (lambda s: s[:300], "truncated_file"),
        (lambda s: MARKER + s, "unsafe_pixel_stream"),
    ],
)
def test_a_jpeg_that_is_not_known_to_be_safe_is_refused(plant: Callable[[bytes], bytes], code: str) -> None:
    assert refusal(baseline(plant(jpeg()))) == code


J2K_PLANTS: dict[str, Callable[[bytes], bytes]] = {
    "comment": lambda s: behind_header(s, segment(0x64, b"\0\1" + MARKER)),
    "pointers": lambda s: behind_header(s, segment(0x55) + segment(0x57) + segment(0x63)),
    "behind the end": lambda s: s + MARKER,
    "boxes": lambda s: JP2_START + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"xml ", MARKER) + box(b"uuid", MARKER) + box(b"jp2c", s)
    + box(b"asoc", MARKER),
}  # fmt: skip


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def comment_in_tile_part(stream: bytes) -> bytes:
    start = stream.index(b"\xff\x90")
    length = int.from_bytes(stream[start + 6 : start + 10])
    extra = segment(0x64, b"\0\1" + MARKER)
    return (
        stream[: start + 6]
        + (length + len(extra)).to_bytes(4)
        + stream[start + 10 : start + 12]
        + extra
        + stream[start + 12 :]
    )


@pytest.mark.parametrize(
    "plant", [*J2K_PLANTS.values(), comment_in_tile_part], ids=[*J2K_PLANTS, "comment of a tile part"]
)
def test_what_is_planted_in_jpeg_2000_goes_and_its_pixels_stay(plant: Callable[[bytes], bytes]) -> None:
    ds = compressed(JPEG2000Lossless)
    stream = next(iter(generate_fragments(ds.PixelData[8:]))) if ds.PixelData[4:8] == bytes(4) else b""
    stream = stream or list(generate_fragments(ds.PixelData))[1]
    ds.PixelData = encapsulate([plant(stream)])
    kept, content = stored(ds)
    assert planted(content) == []
    assert np.array_equal(kept.pixel_array, BIG)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("frames", [1, 2])
def test_extra_fragments_and_tables_of_offsets_go_and_frames_stay(syntax: str, frames: int) -> None:
    ds = compressed(syntax, frames=frames)
    fragments = list(generate_fragments(ds.PixelData))
    extra = [MARKER + b"\0", fragments[-1]]
    table = MARKER.ljust(16, b"\0")
    parts = [table, *fragments[-frames:], *extra]
    ds.PixelData = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in parts)
    ds.ExtendedOffsetTable = ds.ExtendedOffsetTableLengths = MARKER + b"\0\0\0"
    kept, content = stored(ds)
    assert planted(content) == []
    assert np.array_equal(kept.pixel_array.reshape(-1, *BIG.shape), np.stack([BIG] * frames))


def test_a_frame_in_several_fragments_becomes_one() -> None:
    ds = compressed(JPEGLSLossless, frames=2)
    first, second = list(generate_fragments(ds.PixelData))[-2:]
    parts = [b"", first[:100], first[100:], second[:60], second[60:200], second[200:]]
    ds.PixelData = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in parts)
    kept, _ = stored(ds)
    assert np.array_equal(kept.pixel_array, np.stack([BIG, BIG]))
    assert len(list(generate_fragments(kept.PixelData))) == 3


def test_bytes_between_and_behind_segments_of_rle_go() -> None:
    ds = compressed(RLELossless)
    frame = list(generate_fragments(ds.PixelData))[-1]
    count, first, second = struct.unpack("<3I", frame[:12])
    middle, gap = frame[first:second] + MARKER, len(MARKER)
    header = struct.pack("<16I", count, first, second + gap, *struct.unpack("<13I", MARKER.ljust(52, b"Q")))
    ds.PixelData = encapsulate([header + middle + frame[second:] + MARKER * 2])
    kept, content = stored(ds)
    assert planted(content) == []
    assert np.array_equal(kept.pixel_array, BIG)


def test_a_palette_becomes_colours_and_goes() -> None:
    ds = us(Study("palette"), (BIG >> 4).astype(np.uint8), region=(0, 0, 35, 39), photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(
            ds, f"{colour}PaletteColorLookupTableData", (np.arange(256, dtype="<u2") * 257).tobytes() + MARKER + b"\0"
        )
    assert ds.SOPClassUID == UltrasoundImageStorage
    ds.RedPaletteColorLookupTableData = (np.arange(256, dtype="<u2") * 257).tobytes()
    ds.GreenPaletteColorLookupTableData = ds.BluePaletteColorLookupTableData = ds.RedPaletteColorLookupTableData
    ds.ICCProfile, ds.SegmentedRedPaletteColorLookupTableData = MARKER + b"\0", MARKER + b"\0"
    kept, content = stored(ds)
    assert planted(content) == []
    assert (kept.PhotometricInterpretation, "RedPaletteColorLookupTableData" in kept) == ("RGB", False)
    assert np.array_equal(kept.pixel_array, np.repeat((BIG >> 4)[..., None], 3, axis=2))


def test_a_label_map_keeps_its_numbers_and_loses_its_colours() -> None:
    ds = image()
    ds.SOPClassUID, ds.PhotometricInterpretation, ds.Modality = LABELMAP_STORAGE, "PALETTE COLOR", "SEG"
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [7, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", MARKER + b"\0")
    kept, content = stored(ds)
    assert planted(content) == []
    assert (kept.PhotometricInterpretation, kept.PixelData) == ("MONOCHROME2", ds.PixelData)


FILES = (
    "693_J2KI.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm",
    "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_32bit_2frame.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd_jpeg.dcm",
    "SC_ybr_full_422_uncompressed.dcm", "examples_ybr_color.dcm", "image_dfl.dcm", "liver_1frame.dcm",
    "liver_expb_1frame.dcm", "rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_transfer_syntax_decodes_to_the_same_pixels(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files are known for what pydicom warns about
        source = dcmread(get_testdata_file(name))
        source.SOPClassUID, source.PatientID = CTImageStorage, "x"
        for keyword in ("ConversionType", "ImageType", "BurnedInAnnotation"):
            source.pop(keyword, None)
        kept, _ = stored(source)
        assert np.array_equal(kept.pixel_array, source.pixel_array)
        assert kept.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID


def test_a_rebuilt_stream_is_rebuilt_to_itself() -> None:
    once = rebuilt_jpeg(jpeg(), "JPEG")
    assert rebuilt_jpeg(once.data, "JPEG") == once
    assert (once.shape, once.precision) == ((40, 36, 1), 8)
    stream = list(generate_fragments(compressed(JPEG2000Lossless).PixelData))[-1]
    again = rebuilt_jpeg_2000(stream, "JPEG 2000")
    assert rebuilt_jpeg_2000(again.data, "JPEG 2000") == again


def test_an_image_of_another_size_in_the_stream_is_refused() -> None:
    ds = baseline(jpeg(), JPEGExtended12Bit)
    ds.Rows = 20
    assert refusal(ds) == "undecodable_pixels"


def behind_coded_data(stream: bytes, text: bytes) -> bytes:
    """The stream with text behind its last pixel, within the part that a decoder reads to its end."""
    if stream[:2] == b"\xff\xd8":
        return stream[:-2] + text + stream[-2:]
    start = stream.rindex(b"\xff\x90")
    length = int.from_bytes(stream[start + 6 : start + 10])
    return stream[: start + 6] + (length + len(text)).to_bytes(4) + stream[start + 10 : -2] + text + stream[-2:]


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
def test_text_behind_the_coded_pixels_is_refused(syntax: str, text: bytes) -> None:
    if syntax == JPEGBaseline8Bit:
        ds = baseline(behind_coded_data(jpeg(), text))
    else:
        ds = compressed(syntax)
        stream = list(generate_fragments(ds.PixelData))[-1].rstrip(b"\0")
        ds.PixelData = encapsulate([behind_coded_data(stream, text)])
    assert refusal(ds) in ("unsafe_pixel_stream", "undecodable_pixels")


def test_text_before_a_restart_or_behind_an_inner_scan_is_refused() -> None:
    stream = jpeg(restart_marker_rows=1)
    place = stream.index(b"\xff\xd1")
    assert refusal(baseline(stream[:place] + MARKER + stream[place:])) == "unsafe_pixel_stream"
    stream = jpeg(progressive=True)
    first = stream.index(b"\xff\xda")
    place = min(place for mark in (b"\xff\xda", b"\xff\xc4") if (place := stream.find(mark, first + 2)) > 0)
    assert refusal(baseline(stream[:place] + MARKER + stream[place:])) == "unsafe_pixel_stream"


def test_restarts_of_a_jpeg_stay() -> None:
    kept, _ = stored(baseline(jpeg(restart_marker_rows=1)))
    assert np.array_equal(kept.pixel_array, baseline(jpeg(restart_marker_rows=1)).pixel_array)
    assert len(rebuilt_jpeg(jpeg(restart_marker_rows=1), "JPEG").coded) == 5


def test_compressed_frames_in_an_uncompressed_syntax_are_refused() -> None:
    ds = compressed(RLELossless)
    ds.PixelData = encapsulate([MARKER * 400])
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds["PixelData"].is_undefined_length = True
    assert refusal(ds) == "unsafe_pixel_stream"
