"""Labelled lumbar volumes become sagittal MR series, the right way round, with points where the discs are."""

import lzma
from pathlib import Path

import numpy as np
import pydicom
import pytest

from med_assets.dicom.discover import scan
from med_assets.dicom.geometry import SAGITTAL, canonical, read_mr_series
from med_assets.dicom.rtstruct import read_points
from med_assets.errors import CaseRejected
from med_assets.programs.lumbar_mr import LumbarMr
from med_assets.programs.lumbar_mr.importer import (
    LEVEL_NAMES,
    body_axis,
    endplate_points,
    import_cases,
    level_points,
    read_case,
)
from med_assets.programs.lumbar_mr.levels import corner
from med_assets.programs.lumbar_mr.morphometrics import corners_of, measure
from med_assets.programs.lumbar_mr.prepare import read_levels

SHAPE = (200, 120, 61)
BODY, DISC = 26.0, 8.0


def positions(path):
    """LPS mm of the points of a structure set by name."""
    return {point.name: point.position_mm for point in read_points(pydicom.dcmread(path)).points}


def spine(lean_degrees: float = 0.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels of five blocks along a straight line that leans, and the true middles of the gaps, L5/S1 half a gap below."""
    lean = np.radians(lean_degrees)
    down, back = np.array([np.cos(lean), np.sin(lean), 0]), np.array([-np.sin(lean), np.cos(lean), 0])
    top = np.array([15.0, 60.0, 30.0])
    offsets = np.indices(SHAPE).transpose(1, 2, 3, 0) - top
    along, depth, side = offsets @ down, offsets @ back, offsets[..., 2]
    label = np.zeros(SHAPE, np.uint8)
    for k in range(5):
        start = k * (BODY + DISC)
        label[(along >= start) & (along < start + BODY) & (abs(depth) <= 17) & (abs(side) <= 22)] = k + 1
    return label, {name: top + down * (k * (BODY + DISC) + BODY + DISC / 2) for k, name in enumerate(LEVEL_NAMES)}


def image(label: np.ndarray) -> np.ndarray:
    """An image in which no axis can be flipped unnoticed."""
    y, x, s = np.indices(label.shape)
    return (20 * label + y // 4 + x // 4 + s // 2).astype(np.uint8)


@pytest.mark.parametrize("lean", [0.0, 12.0, -15.0])
def test_points_are_midway_between_bodies_and_half_a_disc_below_l5(lean: float) -> None:
    label, truth = spine(lean)
    found = level_points(label)
    assert tuple(found) == LEVEL_NAMES
    for name in LEVEL_NAMES:
        assert np.linalg.norm(found[name] - truth[name]) < 1.0, name


@pytest.mark.parametrize("lean", [0.0, 12.0, -15.0])
def test_the_ends_of_endplates_are_the_corners_of_the_bodies(lean: float) -> None:
    label, truth = spine(lean)
    down = (truth["L2/L3"] - truth["L1/L2"]) / (BODY + DISC)
    back = np.array([-down[1], down[0], 0.0])
    found = endplate_points(label)
    assert len(found) == 20
    for number, name in enumerate(LEVEL_NAMES[:4], start=1):
        upper = truth[name] + down * DISC / 2
        for end, side in (("front", -17), ("back", 17)):
            assert np.linalg.norm(found[corner(f"L{number + 1}", "upper", end)] - (upper + back * side)) < 2.0
    measured = measure(found)
    # A leaning block of voxels has corners that are off by one or two, in discs of 8 mm and endplates of 34 mm.
    assert measured["disc height L4/L5"].value == pytest.approx(DISC + 1, abs=2.0)
    assert measured["disc-height ratio L4/L5"].value == pytest.approx(1.0, abs=0.2)
    assert measured["squareness L5"].value == pytest.approx(1.0, abs=0.06)
    assert measured["squareness S1"].value is None


def test_endplates_come_as_points_where_they_are_asked_for(tmp_path: Path) -> None:
    label, _ = spine()
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "case_01.npz", image=image(label), label=label)
    assert import_cases(tmp_path / "source", tmp_path / "out", endplates=False).imported == ("case_01",)
    assert import_cases(tmp_path / "source", tmp_path / "out", endplates=True).updated == ("case_01",)
    marked = pydicom.dcmread(tmp_path / "out" / "case_01" / "points.dcm")
    assert len(read_points(marked).points) == 25
    ratio = measure(corners_of(marked))["disc-height ratio L4/L5"].value
    assert ratio == pytest.approx(1.0, abs=0.01)
    levels = read_levels(marked)
    assert (len(levels.points), levels.others, len(levels.marked)) == (5, 0, 5)


def test_the_axis_of_a_wedged_body_is_the_mean_of_its_endplates_normals() -> None:
    y, x, _ = np.indices((80, 60, 60))
    wedge = (y > 20 + 0.2 * (x - 30)) & (y < 50 - 0.4 * (x - 30)) & (x > 10) & (x < 50)
    down = body_axis(wedge)
    mean = (np.arctan(-0.2) + np.arctan(0.4)) / 2
    assert np.degrees(np.arctan2(down[1], down[0])) == pytest.approx(np.degrees(mean), abs=1.0)
    assert abs(down[2]) < 0.01


def test_archives_become_series_with_points_the_right_way_round(tmp_path: Path) -> None:
    label, truth = spine()
    source = tmp_path / "source"
    source.mkdir()
    np.savez(source / "case_01.npz", image=image(label), label=label)
    (source / "case_02.npz.xz").write_bytes(lzma.compress((source / "case_01.npz").read_bytes(), preset=0))
    without = label.copy()
    without[without == 3] = 0
    np.savez(source / "case_03.npz", image=image(label), label=without)
    (source / "case_04.npz").write_bytes(b"no archive")
    report = import_cases(source, tmp_path / "out")
    assert report.imported == ("case_01", "case_02")
    assert {name: reason.split(":")[0] for name, reason in report.skipped.items()} == {
        "case_03": "missing_body", "case_04": "unreadable_volume",
    }  # fmt: skip
    assert import_cases(source, tmp_path / "out", ["case_01", "case_09"]).existing == ("case_01",)
    assert import_cases(source, tmp_path / "other", limit=1).imported == ("case_01",)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["case_01", "case_02"]

    folder = tmp_path / "out" / "case_02"
    series = canonical(read_mr_series([pydicom.dcmread(path) for path in (folder / "MR").iterdir()]), SAGITTAL)
    # From left to right in the source, from right to left here.
    np.testing.assert_array_equal(series.array, image(label).transpose(2, 0, 1)[::-1])
    points = positions(folder / "points.dcm")
    assert tuple(points) == LEVEL_NAMES
    for name, point in points.items():
        s, y, x = series.geometry.to_index(point)[0]
        np.testing.assert_allclose((y, x, SHAPE[2] - 1 - s), truth[name], atol=1.0)
    (case,), refusals = LumbarMr().group(scan(folder).instances)
    assert not refusals
    LumbarMr().verify(case)


def test_labels_that_are_no_vertebrae_are_refused(tmp_path: Path) -> None:
    label, _ = spine()
    np.savez(tmp_path / "a.npz", image=image(label), label=label + 1)
    with pytest.raises(CaseRejected) as refused:
        read_case(tmp_path / "a.npz")
    assert refused.value.code == "not_integer_labels"


@pytest.mark.real_data
def test_real_cases_are_imported_and_their_points_lie_between_the_bodies(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "lumbar_t2"
    report = import_cases(source, tmp_path, ["case_01", "case_13"])
    assert report.imported == ("case_01", "case_13")
    for name in report.imported:
        _, label = read_case(source / f"{name}.npz.xz")
        points = positions(tmp_path / name / "points.dcm")
        at = [np.array([111.5 - z, y + 111.5, 38 - x]) for x, y, z in (points[level] for level in LEVEL_NAMES)]
        # No point is in a body, and each body is between two of them.
        assert all(label[tuple(np.rint(point).astype(int))] == 0 for point in at)
        for k in range(2, 6):
            height = np.argwhere(label == k)[:, 0].mean()
            assert at[k - 2][0] + 8 < height < at[k - 1][0] - 8
        gaps = np.linalg.norm(np.diff(at, axis=0), axis=1)
        assert gaps.min() > 25
        assert gaps.max() < 50
