"""Ultrasound images as DICOM: pixel size, text burnt in, and masks that may be empty."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.residual import residual_phi
from med_assets.dicom.discover import describe
from med_assets.dicom.encoded import to_bytes
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.segmentation_2d import read_segments_2d, write_segmentation_2d
from med_assets.dicom.ultrasound import REGIONS, pixel_size_mm, read_us_image, write_us
from med_assets.errors import CaseRejected

IDENTITY = Identity("P-1", derived_uid("us test"), "", study_date="20240102")
REGION = (slice(10, 58), slice(4, 70))
PIXELS = np.random.default_rng(0).integers(1, 255, (61, 75)).astype(np.uint8)


def written(path: Path, **options: object) -> pydicom.Dataset:
    write_us(path, PIXELS, IDENTITY, **options)  # type: ignore[arg-type]  # the variety is the point of the test
    return pydicom.dcmread(path)


def deidentified(ds: pydicom.Dataset) -> pydicom.Dataset:
    out = Deidentifier(b"key", ("benign", "normal")).apply(ds)
    assert not residual_phi([out], roi_vocabulary=("benign", "normal"))
    return pydicom.dcmread(BytesIO(to_bytes(out)))


def test_text_outside_of_the_region_of_tissue_is_blanked_before_anything_is_stored(tmp_path: Path) -> None:
    ds = deidentified(written(tmp_path / "us.dcm", region=REGION, burnt_in=True, pixel_mm=(0.2, 0.25)))
    expected = np.zeros_like(PIXELS)
    expected[REGION] = PIXELS[REGION]
    assert np.array_equal(read_us_image(ds), expected)
    assert ds.BurnedInAnnotation == "NO"
    assert "113101" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]
    assert pixel_size_mm(ds) == (0.2, 0.25)


def test_text_is_blanked_where_the_sender_says_there_is_none(tmp_path: Path) -> None:
    ds = deidentified(written(tmp_path / "us.dcm", region=REGION))
    found = read_us_image(ds)
    assert np.array_equal(found[REGION], PIXELS[REGION])
    assert found.sum() == PIXELS[REGION].sum()
    assert "113101" in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_a_picture_that_is_tissue_as_a_whole_keeps_its_pixels_and_is_not_called_cleaned(tmp_path: Path) -> None:
    ds = deidentified(written(tmp_path / "us.dcm"))
    assert np.array_equal(read_us_image(ds), PIXELS)
    assert "113101" not in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_text_that_is_declared_and_not_outside_of_the_regions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(written(tmp_path / "us.dcm", burnt_in=True))
    assert refused.value.code == "burned_in_annotation"
    ds = written(tmp_path / "us.dcm", region=REGION, burnt_in=True)
    pixels = np.full_like(PIXELS, 9)
    pixels[REGION] = PIXELS[REGION]
    ds.PixelData = pixels.tobytes() + b"\0"
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(ds)
    assert refused.value.code == "burned_in_annotation"


@pytest.mark.parametrize("declared", ["NO", "YES", None])
def test_an_image_without_a_region_of_tissue_is_refused_whatever_it_declares(
    tmp_path: Path, declared: str | None
) -> None:
    ds = written(tmp_path / "us.dcm")
    del ds[REGIONS], ds.BurnedInAnnotation
    if declared:
        ds.BurnedInAnnotation = declared
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(ds)
    assert refused.value.code == "burned_in_annotation"


@pytest.mark.parametrize(
    ("corner", "value"),
    [("MaxX1", 77), ("MaxY1", 400), ("MinX0", 75), ("MinX0", 72), ("MinY0", 60), ("MaxX1", 2**32 - 1), ("MinY0", None)],
)
def test_a_region_that_is_inverted_incomplete_or_beyond_the_picture_is_refused(
    tmp_path: Path, corner: str, value: int | None
) -> None:
    ds = written(tmp_path / "us.dcm", region=REGION)
    setattr(ds[REGIONS].value[0], f"RegionLocation{corner}", value)
    if value is None:
        del ds[REGIONS].value[0][f"RegionLocation{corner}"]
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(ds)
    assert refused.value.code == "region_outside_image"


def test_frames_regions_inverted_grey_and_palettes_are_blanked_to_black(tmp_path: Path) -> None:
    ds = written(tmp_path / "us.dcm", region=REGION)
    second = pydicom.Dataset()
    second.update(ds[REGIONS].value[0])
    second.RegionLocationMinX0, second.RegionLocationMaxX1 = 72, 75  # one beyond the picture, as some machines count
    ds[REGIONS].value.append(second)
    ds.SOPClassUID, ds.NumberOfFrames = pydicom.uid.UltrasoundMultiFrameImageStorage, 2
    ds.PixelData = PIXELS.tobytes() * 2
    kept = np.zeros(PIXELS.shape, bool)
    kept[REGION] = True
    kept[REGION[0], 72:] = True
    for kind, black in (("MONOCHROME2", 0), ("MONOCHROME1", 255), ("PALETTE COLOR", 7)):
        ds.PhotometricInterpretation = kind
        if kind == "PALETTE COLOR":
            entries = np.roll(np.arange(256, dtype="<u2"), 7) * 257
            for colour in ("Red", "Green", "Blue"):
                setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
                setattr(ds, f"{colour}PaletteColorLookupTableData", entries.tobytes())
        out = Deidentifier(b"key").apply(ds).pixel_array
        if kind == "PALETTE COLOR":  # what is stored are the colours: a palette could carry text through
            assert np.array_equal(out, np.repeat(np.where(kept, [PIXELS - np.uint8(7)] * 2, 0)[..., None], 3, axis=-1))
        else:
            assert np.array_equal(out, np.where(kept, [PIXELS, PIXELS], black))


def test_a_region_that_shows_a_spectrum_is_blanked_too(tmp_path: Path) -> None:
    ds = written(tmp_path / "us.dcm", region=REGION, burnt_in=True)
    spectrum = pydicom.Dataset()
    spectrum.update(ds[REGIONS].value[0])
    spectrum.RegionSpatialFormat, spectrum.RegionLocationMinY0, spectrum.RegionLocationMaxY1 = 3, 0, 5
    ds[REGIONS].value.append(spectrum)
    assert not read_us_image(deidentified(ds))[:10].any()


def test_colour_becomes_grey_after_text_is_blanked(tmp_path: Path) -> None:
    ds = written(tmp_path / "us.dcm", region=REGION, burnt_in=True)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.PixelData = np.repeat(PIXELS[..., None], 3, axis=2).tobytes() + b"\0"
    found = read_us_image(deidentified(ds))
    assert np.array_equal(found[REGION], PIXELS[REGION])
    assert not found[:10].any()


def test_two_calibrations_that_differ_are_none(tmp_path: Path) -> None:
    ds = written(tmp_path / "us.dcm", region=REGION, pixel_mm=(0.2, 0.2))
    other = pydicom.Dataset()
    other.update(ds[REGIONS].value[0])
    other.PhysicalDeltaX = 0.05
    ds[REGIONS].value.append(other)
    assert pixel_size_mm(ds) is None
    assert pixel_size_mm(written(tmp_path / "plain.dcm")) is None  # a region, and no calibration


@pytest.mark.parametrize("lesion", [True, False])
def test_a_mask_comes_back_from_its_seg_also_when_it_is_empty(tmp_path: Path, lesion: bool) -> None:
    source = written(tmp_path / "us.dcm")
    mask = np.zeros(PIXELS.shape, bool)
    mask[20:30, 15:40] = lesion
    for name in ("a.dcm", "b.dcm"):
        write_segmentation_2d(tmp_path / name, mask, "benign" if lesion else "normal", source)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert describe(ds).referenced_sops == (source.SOPInstanceUID,)
    (segment,) = read_segments_2d(deidentified(ds))
    assert segment.label == ("benign" if lesion else "normal")
    assert np.array_equal(segment.mask, mask)


def test_a_mask_of_another_size_has_no_place_in_a_seg(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="61 x 75"):
        write_segmentation_2d(tmp_path / "s.dcm", np.zeros((61, 74), bool), "benign", written(tmp_path / "us.dcm"))


def test_an_image_that_was_compressed_with_loss_says_so_after_its_text_was_blanked(tmp_path: Path) -> None:
    from PIL import Image

    ds = written(tmp_path / "us.dcm", region=REGION)
    stream = BytesIO()
    Image.fromarray(ds.pixel_array).save(stream, "JPEG")
    ds.PixelData = encapsulate([stream.getvalue() + b"\0" * (len(stream.getvalue()) % 2)])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found = deidentified(ds)
    assert not found.file_meta.TransferSyntaxUID.is_compressed
    assert found.LossyImageCompression == "01"


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_a_mask_without_a_pixel_is_refused(keyword: str, tmp_path: Path) -> None:
    write_segmentation_2d(tmp_path / "s.dcm", np.ones(PIXELS.shape, bool), "benign", written(tmp_path / "us.dcm"))
    ds = pydicom.dcmread(tmp_path / "s.dcm")
    setattr(ds, keyword, 0)
    with pytest.raises(CaseRejected) as caught:
        read_segments_2d(ds)
    assert caught.value.code == "undecodable_pixels"
