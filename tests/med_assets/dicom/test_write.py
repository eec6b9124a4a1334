"""What is written as DICOM-RT reads back as it was: voxels, spacing, dose, and the chain of UIDs."""

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from med_assets.dicom.geometry import Geometry, Volume, read_ct_series, read_mr_series
from med_assets.dicom.references import verify_label
from med_assets.dicom.rtdose import read_dose
from med_assets.dicom.rtplan import read_plan
from med_assets.dicom.rtstruct import rasterise, read_points, read_rois
from med_assets.dicom.write import (
    CT_INTERCEPT_HU,
    DOSE_STEP_GY,
    Identity,
    dose_step_gy,
    is_synthetic,
    mask_to_contours,
    write_ct,
    write_mr,
    write_points,
    write_rtdose,
    write_rtplan,
    write_rtstruct,
)
from med_assets.errors import CaseRejected

GEOMETRY = Geometry((7, 20, 24), (2.5, 3.906, 3.906), (-44.919, 17.25, -310.4))
IDENTITY = Identity("patient-1", "1.2.3.4", "1.2.3.5")


def shapes() -> dict[str, np.ndarray]:
    """Masks that are hard to outline: a hole, two islands, diagonals, single voxels, all of the image, and noise."""
    z, y, x = np.indices(GEOMETRY.shape)
    radius = np.hypot(y - 10, x - 12)
    rng = np.random.default_rng(5)
    return {
        "disc": (radius < 8) & (z > 1),
        "ring with an island": ((radius < 9) & (radius > 5)) | (radius < 2),
        "checkerboard": (y + x) % 2 == 0,
        "one voxel": (z == 3) & (y == 4) & (x == 5),
        "whole image": np.ones(GEOMETRY.shape, bool),
        "noise": rng.random(GEOMETRY.shape) > 0.5,
    }


def write_case(folder, identity=IDENTITY, rois=None):
    """A whole case under `folder`; returns its datasets by modality and the volumes that went in."""
    rng = np.random.default_rng(1)
    ct = Volume(rng.integers(CT_INTERCEPT_HU, 3000, GEOMETRY.shape).astype(np.float32), GEOMETRY)
    dose = Volume((rng.random(GEOMETRY.shape) * 75).astype(np.float32), GEOMETRY)
    uids = write_ct(folder / "CT", ct, identity, "1.2.3.6")
    structures = write_rtstruct(folder / "rs", rois or {"disc": shapes()["disc"]}, GEOMETRY, identity, "1.2.3.6", uids)
    plan = write_rtplan(folder / "rp", 70.0, 28, {1: 70.0, 2: 56.0}, identity, structures)
    write_rtdose(folder / "rd", dose, identity, plan)
    read = {name: pydicom.dcmread(folder / name) for name in ("rs", "rp", "rd")}
    read["ct"] = [pydicom.dcmread(path) for path in sorted((folder / "CT").iterdir())]
    return read, ct, dose


@pytest.mark.parametrize("name", shapes())
def test_contours_enclose_exactly_the_voxel_centres_of_the_mask_by_the_even_odd_rule(name):
    mask = shapes()[name]
    inside = np.zeros(mask.shape, int)
    centres = np.argwhere(np.ones(mask.shape[1:], bool))
    for points in mask_to_contours(mask, GEOMETRY):
        index = GEOMETRY.to_index(points)
        assert np.ptp(index[:, 0]) < 1e-6
        polygon = Polygon(index[:, 1:])
        inside[round(index[0, 0])] += polygon.contains_points(centres).reshape(mask.shape[1:])
    np.testing.assert_array_equal(inside % 2 == 1, mask)


def test_masks_come_back_voxel_equal_through_a_structure_set_file(tmp_path):
    read, _, _ = write_case(tmp_path, rois=shapes())
    rois = {roi.name: roi for roi in read_rois(read["rs"])}
    assert list(rois) == list(shapes())
    for name, mask in shapes().items():
        np.testing.assert_array_equal(rasterise(rois[name], GEOMETRY), mask, err_msg=name)


def test_ct_comes_back_with_its_hu_and_exact_geometry(tmp_path):
    read, ct, _ = write_case(tmp_path)
    volume = read_ct_series(read["ct"][::-1])
    np.testing.assert_array_equal(volume.array, ct.array)
    assert volume.geometry.spacing_mm == GEOMETRY.spacing_mm
    np.testing.assert_allclose(volume.geometry.affine(), GEOMETRY.affine(), atol=1e-9)


def test_dose_comes_back_within_half_a_scaling_step(tmp_path):
    read, _, dose = write_case(tmp_path)
    volume = read_dose(read["rd"])
    error = np.abs(volume.array.astype(np.float64) - dose.array.astype(np.float64))
    step = float(read["rd"].DoseGridScaling)
    assert step == dose_step_gy(float(dose.array.max())) < 75.1 / 65535
    assert read["rd"].BitsAllocated == 16
    # One float32 step at 75 Gy comes on top, since the volume is read as float32.
    assert error.max() <= step / 2 + np.spacing(np.float32(75))
    assert volume.geometry.same_grid(GEOMETRY)
    assert volume.geometry.spacing_mm == GEOMETRY.spacing_mm


def test_an_image_whose_axes_run_backwards_is_written_where_it_is(tmp_path):
    backwards = Geometry(
        GEOMETRY.shape, GEOMETRY.spacing_mm, GEOMETRY.origin_mm, ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    )
    array = np.arange(np.prod(GEOMETRY.shape), dtype=np.float32).reshape(GEOMETRY.shape) / 100
    write_ct(tmp_path / "CT", Volume(array, backwards), IDENTITY, "1.2.3.6")
    write_rtdose(tmp_path / "rd", Volume(array, backwards), IDENTITY, "1.2.3.7")
    ct = read_ct_series([pydicom.dcmread(path) for path in sorted((tmp_path / "CT").iterdir())])
    dose = read_dose(pydicom.dcmread(tmp_path / "rd"))
    np.testing.assert_allclose(dose.array, array[::-1], atol=dose_step_gy(float(array.max())) / 2 + 1e-5)
    assert dose_step_gy(0.0) == dose_step_gy(6.5) == DOSE_STEP_GY
    np.testing.assert_array_equal(ct.array, np.rint(array[::-1]))
    assert dose.geometry.same_grid(ct.geometry)


def test_plan_states_prescription_targets_and_fractions(tmp_path):
    read, _, _ = write_case(tmp_path)
    plan = read_plan(read["rp"])
    assert (plan.prescription_gy, plan.fractions) == (70.0, 28)
    assert set(plan.target_prescriptions) == {(1, 70.0), (2, 56.0)}


def test_dose_refers_to_plan_to_structure_set_to_ct(tmp_path):
    read, _, _ = write_case(tmp_path)
    assert read["rd"].ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == read["rp"].SOPInstanceUID
    assert read["rp"].ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == read["rs"].SOPInstanceUID
    frame = read["rs"].ReferencedFrameOfReferenceSequence[0]
    series = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    uids = {ds.SOPInstanceUID for ds in read["ct"]}
    assert {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence} == uids
    everything = [*read["ct"], read["rs"], read["rp"], read["rd"]]
    assert {ds.FrameOfReferenceUID for ds in everything} == {frame.FrameOfReferenceUID}
    assert len({ds.SOPInstanceUID for ds in everything}) == len(everything)


def test_each_contour_refers_to_the_slice_that_it_lies_on(tmp_path):
    read, _, _ = write_case(tmp_path)
    heights = {ds.SOPInstanceUID: float(ds.ImagePositionPatient[2]) for ds in read["ct"]}
    for roi in read["rs"].ROIContourSequence:
        for contour in roi.ContourSequence:
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            assert float(contour.ContourData[2]) == pytest.approx(heights[uid], abs=1e-6)


def test_an_empty_mask_becomes_a_roi_without_contours(tmp_path):
    read, _, _ = write_case(tmp_path, rois={"Bowel": np.zeros(GEOMETRY.shape, bool)})
    assert read["rs"].StructureSetROISequence[0].ROIName == "Bowel"
    assert "ContourSequence" not in read["rs"].ROIContourSequence[0]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    write_case(tmp_path / "first")
    write_case(tmp_path / "second")
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(files) == GEOMETRY.shape[0] + 3
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_only_synthetic_cases_are_marked_synthetic(tmp_path):
    marked = Identity("patient-1", "1.2.3.4", "1.2.3.5", synthetic=True)
    for folder, identity in (("plain", IDENTITY), ("marked", marked)):
        read, _, _ = write_case(tmp_path / folder, identity)
        everything = [*read["ct"], read["rs"], read["rp"], read["rd"]]
        assert {is_synthetic(ds) for ds in everything} == {identity.synthetic}
    assert {ds.ImageType[2] for ds in read["ct"]} == {"SYNTHETIC"}


@pytest.mark.parametrize("value", [CT_INTERCEPT_HU - 1, 70000, np.nan])
def test_hu_that_do_not_fit_are_refused_with_the_range_that_does(tmp_path, value):
    array = np.full(GEOMETRY.shape, value, np.float32)
    with pytest.raises(ValueError, match="expected finite HU from -1024 to 64511"):
        write_ct(tmp_path, Volume(array, GEOMETRY), IDENTITY, "1.2.3.6")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_dose_that_is_negative_or_not_finite_is_refused(tmp_path, value):
    array = np.full(GEOMETRY.shape, value)
    with pytest.raises(ValueError, match="expected finite dose"):
        write_rtdose(tmp_path / "rd", Volume(array, GEOMETRY), IDENTITY, "1.2.3.7")
    assert not list(tmp_path.iterdir())


def test_a_mask_off_the_grid_is_refused():
    with pytest.raises(ValueError, match="put it on the CT grid first"):
        mask_to_contours(np.ones((2, 2, 2), bool), GEOMETRY)


ANGLE = np.deg2rad(11)
SAGITTAL = Geometry(
    (5, 12, 10),
    (4.4, 1.25, 0.75),
    (-30.5, -41.25, 100.0),
    ((np.cos(ANGLE), np.sin(ANGLE), 0.0), (0.0, 0.0, -1.0), (-np.sin(ANGLE), np.cos(ANGLE), 0.0)),
)
"""A sagittal stack turned a little about the long axis of the patient, slices from right to left."""


def sagittal_series(folder):
    """Values, datasets and SOP instance UIDs of a written MR series."""
    values = np.random.default_rng(1).integers(0, 3000, SAGITTAL.shape)
    uids = write_mr(folder, Volume(values, SAGITTAL), IDENTITY, "1.2.9", description="Sag T2", echo_time_ms=101.5)
    return values, [pydicom.dcmread(path) for path in sorted(folder.iterdir())], uids


def test_an_mr_series_reads_back_at_its_place_in_the_order_of_its_normal(tmp_path):
    values, datasets, uids = sagittal_series(tmp_path)
    assert [ds.SOPInstanceUID for ds in datasets] == list(uids)
    assert {(ds.Modality, ds.SeriesDescription, float(ds.EchoTime), ds.RepetitionTime) for ds in datasets} == {
        ("MR", "Sag T2", 101.5, None)
    }
    volume = read_mr_series([datasets[index] for index in (3, 0, 4, 2, 1)])
    # The normal of rows to the feet and columns to the back points to the right, against the order that was written.
    np.testing.assert_array_equal(volume.array, values[::-1])
    np.testing.assert_allclose(
        volume.geometry.to_points([[0, 0, 0], [4, 3, 2]]), SAGITTAL.to_points([[4, 0, 0], [0, 3, 2]]), atol=1e-6
    )
    for ds in datasets:
        ds.RescaleSlope, ds.RescaleIntercept = 2, -5
    np.testing.assert_array_equal(read_mr_series(datasets).array, 2.0 * values[::-1] - 5)


def test_mr_and_ct_are_not_taken_for_each_other_and_a_lost_mr_slice_is_seen(tmp_path):
    _, datasets, _ = sagittal_series(tmp_path)
    with pytest.raises(CaseRejected, match="single-frame CT images only") as refused:
        read_ct_series(datasets)
    assert refused.value.code == "wrong_modality"
    with pytest.raises(CaseRejected) as refused:
        read_mr_series([datasets[index] for index in (0, 1, 3, 4)])
    assert refused.value.code == "missing_slice"


def test_values_that_an_mr_file_cant_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="from 0 to 65535"):
        write_mr(tmp_path, Volume(np.full(SAGITTAL.shape, -1), SAGITTAL), IDENTITY, "1.2.9")


def test_points_read_back_and_name_the_slice_that_they_lie_on(tmp_path):
    _, datasets, uids = sagittal_series(tmp_path / "mr")
    images = [(uid, SAGITTAL.to_points([index, 0, 0])[0]) for index, uid in enumerate(uids)]
    points = {"L1/L2": SAGITTAL.to_points([1.2, 3.0, 4.0])[0], "L5/S1": SAGITTAL.to_points([3.6, 9.0, 5.0])[0]}
    write_points(tmp_path / "points.dcm", points, IDENTITY, "1.2.9", images)
    ds = pydicom.dcmread(tmp_path / "points.dcm")
    found = {point.name: point.position_mm for point in read_points(ds).points}
    assert list(found) == list(points)
    for name, point in points.items():
        np.testing.assert_allclose(found[name], point, atol=1e-6)
    named = [roi.ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID for roi in ds.ROIContourSequence]
    assert named == [uids[1], uids[4]]
    assert [roi.contours for roi in read_rois(ds)] == [(), ()]
    verify_label(ds, datasets, "MR series")
    predicted = write_points(tmp_path / "predicted.dcm", points, IDENTITY, "1.2.9", images, predicted_by="abc")
    assert predicted != ds.SOPInstanceUID
    assert "NOT FOR CLINICAL USE" in pydicom.dcmread(tmp_path / "predicted.dcm").SeriesDescription


def test_two_points_of_one_name_and_a_point_of_two_positions_are_refused(tmp_path):
    _, _, uids = sagittal_series(tmp_path / "mr")
    images = [(uid, SAGITTAL.to_points([index, 0, 0])[0]) for index, uid in enumerate(uids)]
    points = {"L1/L2": np.array([1.0, 2.0, 3.0]), "L2/L3": np.array([1.0, 2.0, -30.0])}
    write_points(tmp_path / "points.dcm", points, IDENTITY, "1.2.9", images)
    ds = pydicom.dcmread(tmp_path / "points.dcm")
    ds.StructureSetROISequence[1].ROIName = "L1/L2"
    assert [(point.number, point.name) for point in read_points(ds).points] == [(1, "L1/L2"), (2, "L1/L2")]
    ds.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2, 3, 4, 5, 6]
    found = read_points(ds)
    assert [point.number for point in found.points] == [2]
    assert [(one.where, one.name) for one in found.unusable] == [("ROI 1", "L1/L2")]
    with pytest.raises(ValueError, match="three finite numbers"):
        write_points(tmp_path / "bad.dcm", {"L1/L2": np.array([1.0, np.nan, 0.0])}, IDENTITY, "1.2.9", images)
