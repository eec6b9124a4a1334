"""Dose is read in Gy where it lies, or refused; it moves to another grid without changing where it need not."""

import copy

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTDoseStorage

from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.rtdose import read_dose, resample
from med_assets.errors import CaseRejected

SHAPE = (4, 5, 6)
STORED = np.arange(np.prod(SHAPE), dtype=np.uint32).reshape(SHAPE) * 1000


def rtdose(stored=STORED, **values):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality, ds.PatientID = RTDoseStorage, "RTDOSE", "DOE-JANE-1961"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10, -20, -30], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.GridFrameOffsetVector = [2.0, 3.0], [2.5 * frame for frame in range(len(stored))]
    ds.DoseUnits, ds.DoseType, ds.DoseSummationType, ds.DoseGridScaling = "GY", "PHYSICAL", "PLAN", "0.0005"
    ds.NumberOfFrames, ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 32, 32, 31, 0
    ds.PixelData = stored.astype("<u4").tobytes()
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def code(ds):
    with pytest.raises(CaseRejected) as caught:
        read_dose(ds)
    assert "DOE-JANE" not in caught.value.message
    return caught.value.code


def test_dose_is_stored_value_times_scaling_at_the_positions_of_its_frames():
    volume = read_dose(rtdose())
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, STORED * 0.0005, rtol=1e-7)
    assert volume.geometry == Geometry(SHAPE, (2.5, 2.0, 3.0), (-10.0, -20.0, -30.0))


def test_absolute_and_descending_frame_offsets_place_the_same_dose():
    plain = read_dose(rtdose())
    absolute = read_dose(rtdose(GridFrameOffsetVector=[-30, -27.5, -25, -22.5]))
    descending = read_dose(
        rtdose(STORED[::-1], ImagePositionPatient=[-10, -20, -22.5], GridFrameOffsetVector=[0, -2.5, -5, -7.5])
    )
    for volume in (absolute, descending):
        assert volume.geometry.same_grid(plain.geometry)
        np.testing.assert_array_equal(volume.array, plain.array)


def test_pydicoms_own_dose_reads_alike_in_every_transfer_syntax():
    volumes = []
    for name in ("rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"):
        ds = pydicom.dcmread(get_testdata_file(name))
        assert code(ds) == "relative_dose"
        ds.DoseUnits, ds.DoseSummationType = "GY", "PLAN"
        truth = ds.pixel_array * float(ds.DoseGridScaling)
        volume = read_dose(ds)
        np.testing.assert_allclose(np.sort(volume.array.ravel()), np.sort(truth.ravel()), rtol=1e-6)
        volumes.append(volume)
    np.testing.assert_array_equal(volumes[0].array, volumes[1].array)
    np.testing.assert_array_equal(volumes[0].array, volumes[2].array)


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("DoseUnits", "RELATIVE", "relative_dose"),
        ("DoseUnits", None, "relative_dose"),
        ("DoseType", "EFFECTIVE", "not_physical_dose"),
        ("DoseSummationType", "BEAM", "dose_not_plan_sum"),
        ("DoseSummationType", "FRACTION", "dose_not_plan_sum"),
        ("DoseSummationType", None, "dose_not_plan_sum"),
        ("DoseGridScaling", None, "missing_dose_scaling"),
        ("DoseGridScaling", "-0.1", "negative_dose"),
        ("Modality", "CT", "wrong_modality"),
        ("GridFrameOffsetVector", None, "missing_geometry"),
        ("GridFrameOffsetVector", [0, 2.5, 5], "missing_geometry"),
        ("GridFrameOffsetVector", [7, 9.5, 12, 14.5], "inconsistent_geometry"),
        ("GridFrameOffsetVector", [0, 2.5, 2.5, 5], "inconsistent_geometry"),
        ("ImagePositionPatient", None, "missing_geometry"),
        ("ImageOrientationPatient", None, "missing_geometry"),
        ("NumberOfFrames", None, "single_slice"),
        ("PixelData", None, "truncated_file"),
        ("PixelData", b"\0" * 100, "truncated_file"),
        ("PixelData", bytes(STORED.nbytes), "empty_dose"),
    ],
)
def test_a_dose_that_cannot_be_trusted_is_refused_by_its_own_code(keyword, value, expected):
    assert code(rtdose(**{keyword: value})) == expected


def test_a_dose_that_is_not_a_number_is_refused():
    ds = rtdose()
    ds.DoseGridScaling = float("inf")
    assert code(ds) == "nan_dose"
    ds = rtdose()
    ds.DoseGridScaling = 1e300
    with np.errstate(over="ignore"):
        assert code(ds) == "nan_dose"


def test_the_message_for_a_partial_dose_names_what_came_and_what_to_send():
    with pytest.raises(CaseRejected, match=r"got BEAM.*export the dose of the whole plan"):
        read_dose(rtdose(DoseSummationType="BEAM"))


def test_the_same_grid_gives_an_exact_copy():
    volume = read_dose(rtdose())
    copied = resample(volume, copy.deepcopy(volume.geometry))
    np.testing.assert_array_equal(copied, volume.array)
    assert copied is not volume.array


@pytest.mark.parametrize("order", [1, 3])
def test_a_linear_dose_is_reproduced_on_any_grid_inside(order):
    source = Geometry((12, 14, 16), (2.5, 2.0, 3.0), (-10.0, -20.0, -30.0))
    indices = np.indices(source.shape).reshape(3, -1).T
    plane = (source.to_points(indices) @ (0.1, 0.2, 0.3) + 20).reshape(source.shape)
    turn = 0.1
    direction = ((0.0, 0.0, 1.0), (-np.sin(turn), np.cos(turn), 0.0), (np.cos(turn), np.sin(turn), 0.0))
    target = Geometry((6, 7, 8), (1.0, 1.1, 1.2), (5.0, -10.0, -20.0), direction)
    expected = target.to_points(np.indices(target.shape).reshape(3, -1).T) @ (0.1, 0.2, 0.3) + 20
    result = resample(Volume(plane, source), target, order=order)
    np.testing.assert_allclose(result.ravel(), expected, atol=1e-6 if order == 1 else 0.2)


def test_voxels_beyond_the_dose_grid_get_the_stated_value_and_its_edge_does_not():
    volume = read_dose(rtdose(np.full(SHAPE, 4000, np.uint32)))
    wider = Geometry((6, 7, 8), (2.5, 2.0, 3.0), (-13.0, -22.0, -32.5))
    for outside in (0.0, -1.0):
        result = resample(volume, wider, outside=outside)
        np.testing.assert_allclose(result[1:-1, 1:-1, 1:-1], 2.0)
        assert (result[0] == outside).all()
        assert (result[:, :, -1] == outside).all()
    shifted = Geometry(SHAPE, (2.5, 2.0, 3.0), (-10.0 + 1e-10, -20.0 - 1e-10, -30.0 + 0.002))
    assert (resample(volume, shifted, outside=-1.0)[:-1] > 1.99).all()


@pytest.mark.parametrize("offsets", [[0, 2.5, 5, 10], [0, 2.5, 5, 8.5]])
def test_uneven_frames_keep_their_own_values_and_are_interpolated_between(offsets):
    even, uneven = read_dose(rtdose()), read_dose(rtdose(GridFrameOffsetVector=offsets))
    step = uneven.geometry.spacing_mm[0]
    assert uneven.geometry.shape[0] == round(offsets[-1] / step) + 1
    for number, offset in enumerate(offsets):
        np.testing.assert_allclose(uneven.array[round(offset / step)], even.array[number], rtol=1e-6)
    between = uneven.array[round(offsets[-1] / step) - 1]
    last = offsets[-1] - offsets[-2]
    expected = even.array[-2] * step / last + even.array[-1] * (last - step) / last
    np.testing.assert_allclose(between, expected, rtol=1e-5)
