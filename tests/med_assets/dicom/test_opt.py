from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets.dicom.objects import Identity, derived_uid
from med_assets.dicom.opt import read_opt, write_opt
from med_assets.errors import CaseRejected

SPACING = (0.12, 0.004, 0.011)


def written(path: Path) -> tuple[pydicom.Dataset, np.ndarray]:
    array = np.random.default_rng(0).integers(0, 4000, (4, 10, 12))
    identity = Identity("p", derived_uid("s"), derived_uid("f"), synthetic=True)
    write_opt(path, array, SPACING, identity, role="scan", laterality="L")
    return pydicom.dcmread(path), array


def without_positions(ds: pydicom.Dataset) -> None:
    for one in ds.PerFrameFunctionalGroupsSequence:
        del one.PlanePositionSequence


def test_a_volume_reads_back_with_the_spacing_of_its_shared_groups(tmp_path: Path) -> None:
    ds, array = written(tmp_path / "a.dcm")
    found = read_opt(ds)
    assert np.array_equal(found.array, array)
    assert found.spacing_mm == pytest.approx(SPACING)
    assert (found.laterality, found.raster, found.frames_from) == ("L", True, "positions")
    assert "PixelSpacing" not in ds
    assert all("PixelMeasuresSequence" not in one for one in ds.PerFrameFunctionalGroupsSequence)


@pytest.mark.parametrize("absent", ["PixelSpacing", "SliceThickness"])
def test_no_spacing_is_made_up(absent: str, tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    without_positions(ds)
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0][absent]
    with pytest.raises(CaseRejected, match="no spacing is made up"):
        read_opt(ds)


@pytest.mark.parametrize("stated", [3, 5])
@pytest.mark.parametrize("with_positions", [True, False])
def test_a_frame_without_its_functional_groups_is_refused(stated: int, with_positions: bool, tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    if not with_positions:
        without_positions(ds)
    ds.NumberOfFrames = stated
    with pytest.raises(CaseRejected) as refused:
        read_opt(ds)
    assert refused.value.code == "missing_geometry"
    assert f"{stated} frames; got 4" in refused.value.message


def test_the_positions_of_frames_come_before_their_thickness(tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    for index, one in enumerate(ds.PerFrameFunctionalGroupsSequence):
        place = pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, 0.25 * index]
        one.PlanePositionSequence = [place]
    found = read_opt(ds)
    assert (found.spacing_mm[0], found.frames_from) == (pytest.approx(0.25), "positions")


def test_a_stated_spacing_comes_before_the_nominal_thickness(tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    without_positions(ds)
    assert read_opt(ds).frames_from == "thickness"
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "0.2"
    found = read_opt(ds)
    assert (found.spacing_mm[0], found.frames_from) == (pytest.approx(0.2), "spacing")


@pytest.mark.parametrize("keyword", ["SliceThickness", "SpacingBetweenSlices"])
def test_distances_that_differ_between_frames_are_refused_with_both(keyword: str, tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    without_positions(ds)
    shared = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    for index, one in enumerate(ds.PerFrameFunctionalGroupsSequence):
        measures = pydicom.Dataset()
        measures.PixelSpacing = shared.PixelSpacing
        setattr(measures, keyword, "0.12" if index < 3 else "0.24")
        one.PixelMeasuresSequence = [measures]
    with pytest.raises(
        CaseRejected, match=f"one {keyword} for all frames; got 2 values from 0.12 to 0.24 mm"
    ) as caught:
        read_opt(ds)
    assert caught.value.code == "inconsistent_geometry"


def test_a_radial_scan_is_refused(tmp_path: Path) -> None:
    ds, _ = written(tmp_path / "a.dcm")
    for index, one in enumerate(ds.PerFrameFunctionalGroupsSequence):
        x, y = np.cos(index * np.pi / 4), np.sin(index * np.pi / 4)
        one.OphthalmicFrameLocationSequence[0].ReferenceCoordinates = [
            50 - 40 * y,
            50 - 40 * x,
            50 + 40 * y,
            50 + 40 * x,
        ]
    with pytest.raises(CaseRejected) as caught:
        read_opt(ds)
    assert caught.value.code == "not_raster"


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [0, 2, 1, 3], [2, 0, 3, 1]])
def test_frames_come_in_their_order_along_the_stack_however_they_are_stored(
    tmp_path: Path, order: list[int], positions: bool
) -> None:
    ds, array = written(tmp_path / "a.dcm")
    for index, one in enumerate(ds.PerFrameFunctionalGroupsSequence):
        if positions:
            place = pydicom.Dataset()
            place.ImagePositionPatient = [0, 0, 0.25 * index]
            one.PlanePositionSequence = [place]
            del one.FrameContentSequence
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[index] for index in order]
    ds.PixelData = np.ascontiguousarray(array[order].astype("<u2")).tobytes()
    np.testing.assert_array_equal(read_opt(ds).array, array)


@pytest.mark.parametrize("points", [[1.0], [1.0, 2.0, 3.0], [0.0, 0.0, float("nan"), 5.0], [], [0.0] * 5])
def test_points_of_a_frame_that_are_no_line_say_nothing_of_the_scan(points: list[float], tmp_path: Path) -> None:
    ds, array = written(tmp_path / "a.dcm")
    ds.PerFrameFunctionalGroupsSequence[1].OphthalmicFrameLocationSequence[0].ReferenceCoordinates = points
    found = read_opt(ds)
    assert found.raster is None
    assert np.array_equal(found.array, array)
