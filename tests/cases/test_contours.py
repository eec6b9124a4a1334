"""Contours as they were drawn, and dose where it was calculated: invented plans through intake and preparation."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from med_assets import program
from med_assets.dicom import polygons
from med_assets.dicom.polygons import clipped_area, fill_even_odd, fill_nested
from med_assets.dicom.rtdose import read_dose
from med_assets.programs.lumbar_mr.levels import ROI_NAMES
from med_assets.programs.rt_dose.prepared import PreparedCase
from med_assets.settings import Workspace
from tests.invented import (
    Study,
    box_contours,
    ct,
    ingest,
    item,
    mr,
    plan_case,
    rt_dose_voxels,
    rtstruct,
    square,
    structures,
    uid,
    write,
)

P = "rt_dose"
Rois = dict[str, list[Any]]


def plan(tag: str, change: Callable[[Rois, list[float]], object] = lambda rois, zs: None, **how: Any) -> list[Any]:
    """A plan whose ROIs (name -> contours) `change` alters, given the heights of the slices in mm."""
    st_ = Study(tag)
    slices = ct(st_, **how)
    zs = sorted({round(float(s.ImagePositionPatient[2]), 6) for s in slices})
    rois = dict(structures(zs))
    change(rois, zs)
    return plan_case(tag, list(rois.items()), slices=slices, st=st_)


def prepared(ws: Workspace, datasets: list[Any]) -> dict[str, Any]:
    """The row of `prepared_cases` of one plan, or of `raw_cases` where intake refused it."""
    write(datasets, ws.landing / P / "case")
    raw, rows = ingest(ws, P)
    (row,) = rows or raw
    return row


def facts(ws: Workspace) -> dict[str, Any]:
    (row,) = ws.lake.rows(program.fact_table(P), P)
    return row


def parts(zs: list[float], lift: float = 0.0) -> list[np.ndarray]:
    """Two separate parts of an organ, the second `lift` mm higher."""
    return [
        square(12.5, z, (x, 50)) + np.array([0, 0, lift * (x > 0)]) for x in (-40, 40) for z in zs if abs(z) <= 22.5
    ]


@pytest.mark.parametrize("lift", [0.0, 0.134, -0.134, 0.6])
def test_a_part_that_was_drawn_a_little_higher_is_drawn_on_its_slice(workspace: Workspace, lift: float) -> None:
    row = prepared(workspace, plan("parts", lambda rois, zs: rois.update(Rectum=parts(zs, lift))))
    assert rt_dose_voxels(workspace, row)["Rectum"] == 450


@pytest.mark.parametrize("lift", [0.0, 0.134])
def test_a_hole_that_was_drawn_a_little_higher_stays_a_hole(workspace: Workspace, lift: float) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        hole = [square(12.5, z, (0, 50)) + np.array([0, 0, lift]) for z in zs if abs(z) <= 12.5]
        rois["Rectum"] = box_contours(22.5, zs, (0, 50, 0)) + hole

    assert rt_dose_voxels(workspace, prepared(workspace, plan("hole", change)))["Rectum"] == 604


def test_thin_slices_and_a_part_four_micrometres_higher(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["PTV56"] = [
            square(12.5, z, (x, 0)) + np.array([0, 0, 0.004 * (x > 0)]) for x in (-30, 30) for z in zs if abs(z) <= 30
        ]

    row = prepared(workspace, plan("thin", change, n=60, dz=2.0))
    assert rt_dose_voxels(workspace, row)["PTV56"] == 1500


def twice(contours: list[np.ndarray]) -> list[np.ndarray]:
    return contours * 2


def reversed_and_turned(contours: list[np.ndarray]) -> list[np.ndarray]:
    return contours + [np.roll(contour[::-1], 1, axis=0) + 1e-4 for contour in contours]


def one_slice_twice(contours: list[np.ndarray]) -> list[np.ndarray]:
    return [*contours, square(22.5, 0.0, (0, 50))]


@pytest.mark.parametrize("repeat", [twice, reversed_and_turned, one_slice_twice])
def test_the_same_contour_twice_is_the_same_area(workspace: Workspace, repeat: Callable[[Any], Any]) -> None:
    row = prepared(workspace, plan("twice", lambda rois, zs: rois.update(Rectum=repeat(rois["Rectum"]))))
    assert rt_dose_voxels(workspace, row)["Rectum"] == 729
    assert facts(workspace)["contour_overlaps"] == 0


def test_contours_that_overlap_without_nesting_are_united_and_counted(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["Rectum"] = [square(17.5, z, (x, 50)) for x in (-10, 10) for z in zs if abs(z) <= 22.5]

    row = prepared(workspace, plan("overlap", change))
    assert rt_dose_voxels(workspace, row)["Rectum"] == 693
    assert facts(workspace)["contour_overlaps"] == 9


def test_contours_of_an_xor_roi_enclose_where_their_number_is_odd(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        both = [square(17.5, z, (x, 50)) for x in (-10, 10) for z in zs if abs(z) <= 22.5]
        rois["Rectum"] = [(contour, "CLOSEDPLANAR_XOR") for contour in both]

    assert rt_dose_voxels(workspace, prepared(workspace, plan("xor", change)))["Rectum"] == 504


def broken_items(kind: str) -> Callable[[list[Any]], None]:
    def change(case: list[Any]) -> None:
        contents = {
            "empty": {"NumberOfContourPoints": 0, "ContourData": []},
            "absent": {"NumberOfContourPoints": 0},
            "one point": {"NumberOfContourPoints": 1, "ContourData": ["0", "0", "0"]},
            "two points": {"NumberOfContourPoints": 2, "ContourData": ["0", "0", "25", "5", "0", "25"]},
            "odd": {"NumberOfContourPoints": 3, "ContourData": ["0"] * 10},
        }
        case[-3].ROIContourSequence[3].ContourSequence.append(
            item(ContourGeometricType="CLOSED_PLANAR", **contents[kind])
        )

    return change


@pytest.mark.parametrize("kind", ["empty", "absent", "one point", "two points", "odd"])
def test_a_contour_item_that_encloses_nothing_is_counted_and_costs_nothing_else(
    workspace: Workspace, kind: str
) -> None:
    case = plan_case("items")
    broken_items(kind)(case)
    row = prepared(workspace, case)
    assert row["status"] == "ok"
    assert rt_dose_voxels(workspace, row)["Rectum"] == 729
    assert facts(workspace)["contours_left_out"] == 1


def test_a_marker_that_the_site_does_not_use_costs_nothing(workspace: Workspace) -> None:
    row = prepared(workspace, plan("marker", lambda rois, zs: rois.update(Marker=[np.array([(5.0, 5.0, 0.0)])])))
    assert row["status"] == "ok"


def test_an_organ_without_a_usable_contour_is_left_out_by_name_and_a_target_is_refused_by_name(
    workspace: Workspace,
) -> None:
    row = prepared(workspace, plan("organ", lambda rois, zs: rois.update(Rectum=[np.array([(5.0, 5.0, 0.0)])])))
    assert row["status"] == "ok"
    assert rt_dose_voxels(workspace, row)["Rectum"] == 0
    assert facts(workspace)["structures_excluded"] == "Rectum (no usable contour)"
    assert "Rectum" in facts(workspace)["structures_missing"]


def test_a_target_without_a_usable_contour_is_refused_by_name(workspace: Workspace) -> None:
    row = prepared(workspace, plan("target", lambda rois, zs: rois.update(PTV70=[np.array([(5.0, 5.0, 0.0)])])))
    assert row["reason_code"] == "no_ptv"
    assert "PTV70 is there and can't be used (no usable contour)" in row["reason"]


def test_interpolated_planar_contours_are_closed_ones(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["Rectum"] = [(contour, "INTERPOLATED_PLANAR") for contour in rois["Rectum"]]

    assert rt_dose_voxels(workspace, prepared(workspace, plan("interpolated", change)))["Rectum"] == 729


def test_an_outline_that_reaches_beyond_the_image_is_cut_and_its_share_is_a_fact(workspace: Workspace) -> None:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    wide = lambda zs: [np.array([(170 * np.cos(a), 95 * np.sin(a), z) for a in angles]) for z in zs]  # noqa: E731  # one line beside its siblings
    row = prepared(workspace, plan("wide", lambda rois, zs: rois.update(BODY=wide(zs))))
    assert row["status"] == "ok"
    assert 0 < facts(workspace)["contour_outside_share"] < 0.02


def test_one_more_slice_of_the_outline_is_cut(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["BODY"] = rois["BODY"] + [rois["BODY"][-1] + np.array([0, 0, 5.0])]

    row = prepared(workspace, plan("above", change))
    assert row["status"] == "ok"
    assert facts(workspace)["contour_outside_share"] == pytest.approx(1 / 26, abs=1e-3)


def test_an_organ_beyond_the_image_is_left_out_by_name_share_and_distance(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["Rectum"] = box_contours(22.5, zs, (160, 50, 0))

    row = prepared(workspace, plan("beyond", change))
    assert row["status"] == "ok", row["reason"]
    # The pixels end at 160 mm, contours may reach one pixel of 5 mm further, and the organ ends at 182.5 mm.
    assert facts(workspace)["structures_excluded"] == "Rectum (39% beyond the CT, by up to 22 mm)"
    assert rt_dose_voxels(workspace, row)["Rectum"] == 0


def test_a_target_beyond_the_image_is_refused_by_name_share_and_distance(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["PTV56"] = box_contours(22.5, zs, (160, 0, 0))

    row = prepared(workspace, plan("target beyond", change))
    assert row["reason_code"] == "contour_outside_image"
    assert "expected PTV56 within the image, got 38.9% of its area beyond it, by up to 22.5 mm" in row["reason"]


def test_a_structure_set_may_name_several_frames_of_reference_or_name_it_on_its_rois(workspace: Workspace) -> None:
    case = plan_case("frames")
    other = copy.deepcopy(case[-3].ReferencedFrameOfReferenceSequence[0])
    other.FrameOfReferenceUID = uid("another frame")
    del other.RTReferencedStudySequence
    case[-3].ReferencedFrameOfReferenceSequence.append(other)
    row = prepared(workspace, case)
    assert rt_dose_voxels(workspace, row)["Rectum"] == 729


def test_the_frame_of_reference_is_read_from_the_rois(workspace: Workspace) -> None:
    case = plan_case("on rois")
    del case[-3].ReferencedFrameOfReferenceSequence
    assert rt_dose_voxels(workspace, prepared(workspace, case))["Rectum"] == 729


def test_an_roi_of_another_frame_is_left_out_by_name(workspace: Workspace) -> None:
    case = plan_case("other frame")
    case[-3].StructureSetROISequence[3].ReferencedFrameOfReferenceUID = uid("another frame")
    row = prepared(workspace, case)
    assert rt_dose_voxels(workspace, row)["Rectum"] == 0
    assert facts(workspace)["structures_excluded"] == "Rectum (in another frame of reference than the CT)"


def test_another_frame_of_reference_is_refused_with_what_came(workspace: Workspace) -> None:
    case = plan_case("elsewhere")
    case[-1].FrameOfReferenceUID = uid("another frame")
    row = prepared(workspace, case)
    assert row["reason_code"] == "frame_of_reference_mismatch"
    assert "got 2 in the images and the dose" in row["reason"]


def test_an_organ_beyond_the_dose_grid_has_no_dose_statistics_and_is_named(workspace: Workspace) -> None:
    # The grid ends 2 mm in front of the targets; the bladder lies 27.5 to 72.5 mm in front of the middle.
    case = plan_case("small grid", dose_kw={"size": (22, 68), "centre": (0, 8, 0)})
    row = prepared(workspace, case)
    assert row["status"] == "ok", row["reason"]
    measured = facts(workspace)
    assert "Bladder (89% beyond the dose grid)" in measured["structures_excluded"]
    assert measured["dose_coverage"] < 0.8
    prepared_case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    assert (prepared_case.dose[prepared_case.body] > 0).all()


def test_a_target_beyond_the_dose_grid_is_refused(workspace: Workspace) -> None:
    row = prepared(workspace, plan_case("half grid", dose_kw={"n": 10}))
    assert row["reason_code"] == "dose_grid_too_small"
    assert "PTV" in row["reason"]


@pytest.mark.parametrize("order", [1, -1])
def test_uneven_frame_offsets_are_interpolated(workspace: Workspace, order: int) -> None:
    offsets = np.cumsum([0, *[4.0, 3.0, 5.0] * 10])
    case = plan_case("uneven", dose_kw={"offsets": offsets, "n": len(offsets)})
    if order < 0:  # stored from the last frame to the first
        dose = case[-1]
        frames = dose.pixel_array[::-1]
        dose.GridFrameOffsetVector = [str(value) for value in -offsets]
        normal_end = float(dose.ImagePositionPatient[2]) + offsets[-1]
        dose.ImagePositionPatient = [*dose.ImagePositionPatient[:2], f"{normal_end:g}"]
        dose.PixelData = np.ascontiguousarray(frames).tobytes()
    row = prepared(workspace, case)
    assert row["status"] == "ok", row["reason"]
    prepared_case = PreparedCase.open(workspace.store.fetch(row["artifact"]))
    names = list(prepared_case.structures)
    target = (prepared_case.masks >> names.index("PTV70") & 1).astype(bool)
    np.testing.assert_allclose(prepared_case.dose[target], 70.0, atol=0.01)


def test_volumes_of_voxels_are_compared_with_those_of_their_contours(workspace: Workspace) -> None:
    prepared(workspace, plan("volumes"))
    ratios = volume_ratios(workspace)
    assert set(ratios) == {"body", "PTV70", "PTV56", "Rectum", "Bladder"}
    assert ratios["Rectum"] == pytest.approx(1.0, abs=0.01)
    assert facts(workspace)["contour_volumes_off"] == ""


def volume_ratios(ws: Workspace) -> dict[str, float]:
    pairs = (one.rsplit(" ", 1) for one in facts(ws)["contour_volume_ratios"].split(", "))
    return {name: float(ratio) for name, ratio in pairs}


def test_volumes_agree_for_holes_parts_and_overlapping_contours(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["Rectum"] += [square(12.5, z, (0, 50)) for z in zs if abs(z) <= 12.5]
        rois["Bladder"] = [square(17.5, z, (x, -50)) for x in (-10, 10) for z in zs if abs(z) <= 22.5]

    row = prepared(workspace, plan("shapes", change))
    ratios = volume_ratios(workspace)
    assert ratios["Rectum"] == pytest.approx(1.0, abs=0.01)
    assert ratios["Bladder"] == pytest.approx(1.0, abs=0.05)
    assert facts(workspace)["contour_volumes_off"] == ""
    assert rt_dose_voxels(workspace, row)["Rectum"] == 604


def test_a_structure_thinner_than_pixels_is_named_for_its_lost_volume(workspace: Workspace) -> None:
    def change(rois: Rois, zs: list[float]) -> None:
        rois["Rectum"] = [
            np.array([(-30.0, 51.0, z), (30.0, 51.0, z), (30.0, 52.0, z), (-30.0, 52.0, z)]) for z in zs if abs(z) <= 40
        ]

    prepared(workspace, plan("thin organ", change))
    assert volume_ratios(workspace)["Rectum"] == 0.0
    assert facts(workspace)["contour_volumes_off"] == "Rectum"


def test_contours_that_belong_to_no_single_roi_cost_only_themselves(workspace: Workspace) -> None:
    case = plan_case("strangers")
    structure_set = case[-3]
    stranger = copy.deepcopy(structure_set.ROIContourSequence[3])
    stranger.ReferencedROINumber = 77
    structure_set.ROIContourSequence.append(stranger)
    structure_set.StructureSetROISequence.append(item(ROIName="Femur_L"))
    structure_set.StructureSetROISequence.append(item(ROINumber=5, ROIName="Bowel"))
    row = prepared(workspace, case)
    assert row["status"] == "ok", row["reason"]
    voxels = rt_dose_voxels(workspace, row)
    assert (voxels["PTV70"], voxels["Rectum"], voxels["Bladder"]) == (729, 729, 0)
    measured = facts(workspace)
    assert measured["rois_unusable"] == (
        "item 6 of the list of ROIs: it has no ROI number; ROI 5: its number stands for 2 names; ROI 5: its number stands for "
        "2 names; ROI 77: it has contours and is not in the list of ROIs"
    )
    assert measured["structures_excluded"] == (
        "Bladder (its number stands for 2 names), Bowel (its number stands for 2 names), Femur_L (it has no ROI number)"
    )


def test_a_target_whose_number_stands_for_two_names_is_refused_by_name(workspace: Workspace) -> None:
    case = plan_case("target twice")
    case[-3].StructureSetROISequence.append(item(ROINumber=2, ROIName="Bowel"))
    row = prepared(workspace, case)
    assert row["reason_code"] == "no_ptv"
    assert "PTV70 is there and can't be used (its number stands for 2 names)" in row["reason"]


L = "lumbar_mr"
POINTS = {name: (0.0, 0.0, 60.0 - 30.0 * number) for number, name in enumerate(ROI_NAMES.values())}


def spine(tag: str, change: Callable[[Any], object] = lambda structure_set: None) -> list[Any]:
    """A sagittal series with a point on each level, numbers 1 to 5 from head to feet."""
    st_ = Study(tag)
    slices = mr(st_)
    points = [(name, [(np.array([at]), "POINT")]) for name, at in POINTS.items()]
    structure_set = rtstruct(st_, slices, points, contour_images=False)
    change(structure_set)
    return [*slices, structure_set]


def add_point(structure_set: Any, number: int, data: list[str]) -> None:
    structure_set.ROIContourSequence[number - 1].ContourSequence.append(
        item(ContourGeometricType="POINT", NumberOfContourPoints=1, ContourData=data)
    )


def measured_spine(ws: Workspace, change: Callable[[Any], object]) -> dict[str, Any]:
    write(spine("spine", change), ws.landing / L / "case")
    raw, rows = ingest(ws, L)
    assert [row["reason"] for row in rows or raw if row["status"] != "ok"] == []
    (row,) = ws.lake.rows(program.fact_table(L), L)
    return row


@pytest.mark.parametrize("data", [[], ["1", "2"], ["0", "0", "0", "5", "5", "5"]])
def test_a_malformed_point_beside_a_good_one_is_named_and_costs_nothing(workspace: Workspace, data: list[str]) -> None:
    found = measured_spine(workspace, lambda structure_set: add_point(structure_set, 2, data))
    assert found["levels"] == 5
    assert found["points_left_out"].startswith("L2/L3: a POINT of ")


def test_a_point_that_was_sent_twice_is_one_point(workspace: Workspace) -> None:
    found = measured_spine(workspace, lambda structure_set: add_point(structure_set, 2, ["0", "0", "30"]))
    assert (found["levels"], found["points_left_out"]) == (5, "")


def test_a_level_with_two_positions_is_left_out_by_name_and_the_others_count(workspace: Workspace) -> None:
    found = measured_spine(workspace, lambda structure_set: add_point(structure_set, 2, ["0", "3", "34"]))
    assert found["levels"] == 4
    assert found["points_left_out"] == "L2/L3: 2 points, up to 5.0 mm from the first"


def test_a_point_without_an_roi_or_of_another_frame_is_left_out_and_named(workspace: Workspace) -> None:
    def change(structure_set: Any) -> None:
        stranger = copy.deepcopy(structure_set.ROIContourSequence[0])
        stranger.ReferencedROINumber = 42
        structure_set.ROIContourSequence.append(stranger)
        structure_set.StructureSetROISequence[4].ReferencedFrameOfReferenceUID = uid("another frame")

    found = measured_spine(workspace, change)
    assert found["levels"] == 4
    assert found["points_left_out"] == (
        "ROI 42: it has contours and is not in the list of ROIs; L5/S1: in another frame of reference"
    )


def test_points_none_of_which_can_be_used_are_refused_with_what_was_left_out(workspace: Workspace) -> None:
    def change(structure_set: Any) -> None:
        for one in structure_set.ROIContourSequence:
            one.ContourSequence[0].ContourData = ["1", "2"]

    write(spine("no points", change), workspace.landing / L / "case")
    raw, _ = ingest(workspace, L)
    assert [row["reason_code"] for row in raw] == ["no_level_points"]
    assert "L1/L2: a POINT of 2 numbers" in raw[0]["reason"]


POLYGONS = st.lists(st.tuples(st.integers(1, 10), st.integers(6, 33), st.integers(6, 33)), min_size=1, max_size=4)


def box(half: float, y: float, x: float) -> np.ndarray:
    return (
        np.array([(y - half, x - half), (y - half, x + half), (y + half, x + half), (y + half, x - half)], float) + 0.25
    )


def test_contours_of_one_area_that_overlap_in_a_hole_do_not_depend_on_their_order() -> None:
    large, left, right = box(2, 6, 6), box(1, 6, 6), box(1, 6, 7)
    drawn = fill_nested([large, left, right], (40, 40))[0]
    np.testing.assert_array_equal(fill_nested([right, np.roll(left[::-1], 1, axis=0), large], (40, 40))[0], drawn)


@settings(max_examples=60, deadline=None)
@given(POLYGONS, st.randoms())
def test_drawing_does_not_depend_on_the_order_the_start_or_the_direction_of_contours(boxes: Any, chance: Any) -> None:
    polygons = [box(*one) for one in boxes]
    drawn, _, _ = fill_nested(polygons, (40, 40))
    turned = [np.roll(polygon[:: chance.choice((1, -1))], chance.randrange(4), axis=0) for polygon in polygons]
    chance.shuffle(turned)
    np.testing.assert_array_equal(fill_nested(turned + turned[:1], (40, 40))[0], drawn)
    everything = np.logical_or.reduce([fill_even_odd([polygon], (40, 40)) for polygon in polygons])
    assert not (drawn & ~everything).any()


def test_rings_are_rings_however_thin() -> None:
    outer, inner = box(15, 20, 20), box(14, 20, 20)
    drawn, overlaps, _ = fill_nested([outer, inner], (40, 40))
    assert (int(drawn.sum()), overlaps) == (30 * 30 - 28 * 28, 0)


def test_an_island_in_a_hole_is_drawn() -> None:
    drawn, _, _ = fill_nested([box(15, 20, 20), box(10, 20, 20), box(4, 20, 20)], (40, 40))
    assert int(drawn.sum()) == 900 - 400 + 64


def test_contours_beside_each_other_are_neither_compared_point_by_point_nor_drawn_on_the_whole_slice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specks = [box(1, y, x) for y in range(4, 196, 6) for x in range(4, 196, 6)]
    drawn_pixels, compared = [], []
    fill, farthest = polygons._even_odd_in_box, polygons._farthest

    def counted_fill(given: Any, shape: Any) -> Any:
        where, inside = fill(given, shape)
        drawn_pixels.append(inside.size)
        return where, inside

    def counted_farthest(points: Any, polygon: Any) -> float:
        compared.append(len(points))
        return farthest(points, polygon)

    monkeypatch.setattr(polygons, "_even_odd_in_box", counted_fill)
    monkeypatch.setattr(polygons, "_farthest", counted_farthest)
    filled = fill_nested(specks, (200, 200))
    np.testing.assert_array_equal(filled.mask, fill_even_odd(specks, (200, 200)))
    assert max(drawn_pixels[: len(specks)]) == 4
    assert compared == []
    assert fill_nested([specks[0], specks[0][::-1]], (200, 200)).mask.sum() == 4
    assert len(compared) == 2


def test_the_area_within_a_rectangle_is_exact() -> None:
    assert clipped_area(box(10, 20, 20) - 0.25, (0, 0), (15, 100)) == pytest.approx(100)
    assert clipped_area(box(10, 20, 20) - 0.25, (50, 50), (60, 60)) == 0
    assert clipped_area(box(10, 20, 20)[::-1] - 0.25, (0, 0), (40, 40)) == pytest.approx(400)


def test_a_hole_in_the_overlap_of_two_united_contours_stays_a_hole() -> None:
    drawn, overlaps, _ = fill_nested([box(10, 20, 15), box(9, 20, 25), box(2, 20, 20)], (40, 40))
    assert overlaps == 1
    assert not drawn[19:21, 19:21].any()


def test_uneven_frames_do_not_drift_by_rounding() -> None:
    offsets = np.cumsum([0, *[3.0, 3.04] * 38])
    case = plan_case("alternating", dose_kw={"offsets": offsets, "n": len(offsets)})
    volume = read_dose(case[-1])
    last = volume.geometry.to_points(np.array([[volume.array.shape[0] - 1, 0, 0]]))[0, 2]
    first = volume.geometry.to_points(np.array([[0, 0, 0]]))[0, 2]
    assert last - first == pytest.approx(offsets[-1], abs=0.06)
