"""Ultrasound images as DICOM: pixel size, text burnt in, and masks that may be empty."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets.dicom.deidentify import Deidentifier, to_bytes
from med_assets.dicom.discover import describe
from med_assets.dicom.flat_seg import read_flat_segments, write_flat_seg
from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.phi import residual_phi
from med_assets.dicom.ultrasound import REGIONS, pixel_size_mm, read_us_image, write_us
from med_assets.errors import CaseRejected

IDENTITY = Identity("P-1", derived_uid("us test"), "", study_date="20240102")
REGION = (slice(10, 58), slice(4, 70))
PIXELS = np.random.default_rng(0).integers(1, 255, (61, 75)).astype(np.uint8)


def written(path: Path, **options: object) -> pydicom.Dataset:
    write_us(path, PIXELS, IDENTITY, **options)  # type: ignore[arg-type]
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


def test_an_image_that_declares_itself_free_of_text_keeps_its_pixels(tmp_path: Path) -> None:
    ds = deidentified(written(tmp_path / "us.dcm", region=REGION))
    assert np.array_equal(read_us_image(ds), PIXELS)
    assert "113101" not in [item.CodeValue for item in ds.DeidentificationMethodCodeSequence]


def test_text_in_an_image_without_regions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseRejected) as refused:
        Deidentifier(b"key").apply(written(tmp_path / "us.dcm", burnt_in=True))
    assert refused.value.code == "burned_in_annotation"


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
    assert pixel_size_mm(written(tmp_path / "plain.dcm")) is None


@pytest.mark.parametrize("lesion", [True, False])
def test_a_mask_comes_back_from_its_seg_also_when_it_is_empty(tmp_path: Path, lesion: bool) -> None:
    source = written(tmp_path / "us.dcm")
    mask = np.zeros(PIXELS.shape, bool)
    mask[20:30, 15:40] = lesion
    for name in ("a.dcm", "b.dcm"):
        write_flat_seg(tmp_path / name, mask, "benign" if lesion else "normal", source)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert describe(ds).referenced_sops == (source.SOPInstanceUID,)
    (segment,) = read_flat_segments(deidentified(ds))
    assert segment.label == ("benign" if lesion else "normal")
    assert np.array_equal(segment.mask, mask)


def test_a_mask_of_another_size_has_no_place_in_a_seg(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="61 x 75"):
        write_flat_seg(tmp_path / "s.dcm", np.zeros((61, 74), bool), "benign", written(tmp_path / "us.dcm"))
