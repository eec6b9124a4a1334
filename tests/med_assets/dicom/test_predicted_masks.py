"""Predicted masks as contours: voxels come back through the package's reader and through one that shares no code with it."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from scipy.ndimage import gaussian_filter

from med_assets.dicom.contours import mask_to_contours
from med_assets.dicom.geometry import Geometry, Volume, read_ct_series
from med_assets.dicom.objects import Identity
from med_assets.dicom.rtstruct import rasterise, read_rois
from med_assets.dicom.write import write_ct, write_predicted_masks

TURN = np.radians(20)
UPRIGHT = Geometry((5, 26, 31), (2.5, 0.9, 1.1), (-44.919, 17.25, -310.4))
TILTED = Geometry(
    UPRIGHT.shape, UPRIGHT.spacing_mm, UPRIGHT.origin_mm,
    ((0.0, -np.sin(TURN), np.cos(TURN)), (0.0, np.cos(TURN), np.sin(TURN)), (1.0, 0.0, 0.0)),
)  # fmt: skip
IDENTITY = Identity("P1", "1.2.3.1", "1.2.3.2", study_date="20200102", synthetic=True)


def masks(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """A ring with an island in its hole, holes side by side, one voxel, all voxels, a hole at a corner, lace, and nothing."""
    ring = np.zeros(shape, bool)
    ring[1:4, 2:20, 3:22] = True
    ring[2, 5:15, 6:18] = False
    ring[2, 8:12, 9:14] = True
    ring[2, 9, 10] = False
    holes = np.zeros(shape, bool)
    holes[2, 1:20, 1:30] = True
    holes[2, 3:18:3, 3:28:2] = False
    holes[2, 5, 5] = holes[2, 6, 6] = False
    one = np.zeros(shape, bool)
    one[3, 7, 8] = True
    corners = np.ones(shape, bool)
    corners[:, 0, 0] = corners[:, 1, 1] = False
    noise = gaussian_filter(np.random.default_rng(3).random(shape), (0, 1, 1))
    return {
        "ring": ring, "holes": holes, "one": one, "all": np.ones(shape, bool), "corners": corners,
        "lace": noise > np.median(noise), "nothing": np.zeros(shape, bool),
    }  # fmt: skip


def written(folder: Path, geometry: Geometry) -> tuple[Dataset, list[Dataset]]:
    array = np.random.default_rng(0).integers(-900, 900, geometry.shape).astype(np.float32)
    write_ct(folder / "CT", Volume(array, geometry), IDENTITY, "1.2.3.3")
    slices = [pydicom.dcmread(path) for path in sorted((folder / "CT").iterdir())]
    write_predicted_masks(folder / "rs.dcm", masks(geometry.shape), geometry, IDENTITY, slices[::-1], "model")
    return pydicom.dcmread(folder / "rs.dcm"), slices


def crossings(ds: Dataset, name: str, slices: list[Dataset]) -> np.ndarray:
    """Which pixels of the slices that its contours name an ROI holds, by pydicom and NumPy alone: rays, even and odd."""
    by_uid = {str(one.SOPInstanceUID): number for number, one in enumerate(slices)}
    (number,) = (one.ROINumber for one in ds.StructureSetROISequence if one.ROIName == name)
    (roi,) = (one for one in ds.ROIContourSequence if one.ReferencedROINumber == number)
    found = np.zeros((len(slices), slices[0].Rows, slices[0].Columns), bool)
    rows, columns = np.mgrid[: slices[0].Rows, : slices[0].Columns]
    for contour in roi.get("ContourSequence", ()):
        plane = by_uid[str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)]
        image = slices[plane]
        along_row, along_column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        offsets = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(image.ImagePositionPatient, float)
        assert np.abs(offsets @ np.cross(along_row, along_column)).max() < 1e-4, "the contour lies in its slice"
        dy, dx = map(float, image.PixelSpacing)
        # A nanometre of rounding must not part the two ways along a keyhole.
        x, y = np.round(offsets @ along_row / dx, 4), np.round(offsets @ along_column / dy, 4)
        for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
            low, high = ((x0, y0), (x1, y1)) if y0 <= y1 else ((x1, y1), (x0, y0))
            if low[1] == high[1]:
                continue
            at = low[0] + (rows - low[1]) / (high[1] - low[1]) * (high[0] - low[0])
            found[plane] ^= (low[1] <= rows) & (rows < high[1]) & (at > columns)
    return found


@pytest.mark.parametrize("geometry", [UPRIGHT, TILTED], ids=["upright", "oblique"])
def test_every_voxel_comes_back_through_both_readers(geometry: Geometry, tmp_path: Path) -> None:
    ds, slices = written(tmp_path, geometry)
    grid = read_ct_series(slices).geometry
    rois = {roi.name: roi for roi in read_rois(ds)}
    assert list(rois) == list(masks(geometry.shape))
    for name, mask in masks(geometry.shape).items():
        np.testing.assert_array_equal(crossings(ds, name, slices), mask, err_msg=name)
        if mask.any():
            np.testing.assert_array_equal(rasterise(rois[name], grid), mask, err_msg=name)


def test_contours_name_their_own_slice_and_say_that_they_were_predicted(tmp_path: Path) -> None:
    ds, slices = written(tmp_path, UPRIGHT)
    (frame,) = ds.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == slices[0].FrameOfReferenceUID
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert [one.ReferencedSOPInstanceUID for one in series.ContourImageSequence] == [
        one.SOPInstanceUID for one in slices
    ]
    assert {one.ROIGenerationAlgorithm for one in ds.StructureSetROISequence} == {"AUTOMATIC"}
    assert (ds.ApprovalStatus, ds.StructureSetDescription) == (
        "UNAPPROVED",
        "PREDICTED BY model, NOT FOR CLINICAL USE",
    )
    types = {one.ContourGeometricType for roi in ds.ROIContourSequence for one in roi.get("ContourSequence", ())}
    assert types == {"CLOSED_PLANAR"}


@pytest.mark.parametrize("smooth", [0.0, 0.6, 1.2])
def test_keyholes_enclose_what_nested_contours_do(smooth: float) -> None:
    numbers = np.random.default_rng(int(10 * smooth))
    for _ in range(30):
        shape = (1, int(numbers.integers(2, 30)), int(numbers.integers(2, 30)))
        noise = gaussian_filter(numbers.random(shape), (0, smooth, smooth))
        mask = noise >= np.quantile(noise, numbers.uniform(0.05, 0.95))
        geometry = Geometry(shape, (3.0, 0.7, 0.9), (-10.3, 5.7, -3.1))
        joined = mask_to_contours(mask, geometry, keyholes=True)
        nested = mask_to_contours(mask, geometry)
        assert len(joined) <= len(nested)
        signed = [sum(area(points) for points in contours) for contours in (joined, nested)]
        assert signed[0] == pytest.approx(signed[1], abs=1e-6)


def area(points: np.ndarray) -> float:
    """Area in the plane z, mm2, with a sign for the direction."""
    x, y = points[:, 0], points[:, 1]
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)
