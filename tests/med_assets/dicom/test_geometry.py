"""Grids keep their place, and a CT series becomes one only when every slice proves where it lies."""

import copy
import json

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from med_assets.dicom.geometry import Geometry, Volume, canonical, read_ct_series
from med_assets.errors import CaseRejected

SHAPE = (5, 6, 7)
VALUES = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def slices(values=VALUES, dz=2.5, position=(-10.0, -20.0, -30.0), orientation=(1, 0, 0, 0, 1, 0)):
    """CT slices along the normal of `orientation`, in order."""
    normal = np.cross(orientation[:3], orientation[3:])
    made = []
    for index, pixels in enumerate(values):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"1.2.3.{index + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        ds.Modality, ds.PatientID = "CT", "DOE-JANE-1961"
        ds.ImagePositionPatient = [float(value) for value in np.array(position) + index * dz * normal]
        ds.ImageOrientationPatient = list(orientation)
        ds.PixelSpacing, ds.SliceThickness = [1.5, 0.75], 99
        ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelData = pixels.astype("<i2").tobytes()
        made.append(ds)
    return made


def code(datasets):
    with pytest.raises(CaseRejected) as caught:
        read_ct_series(datasets)
    assert "DOE" not in caught.value.message
    return caught.value.code


def test_affine_and_index_are_each_others_inverse_on_a_turned_grid():
    angle = np.deg2rad(20)
    direction = ((0.0, 0.0, 1.0), (-np.sin(angle), np.cos(angle), 0.0), (np.cos(angle), np.sin(angle), 0.0))
    geometry = Geometry((4, 5, 6), (3.0, 2.0, 1.0), (10.0, -20.0, 30.0), direction)
    indices = np.array([[0.0, 0.0, 0.0], [1.0, 2.5, 3.0], [3.0, 4.0, 5.0]])
    points = geometry.to_points(indices)
    np.testing.assert_allclose(points[0], (10.0, -20.0, 30.0))
    np.testing.assert_allclose(geometry.to_index(points), indices, atol=1e-12)
    np.testing.assert_allclose(geometry.affine() @ (1.0, 2.5, 3.0, 1.0), (*points[1], 1.0))


def test_a_geometry_survives_json_and_an_array_of_another_shape_is_no_volume():
    geometry = Geometry((4, 5, 6), (2.5, 0.9765625, 1 / 3), (0.1, 0.2, 0.3))
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry
    with pytest.raises(ValueError, match="shape"):
        Volume(np.zeros((4, 5, 5)), geometry)


def test_the_same_grid_is_told_from_one_shifted_or_cut():
    geometry = Geometry((4, 5, 6), (2.5, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert geometry.same_grid(Geometry((4, 5, 6), (2.5, 1.0, 1.0), (0.0, 0.0, 1e-5)))
    assert not geometry.same_grid(Geometry((4, 5, 6), (2.5, 1.0, 1.0), (0.0, 0.1, 0.0)))
    assert not geometry.same_grid(Geometry((4, 5, 6), (2.5, 1.0, 1.01), (0.0, 0.0, 0.0)))
    assert not geometry.same_grid(Geometry((3, 5, 6), (2.5, 1.0, 1.0), (0.0, 0.0, 0.0)))


def test_a_series_in_any_order_becomes_hounsfield_units_at_its_own_positions():
    datasets = slices()
    volume = read_ct_series([datasets[index] for index in (3, 0, 4, 2, 1)])
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, VALUES * 2.0 - 1024)
    assert volume.geometry == Geometry(SHAPE, (2.5, 1.5, 0.75), (-10.0, -20.0, -30.0))


@pytest.mark.parametrize("orientation", [(-1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)])
def test_prone_and_feet_first_series_are_flipped_so_that_each_voxel_keeps_its_place(orientation):
    volume = read_ct_series(slices(orientation=orientation))
    np.testing.assert_allclose(volume.geometry.direction, [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
    dy, dx = 2 * orientation[4] * 1.5, 3 * orientation[0] * 0.75
    normal_z = orientation[0] * orientation[4]
    point = np.array([[-10 + dx, -20 + dy, -30 + normal_z * 1 * 2.5]])
    z, y, x = np.rint(volume.geometry.to_index(point)[0]).astype(int)
    assert volume.array[z, y, x] == VALUES[1, 2, 3] * 2.0 - 1024


def test_a_sagittal_series_is_turned_so_that_each_voxel_keeps_its_place():
    volume = read_ct_series(slices(orientation=(0, 1, 0, 0, 0, -1)))
    np.testing.assert_allclose(volume.geometry.direction, [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
    point = np.array([[-10 - 1 * 2.5, -20 + 3 * 0.75, -30 - 2 * 1.5]])  # slice 1, row 2, column 3
    z, y, x = np.rint(volume.geometry.to_index(point)[0]).astype(int)
    assert volume.array[z, y, x] == VALUES[1, 2, 3] * 2.0 - 1024


def test_canonical_volumes_are_passed_through_untouched():
    volume = Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    assert canonical(volume) is volume


def test_positions_written_with_one_decimal_are_still_a_regular_stack():
    datasets = slices(dz=1.25)
    for ds in datasets:
        ds.ImagePositionPatient = [round(float(value), 1) for value in ds.ImagePositionPatient]
    assert read_ct_series(datasets).geometry.spacing_mm[0] == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_slice_is_never_absorbed_by_the_spacing(missing):
    datasets = slices()
    del datasets[missing]
    assert code(datasets) == "missing_slice"


def test_bad_stacks_are_refused_each_by_its_own_code():
    assert code([]) == "zero_slices"
    assert code(slices()[:1]) == "single_slice"
    datasets = slices()
    assert code([*datasets, copy.deepcopy(datasets[2])]) == "duplicate_slice"
    datasets[1].ImagePositionPatient[2] += 0.8
    assert code(datasets) == "nonuniform_spacing"
    datasets = slices()
    datasets[4].ImagePositionPatient[1] += 4
    assert code(datasets) == "inconsistent_geometry"


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("SeriesInstanceUID", "1.2.99", "mixed_series"),
        ("FrameOfReferenceUID", "1.2.99", "mixed_series"),
        ("Modality", "MR", "wrong_modality"),
        ("PixelSpacing", [1.5, 0.8], "inconsistent_geometry"),
        ("PixelSpacing", [0, 0.75], "inconsistent_geometry"),
        ("PixelSpacing", None, "missing_geometry"),
        ("ImageOrientationPatient", [0, 1, 0, 0, 0, -1], "inconsistent_geometry"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "inconsistent_geometry"),
        ("ImageOrientationPatient", None, "missing_geometry"),
        ("ImagePositionPatient", None, "missing_geometry"),
        ("ImagePositionPatient", [1, 2], "missing_geometry"),
        ("Rows", 5, "inconsistent_geometry"),
        ("RescaleSlope", None, "missing_rescale"),
        ("RescaleIntercept", None, "missing_rescale"),
        ("PixelData", None, "truncated_file"),
        ("PixelData", b"\0" * 20, "truncated_file"),
    ],
)
def test_one_slice_that_differs_or_lacks_a_tag_refuses_the_series(keyword, value, expected):
    datasets = slices()
    if value is None:
        delattr(datasets[2], keyword)
    else:
        setattr(datasets[2], keyword, value)
    assert code(datasets) == expected


@pytest.mark.parametrize(
    ("keyword", "value", "says"),
    [
        (
            "ImagePositionPatient",
            b"1\\nan\\3",
            "3 finite numbers in ImagePositionPatient of every image; got values that are no",
        ),
        ("PixelSpacing", b"inf\\1", "2 finite numbers in PixelSpacing of every image; got values that are no finite"),
        (
            "ImageOrientationPatient",
            b"1\\0\\0\\0\\1",
            "6 finite numbers in ImageOrientationPatient of every image; got 5",
        ),
        ("ImageOrientationPatient", b"1\\0\\0\\0\\0\\0", "lengths of 1 and 0"),
        ("ImageOrientationPatient", b"1\\0\\0\\1\\0\\0", "got 0.00 degrees"),
        (
            "ImageOrientationPatient",
            b"1\\0\\0\\0.5\\0.8660254\\0",
            "right angle in ImageOrientationPatient; got 60.00 degrees",
        ),
        ("ImageOrientationPatient", b"2\\0\\0\\0\\1\\0", "lengths of 2 and 1"),
        ("PixelSpacing", b"0.7\\-0.7", "PixelSpacing above 0 mm; got 0.7 and -0.7"),
    ],
)
def test_a_place_that_is_none_is_named_by_element_and_value(keyword, value, says):
    datasets = slices()
    raw = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(keyword), "DS", len(value), value, 0, False, True)
    datasets[2][pydicom.tag.Tag(keyword)] = raw
    with pytest.raises(CaseRejected, match=says) as caught:
        read_ct_series(datasets)
    assert caught.value.code in ("missing_geometry", "inconsistent_geometry")


def test_an_unknown_compression_is_named_as_undecodable():
    datasets = slices()
    datasets[2].file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    assert code(datasets) == "undecodable_pixels"


def test_compressed_slices_decode_to_the_values_of_uncompressed_ones():
    plain = read_ct_series(slices())
    packed = slices()
    for ds in packed:
        ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_ct_series(packed).array, plain.array)


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "CT_small.dcm"])
def test_scanner_files_in_native_and_jpeg_2000_syntaxes_are_read(name):
    first = pydicom.dcmread(get_testdata_file(name))
    second = copy.deepcopy(first)
    second.ImagePositionPatient[2] += 5
    volume = read_ct_series([second, first])
    expected = first.pixel_array * float(first.RescaleSlope) + float(first.RescaleIntercept)
    np.testing.assert_allclose(volume.array[0], expected)
    assert volume.geometry.spacing_mm[0] == pytest.approx(5)
